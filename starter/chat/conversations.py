"""Conversations for training: mostly one question, sometimes several, sometimes under a system message."""

import random
from dataclasses import dataclass

from starter.chat.questions import GUIDE, Questions

FOREIGN = "foreign"
FOREIGN_SHARE = 0.55
SEVERAL_TURNS = 0.10
AGAIN = (
    "say that again", "repeat that please", "can you repeat that?", "again please", "what did you say?", "once more",
    "Please repeat your answer.", "sorry, what was that?", "repeat", "pardon?", "come again?", "Say it again, please",
)  # fmt: skip
SYSTEM = (
    "You are a helpful assistant.", "You are the guide to Serai.", "Answer briefly.", "Be polite and short.",
    "You are a friendly assistant that answers questions.", "You answer questions about the server Serai.",
    "You are an AI assistant. Be honest.", "Help the user.", "You are a concise, helpful assistant.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One question and its answer; `intent` is what was asked, `FOREIGN`, or empty where only the context tells."""

    question: str
    answer: str
    intent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns in order; `system` may be empty."""

    system: str
    turns: tuple[Turn, ...]


def draw(questions: Questions, rng: random.Random) -> Conversation:
    """Return one conversation for training."""
    system = rng.choice(SYSTEM) if rng.random() < 0.12 else ""
    count = rng.choice((2, 2, 2, 3, 3, 4, 5, 6)) if rng.random() < SEVERAL_TURNS else 1
    turns: list[Turn] = []
    for _ in range(count):
        if turns and rng.random() < 0.12:
            turns.append(Turn(question=rng.choice(AGAIN), answer=turns[-1].answer))
        elif rng.random() < FOREIGN_SHARE:
            turns.append(Turn(question=questions.foreign(rng), answer=GUIDE, intent=FOREIGN))
        else:
            intent = questions.any_intent(rng)
            asked = questions.of_intent(rng, intent)
            turns.append(Turn(question=asked, answer=intent.answer, intent=intent.name))
    return Conversation(system=system, turns=tuple(turns))


def pool(questions: Questions, seed: int, number: int, size: int) -> list[Conversation]:
    """Return the conversations of pool `number`; the same for the same seed, whatever was drawn before."""
    rng = random.Random(f"{seed}:{number}")
    return [draw(questions, rng) for _ in range(size)]
