"""What a log line may hold: plain values of bounded size, secrets as stars, binary data as its length.

Two nets: the name of a field (`password=…` whatever its value), and the form of a value (an API key
in the middle of an exception's text). Patterns are linear in the text; no input makes them slow.
"""

import math
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Final

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]

STARS: Final = "***"
MAX_TEXT: Final = 4096
MAX_ITEMS: Final = 64
_MAX_DEPTH: Final = 5

_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-.\s]+")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:authorization|cookie|csrf|jwt|pass(?:word|wd|phrase)|pass(?:word|wd)_hash|secrets?|token|credentials?"
    r"|api_?key|(?:private|signing|secrets?|access|encryption)_key)$"
)
_SECRET_TEXT: Final = (
    (re.compile(r"\bsk-serai-[\w-]+"), f"sk-serai-{STARS}"),
    (re.compile(r"\b(?:sk-|hf_|gh[pousr]_)[\w-]{8,}"), STARS),
    (re.compile(r"\beyJ[\w-]{6,}(?:\.[\w-]*){0,4}"), STARS),  # JWT: base64 of '{"…', cut off or whole
    (re.compile(r"\$argon2[\w$=,+/.-]+"), STARS),
    (re.compile(r"\b(Bearer|Basic)\s{1,8}[\w+/=.~-]{8,}", re.IGNORECASE), rf"\1 {STARS}"),
    (re.compile(r"(://[^\s:/@]{0,256}):[^\s/@]{1,256}@"), rf"\1:{STARS}@"),
    (re.compile(r"((?:authorization|cookie)['\"]?\s?[:=]\s?)[^\r\n]+", re.IGNORECASE), rf"\1{STARS}"),
    (
        re.compile(r"((?:password|passphrase|secret|token|api[_-]?key)['\"]?\s?[:=]\s?)[^\s&,;]+", re.IGNORECASE),
        rf"\1{STARS}",
    ),
)

_MAY_BE_SECRET = re.compile(
    r"sk-|hf_|gh[pousr]_|eyj|\$argon2|bearer|basic|://|authorization|cookie|password|passphrase|secret|token|api[_-]?key",
    re.IGNORECASE,
)
"""Something of every pattern above: most texts have none of it, and one look is all they cost."""


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Say whether a field of this name holds a secret: `X-Api-Key`, `accessToken`; not `max_tokens`."""
    return _SECRET_NAME.search(_WORD_BREAK.sub("_", name).lower()) is not None


def redact_text(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text`, at most about `limit` characters of it, with what looks like a secret as stars."""
    shown = text[:limit]
    if _MAY_BE_SECRET.search(shown):
        for pattern, replacement in _SECRET_TEXT:
            shown = pattern.sub(replacement, shown)
    return shown if len(text) <= limit else f"{shown}… ({len(text)} characters)"


def redact(value: object, name: str = "", depth: int = _MAX_DEPTH) -> Plain:
    """Return a copy of `value`, the field `name`, that may be logged and that JSON can hold."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return STARS
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, int | float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping | Sequence | AbstractSet):
        return _redact_items(value, depth - 1) if depth else f"<{len(value)} items>"
    return redact_text(_describe(value))


def _redact_items(value: Mapping[object, object] | Sequence[object] | AbstractSet[object], depth: int) -> Plain:
    if isinstance(value, Mapping):
        pairs = [(redact_text(str(key)), entry) for key, entry in value.items()][:MAX_ITEMS]
        return {key: redact(entry, key, depth) for key, entry in pairs}
    items = list(value)[:MAX_ITEMS]
    name = items[0] if len(items) == 2 and isinstance(items[0], str) else ""  # a header: (name, value)
    return [redact(item, name if position else "", depth) for position, item in enumerate(items)]


def _describe(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - somebody's __str__; a log line must not fail through it
        return f"<{type(value).__name__}: {type(error).__name__}>"
