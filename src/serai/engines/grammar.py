"""JSON schemas as grammars (EBNF) that leave a model no room to wander off.

What matches the grammar matches the schema; the reverse need not hold: object members come in the
schema's order, only those that it names, and blanks are at most one after ',' and ':'. (The usual
conversion allows any amount of blanks, in which small models get lost.) What cannot be told in such a
grammar is refused with its place: a condition is never dropped. `oneOf` alone is read as `anyOf`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serai.errors import InvalidInput

_ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
)
_MAX_RULES = 2000
_MAX_REPEAT = 4096
_MAX_DEPTH = 100

_BASE = {
    "comma": '"," " "?',
    "colon": '":" " "?',
    # Said as what it may be, not as what it may not: the compiler's "all but" takes bytes that are no text.
    "character": r"[ !#-\[\]-~\u00A0-\uD7FF\uE000-\uFFEF\U00010000-\U0010FFFF] | escape",
    "escape": r'"\\" (["\\/bfnrt] | "u" hex hex hex hex)',
    "hex": "[0-9a-fA-F]",
    "string": '"\\"" character* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,17}) ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": "string colon value",
    "object": '"{" (member (comma member)*)? "}"',
    "array": '"[" (value (comma value)*)? "]"',
    "value": "object | array | string | number | boolean | null",
}
_NEEDS = {
    "string": ("character",),
    "character": ("escape",),
    "escape": ("hex",),
    "member": ("string", "colon", "value"),
    "object": ("member", "comma"),
    "array": ("value", "comma"),
    "value": ("object", "array", "string", "number", "boolean", "null"),
}
_HEX = "[0-9a-f]"
_FORMATS = {
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}',
}
_FORMATS["date-time"] = _FORMATS["date"] + ' "T" ' + _FORMATS["time"]

_KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": frozenset(),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}


def schema_to_ebnf(schema: str) -> str:
    """Return the grammar for a JSON schema given as text. Raises InvalidInput with the place that it cannot do."""
    try:
        parsed = json.loads(schema)
    except ValueError:
        raise InvalidInput.at("json_schema", "is not JSON") from None
    except RecursionError:
        raise InvalidInput.at("json_schema", "is nested too deeply") from None
    converter = _Converter(parsed)
    return converter.convert()


def literal(text: str) -> str:
    """Return EBNF that matches exactly this text."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    return character if 0x20 <= code < 0x7F else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


class _Converter:
    """Makes one rule per part of a schema; parts that are referred to become rules of their own name."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._depth = 0

    def convert(self) -> str:
        root = self._of(self._schema, "#")
        rules = {"root": root, **self._rules}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items()) + "\n"

    def _of(self, schema: Any, place: str) -> str:
        """Return an expression for a schema."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _unsupported(place, "is nested too deeply")
        try:
            return self._expression(schema, place)
        finally:
            self._depth -= 1

    def _expression(self, schema: Any, place: str) -> str:
        if schema is True or schema == {}:
            return self._base("value")
        if not isinstance(schema, dict):
            raise _unsupported(place, "is not a schema that anything matches")
        keywords = {
            name: value for name, value in schema.items() if name not in _ANNOTATIONS | {"$defs", "definitions"}
        }
        if not keywords:
            return self._base("value")
        for keyword, make in self._makers().items():
            if keyword in keywords:
                value = keywords.pop(keyword)
                if keyword in {"const", "enum"}:
                    keywords.pop("type", None)  # the values say it themselves
                self._refuse(keywords, place)
                return make(value, f"{place}/{keyword}")
        return self._typed(keywords, place)

    def _makers(self) -> Mapping[str, Callable[[Any, str], str]]:
        return {
            "$ref": self._reference,
            "const": lambda value, _place: literal(_compact(value)),
            "enum": self._enum,
            "anyOf": self._any_of,
            "oneOf": self._any_of,
            "allOf": self._all_of,
        }

    def _typed(self, keywords: dict[str, Any], place: str) -> str:
        kinds = keywords.pop("type", None)
        if kinds is None:
            kinds = next((kind for kind, known in _KEYWORDS.items() if known & keywords.keys()), None)
        if isinstance(kinds, str):
            return self._kind(kinds, keywords, place)
        if not isinstance(kinds, list) or not kinds:
            raise _unsupported(place, f"has {', '.join(sorted(keywords))} that no type explains")
        known = frozenset[str]().union(*(_KEYWORDS.get(str(kind), frozenset()) for kind in kinds))
        self._refuse({name: value for name, value in keywords.items() if name not in known}, place)
        parts = [{name: keywords[name] for name in keywords if name in _KEYWORDS.get(str(kind), ())} for kind in kinds]
        return _either([self._kind(str(kind), part, place) for kind, part in zip(kinds, parts, strict=True)])

    def _kind(self, kind: str, keywords: dict[str, Any], place: str) -> str:
        if kind not in _KEYWORDS:
            raise _unsupported(f"{place}/type", f"{kind!r} is not a type of JSON")
        self._refuse({name: value for name, value in keywords.items() if name not in _KEYWORDS[kind]}, place)
        match kind:
            case "object":
                return self._object(keywords, place)
            case "array":
                return self._array(keywords, place)
            case "string":
                return self._string(keywords, place)
        return self._base(kind)

    def _object(self, keywords: dict[str, Any], place: str) -> str:
        properties, required = keywords.get("properties", {}), keywords.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _unsupported(place, "has properties or required of a wrong type")
        extra = keywords.get("additionalProperties", True)
        missing = [name for name in required if name not in properties]
        if missing:
            raise _unsupported(f"{place}/required", f"names {missing[0]!r}, which properties does not describe")
        if not properties:
            return self._open_object(extra, f"{place}/additionalProperties")
        members = [
            (self._member(name, self._of(value, f"{place}/properties/{name}")), name in required)
            for name, value in properties.items()
        ]
        return self._rule(f'"{{" {self._members(members)} "}}"')

    def _open_object(self, extra: Any, place: str) -> str:
        if extra is True or extra == {}:
            return self._base("object")
        if extra is False:
            return '"{}"'
        member = f"{self._base('string')} {self._base('colon')} {self._of(extra, place)}"
        comma = self._base("comma")
        return self._rule(f'"{{" ({member} ({comma} {member})*)? "}}"')

    def _member(self, name: str, value: str) -> str:
        return f"{literal(_compact(name))} {self._base('colon')} {value}"

    def _members(self, members: Sequence[tuple[str, bool]]) -> str:
        """Return the members in their order, any of the optional ones left out, with commas between those there are.

        `follow` is what may come after a member, `begin` what may stand before any: both made from the last on.
        """
        comma = self._base("comma")
        follow, begin = "", ""
        for member, is_required in reversed(members):
            here = f"{member} {follow}".rstrip()
            begin = here if is_required else self._rule(f"{here} | {begin}" if begin else f"({here})?")
            after = f"{comma} {here}"
            follow = self._rule(after if is_required else f"{after} | {follow}" if follow else f"({after})?")
        return begin

    def _array(self, keywords: dict[str, Any], place: str) -> str:
        least, most = self._bounds(keywords, "minItems", "maxItems", place)
        if "prefixItems" in keywords:
            return self._tuple(keywords, least, most, place)
        item, comma = self._of(keywords.get("items", True), f"{place}/items"), self._base("comma")
        if most == 0:
            return '"[]"'
        rest = f"({comma} {item}){_times(max(least - 1, 0), None if most is None else most - 1)}"
        body = f"{item} {rest}"
        return self._rule(f'"[" {body} "]"' if least else f'"[" ({body})? "]"')

    def _tuple(self, keywords: dict[str, Any], least: int, most: int | None, place: str) -> str:
        prefix = keywords["prefixItems"]
        if not isinstance(prefix, list) or not prefix or keywords.get("items", False) is not False:
            raise _unsupported(f"{place}/prefixItems", "must be a list, with items false")
        if least not in {0, len(prefix)} or most not in {None, len(prefix)}:
            raise _unsupported(place, "may have no minItems or maxItems but the length of prefixItems")
        items = [self._of(item, f"{place}/prefixItems/{number}") for number, item in enumerate(prefix)]
        body = f" {self._base('comma')} ".join(items)
        return self._rule(f'"[" {body} "]"')

    def _string(self, keywords: dict[str, Any], place: str) -> str:
        if "format" in keywords:
            name = keywords["format"]
            if name not in _FORMATS or len(keywords) > 1:
                raise _unsupported(f"{place}/format", f"{name!r} is not supported (known: {', '.join(_FORMATS)})")
            return self._rule(f'"\\"" {_FORMATS[name]} "\\""')
        if not keywords:
            return self._base("string")
        least, most = self._bounds(keywords, "minLength", "maxLength", place)
        character = self._base("character")
        return self._rule(rf'"\"" {character}{_times(least, most)} "\""')

    def _enum(self, values: Any, place: str) -> str:
        if not isinstance(values, list) or not values:
            raise _unsupported(place, "must be a list of values")
        return _either([literal(_compact(value)) for value in values])

    def _any_of(self, schemas: Any, place: str) -> str:
        if not isinstance(schemas, list) or not schemas:
            raise _unsupported(place, "must be a list of schemas")
        return _either([self._of(schema, f"{place}/{number}") for number, schema in enumerate(schemas)])

    def _all_of(self, schemas: Any, place: str) -> str:
        if not isinstance(schemas, list) or len(schemas) != 1:
            raise _unsupported(place, "is supported with one schema alone")
        return self._of(schemas[0], f"{place}/0")

    def _reference(self, target: Any, place: str) -> str:
        """Return the name of the rule of what is referred to; it may refer to itself."""
        if not isinstance(target, str) or not target.startswith("#"):
            raise _unsupported(place, "must refer to a part of the same schema ('#/$defs/…')")
        if target not in self._references:
            name = f"ref{len(self._references)}"
            self._references[target] = name
            self._rules[name] = self._of(self._resolve(target, place), target)
        name = self._references[target]
        if self._rules.get(name) == name:
            raise _unsupported(place, "refers to itself alone")
        return name

    def _resolve(self, target: str, place: str) -> Any:
        found = self._schema
        for part in target.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise _unsupported(place, f"refers to {target!r}, which is not there")
            found = found[key]
        return found

    def _bounds(self, keywords: dict[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
        least, most = keywords.get(low, 0), keywords.get(high)
        for name, value in ((low, least), (high, most)):
            if value is not None and (type(value) is not int or not 0 <= value <= _MAX_REPEAT):
                raise _unsupported(f"{place}/{name}", f"must be a whole number from 0 to {_MAX_REPEAT}")
        if most is not None and most < least:
            raise _unsupported(f"{place}/{high}", f"is less than {low}")
        return least, most

    def _base(self, name: str) -> str:
        """Return the name of a rule of JSON itself, with the rules that it needs."""
        if name not in self._rules:
            self._rules[name] = _BASE[name]
            for need in _NEEDS.get(name, ()):
                self._base(need)
        return name

    def _rule(self, body: str) -> str:
        """Return the name of a new rule."""
        if len(self._rules) >= _MAX_RULES:
            raise _unsupported("#", "is too large")
        name = f"rule{len(self._rules)}"
        self._rules[name] = body
        return name

    def _refuse(self, keywords: Mapping[str, Any], place: str) -> None:
        for name in keywords:
            raise _unsupported(f"{place}/{name}", "is not supported")


def _either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def _times(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least},{most}}}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _unsupported(place: str, problem: str) -> InvalidInput:
    return InvalidInput.at("json_schema", f"{place} {problem}", hint="Leave it out, or check the answer yourself.")
