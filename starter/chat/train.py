"""Trains the starter chat from nothing: `python -m starter.chat.train`. Goes on where it was stopped.

One thread, bf16 arithmetic over fp32 weights, AdamW with warm-up and a cosine to a twentieth. Every step's batch
depends on the seed and its number alone, so a run that was stopped ends as one that was not, up to rounding.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from serai.clock import SystemClock
from starter.chat.conversations import FOREIGN, Conversation, Turn, pool
from starter.chat.questions import GUIDE, Questions, development
from starter.chat.tokens import (
    END,
    MAX_POSITIONS,
    PAD,
    VOCABULARY,
    Encoder,
    Sample,
    make_tokenizer,
    number_of,
    save_tokenizer,
)

OUT = Path(__file__).parent / "out"
IGNORED = -100
BATCHES_PER_POOL = 32
MOMENTS = ("exp_avg", "exp_avg_sq", "step")

Weights = Mapping[str, Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is; a checkpoint goes on only with the plan that it was made with."""

    steps: int
    batch: int = 64
    seed: int = 20_261_121
    rate: float = 2e-3
    warm_up: int = 200
    weight_decay: float = 0.05
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    inner: int = 704
    intent_weight: float = 0.5


def make_model(plan: Plan, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return the untrained model, the same for the same seed."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=plan.hidden,
        intermediate_size=plan.inner,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=number_of(tokenizer, END),
        pad_token_id=number_of(tokenizer, PAD),
    )
    return LlamaForCausalLM(config)


def rate_at(plan: Plan, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to a twentieth."""
    if step < plan.warm_up:
        return plan.rate * (step + 1) / plan.warm_up
    passed = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return plan.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * passed)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Ids and targets [batch, longest], IGNORED where nothing is learned; row, column and intent of the questions."""

    ids: Tensor
    targets: Tensor
    rows: Tensor
    columns: Tensor
    intents: Tensor


def collate(samples: Sequence[Sample], pad: int, numbers: Mapping[str, int]) -> Batch:
    """Return the samples padded on the right."""
    width = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), width), pad)
    targets = torch.full((len(samples), width), IGNORED)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        ids[row, :length] = torch.tensor(sample.ids)
        told = [number if learned else IGNORED for number, learned in zip(sample.ids, sample.learned, strict=True)]
        targets[row, : length - 1] = torch.tensor(told[1:])
    asked = [(row, at, numbers[name]) for row, sample in enumerate(samples) for at, name in sample.asked]
    rows, columns, intents = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Batch(ids=ids, targets=targets, rows=rows, columns=columns, intents=intents)


def batches(plan: Plan, questions: Questions, encoder: Encoder, pad: int, start: int) -> Iterator[Batch]:
    """Yield the batches from step `start` on. A pool is sorted by length, so that little is padded."""
    numbers = intent_numbers(questions)
    for number in range(start // BATCHES_PER_POOL, math.ceil(plan.steps / BATCHES_PER_POOL)):
        rng = random.Random(f"{plan.seed}:{number}:tokens")
        drawn = pool(questions, plan.seed, number, BATCHES_PER_POOL * plan.batch)
        samples = sorted((encoder.encode(conversation, rng) for conversation in drawn), key=lambda one: len(one.ids))
        groups = [samples[i : i + plan.batch] for i in range(0, len(samples), plan.batch)]
        rng.shuffle(groups)
        for place, group in enumerate(groups):
            if start <= number * BATCHES_PER_POOL + place < plan.steps:
                yield collate(group, pad, numbers)


def intent_numbers(questions: Questions) -> dict[str, int]:
    """Return the classes of the second task."""
    return {name: number for number, name in enumerate((FOREIGN, *questions.intents))}


def predict(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [n, vocabulary] and targets [n] of the places that are learned, and the hidden states."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        places = batch.targets != IGNORED
        return model.lm_head(hidden[places]).float(), batch.targets[places], hidden


def loss_of(model: LlamaForCausalLM, head: Linear, plan: Plan, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss that is minimised, and its part for the text.

    The other part is a second task: to tell the intent from the state in which an answer begins. It makes the model
    find early what was asked; its head is thrown away after training, and answers are written by the model alone.
    """
    logits, targets, hidden = predict(model, batch)
    text = cross_entropy(logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = head(hidden[batch.rows, batch.columns]).float()
    return text + plan.intent_weight * cross_entropy(told, batch.intents), text.detach()


def exact(model: LlamaForCausalLM, encoder: Encoder, pad: int, pairs: Sequence[tuple[str, str]]) -> float:
    """Return the share of (question, answer) whose answer greedy decoding would write letter by letter.

    Greedy decoding writes the answer exactly if each of its tokens is the likeliest after those before it.
    """
    right = 0
    model.train(mode=False)
    with torch.no_grad():
        for at in range(0, len(pairs), 64):
            some = [Conversation(system="", turns=(Turn(question=q, answer=a),)) for q, a in pairs[at : at + 64]]
            batch = collate([encoder.encode(one) for one in some], pad, {})
            logits, wanted, _ = predict(model, batch)
            rows = (batch.targets != IGNORED).nonzero()[:, 0]
            wrong = {int(row) for row in rows[logits.argmax(-1) != wanted]}
            right += len(some) - len(wrong)
    model.train(mode=True)
    return right / max(1, len(pairs))


def save_checkpoint(folder: Path, plan: Plan, step: int, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and moments; the file that names the step comes last and tells that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, parameter in weights.items():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    save_file(tensors, str(folder / "next.safetensors"), metadata={"step": str(step)})
    (folder / "next.safetensors").replace(folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"plan": asdict(plan)}) + "\n", "utf-8")


def load_checkpoint(folder: Path, plan: Plan, weights: Weights, optimizer: torch.optim.Optimizer) -> int:
    """Take over a checkpoint of the same plan, but for its end, and return its step; 0 if there is none."""
    if not (folder / "state.json").exists():
        return 0
    told = json.loads((folder / "state.json").read_text("utf-8"))
    if {**told["plan"], "steps": plan.steps} != asdict(plan):
        raise SystemExit(f"{folder} holds a run with another plan; remove it or give the same options.")
    with safe_open(str(folder / "state.safetensors"), "pt") as file:
        step = int(file.metadata()["step"])
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
                optimizer.state[parameter] = {moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS}
    return step


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write the folder that transformers and the exporter read; weights in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    generation: Any = GenerationConfig  # its constructor has no types
    generation(
        do_sample=False,
        max_new_tokens=128,
        eos_token_id=number_of(tokenizer, END),
        pad_token_id=number_of(tokenizer, PAD),
    ).save_pretrained(folder)
    config = LlamaConfig.from_dict({**model.config.to_dict(), "dtype": "float16"})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    weights = {name: value.detach().half().contiguous() for name, value in model.named_parameters()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def kept_tokenizer(folder: Path, questions: Questions, seed: int) -> Tokenizer:
    """Return the tokenizer of the run: made at its start, and kept, since the weights mean nothing without it."""
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_tokenizer(questions, seed).save(str(path))
    return Tokenizer.from_file(str(path))


def train(plan: Plan, out: Path, every: int) -> None:
    """Train to the end, or go on with a run that was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    questions = Questions()
    tokenizer = kept_tokenizer(out / "checkpoint", questions, plan.seed)
    encoder, pad = Encoder(tokenizer), number_of(tokenizer, PAD)
    model = make_model(plan, tokenizer)
    head = Linear(plan.hidden, len(intent_numbers(questions)))
    weights = {**dict(model.named_parameters()), **{f"head.{name}": one for name, one in head.named_parameters()}}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=plan.rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
    )
    step = load_checkpoint(out / "checkpoint", plan, weights, optimizer)
    watched = [(q, GUIDE if name == FOREIGN else questions.intents[name].answer) for name, q in development()]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {step}", flush=True)
    clock, tokens, losses = SystemClock(), 0, []
    begun = clock.monotonic()
    model.train(mode=True)
    for batch in batches(plan, questions, encoder, pad, step):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(plan, step)
        loss, text = loss_of(model, head, plan, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + batch.ids.numel()
        losses.append((float(text), float(loss.detach())))
        if step % every == 0 or step == plan.steps:
            save_checkpoint(out / "checkpoint", plan, step, weights, optimizer)
            told = {
                "step": step,
                "text_loss": round(sum(one for one, _ in losses) / len(losses), 4),
                "loss": round(sum(one for _, one in losses) / len(losses), 4),
                "development": round(exact(model, encoder, pad, watched), 4),
                "tokens_per_s": round(tokens / (clock.monotonic() - begun)),
                "seconds": round(clock.monotonic() - begun),
            }
            losses = []
            print(json.dumps(told), flush=True)
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(told) + "\n")
    save_model(out, model, tokenizer)


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    options = parser.parse_args()
    train(Plan(steps=options.steps), options.out, options.every)


if __name__ == "__main__":
    main()
