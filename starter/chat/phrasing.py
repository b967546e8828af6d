"""Turns patterns into sentences, and sentences into what hurried people type. Pure: all chance comes from `rng`."""

import random
import re
from collections.abc import Callable, Mapping, Sequence

_CHOICE = re.compile(r"\(([^()]*)\)")
_MACRO = re.compile(r"<([a-z_]+)>")
_SPACES = re.compile(r"\s+")
_SMALL_WORDS = frozenset(
    ("a", "an", "the", "my", "this", "that", "to", "of", "in", "on", "for", "is", "are", "do", "does", "i", "me", "it",
     "please", "all", "some", "any")
)  # fmt: skip
_NEIGHBOURS = {
    row[i]: (row[i - 1] if i else "") + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i in range(len(row))
}
_SYLLABLES = (
    "ba", "be", "bo", "bri", "cha", "cro", "da", "dem", "du", "el", "fa", "fen", "fi", "flo", "ga", "gor", "gri",
    "ha", "hin", "il", "jo", "ka", "kel", "kri", "la", "lem", "lo", "lu", "ma", "men", "mo", "na", "ner", "nu", "ob",
    "or", "pa", "pel", "pli", "po", "qua", "ra", "ren", "ri", "ro", "sa", "sen", "ski", "so", "sta", "ta", "ter",
    "thu", "ti", "tor", "tra", "tu", "ul", "un", "va", "ver", "vi", "wa", "wen", "xo", "ya", "yor", "za", "zen",
    "zi", "nk", "st", "ck", "ng", "sh", "ll", "rd", "ff", "mp",
)  # fmt: skip
_SIGNS = "0123456789+-*/=.,;:!?#$%&@()[]{}<>_~^ "
# Cyrillic, Greek, Chinese, Arabic, Korean, pictures, Japanese
_SCRIPTS = (
    (0x430, 0x44F), (0x3B1, 0x3C9), (0x4E00, 0x5E00), (0x627, 0x64A), (0xAC00, 0xB000), (0x1F300, 0x1F5FF),
    (0x3041, 0x3093),
)  # fmt: skip

Macros = Mapping[str, Callable[[random.Random], str]]


def expand(pattern: str, macros: Macros, rng: random.Random) -> str:
    """Return one sentence of `pattern`: `(a|b|)` is a choice, `<name>` is what `macros[name]` draws."""
    text = _MACRO.sub(lambda found: macros[found[1]](rng), pattern)
    while "<" in text and _MACRO.search(text):
        text = _MACRO.sub(lambda found: macros[found[1]](rng), text)
    while "(" in text and _CHOICE.search(text):
        text = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), text)
    return _SPACES.sub(" ", text).strip()


def choice_of(options: Sequence[str]) -> Callable[[random.Random], str]:
    """Return a macro that draws one of `options`."""
    return lambda rng: rng.choice(options)


def pseudo_word(rng: random.Random) -> str:
    """Return a word that no language has: two to four syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def gibberish(rng: random.Random) -> str:
    """Return what a cat types: letters, digits, signs, or letters of other scripts."""
    kind = rng.random()
    if kind < 0.4:
        return " ".join(
            "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 12)))
            for _ in range(rng.randint(1, 4))
        )
    if kind < 0.6:
        return "".join(rng.choice(_SIGNS) for _ in range(rng.randint(2, 24))).strip() or "#"
    first, last = rng.choice(_SCRIPTS)
    return " ".join(
        "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(1, 5))
    )


def typo(word: str, rng: random.Random) -> str:
    """Return `word` with one slip of a finger: a letter swapped, lost, doubled or hit beside."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    near = _NEIGHBOURS.get(word[at].lower(), "")
    return word[:at] + (rng.choice(near) if near else word[at]) + word[at + 1 :]


def slips(text: str, rng: random.Random) -> str:
    """Return `text` as it may be typed: typos, small words and apostrophes lost."""
    if "'" in text and rng.random() < 0.25:
        text = text.replace("'", "")
    words = text.split(" ")
    if len(words) > 3 and rng.random() < 0.12:
        lost = [i for i, word in enumerate(words) if word.lower() in _SMALL_WORDS]
        if lost:
            del words[rng.choice(lost)]
    if rng.random() < 0.16:
        long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        for i in rng.sample(long, min(len(long), rng.choice((1, 1, 1, 2)))):
            words[i] = typo(words[i], rng)
    return " ".join(words)


def cased(text: str, rng: random.Random) -> str:
    """Return `text` in the case of a tidy, a lazy or a loud person."""
    kind = rng.random()
    if kind < 0.47:
        return text
    if kind < 0.92:
        return re.sub(r"\bi\b(?!/)", "I", text[:1].upper() + text[1:])
    return text.upper() if kind < 0.96 else text.title()


def ended(text: str, rng: random.Random) -> str:
    """Return `text` with the mark at its end, or with none."""
    if text[-1:] in "?!.":
        return text
    kind = rng.random()
    return text + ("?" if kind < 0.5 else "." if kind < 0.58 else " ?" if kind < 0.6 else "!" if kind < 0.62 else "")


def normal(text: str) -> str:
    """Return what is left of a question without case, marks and doubled spaces; by it two questions are the same."""
    return _SPACES.sub(" ", re.sub(r"[^\w/]+", " ", text.lower())).strip()
