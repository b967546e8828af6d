"""Every place of the API that takes a value from outside, read from its own description."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MARK = "<here>"
MAX_LEVELS = 4


@dataclass(frozen=True)
class Position:
    """One place. `kind`: path, query, header or body; `types`: the JSON types that are right there."""

    method: str
    path: str
    kind: str
    name: str
    types: frozenset[str]
    body: Any = None
    """Of a place in a body: that body, with MARK in the place."""

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.kind} {self.name}"

    def with_value(self, value: bytes) -> bytes:
        """Return the body with JSON text, right or wrong, in the place."""
        return json.dumps(self.body).encode().replace(json.dumps(MARK).encode(), value)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and description of every operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def positions(document: dict[str, Any]) -> list[Position]:
    """Return the places of every operation."""
    found = []
    for method, path, operation in operations(document):
        for given in operation.get("parameters", ()):
            types = frozenset(_types(given["schema"], document))
            found.append(Position(method, path, given["in"], given["name"], types))
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content:
            for name, types, body in _places(content["schema"], document, MAX_LEVELS):
                found.append(Position(method, path, "body", name or "body", frozenset(types), body))
    return found


def _places(schema: Any, document: dict[str, Any], levels: int) -> Iterator[tuple[str, set[str], Any]]:
    """Yield name, types and an otherwise empty body for each place in a body of this schema."""
    yield "", _types(schema, document), MARK
    if levels == 0:
        return
    for one in _alternatives(schema, document):
        if "items" in one:
            for name, types, body in _places(one["items"], document, levels - 1):
                yield f"[]{name}", types, [body]
        members = dict(one.get("properties", {}))
        if one.get("additionalProperties"):
            members["any"] = one["additionalProperties"] if isinstance(one["additionalProperties"], dict) else {}
        for member, inner in members.items():
            for name, types, body in _places(inner, document, levels - 1):
                yield f".{member}{name}", types, {member: body}


def _alternatives(schema: Any, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in schema:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        yield from _alternatives(target, document)
        return
    nested = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    yield schema
    for one in nested:
        yield from _alternatives(one, document)


def _types(schema: Any, document: dict[str, Any]) -> set[str]:
    types: set[str] = set()
    for one in _alternatives(schema, document):
        named = one.get("type", [])
        types.update([named] if isinstance(named, str) else named)
    return types
