"""Opaque ids: a prefix that says the kind, then a ULID, so that ids sort by creation time.

Source of the layout: the ULID specification (48 bits of milliseconds, 80 random bits,
Crockford's base 32), written in lower case.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable

NewId = Callable[[str], str]
"""Makes an id of a kind: `new_id("job")` → `"job_01k…"`."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_BY_BYTE = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))
"""A character for each byte: 5 bits of it, each character for as many bytes as the others."""
_TIME_CHARACTERS, _RANDOM_CHARACTERS = 10, 16
_DRAWN_AT_ONCE = 256
_PATTERN = re.compile(r"[a-z]{2,12}_[0-9a-hjkmnp-tv-z]{26}")


def encode_ulid(milliseconds: int, randomness: int) -> str:
    """Return the 26 characters of a ULID: `milliseconds` < 2^48, `randomness` < 2^80."""
    return _digits(milliseconds, _TIME_CHARACTERS) + _digits(randomness, _RANDOM_CHARACTERS)


def _digits(value: int, count: int) -> str:
    return "".join([_ALPHABET[(value >> shift) & 31] for shift in range(5 * count - 5, -1, -5)])


def new_id(prefix: str) -> str:
    """Return a fresh id of the kind that `prefix` (2 to 12 lower-case letters) names."""
    try:
        chance = _chances.pop()  # one step, so that no two threads get the same
    except IndexError:
        chance = _draw()
    return f"{prefix}_{_digits(time.time_ns() // 1_000_000, _TIME_CHARACTERS)}{chance}"


# The system is asked for the randomness of many ids at once: each time another thread may take the interpreter.
_chances: deque[str] = deque()
os.register_at_fork(after_in_child=_chances.clear)  # or parent and child would give the same ids


def _draw() -> str:
    """Return the random characters of an id, and keep those of further ones."""
    drawn = os.urandom(_RANDOM_CHARACTERS * _DRAWN_AT_ONCE).translate(_BY_BYTE).decode("ascii")
    pieces = [drawn[at : at + _RANDOM_CHARACTERS] for at in range(0, len(drawn), _RANDOM_CHARACTERS)]
    _chances.extend(pieces[1:])
    return pieces[0]


def is_id(text: str, prefix: str) -> bool:
    """Say whether `text` has the form of an id of the kind `prefix`."""
    return text.startswith(f"{prefix}_") and _PATTERN.fullmatch(text) is not None
