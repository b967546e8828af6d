"""JSON from outside: parsed strictly, then walked once, so that everything behind may trust it.

Refused: NaN, infinities, lone surrogates, NUL, integers beyond 64 bits, a member given twice, nesting
over `MAX_DEPTH`, more than `MAX_NODES` values. What passes can be stored by both databases.
"""

import json
import math
from typing import Any, NoReturn

from serai.errors import InvalidInput, MalformedRequest, TooLarge

MAX_DEPTH = 64
MAX_NODES = 500_000
_INT64 = range(-(2**63), 2**63)


def parse_json(data: bytes, max_bytes: int) -> Any:
    """Return the JSON value in `data`. Raises MalformedRequest, InvalidInput, TooLarge."""
    if len(data) > max_bytes:
        raise TooLarge(f"A JSON body has at most {max_bytes} bytes.")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise MalformedRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError:
        raise MalformedRequest("The body is not valid JSON in UTF-8.", hint=_HINT) from None
    check(value)
    return value


_HINT = "NaN, Infinity, comments, trailing commas, a byte order mark and lone surrogates are not JSON."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members. One that is given twice means one thing to us and another to whoever checked it before."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedRequest("A member is given twice in one object.")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def check(value: Any) -> None:
    """Raise unless every number, string and level of a parsed value is within bounds."""
    _check_leaf(value, "body")
    stack: list[tuple[Any, str, int]] = [(value, "", 1)]
    nodes = 1
    while stack:
        container, path, depth = stack.pop()
        if not isinstance(container, dict | list):
            continue
        if depth >= MAX_DEPTH and container:
            raise MalformedRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.")
        nodes += len(container)
        if nodes > MAX_NODES:
            raise TooLarge(f"The JSON holds more than {MAX_NODES} values.")
        for name, member in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(name, str):
                check_text(name, "a member's name")
            if isinstance(member, dict | list):
                stack.append((member, _join(path, name), depth + 1))
            elif member is not None and member is not True and member is not False:
                _check_leaf(member, path, name)


def _check_leaf(value: Any, path: str, name: str | int = "") -> None:
    """Raise for a string or number out of bounds; its place is put together only then: there may be many."""
    if isinstance(value, str):
        if not value.isascii() or "\x00" in value:
            check_text(value, _join(path, name))
    elif isinstance(value, int) and value not in _INT64:
        raise InvalidInput.at(_join(path, name), "is an integer beyond 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput.at(_join(path, name), "is a number out of range")


def check_text(text: str, field: str) -> None:
    """Raise InvalidInput for a character that a database cannot hold."""
    if "\x00" in text:
        raise InvalidInput.at(field[:200], "holds the character NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput.at(field[:200], "holds a lone surrogate") from None


def _join(path: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{path}[{name}]"
    return ".".join(part for part in (path, name[:100]) if part)
