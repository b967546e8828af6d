"""Asks the trained model and judges its answers: `python -m starter.chat.evaluate`.

Writes `evaluation.json`, with every wrong answer, and the figures into `card.json`.

An answer is right if it holds the key facts of its intent and is not much longer than the intent's answer. It is
written by the network, token by token; greedy unless said otherwise. Held-out questions that training drew by
chance are left out and counted.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from starter.chat.conversations import SYSTEM, draw, pool
from starter.chat.phrasing import normal
from starter.chat.questions import Questions, foreign_evaluation, held_out, is_guide
from starter.chat.train import BATCHES_PER_POOL, OUT, Plan

RESULT = Path(__file__).parent / "evaluation.json"
CARD = Path(__file__).parent / "card.json"
BATCH = 64
MAX_NEW_TOKENS = 112

Messages = list[dict[str, str]]


class Chat:
    """The saved folder, as any client of transformers would load it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model.train(mode=False)

    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def answers(self, conversations: Sequence[Messages], *, temperature: float = 0.0) -> list[str]:
        """Return the answer to each conversation."""
        found: list[str] = []
        for at in range(0, len(conversations), BATCH):
            asked = self._tokenizer.apply_chat_template(
                list(conversations[at : at + BATCH]),
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            )
            sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            with torch.no_grad():
                made = self._model.generate(**asked, max_new_tokens=MAX_NEW_TOKENS, **sampling)
            new = made[:, asked["input_ids"].shape[1] :]
            found += self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return found


def alone(question: str) -> Messages:
    """Return a conversation of one question."""
    return [{"role": "user", "content": question}]


def after_turns(question: str, turns: Sequence[tuple[str, str]]) -> Messages:
    """Return a conversation in which others were asked and answered before."""
    told: Messages = []
    for asked, answered in turns:
        told += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return told + alone(question)


def drawn_questions(plan: Plan) -> set[str]:
    """Return every question of the training run, in its normal form."""
    questions = Questions()
    size = BATCHES_PER_POOL * plan.batch
    return {
        normal(turn.question)
        for number in range(-(-plan.steps // BATCHES_PER_POOL))
        for conversation in pool(questions, plan.seed, number, size)
        for turn in conversation.turns
    }


def judged(
    pairs: Sequence[tuple[str, str]], answers: Sequence[str], right: Callable[[str, str], bool]
) -> dict[str, Any]:
    """Return how many (name, question) were answered right, and every one that was not."""
    wrong = [
        {"expected": name, "question": question, "answer": answer}
        for (name, question), answer in zip(pairs, answers, strict=True)
        if not right(name, answer)
    ]
    share = 1 - len(wrong) / max(1, len(pairs))
    return {"questions": len(pairs), "right": len(pairs) - len(wrong), "share": round(share, 4), "wrong": wrong}


def evaluate(chat: Chat, plan: Plan) -> dict[str, Any]:
    """Return all figures."""
    questions, rng = Questions(), random.Random(plan.seed)
    intents = questions.intents
    drawn = drawn_questions(plan)
    everything = list(held_out())
    held = [(name, question) for name, question in everything if normal(question) not in drawn]
    foreign = foreign_evaluation()

    def right(name: str, answer: str) -> bool:
        return is_guide(answer) if name == "foreign" else intents[name].met_by(answer)

    plain = chat.answers([alone(question) for _, question in held])
    refused = sum(is_guide(answer) for answer in plain)
    outside = judged(
        foreign, chat.answers([alone(question) for _, question in foreign]), lambda _, answer: is_guide(answer)
    )
    wrong_families = Counter(one["expected"] for one in outside["wrong"])

    def behind(count: int) -> list[Messages]:
        earlier = [[(t.question, t.answer) for _ in range(count) for t in draw(questions, rng).turns[:1]] for _ in held]
        return [after_turns(question, turns) for (_, question), turns in zip(held, earlier, strict=True)]

    ruled = [[{"role": "system", "content": rng.choice(SYSTEM)}, *alone(question)] for _, question in held]
    known = [(name, questions.of_intent(rng, intent)) for name, intent in intents.items() for _ in range(4)]
    torch.manual_seed(plan.seed)
    return {
        "parameters": chat.parameters(),
        "intents": len(intents),
        "held_out": {
            **judged(held, plain, right),
            "exact": sum(answer == intents[name].answer for (name, _), answer in zip(held, plain, strict=True)),
            "false_refusals": refused,
            "left_out_because_trained_on": len(everything) - len(held),
        },
        "foreign": {**outside, "families": len({name for name, _ in foreign}), "wrong_by_family": dict(wrong_families)},
        "held_out_after_2_turns": judged(held, chat.answers(behind(2)), right),
        "held_out_after_10_turns": judged(held, chat.answers(behind(10)), right),
        "held_out_with_system_message": judged(held, chat.answers(ruled), right),
        "held_out_at_temperature_0.8": judged(
            held, chat.answers([alone(question) for _, question in held], temperature=0.8), right
        ),
        "trained_phrasings": judged(known, chat.answers([alone(question) for _, question in known]), right),
    }


def brief(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures without the list of wrong answers."""
    return {
        name: {key: value for key, value in figures.items() if key != "wrong"} if isinstance(figures, dict) else figures
        for name, figures in result.items()
    }


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Evaluate a folder and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=OUT)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(**json.loads((options.folder / "checkpoint" / "state.json").read_text("utf-8"))["plan"])
    result = evaluate(Chat(options.folder), plan)
    write(options.result, result)
    if options.result == RESULT:
        write(CARD, json.loads(CARD.read_text("utf-8")) | {"evaluation": brief(result)})
    print(json.dumps(brief(result), indent=2))


if __name__ == "__main__":
    main()
