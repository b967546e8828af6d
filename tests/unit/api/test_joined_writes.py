"""The head of an answer and what follows it in the same turn of the loop are one packet, and nothing is held back."""

import asyncio
from typing import Any, cast

import pytest

from serai.api.protocol import _JoinedWrites

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Sent(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.packets.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def joined() -> tuple[Sent, asyncio.Transport]:
    sent = Sent()
    return sent, cast("asyncio.Transport", _JoinedWrites(sent, asyncio.get_running_loop()))


async def test_head_and_body_are_one_packet() -> None:
    """What follows later is a packet of its own, and so is the next answer."""
    sent, transport = joined()
    for body in (b"one", b"two"):
        transport.write(HEAD)
        transport.write(body)
        transport.write(b"more")
    assert sent.packets == [HEAD + b"one", b"more", HEAD + b"two", b"more"]


async def test_a_head_alone_goes_with_the_next_turn() -> None:
    """A stream whose first word takes its time, or a head that asks for the body."""
    sent, transport = joined()
    transport.write(HEAD)
    assert sent.packets == []
    await asyncio.sleep(0)
    assert sent.packets == [HEAD]
    transport.write(b"word")
    assert sent.packets == [HEAD, b"word"]


async def test_closing_sends_what_waits() -> None:
    """An answer without a body on a connection that ends with it; afterwards nothing is written any more."""
    sent, transport = joined()
    transport.write(HEAD)
    transport.close()
    assert (sent.packets, sent.is_closed) == ([HEAD], True)
    await asyncio.sleep(0)
    assert sent.packets == [HEAD]


async def test_a_head_for_a_lost_connection_is_dropped() -> None:
    """The connection may go between the head and the next turn."""
    sent, transport = joined()
    transport.write(HEAD)
    sent.is_closed = True
    await asyncio.sleep(0)
    assert sent.packets == []
