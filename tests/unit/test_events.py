"""Events: one definition, every framing says the same."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from serai.api.streams import HEARTBEAT, ndjson, sse, with_heartbeat
from serai.errors import InternalError, InvalidInput, NotFound
from serai.events import (
    Done,
    Event,
    Failed,
    Loading,
    Media,
    Progress,
    Queued,
    Text,
    fold,
    from_json,
    from_msgpack,
    to_json,
    to_msgpack,
)

KINDS: tuple[type[Any], ...] = get_args(Event)
# What ends a line somewhere, what does not look like itself, and what JSON or SSE treat specially.
ODD = '\x00\r\n\v\f\x1c\x85\u2028\u2029\u200c\u202e\ufeff\uffff🧕🏽سرای"\\data: id:\x7f'

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from([ODD, ODD * 3, "\n\n", ""])
numbers = st.integers(-(2**63), 2**63 - 1)
fractions = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | fractions | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=3)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


BY_KIND: dict[type[Any], st.SearchStrategy[Event]] = {
    Queued: st.builds(Queued, position=numbers, eta_s=maybe(fractions)),
    Loading: st.builds(Loading, model=texts, version=texts, fraction=maybe(fractions)),
    Progress: st.builds(
        Progress,
        stage=texts,
        fraction=maybe(fractions),
        done=maybe(numbers),
        total=maybe(numbers),
        unit=maybe(texts),
        detail=maybe(objects),
    ),
    Text: st.builds(Text, delta=texts, index=numbers, logprobs=st.just(UNSET) | st.lists(objects, max_size=2)),
    Media: st.builds(
        Media, name=texts, media_type=texts, data=st.binary(max_size=20), index=numbers, detail=maybe(objects)
    ),
    Done: st.builds(Done, result=objects),
    Failed: st.builds(Failed, code=texts, message=texts, hint=maybe(texts)),
}
events = st.one_of(*(BY_KIND[kind] for kind in KINDS))


def read_sse(frame: bytes) -> dict[str, str]:
    """Parse one frame as the HTML standard says: lines end at CR LF, LF or CR; `data` lines are joined."""
    text = frame.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    assert text.endswith("\n\n")
    fields: dict[str, str] = {}
    for line in text[:-2].split("\n"):
        name, _, value = line.partition(":")
        assert name in ("id", "event", "data"), f"an extra line: {line!r}"
        assert name not in fields, "the payload was cut into several lines"
        fields[name] = value.removeprefix(" ")
    return fields


def test_the_names_of_the_kinds_are_stable() -> None:
    """Clients switch on `type`; every kind has one and no two share it."""
    tags = {kind.__struct_config__.tag: kind for kind in KINDS}
    assert tags == {
        "queued": Queued,
        "loading": Loading,
        "progress": Progress,
        "text": Text,
        "media": Media,
        "done": Done,
        "failed": Failed,
    }


@given(events, st.none() | st.integers(0, 2**63 - 1))
@example(Text(delta=ODD), 7)
@example(Failed(code="X", message="a\r\nid: 9\r\n\r\ndata: b"), 0)
def test_every_framing_says_the_same(event: Event, seq: int | None) -> None:
    """JSON, msgpack, SSE and NDJSON give back the event that went in, whatever its text holds."""
    line = to_json(event)
    assert from_json(line) == event
    assert from_msgpack(to_msgpack(event)) == event
    assert b"\n" not in line
    assert b"\r" not in line
    assert ndjson(event) == line + b"\n"
    frame = read_sse(sse(event, seq))
    assert from_json(frame["data"]) == event
    assert frame["event"] == json.loads(line)["type"] == type(event).__struct_config__.tag
    assert frame.get("id") == (None if seq is None else str(seq))


@given(events)
def test_the_standard_library_reads_what_is_written(event: Event) -> None:
    """The payload is JSON for everybody: the members of the struct, and `type`."""
    told = json.loads(to_json(event))
    assert told.pop("type") == type(event).__struct_config__.tag
    members = {name: value for name, value in msgspec.structs.asdict(event).items() if value is not UNSET}
    if isinstance(event, Media):
        members["data"] = b64encode(event.data).decode()
    assert told == members


@given(st.binary(max_size=60))
def test_what_is_no_event_is_refused(data: bytes) -> None:
    """Bytes from elsewhere are an event or a msgspec error; nothing else comes out."""
    for decode in (from_json, from_msgpack):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            assert isinstance(decode(data), KINDS)


@pytest.mark.parametrize("text", ['{"type":"unheard"}', '{"type":"queued"}', '{"position":1}', "[]", "null"])
def test_an_unknown_or_incomplete_event_is_refused(text: str) -> None:
    """A kind that does not exist and a member that is missing are validation errors."""
    with pytest.raises(msgspec.ValidationError):
        from_json(text)


def test_an_expected_failure_tells_what_happened() -> None:
    """An error of ours passes its code, message and hint on."""
    failed = Failed.of(NotFound("No such thing.", hint="Look elsewhere."))
    assert failed == Failed(code="NOT_FOUND", message="No such thing.", hint="Look elsewhere.")
    assert "details" not in str(to_json(failed))


def test_a_failure_carries_the_details_of_its_error() -> None:
    """Through both encodings: a client is told which field is wrong, wherever that was found out."""
    failed = Failed.of(InvalidInput.at("prompt", "is too long"))
    assert failed.details == [{"field": "prompt", "problem": "is too long"}]
    assert from_json(to_json(failed)) == from_msgpack(to_msgpack(failed)) == failed


@pytest.mark.parametrize("error", [ValueError("/home/secret"), KeyError("password"), SystemExit("x"), OSError(13, "p")])
def test_a_defect_tells_nothing_of_itself(error: BaseException) -> None:
    """What is no error of ours becomes INTERNAL_ERROR, without a word of the exception."""
    failed = Failed.of(error)
    assert failed.code == "INTERNAL_ERROR"
    assert str(error) not in f"{failed.message} {failed.hint}"


async def stream(items: Sequence[Event]) -> AsyncIterator[Event]:
    for item in items:
        yield item


progress = st.lists(events.filter(lambda event: not isinstance(event, Done | Failed)), max_size=5)
finals = BY_KIND[Done] | BY_KIND[Failed]


@pytest.mark.anyio
class TestFold:
    """A non-streaming answer is the last event of the stream."""

    @given(before=progress, final=finals)
    async def test_it_returns_the_last_event(self, before: list[Event], final: Event) -> None:
        """Whatever comes before, the answer is the `Done` or `Failed` at the end."""
        assert await fold(stream([*before, final])) == final

    @given(before=progress)
    async def test_a_stream_without_an_end_is_a_defect(self, before: list[Event]) -> None:
        """A stream that just stops is not taken for a success."""
        with pytest.raises(InternalError, match="without its last event"):
            await fold(stream(before))

    @given(before=progress, final=finals, after=events)
    async def test_a_stream_with_two_ends_is_a_defect(self, before: list[Event], final: Event, after: Event) -> None:
        """Nothing may follow the last event, not even another last one."""
        with pytest.raises(InternalError, match="went on"):
            await fold(stream([*before, final, after]))


@pytest.mark.anyio
class TestHeartbeat:
    """A comment keeps the line open while nothing happens."""

    async def test_it_fills_silence_and_changes_nothing_else(self) -> None:
        """Comments come while the source waits; every frame comes, once, in order."""
        gate = asyncio.Event()

        async def frames() -> AsyncGenerator[bytes, None]:
            yield b"1"
            await gate.wait()
            yield b"2"

        seen = []
        async for frame in with_heartbeat(frames(), until=asyncio.Event(), every_s=0.001):
            seen.append(frame)
            if seen.count(HEARTBEAT) == 3:
                gate.set()
        assert [frame for frame in seen if frame != HEARTBEAT] == [b"1", b"2"]
        assert seen[0] == b"1"
        assert seen[-1] == b"2"

    async def test_closing_it_closes_the_source(self) -> None:
        """Whoever stops listening stops the work: the source's own cleanup has run."""
        ended: list[str] = []

        async def frames() -> AsyncGenerator[bytes, None]:
            try:
                yield b"1"
                await asyncio.Event().wait()
            finally:
                ended.append("closed")

        beating = with_heartbeat(frames(), until=asyncio.Event(), every_s=0.001)
        assert await anext(beating) == b"1"
        assert await anext(beating) == HEARTBEAT
        await beating.aclose()
        assert ended == ["closed"]

    async def test_a_server_that_stops_ends_it(self) -> None:
        """The stream ends while the source still waits, and the source is closed; the client resumes elsewhere."""
        stopping, ended = asyncio.Event(), list[str]()

        async def frames() -> AsyncGenerator[bytes, None]:
            try:
                yield b"1"
                await asyncio.Event().wait()
            finally:
                ended.append("closed")

        beating = with_heartbeat(frames(), until=stopping, every_s=60)
        assert await anext(beating) == b"1"
        asyncio.get_running_loop().call_soon(stopping.set)
        assert [frame async for frame in beating] == []
        assert ended == ["closed"]

    async def test_a_failure_of_the_source_comes_through(self) -> None:
        """An exception is not mistaken for the end."""

        async def frames() -> AsyncGenerator[bytes, None]:
            yield b"1"
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            _ = [frame async for frame in with_heartbeat(frames(), until=asyncio.Event())]
