"""Opaque ids: a prefix that says the kind, then a ULID, so that ids sort by creation time.

Source of the layout: the ULID specification (48 bits of milliseconds, 80 random bits,
Crockford's base 32), written in lower case.
"""

import re
import secrets
import time
from collections.abc import Callable

NewId = Callable[[str], str]
"""Makes an id of a kind: `new_id("job")` → `"job_01k…"`."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"[a-z]{2,12}_[0-9a-hjkmnp-tv-z]{26}")


def encode_ulid(milliseconds: int, randomness: int) -> str:
    """Return the 26 characters of a ULID: `milliseconds` < 2^48, `randomness` < 2^80."""
    value = (milliseconds << 80) | randomness
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def new_id(prefix: str) -> str:
    """Return a fresh id of the kind that `prefix` (2 to 12 lower-case letters) names."""
    return f"{prefix}_{encode_ulid(time.time_ns() // 1_000_000, secrets.randbits(80))}"


def is_id(text: str, prefix: str) -> bool:
    """Say whether `text` has the form of an id of the kind `prefix`."""
    return text.startswith(f"{prefix}_") and _PATTERN.fullmatch(text) is not None
