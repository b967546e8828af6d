"""Server-sent events, however the network cuts them."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.engines.errors import RemoteFailed
from serai.engines.remote.sse import EventParser


def parse(pieces: list[bytes], most: int = 10_000) -> list[bytes]:
    parser = EventParser(most)
    return [data for piece in pieces for data in parser.feed(piece)]


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_every_cutting_gives_the_same_events(events: list[list[str]], end: str, data: st.DataObject) -> None:
    """Lines end in any of three ways, pieces anywhere, also within a character or between CR and LF."""
    text = "".join("".join(f"data: {line}{end}" for line in lines) + end for lines in events).encode()
    places = data.draw(st.lists(st.integers(0, 1000), max_size=20))
    expected = ["\n".join(lines).encode() for lines in events]
    assert parse(cut(text, places)) == expected
    assert parse([text[at : at + 1] for at in range(len(text))]) == expected


def test_other_lines_are_no_data() -> None:
    """Comments, other fields, unknown lines and a byte order mark add nothing; a blank line without data neither."""
    text = b"\xef\xbb\xbf: hello\n\nevent: message\nid: 1\nretry: 5\ndata: a\njunk\n\n\n: keep-alive\n\ndata:b\n\n"
    assert parse([text]) == [b"a", b"b"]


def test_one_space_is_taken_off() -> None:
    """Only the first space behind the colon belongs to the format."""
    assert parse([b"data:  two\n\ndata: \n\n"]) == [b" two", b""]


def test_an_event_that_is_cut_off_is_none() -> None:
    """What is not ended by a blank line is not told."""
    assert parse([b"data: a\n\ndata: b\n"]) == [b"a"]
    assert parse([b"data: a"]) == []


@pytest.mark.parametrize(
    "pieces", [[b"data: " + b"x" * 200], [b"data: x\n"] * 50, [b"x"] * 200, [b"x" * 60 + b"\n"] * 10 + [b"x" * 101]]
)
def test_events_are_bounded(pieces: list[bytes]) -> None:
    """A line without an end and an event without an end are given up at the bound."""
    with pytest.raises(RemoteFailed):
        parse(pieces, 100)


def test_the_bound_is_for_one_event() -> None:
    """A long stream of short events passes."""
    assert len(parse([b"data: 0123456789\n\n"] * 100, 100)) == 100
