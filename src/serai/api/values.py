"""Lets wire types hold the domain's own values (msgspec structs): `Annotated[Source, AS_JSON]`.

They are converted strictly, what is wrong is refused with its place (`settings.width`), and the OpenAPI
document shows their schema.
"""

import re
from typing import Any, cast

import msgspec
from pydantic import GetCoreSchemaHandler
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError, core_schema


class _AsJson:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        schema = _inlined(source)
        return core_schema.no_info_plain_validator_function(
            lambda value: _converted(value, source),
            serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
            metadata={"pydantic_js_functions": [lambda _, __: schema]},
        )


AS_JSON = _AsJson()

_PARTS = re.compile(r"\.{3}|[^.\[\]]+")
"""The parts of a place as the library writes it: `$.adapters[0].scale`; `[...]` is any key of a mapping."""

_MEMBER = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and isinstance(value, kind):  # an answer of ours, made by the code
        return value
    try:
        return msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        location = tuple(_part(text) for text in _PARTS.findall(place.strip("`$")))
        member = _MEMBER.fullmatch(problem)
        if member is not None:
            location = (*location, member["name"])
        elif problem.startswith("Invalid enum value") and (allowed := _allowed(kind, location)):
            problem = f"must be one of {', '.join(map(str, allowed))}"
        number = "" if " got " in problem or member is not None else _number_at(value, location)
        told = PydanticCustomError("value", "{problem}", {"problem": problem.replace("`", "") + number})
        entry = InitErrorDetails(type=told, loc=location, input=None)
        raise ValidationError.from_exception_data("value", [entry]) from None


def _allowed(kind: Any, location: tuple[str | int, ...]) -> list[Any]:
    """Return the values that a type allows at a place where it allows certain ones alone."""
    nodes = _options(msgspec.inspect.type_info(kind))
    for part in location:
        nodes = [child for node in nodes for inner in _inside(node, part) for child in _options(inner)]
    return [value for node in nodes if isinstance(node, msgspec.inspect.LiteralType) for value in node.values]


def _options(node: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    return list(node.types) if isinstance(node, msgspec.inspect.UnionType) else [node]


def _inside(node: msgspec.inspect.Type, part: str | int) -> list[msgspec.inspect.Type]:
    match node:
        case msgspec.inspect.StructType():
            return [field.type for field in node.fields if field.encode_name == part]
        case msgspec.inspect.CollectionType():
            return [node.item_type]
        case msgspec.inspect.DictType():
            return [node.value_type]
        case _:
            return []


def _part(text: str) -> str | int:
    if text == "...":
        return "*"
    return int(text) if text.isdecimal() else text


def _number_at(value: Any, location: tuple[str | int, ...]) -> str:
    """Return the number that stands at a place of a value, as it ends a sentence; a text is never repeated."""
    for part in location:
        if not isinstance(value, dict | list) or part == "*":
            return ""
        value = cast("Any", value)[part]
    return f", not {value}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _inlined(kind: Any) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template="{name}")
    resolved: dict[str, Any] = _resolve(schema, definitions)
    return resolved


def _resolve(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _resolve(definitions[node["$ref"]], definitions)
    # A discriminator's mapping points into definitions, which are gone once they are inlined.
    return {name: _resolve(member, definitions) for name, member in node.items() if name != "discriminator"}
