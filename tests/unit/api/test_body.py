"""JSON from outside: what passes is what it says, and within bounds."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serai.api import body
from serai.api.body import MAX_DEPTH, check, check_text, parse_json
from serai.errors import InvalidInput, MalformedRequest, SeraiError, TooLarge

ROOM = 2**20
clean = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
good = st.recursive(
    scalars | clean,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(clean, inner, max_size=4),
    max_leaves=20,
)
bad_scalars = st.sampled_from(["\x00", "a\x00b", "\ud800", "x\udfff", 2**63, -(2**63) - 1, 10**400])


@given(good)
def test_good_json_comes_through_unchanged(value: Any) -> None:
    """Whatever JSON can say within the bounds is what the route gets."""
    for ascii_only in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), ROOM) == value
    check(value)


@given(good, bad_scalars, st.data())
def test_one_bad_value_anywhere_is_refused(value: Any, bad: Any, data: st.DataObject) -> None:
    """As a value in a list, a member of an object or a member's name, however deep."""
    wrapped = data.draw(st.sampled_from(["list", "member", "name", "top"]))
    if wrapped == "list":
        broken: Any = [value, [bad]]
    elif wrapped == "member":
        broken = {"a": value, "b": {"c": bad}}
    elif wrapped == "name" and isinstance(bad, str):
        broken = [{bad: value}]
    else:
        broken = bad
    with pytest.raises(InvalidInput):
        check(broken)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a": [{"b": "\x00"}]}, "a[0].b"),
        ({"a": [{"b": 2**63}]}, "a[0].b"),
        ([1, 2, "\ud800"], "[2]"),
        ("\x00", "body"),
        ({"x" * 500: "\x00"}, "x" * 100),
    ],
)
def test_the_place_of_a_problem_is_told(value: Any, field: str) -> None:
    """The path of members and indexes, cut where a name is long."""
    with pytest.raises(InvalidInput) as caught:
        check(value)
    assert caught.value.details[0]["field"] == field  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "[1,]",
        "{'a':1}",
        "{} {}",
        "// no\n1",
        "01",
        "+1",
        ".5",
        "0x10",
        '"\n"',
        '"\\x"',
        "",
        " ",
        "nul",
        "﻿1",
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":1}}',
        "1" * 5000,
    ],
)
def test_what_json_does_not_say_is_malformed(text: str) -> None:
    """What some parsers let through is refused, and the message repeats nothing of it."""
    with pytest.raises(MalformedRequest) as caught:
        parse_json(text.encode(), ROOM)
    assert caught.value.message.startswith(("The body is not valid JSON", "A member is given twice"))


@pytest.mark.parametrize("text", ["1e400", "-1e999", "[1e400]"])
def test_a_number_that_no_float_holds_is_refused(text: str) -> None:
    """It does not become infinity."""
    with pytest.raises((InvalidInput, MalformedRequest), match=r"out of range|valid JSON"):
        parse_json(text.encode(), ROOM)


@pytest.mark.parametrize(
    "data", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', '"a"'.encode("utf-16"), b"\xef\xbb\xbf1"]
)
def test_what_is_not_utf_8_is_malformed(data: bytes) -> None:
    """Stray bytes, surrogates written as bytes, overlong forms, another encoding, a byte order mark."""
    with pytest.raises(MalformedRequest):
        parse_json(data, ROOM)


def test_a_surrogate_pair_is_a_character_and_half_of_it_is_not() -> None:
    """Escapes in pairs make one character; a lone one is refused."""
    assert parse_json(rb'"\ud83e\uddd5"', ROOM) == "🧕"
    for lone in (rb'"\ud83e"', rb'"\uddd5\ud83e"', rb'["a\udfff"]', rb'{"\ud800":1}'):
        with pytest.raises(SeraiError):
            parse_json(lone, ROOM)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return f"{opening * (depth - 1)}1{closing * (depth - 1)}".encode()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_has_a_bound(opening: str, closing: str) -> None:
    """The last level passes, the next does not, and 100,000 of them are no crash."""
    parse_json(nested(MAX_DEPTH, opening, closing), ROOM)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(MalformedRequest, match="nested deeper than 64"):
            parse_json(nested(depth, opening, closing), ROOM)


def test_the_number_of_values_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members and items are counted together, whatever their shape."""
    monkeypatch.setattr(body, "MAX_NODES", 10)
    check([1] * 9)
    check({str(i): 1 for i in range(9)})
    for value in ([1] * 10, {str(i): 1 for i in range(10)}, [[[1]] * 4, [1] * 4]):
        with pytest.raises(TooLarge, match="more than 10 values"):
            check(value)


def test_size_has_a_bound() -> None:
    """It is counted in bytes, before anything is parsed."""
    assert parse_json('"é"'.encode(), 4) == "é"
    with pytest.raises(TooLarge, match="at most 3 bytes"):
        parse_json('"é"'.encode(), 3)


@given(st.binary(max_size=60))
@example(b'{"a":')
@example(b"\x00")
def test_no_bytes_make_it_crash(data: bytes) -> None:
    """The answer is a value or an error of ours that is the sender's."""
    with suppress(InvalidInput):
        check(parse_json(data, ROOM))


@given(st.text(max_size=40))
def test_text_passes_if_a_database_can_hold_it(text: str) -> None:
    """NUL and surrogates are refused, every other character passes."""
    if "\x00" in text or any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        with pytest.raises(InvalidInput):
            check_text(text, "field")
    else:
        check_text(text, "field")
