"""The questions and answers of the starter chat: what is asked, what is right, and what is foreign."""

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starter.chat.frames import reframe
from starter.chat.phrasing import Macros, cased, choice_of, ended, expand, gibberish, pseudo_word, slips

DATA = Path(__file__).parent / "data"
GUIDE = (
    "I am only a small guide to Serai and cannot help with that. "
    "For anything else get a real chat model with `serai pull MODEL`."
)
GUIDE_FACTS = ("only a small guide", "serai pull MODEL")

_FAMILY_WEIGHTS = {"general": 6.0, "longer": 7.0, "near": 4.0, "pseudo": 2.5, "apps": 1.5}
REFRAMED = 0.4
_OTHERS = (0.30, 0.04)  # shares of foreign questions: our own with other words in them, and gibberish
_WORD_SLOTS = ("noun", "verb", "adjective", "place", "person", "app", "thing", "language", "tongue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One thing that people ask, with its only right answer."""

    name: str
    answer: str
    facts: tuple[str, ...]
    ask: tuple[str, ...]
    plain: bool  # small talk: nothing is put around it

    def met_by(self, text: str) -> bool:
        """Return whether `text` is this answer: it holds all facts and is not much longer."""
        return all(fact in text for fact in self.facts) and len(text) <= 1.5 * len(self.answer)


def read_toml(name: str) -> dict[str, object]:
    """Return a file of `data/`."""
    with (DATA / name).open("rb") as file:
        return tomllib.load(file)


def load_intents() -> dict[str, Intent]:
    """Return all intents by name, in a fixed order."""
    define = _texts(read_toml("macros.toml")["define"])
    more = read_toml("more.toml")
    found: dict[str, Intent] = {}
    for path in sorted(DATA.glob("intents_*.toml")):
        for name, entry in read_toml(path.name).items():
            assert isinstance(entry, dict)
            assert name not in found
            nouns = entry.get("noun", [])
            defined = (pattern.replace("{}", noun) for noun in nouns for pattern in define)
            ask = (*entry["ask"], *_texts(more[name]), *defined)
            found[name] = Intent(
                name=name,
                answer=entry["answer"],
                facts=tuple(entry["facts"]),
                ask=ask,
                plain=entry.get("plain", False),
            )
    return found


def is_guide(text: str) -> bool:
    """Return whether `text` says that it is only a guide."""
    return all(fact in text for fact in GUIDE_FACTS)


class Questions:
    """Draws questions: of an intent, or foreign ones. Every draw depends on the `rng` alone."""

    def __init__(self) -> None:
        self.intents = load_intents()
        self._names = list(self.intents)
        own = {name: _texts(options) for name, options in read_toml("macros.toml").items()}
        words = {name: str(text).split() for name, text in read_toml("foreign_words.toml").items()}
        self._domain = frozenset(words["domain"])
        self._macros: Macros = {name: choice_of(options) for name, options in own.items()}
        self._foreign_macros: Macros = {
            **{slot: choice_of(words[slot]) for slot in _WORD_SLOTS},
            "f_how": self._macros["how"],
            "number": lambda rng: str(rng.choice((rng.randint(2, 99), rng.randint(100, 2030)))),
            "pseudo": pseudo_word,
        }
        families = {name: _texts(patterns) for name, patterns in read_toml("foreign_patterns.toml").items()}
        self._families = list(families.values())
        self._family_weights = [_FAMILY_WEIGHTS.get(name, 1.0) for name in families]
        self._own = own
        self._same = {word: group.split() for group in own["same"] for word in group.split()}

    def of_intent(self, rng: random.Random, intent: Intent) -> str:
        """Return a question to which `intent` is the answer."""
        text = self._said(rng.choice(intent.ask), self._macros, rng)
        return self._typed(text, rng, place=0.0 if intent.plain else 0.15, around=0.08 if intent.plain else 0.2)

    def any_intent(self, rng: random.Random) -> Intent:
        """Return one intent; those with many patterns come somewhat more often."""
        return self.intents[rng.choice(self._names)]

    def foreign(self, rng: random.Random) -> str:
        """Return a question that is not about Serai."""
        kind = rng.random()
        if kind < _OTHERS[1]:
            return gibberish(rng)
        text = self._with_other_words(rng) if kind < sum(_OTHERS) else None
        if text is None:
            family = rng.choices(self._families, self._family_weights)[0]
            text = self._said(rng.choice(family), self._foreign_macros, rng)
        return self._typed(text, rng, place=0.05, around=0.15)

    def _said(self, pattern: str, macros: Macros, rng: random.Random) -> str:
        """Return a sentence of `pattern`; one that begins with how-to may come in another grammatical frame."""
        how, _, wish = pattern.partition(" ")
        if how in ("<how>", "<f_how>") and rng.random() < REFRAMED:
            framed = reframe(expand(wish, macros, rng), rng)
            if framed is not None:
                return framed
        return expand(pattern, macros, rng)

    def _with_other_words(self, rng: random.Random) -> str | None:
        """Return one of our questions with each word of our subject replaced; None if it holds none."""
        intent = self.any_intent(rng)
        if intent.plain:
            return None
        words = self._said(rng.choice(intent.ask), self._macros, rng).split(" ")
        slot = rng.choice(("noun", "noun", "noun", "thing", "pseudo", "app", "place"))
        changed = False
        for i, word in enumerate(words):
            if word.lower().strip(",?'s") in self._domain or word.lower() in self._domain or "/" in word or "_" in word:
                other = self._foreign_macros["noun" if slot == "thing" else slot](rng)
                words[i] = other + ("s" if word.endswith("s") and slot == "noun" else "")
                changed = True
        return " ".join(words) if changed else None

    def _typed(self, text: str, rng: random.Random, *, place: float, around: float) -> str:
        words = [
            rng.choice(self._same[one]) if one in self._same and rng.random() < 0.15 else one for one in text.split()
        ]
        text = " ".join(words)
        if rng.random() < around:
            words.insert(rng.randint(0, len(words)), rng.choice(self._own["filler"]))
            text = " ".join(words)
        if rng.random() < around * 0.4:
            text = expand(f"<context> {text}", self._macros, rng)
        if rng.random() < place:
            text += " " + rng.choice(self._own["place"])
        if rng.random() < around:
            text = f"{rng.choice(self._own['opening'])} {text}"
        if rng.random() < around * 0.8:
            closing = rng.choice(self._own["closing"])
            text += closing if closing[0] in "?!." else f" {closing}"
        return ended(cased(slips(text, rng), rng), rng) or "?"


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(text) for text in value]


def held_out() -> Iterator[tuple[str, str]]:
    """Yield (intent, question) for every phrasing that was kept out of training."""
    for name, texts in read_toml("held_out.toml").items():
        for text in _texts(texts):
            yield name, text


def foreign_evaluation() -> list[tuple[str, str]]:
    """Return (family, question) of `foreign_eval.txt`, whose families training does not have."""
    found, family = [], ""
    for line in (DATA.parent / "foreign_eval.txt").read_text("utf-8").splitlines():
        if line.startswith("# "):
            family = line[2:].strip()
        elif line.strip():
            found.append((family, line.strip()))
    return found


def development() -> Iterator[tuple[str, str]]:
    """Yield (intent or `foreign`, question) of the questions that are watched while training; none is learned."""
    for name, texts in read_toml("development.toml").items():
        for text in _texts(texts):
            yield name, text
