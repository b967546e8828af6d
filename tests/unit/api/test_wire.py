"""Pages, cursors and the strictness of wire types."""

import base64
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from serai.api.wire import Wire, number_of, page_of, place_of, token_of
from serai.errors import InvalidInput

places = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=60)


def token(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Thing(Wire):
    name: str
    count: Annotated[int, Field(ge=0)] = 0


@given(st.lists(st.integers(0, 99), max_size=12), st.integers(1, 5))
def test_walking_the_pages_meets_every_row_once(numbers: list[int], limit: int) -> None:
    """From the first page along the cursors: all rows, in order, none twice; only the last has no cursor."""
    rows = [f"{n:02}-{i:02}" for i, n in enumerate(sorted(numbers))]
    seen: list[str] = []
    cursor = None
    while True:
        after = place_of(cursor)
        asked = [row for row in rows if after is None or row > after][: limit + 1]
        page = page_of(asked, limit, str.upper, str)
        assert len(page.items) <= limit
        seen += page.items
        if page.next_cursor is None:
            break
        assert len(page.items) == limit
        cursor = page.next_cursor
    assert seen == [row.upper() for row in rows]


@given(places)
def test_a_cursor_holds_its_place(place: str) -> None:
    """Any place comes back from a cursor of letters that need no escape in a URL."""
    cursor = token_of(place)
    assert place_of(cursor) == place
    assert cursor.replace("-", "").replace("_", "").isalnum()


@given(st.integers(0, 2**63 - 1))
def test_a_number_comes_back_from_its_cursor(number: int) -> None:
    """Up to the greatest that a database holds."""
    assert number_of(token_of(str(number))) == number


@pytest.mark.parametrize("number", ["", "-1", "1.5", "٣", "²", "1e3", str(2**63), "9" * 30, " 1", "1\n", "x"])
def test_a_cursor_of_another_list_is_refused(number: str) -> None:
    """What is not a number in range is no place in a list that is ordered by numbers."""
    with pytest.raises(InvalidInput, match="cursor"):
        number_of(token_of(number))


@pytest.mark.parametrize(
    "cursor",
    [
        "!",
        "a",
        "aaaaa",
        "====",
        "YQ==YQ==",
        "é",
        "%2e%2e",
        "../..",
        "\x00",
        base64.b64encode(b"\xff\xfe").decode(),
        "AA",
    ],
)
def test_garbage_is_no_cursor(cursor: str) -> None:
    """Not base 64, not UTF-8, or holding NUL: refused with the field's name."""
    with pytest.raises(InvalidInput, match="cursor: is not a cursor of this list"):
        place_of(cursor)


@given(st.text(max_size=60))
def test_no_text_makes_it_crash(cursor: str) -> None:
    """Whatever the client sends is a place or a refusal, and a place can be asked of a database."""
    for read in (place_of, number_of):
        try:
            found = read(cursor)
        except InvalidInput:
            continue
        assert "\x00" not in str(found)


def test_without_a_cursor_the_list_begins() -> None:
    """None in, None out."""
    assert (place_of(None), number_of(None)) == (None, None)


@pytest.mark.parametrize(
    "given_", [{}, {"name": 3}, {"name": None}, {"name": "a", "count": "3"}, {"name": "a", "count": True}]
)
def test_types_are_not_coerced(given_: dict[str, object]) -> None:
    """A missing member, and one of another type, are refused."""
    with pytest.raises(ValidationError):
        Thing.model_validate(given_)


def test_unknown_members_are_refused() -> None:
    """They are not dropped: a typing error would pass for a default."""
    with pytest.raises(ValidationError):
        Thing.model_validate({"name": "a", "cuont": 3})


def test_a_wire_value_does_not_change() -> None:
    """It is frozen."""
    with pytest.raises(ValidationError):
        Thing(name="a").name = "b"  # type: ignore[misc]
