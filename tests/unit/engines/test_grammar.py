"""JSON schemas become grammars that end; what cannot be said in one is refused with its place."""

import json
import re
from typing import Any

import pytest

from serai.engines.grammar import literal, schema_to_ebnf
from serai.engines.grammar_check import check_ebnf, checked_grammar
from serai.engines.tasks import Grammar
from serai.errors import InvalidInput

GOOD: list[Any] = [
    {"type": "object"},
    {},
    True,
    {"type": ["string", "null"], "maxLength": 4},
    {"enum": ["a", 1, None, {"b": [True]}]},
    {"const": 'quote " and \\ and سلام and \n'},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}], "items": False},
    {"type": "string", "format": "date-time"},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "minLength": 1}]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {
        "title": "Tree",
        "type": "object",
        "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["name"],
    },
    {
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/point"} for name in "abc"},
        "required": ["b"],
    },
]


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: json.dumps(schema)[:40])
def test_a_schema_becomes_a_grammar_that_is_sound(schema: Any) -> None:
    """Every rule that is named is there, comes to an end, and does not begin with itself."""
    check_ebnf(schema_to_ebnf(json.dumps(schema)))


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "a+"}, "#/pattern"),
        ({"type": "integer", "minimum": 3}, "#/minimum"),
        ({"type": "string", "format": "email"}, "#/format"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "required": ["a"]}, "#/required"),
        ({"$ref": "https://example.org/schema"}, "#/$ref"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "text"}, "#/type"),
        ({"allOf": [{"type": "string"}, {"maxLength": 3}]}, "#/allOf"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "#/maxLength"),
        ({"type": "array", "maxItems": 10**9}, "#/maxItems"),
        (False, "#"),
        ("text", "#"),
    ],
)
def test_what_a_grammar_cannot_say_is_refused_with_its_place(schema: Any, place: str) -> None:
    """A condition is never dropped in silence."""
    with pytest.raises(InvalidInput, match=re.escape(place)) as caught:
        schema_to_ebnf(json.dumps(schema))
    assert caught.value.details == [{"field": "json_schema", "problem": caught.value.details[0]["problem"]}]  # type: ignore[index,call-overload]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    """Neither half a schema nor one that is nested without end gets further."""
    with pytest.raises(InvalidInput):
        schema_to_ebnf(text)


def test_a_schema_nested_without_end_is_refused() -> None:
    """Depth is bounded, not by Python's stack."""
    schema: Any = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidInput, match="nested"):
        schema_to_ebnf(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
)
def test_a_schema_that_refers_to_itself_without_end_is_refused(schema: Any) -> None:
    """Such grammars crash the compiler's process at some later token."""
    with pytest.raises(InvalidInput):
        checked_grammar(Grammar(kind="json_schema", value=json.dumps(schema)))


@pytest.mark.parametrize(
    "text",
    [
        "root ::= root",
        'root ::= root "a" | "b"',
        'root ::= a\na ::= ""? b\nb ::= [x]* root "c"',
        'root ::= "a" root',
        "root ::= nothing",
        'other ::= "a"',
        'root ::= ("a"',
        'root ::= "a" )',
        'root ::= "unfinished',
        "root",
        "",
        "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
    ],
)
def test_ebnf_without_an_end_is_refused(text: str) -> None:
    """Left recursion, endless rules, missing rules and what cannot be read."""
    with pytest.raises(InvalidInput):
        check_ebnf(text)


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" root | "b"',
        'root ::= ("a" | [0-9]{2,4})+ tail? # words\ntail ::= "(" root ")"',
        'root ::= list\nlist ::= "[" (item ("," item)*)? "]"\nitem ::= [^"\\]\\x00]+ | list',
    ],
)
def test_ebnf_that_ends_is_taken(text: str) -> None:
    """Recursion behind something else, groups, sets, repetitions and comments are fine."""
    check_ebnf(text)


def test_literals_say_exactly_their_text() -> None:
    """Quotes, backslashes, control characters and all beyond ASCII are escaped."""
    assert literal('a"\\\né🙂') == '"a\\"\\\\\\u000A\\u00E9\\U0001F642"'


def test_many_optional_members_are_checked_in_no_time() -> None:
    """The work grows with the text, not with its square: 4,000 rules in a chain."""
    rules = [f'r{n} ::= "a" r{n + 1}' for n in range(4000)]
    check_ebnf("\n".join(["root ::= r0", *rules, 'r4000 ::= "b"']))
