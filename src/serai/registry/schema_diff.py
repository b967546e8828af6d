"""Whether a change of a JSON schema breaks those who use it.

An input schema breaks its callers when something that was accepted is refused; an output schema
breaks its readers when something that was promised is gone or of another type. What is not
understood (combinators such as `oneOf`) and differs counts as breaking: nobody should be surprised.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["input", "output"]
Verdict = Literal["same", "compatible", "breaking"]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_UNDERSTOOD = {"type", "properties", "required", "enum", "items", "additionalProperties", *_LOWER, *_UPPER}
_SILENT = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"}
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaChange:
    """The verdict, with a sentence for each difference; the breaking ones first."""

    verdict: Verdict
    breaking: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()


def compare_schemas(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, direction: Direction
) -> SchemaChange:
    """Return what a change of schema means for callers (input) or readers (output).

    No schema accepts everything and promises nothing.
    """
    breaking: list[str] = []
    compatible: list[str] = []
    _compare(before or {}, after or {}, direction, "", breaking, compatible, _MAX_DEPTH)
    verdict: Verdict = "breaking" if breaking else "compatible" if compatible else "same"
    return SchemaChange(verdict=verdict, breaking=tuple(breaking), compatible=tuple(compatible))


def _compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    direction: Direction,
    path: str,
    breaking: list[str],
    compatible: list[str],
    depth: int,
) -> None:
    if before == after:
        return
    where = path or "the whole"
    if depth == 0:
        breaking.append(f"{where}: differs, too deep to compare")
        return
    for narrower, sentence in _differences(before, after, where):
        # To accept less breaks callers; to promise less breaks readers.
        (breaking if narrower == (direction == "input") else compatible).append(sentence)
    _compare_properties(before, after, direction, path, breaking, compatible, depth)
    inner = (before.get("items"), after.get("items"))
    if isinstance(inner[0], Mapping) and isinstance(inner[1], Mapping):
        _compare(inner[0], inner[1], direction, f"{path}[]", breaking, compatible, depth - 1)
    elif inner[0] != inner[1]:
        narrower = inner[1] is not None and inner[0] is None
        sentence = f"{where}: what its items are changed"
        (breaking if narrower == (direction == "input") else compatible).append(sentence)
    other = sorted((before.keys() | after.keys()) - _UNDERSTOOD - _SILENT)
    breaking += [f"{where}: {key} changed" for key in other if before.get(key) != after.get(key)]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> list[tuple[bool, str]]:
    """Return (whether it allows less now, sentence) for each difference of this level."""
    found: list[tuple[bool, str]] = []
    for key in ("type", "enum"):
        old, new = _values(before, key), _values(after, key)
        if old == new:
            continue
        lost = old is None or (new is not None and bool(old - new))
        gained = new is None or (old is not None and bool(new - old))
        sentence = f"{where}: {key} was {_shown(before, key)} and is {_shown(after, key)}"
        found += [(True, sentence)] * lost + [(False, sentence)] * gained
    for key in (*_LOWER, *_UPPER):
        low, high = before.get(key), after.get(key)
        if low == high:
            continue
        found.append((_is_tighter(low, high, key), f"{where}: {key} was {low} and is {high}"))
    old_extra, new_extra = before.get("additionalProperties", True), after.get("additionalProperties", True)
    if old_extra != new_extra:
        found.append((new_extra is not True, f"{where}: additionalProperties changed"))
    return found


def _compare_properties(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    direction: Direction,
    path: str,
    breaking: list[str],
    compatible: list[str],
    depth: int,
) -> None:
    old, new = _properties(before), _properties(after)
    old_required, new_required = _required(before), _required(after)
    for name in sorted(old.keys() | new.keys() | old_required | new_required):
        here = f"{path}.{name}" if path else name
        if (name in old_required) != (name in new_required):
            narrower = name in new_required
            sentence = f"{here}: is {'now' if narrower else 'no longer'} required"
            (breaking if narrower == (direction == "input") else compatible).append(sentence)
        if name in old and name in new:
            _compare(old[name], new[name], direction, here, breaking, compatible, depth - 1)
        elif name in old:
            # A caller may still send it, a reader may still look for it: either is broken.
            breaking.append(f"{here}: was removed")
        elif name in new:
            compatible.append(f"{here}: was added")


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {name: value for name, value in properties.items() if isinstance(value, Mapping)}


def _required(schema: Mapping[str, Any]) -> set[str]:
    required = schema.get("required")
    return {name for name in required if isinstance(name, str)} if isinstance(required, list | tuple) else set()


def _is_tighter(before: object, after: object, key: str) -> bool:
    """Whether a bound allows less now; a bound that is no number counts as tighter."""
    if before is None or not isinstance(before, int | float):
        return True
    if after is None:
        return False
    if not isinstance(after, int | float):
        return True
    return after > before if key in _LOWER else after < before


def _values(schema: Mapping[str, Any], key: str) -> frozenset[str] | None:
    """The allowed values as comparable texts; None where the keyword does not restrict."""
    value = schema.get(key)
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    texts = {repr(one) for one in values}
    if key == "type" and "'number'" in texts:
        texts.add("'integer'")
    return frozenset(texts)


def _shown(schema: Mapping[str, Any], key: str) -> str:
    value = schema.get(key)
    return (
        "anything" if value is None else " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    )
