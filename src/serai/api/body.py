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
    stack: list[tuple[Any, str, int]] = [(value, "", 1)]
    nodes = 0
    while stack:
        item, path, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise TooLarge(f"The JSON holds more than {MAX_NODES} values.")
        if depth > MAX_DEPTH:
            raise MalformedRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.")
        if isinstance(item, str):
            check_text(item, path or "body")
        elif isinstance(item, bool):
            continue
        elif isinstance(item, int) and item not in _INT64:
            raise InvalidInput.at(path or "body", "is an integer beyond 64 bits")
        elif isinstance(item, float) and not math.isfinite(item):
            raise InvalidInput.at(path or "body", "is a number out of range")
        elif isinstance(item, dict):
            for key, member in item.items():
                check_text(key, "a member's name")
                stack.append((member, _join(path, key), depth + 1))
        elif isinstance(item, list):
            stack.extend((member, _join(path, str(index)), depth + 1) for index, member in enumerate(item))


def check_text(text: str, field: str) -> None:
    """Raise InvalidInput for a character that a database cannot hold."""
    if "\x00" in text:
        raise InvalidInput.at(field[:200], "holds the character NUL")
    if any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False:
        raise InvalidInput.at(field[:200], "holds a lone surrogate")


def _join(path: str, name: str) -> str:
    return f"{path}.{name[:100]}" if path else name[:100]
