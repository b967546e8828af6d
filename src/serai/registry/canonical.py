"""One text for one JSON value, so that equal manifests have equal digests.

In the spirit of RFC 8785: keys sorted, no spaces, UTF-8, and a whole float written as the integer
it equals, because a database may give back 1 where 1.0 was stored.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from serai.errors import InvalidInput

_MAX_DEPTH = 64
_EXACT = 2**53
"""Above this a float stands for several integers, so it stays a float."""


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of `value`. Raises InvalidInput for what JSON cannot carry."""
    try:
        return msgspec.json.encode(_normal(value, _MAX_DEPTH), order="deterministic")
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise InvalidInput("A value cannot be written as JSON.") from error


def digest_of(value: object) -> str:
    """Return 'sha256:…' of the canonical JSON of `value`. Raises InvalidInput."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def _normal(value: Any, depth: int) -> Any:
    if depth == 0:
        raise InvalidInput("A value is nested too deeply.")
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidInput("A whole number is out of the range of 64 bits.")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput("A number is not finite.")
        return int(value) if value.is_integer() and abs(value) < _EXACT else value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidInput("A key of an object is not a text.")
        return {key: _normal(item, depth - 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_normal(item, depth - 1) for item in value]
    raise InvalidInput(f"A value of type {type(value).__name__} cannot be written as JSON.")
