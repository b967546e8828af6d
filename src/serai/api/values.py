"""Lets wire types hold the domain's own values (msgspec structs): `Annotated[Source, AS_JSON]`.

They are converted strictly, unknown members are refused with their place, and the OpenAPI document
shows their schema.
"""

from typing import Any

import msgspec
from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema


class _AsJson:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        schema = _inlined(source)
        return core_schema.no_info_plain_validator_function(
            lambda value: _converted(value, source),
            serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
            metadata={"pydantic_js_functions": [lambda _, __: schema]},
        )


AS_JSON = _AsJson()


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and isinstance(value, kind):  # an answer of ours, made by the code
        return value
    try:
        return msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        where = f" (at {place.strip('`').removeprefix('$').removeprefix('.')})" if place.strip("`$") else ""
        raise ValueError(f"{problem.replace('`', '')}{where}") from None


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
