"""Frames on a socket: whole or refused, in order, bounded, and never a descriptor too many."""

import asyncio
import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import TooLarge
from serai.runtime.worker import channel as channels
from serai.runtime.worker import frames
from serai.runtime.worker.channel import LoopChannel, WaitingChannel
from serai.runtime.worker.frames import (
    INLINE_BYTES,
    ChannelBroken,
    ChannelClosed,
    Frames,
    framed,
    header_of_file,
    memory_file,
    read_file,
    receive_some,
)
from support.workers import open_descriptors

IN_FILE = 2**31
MIB = 2**20
decode = msgspec.msgpack.Decoder(list[Any]).decode
encode = msgspec.msgpack.encode


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    """Every test here leaves as many descriptors as there were."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextmanager
def loop_channel(connection: socket.socket) -> Iterator[LoopChannel[Any]]:
    channel: LoopChannel[Any] = LoopChannel(connection, decode)
    try:
        yield channel
    finally:
        channel.close()


def file_with(payload: bytes) -> int:
    """Return a descriptor of a memory file, which the receiver owns."""
    with memory_file(payload) as file:
        return os.dup(file.fileno())


def contents(taken: Frames) -> list[bytes]:
    return [one if isinstance(one, bytes) else read_file(one) for one in taken.payloads]


# What arrives


@given(
    payloads=st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=12),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_frames_are_whole_however_the_stream_is_cut(payloads: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    """Pieces of any size, down to parts of a header, give the payloads that were sent."""
    stream = b""
    files = {}  # where in the stream a descriptor comes
    for payload, in_file in payloads:
        if in_file:
            files[len(stream)] = payload
        stream += header_of_file(len(payload)) if in_file else framed(payload)
    # A piece ends before the frame after one with a descriptor, as the kernel sees to.
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream)), *files})
    taken = Frames()
    for begin, end in itertools.pairwise(edges):
        taken.feed(stream[begin:end], [file_with(files[begin])] if begin in files else [])
    assert contents(taken) == [payload for payload, _ in payloads]
    taken.close()


@settings(max_examples=300)
@given(
    pieces=st.lists(
        st.tuples(
            st.one_of(
                st.binary(max_size=40),
                st.integers(0, 2**32 - 1).map(lambda number: struct.pack("<I", number)),
                st.integers(0, 50).map(header_of_file),
                st.binary(max_size=50).map(framed),
            ),
            st.lists(st.sampled_from(["file", "pipe", "socket"]), max_size=3),
        ),
        max_size=8,
    )
)
def test_garbage_is_refused_and_nothing_is_kept(pieces: list[tuple[bytes, list[str]]]) -> None:
    """Whatever comes, with whatever descriptors: payloads, or ChannelBroken; closing gives all of them back."""
    before = open_descriptors()
    taken = Frames()
    try:
        for data, kinds in pieces:
            taken.feed(data, [descriptor(kind) for kind in kinds])
    except ChannelBroken:
        pass
    taken.close()
    assert open_descriptors() == before


def descriptor(kind: str) -> int:
    if kind == "file":
        return file_with(b"x" * 20)
    if kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        return reading
    return socket.socket(socket.AF_UNIX).detach()


@pytest.mark.parametrize(
    "header",
    [INLINE_BYTES + 1, frames.MAX_BYTES, frames.MAX_BYTES + 1, IN_FILE - 1, 2**32 - 1, IN_FILE | 5],
)
def test_a_length_that_no_frame_has_is_refused_at_once(header: int) -> None:
    """Nothing is waited for, and nothing is set aside for what would come; a file that did not come is missed."""
    taken = Frames()
    with pytest.raises(ChannelBroken):
        taken.feed(struct.pack("<I", header))
    taken.close()


def test_a_file_that_is_not_what_its_header_says_is_refused() -> None:
    """Too short, too long, no regular file, or cut off after it was sent."""
    for payload, length in ((b"abc", 4), (b"abc", 2), (b"", 1)):
        taken = Frames()
        with pytest.raises(ChannelBroken):
            taken.feed(header_of_file(length), [file_with(payload)])
        taken.close()
    for kind in ("pipe", "socket"):
        taken = Frames()
        with pytest.raises(ChannelBroken):
            taken.feed(header_of_file(0), [descriptor(kind)])
        taken.close()


def test_a_file_that_shrinks_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is what was there, or nothing."""
    with memory_file(b"abcdef") as file:
        size = os.fstat(file.fileno())
        os.ftruncate(file.fileno(), 3)
        monkeypatch.setattr(os, "fstat", lambda _: size)
        with pytest.raises(ChannelBroken):
            read_file(file)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 200])
def test_descriptors_without_a_frame_are_closed(count: int) -> None:
    """One is too many, and so are more than the kernel hands over at once."""
    with pair() as (ours, theirs):
        taken = Frames()
        with memory_file(b"x") as file:
            socket.send_fds(theirs, [framed(b"abc")], [file.fileno()] * count)
        with pytest.raises(ChannelBroken):
            receive_some(ours, taken)
        taken.close()


def test_what_was_sent_and_never_read_is_gone_with_the_sockets() -> None:
    """A memory file on its way has no other owner."""
    with pair() as (ours, theirs):
        sender: WaitingChannel[Any] = WaitingChannel(theirs, decode)
        for _ in range(10):
            sender.send([b"x" * MIB])
        assert ours.fileno() > 0


# The two ends


@pytest.mark.anyio
async def test_both_ends_agree_on_messages_of_all_sizes() -> None:
    """Small and large ones, each way at the same time, in order."""
    sizes = [0, 1, INLINE_BYTES - 10, INLINE_BYTES, INLINE_BYTES + 1, 5 * MIB, 3, 200_000, 10]
    with pair() as (ours, theirs), loop_channel(ours) as near:
        far: WaitingChannel[Any] = WaitingChannel(theirs, decode)

        def echo() -> None:
            for _ in sizes:
                far.send(far.receive(None))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(echo))
            for number, size in enumerate(sizes):
                near.send([number, b"x" * size])
            got: list[Any] = []
            while len(got) < len(sizes):
                got += await near.receive()
        assert got == [[number, b"x" * size] for number, size in enumerate(sizes)]
        far.close()


@pytest.mark.anyio
@pytest.mark.parametrize("size", [40_000, 5 * MIB])
async def test_sending_to_a_peer_that_does_not_read_never_waits(size: int) -> None:
    """The messages queue up; when the peer reads at last, they come, in order."""
    with pair() as (ours, theirs), loop_channel(ours) as near:
        for number in range(40):
            near.send([number, b"x" * size])
        far: WaitingChannel[Any] = WaitingChannel(theirs, decode)

        def read() -> list[int]:
            return [far.receive(None)[0][0] for _ in range(40)]

        assert await asyncio.to_thread(read) == list(range(40))
        far.close()


@pytest.mark.anyio
@pytest.mark.parametrize("size", [40_000, MIB])
async def test_a_peer_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """What is on its way to it is bounded, on the stream and in files."""
    monkeypatch.setattr(channels, "MAX_UNREAD_BYTES", 10 * MIB)
    sent = 0
    with pair() as (ours, _theirs), loop_channel(ours) as near, pytest.raises(ChannelBroken):
        while sent < 50 * MIB:
            near.send(b"x" * size)
            sent += size
            await asyncio.sleep(0)
    assert 9 * MIB <= sent <= 11 * MIB


@pytest.mark.parametrize(("size", "bound"), [(1000, 2 * MIB), (60_000, 2 * MIB), (MIB, 11 * MIB)])
def test_an_engine_that_is_faster_than_its_reader_waits(monkeypatch: pytest.MonkeyPatch, size: int, bound: int) -> None:
    """Little is on its way, on the stream and in files; all of it arrives when it is read."""
    monkeypatch.setattr(channels, "_MAX_LENT_BYTES", 10 * MIB)
    count = 4 * bound // size
    sent = 0
    with pair() as (ours, theirs):
        far: WaitingChannel[Any] = WaitingChannel(theirs, decode)

        def produce() -> None:
            nonlocal sent
            for number in range(count):
                far.send([number, b"x" * size])
                sent += 1

        thread = threading.Thread(target=produce)
        thread.start()
        still = -1
        while still != sent:  # it has come to a halt when it does no more for a while
            still = sent
            thread.join(0.3)
        assert thread.is_alive()
        assert sent * size <= bound
        near: WaitingChannel[Any] = WaitingChannel(ours, decode)
        for number in range(count):
            assert near.receive(None)[0] == number
        thread.join(30)
        assert not thread.is_alive()
        near.close()


@pytest.mark.parametrize("size", [100, 60_000, MIB])
def test_a_sender_that_waits_hears_of_the_end(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """When the reader goes away, whoever waits for it is told."""
    monkeypatch.setattr(channels, "_MAX_LENT_BYTES", 2 * MIB)
    ours, theirs = socket.socketpair()
    far: WaitingChannel[Any] = WaitingChannel(theirs, decode)
    ended = threading.Event()

    def produce() -> None:
        with pytest.raises(ChannelClosed):
            while True:
                far.send([b"x" * size])
        ended.set()

    thread = threading.Thread(target=produce)
    thread.start()
    thread.join(0.1)
    ours.close()
    assert ended.wait(30)
    thread.join(30)
    far.close()


@pytest.mark.anyio
@pytest.mark.parametrize("torn", [b"", b"\x05", b"\x05\0\0\0", b"\x05\0\0\0ab"])
async def test_a_frame_that_is_cut_off_by_the_end_is_the_end(torn: bytes) -> None:
    """What came before it is received; then the channel is over, at both kinds of end."""
    with pair() as (ours, theirs), loop_channel(ours) as near:
        theirs.sendall(framed(encode(["whole"])) + torn)
        theirs.close()
        assert await near.receive() == ["whole"]
        assert await near.receive() == []
        near.send("nobody is there")
        near.send(b"x" * MIB)
        assert await near.receive() == []
    with pair() as (ours, theirs):
        waiting: WaitingChannel[Any] = WaitingChannel(ours, decode)
        theirs.sendall(framed(encode(["whole"])) + torn)
        theirs.close()
        assert waiting.receive(None) == ["whole"]
        with pytest.raises(ChannelClosed):
            waiting.receive(None)


@pytest.mark.anyio
@pytest.mark.parametrize("payload", [b"", b"\xc1", encode({"a": 1}), b"\x93\x01", encode([1]) + b"\0"])
async def test_a_frame_that_holds_no_messages_is_refused(payload: bytes) -> None:
    """It is as bad as a broken frame."""
    with pair() as (ours, theirs), loop_channel(ours) as near:
        theirs.sendall(framed(payload))
        with pytest.raises(ChannelBroken):
            await near.receive()


@pytest.mark.anyio
@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(
            st.one_of(st.binary(min_size=1, max_size=30), st.just(header_of_file(20)), st.just(framed(encode([1])))),
            st.integers(0, 12),
        ),
        max_size=6,
    )
)
async def test_a_hostile_peer_costs_no_descriptor(pieces: Sequence[tuple[bytes, int]]) -> None:
    """Garbage with up to a dozen descriptors at a time ends in an end or an error; nothing is left open."""
    before = open_descriptors()
    with pair() as (ours, theirs), loop_channel(ours) as near:
        with memory_file(b"x" * 20) as file:
            for data, count in pieces:
                socket.send_fds(theirs, [data], [file.fileno()] * count)
        theirs.close()
        try:
            while await near.receive():
                pass
        except ChannelBroken:
            pass
    assert open_descriptors() == before


@pytest.mark.anyio
async def test_closing_ends_who_waits() -> None:
    """A receiver gets the end, queued messages are dropped, and a large one under way leaves nothing."""
    with pair() as (ours, _theirs), loop_channel(ours) as near:
        for _ in range(20):
            near.send(b"x" * 50_000)
        near.send(b"x" * 20 * MIB)
        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(near.receive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            near.close()
        assert receiving.result() == []
        near.send("dropped")
        await anyio.wait_all_tasks_blocked()


@pytest.mark.anyio
async def test_shutting_down_lets_what_is_here_be_read() -> None:
    """Then comes the end, though somebody else still holds the other side."""
    with pair() as (ours, theirs), loop_channel(ours) as near:
        theirs.sendall(framed(encode(["last words"])))
        near.shut_down()
        assert await near.receive() == ["last words"]
        assert await near.receive() == []


def test_a_message_larger_than_any_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of it is sent."""
    monkeypatch.setattr(frames, "MAX_BYTES", 1000)
    with pair() as (ours, theirs):
        far: WaitingChannel[Any] = WaitingChannel(theirs, decode)
        with pytest.raises(TooLarge):
            far.send([bytes(1000)])
        far.send([b"fits"])
        near: WaitingChannel[Any] = WaitingChannel(ours, decode)
        assert near.receive(0.0) == [b"fits"]
        assert near.receive(0.0) == []
        assert near.receive(0.001) == []
