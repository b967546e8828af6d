"""The model of the chat benchmark: of the shape of Qwen3-0.6B, with random weights, in every server's form.

    python benchmarks/chat_cpu_models.py weights|fp16|int8|int4      makes one form below out/chat-cpu/

The tokenizer is trained on made-up words, so that it has as many tokens as Qwen3's and nearly every one is text.
The embeddings of all other tokens are zero, and so are their logits: the likeliest token is never one that ends
an answer, whatever the server, and always one that is told.
"""

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / "out" / "chat-cpu"
SEED = 6
VOCABULARY, TEXT_TOKENS = 151_936, 151_643
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BEGIN, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers cut text into words; llama.cpp knows it as `qwen2`."""
FORMS = ("weights", "fp16", "int8", "int4")


def make(form: str) -> Path:
    """Return the folder of a form, made by a process of its own if it is not there: torch's memory goes with it."""
    folder = HOME / form
    if not (folder / "config.json").exists():
        if form != "weights":
            make("weights" if form == "fp16" else "fp16")
        command = ["nice", "-n", "19", sys.executable, str(Path(__file__)), form]
        subprocess.run(command, check=True)
    return folder


def make_gguf(kind: str, python: Path) -> Path:
    """Return the GGUF file of `kind` (q8_0, q4_0), written by a Python that has the package `gguf`."""
    file = HOME / f"{kind}.gguf"
    if not file.exists():
        script = Path(__file__).with_name("chat_cpu_gguf.py")
        command = ["nice", "-n", "19", str(python), str(script), str(make("weights")), str(file), kind]
        subprocess.run(command, check=True)
    return file


def prompts(count: int, tokens: int, draw: random.Random) -> list[str]:
    """Return messages, no two alike, whose prompts have exactly so many tokens with the template around them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(make("weights") / "tokenizer.json"))
    words = _words()
    found: list[str] = []
    while len(found) < count:
        chosen = draw.sample(words[:50_000], tokens)
        while len(tokenizer.encode(BEGIN + " ".join(chosen) + END).ids) > tokens:
            chosen.pop()
        if len(tokenizer.encode(BEGIN + " ".join(chosen) + END).ids) == tokens:
            found.append(" ".join(chosen))
    return found


def _words() -> list[str]:
    """Return made-up words, the same each time; the first ones are the commonest."""
    draw = random.Random(SEED)
    vowels = ["a", "e", "i", "o", "u", "ai", "er", "on"]
    syllables = [one + vowel for one in [*"bcdfghklmnprstvwz", "st", "tr", "pl"] for vowel in vowels]
    words = {"".join(draw.choices(syllables, k=draw.randint(1, 4))): None for _ in range(260_000)}
    return list(words)


def _corpus(words: Sequence[str]) -> Iterator[str]:
    for begin in range(0, len(words), 1000):
        for _ in range(max(2, 20 - begin // 5000)):
            yield " " + " ".join(words[begin : begin + 1000])


def _make_weights(folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(folder)
    torch.manual_seed(SEED)
    end, start = TEXT_TOKENS + 2, TEXT_TOKENS
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=start,
        dtype=torch.bfloat16,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[TEXT_TOKENS:] = 0
    model.generation_config.eos_token_id = [end, start]
    model.generation_config.do_sample = False
    model.save_pretrained(folder)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(_words()), trainer)
    if tokenizer.get_vocab_size() != TEXT_TOKENS:
        raise RuntimeError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens")
    tokenizer.add_special_tokens(list(SPECIAL))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=TEMPLATE,
        model_max_length=40_960,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)


def main(form: str) -> None:
    """Make a form whose source is there."""
    if form == "weights":
        _make_weights(HOME / form)
        return
    from serai.engines.quiet import quieten

    quieten()
    from serai.pulls.conversion.export import convert

    source = HOME / ("weights" if form == "fp16" else "fp16")
    convert(source, HOME / form, quantization=form, report=lambda *_: None, threads=2)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in FORMS:
        main(sys.argv[1])
    else:
        print(__doc__)
