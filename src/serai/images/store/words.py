"""What a text is found by: its words, alike on every database, and the marks beside them.

Both databases index words that are made here and divide them at the spaces alone, so that what is found
does not depend on how either of them takes a text apart.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from serai.errors import InvalidInput

MAX_WORDS = 32
"""Of one question."""
_MAX_LETTERS = 64
"""Of one word; the rest of a longer one is not looked at. PostgreSQL's limit is 2,046 bytes."""
_MIN_PREFIX = 2

_UNTOLD = re.compile("[\u0300-\u036f\u0591-\u05c7\u0640\u064b-\u065f\u0670\ufe00-\ufe0f]")
"""Accents, the points of Hebrew and Arabic, and variants of form: people leave them out."""
_ALIKE = str.maketrans("يىك", "ییک")
"""Letters of Arabic that Persian writes in another way, by whatever keyboard is at hand."""
_ALONE = (
    ("\u3040", "\u30ff"),  # kana
    ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)
"""Scripts without spaces: each character is a word. So is each emoji."""
_ASKED = re.compile(r'"([^"]*)"(\*?)|(\S+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Words that stand one after the other; of a prefix, the last one may go on."""

    words: tuple[str, ...]
    is_prefix: bool = False


def words_of(text: str) -> list[str]:
    """Return the words of `text` in order: small letters without accents, digits, single emoji; nothing else."""
    if text.isascii():
        return [word[:_MAX_LETTERS] for word in re.findall("[a-z0-9]+", text.lower())]
    folded = unicodedata.normalize("NFKD", text).casefold().translate(_ALIKE)
    plain = unicodedata.normalize("NFC", _UNTOLD.sub("", folded))
    return [word[:_MAX_LETTERS] for word in "".join(map(_spaced, plain)).split()]


@lru_cache(maxsize=4096)
def _spaced(char: str) -> str:
    """Return the character as it stands in a word, between spaces if it is one itself, or a space."""
    kind = unicodedata.category(char)
    if kind == "So" or any(first <= char <= last for first, last in _ALONE):
        return f" {char} "
    return char if kind[0] in "LNM" else " "


def terms_of(text: str) -> tuple[Term, ...]:
    """Return what is asked: `words`, `"words in a row"`, and `begin*` from two letters on; any text is a question.

    What is written together (`sci-fi`) is found where it stands together. Raises InvalidInput for too many words.
    """
    terms = []
    for phrase, after, word in _ASKED.findall(text):
        words = tuple(words_of(phrase or word))
        if words:
            is_prefix = bool(after or word.endswith("*")) and len(words[-1]) >= _MIN_PREFIX
            terms.append(Term(words=words, is_prefix=is_prefix))
    if sum(len(term.words) for term in terms) > MAX_WORDS:
        raise InvalidInput.at("search", f"has more than {MAX_WORDS} words")
    return tuple(terms)


def mark(kind: str, value: str) -> str:
    """Return the word, like no word of any text, under which a picture is found by `value` of `kind` (a letter)."""
    return f"§{kind}{hashlib.sha256(value.encode()).hexdigest()[:16]}"
