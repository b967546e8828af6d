"""A channel keeps order, ends, and holds back a writer whose reader is far behind."""

import asyncio

import pytest

from serai.events import Done, Media, Text
from serai.serving.channel import Channel

pytestmark = pytest.mark.anyio
DONE = Done(result={})


async def test_a_reader_gets_what_was_put_and_then_the_end() -> None:
    """In order, and None again and again after the end; what comes after the end is dropped."""
    channel = Channel()
    reading = asyncio.create_task(channel.get())
    await asyncio.sleep(0)
    channel.put(Text(delta="a"))
    assert await reading == Text(delta="a")
    channel.put(Text(delta="b"))
    channel.put(DONE)
    channel.close()
    channel.put(Text(delta="late"))
    assert channel.ready() == [Text(delta="b"), DONE]
    assert await channel.get() is None
    assert await channel.get() is None


async def test_a_writer_waits_for_a_reader_far_behind() -> None:
    """Whichever way the reader reads, it makes room."""
    channel = Channel(bound=2000)
    picture = Media(name="preview", media_type="image/png", data=b"x" * 800)
    channel.put(picture)
    assert not channel.is_full
    for read in (channel.get, None):
        channel.put(picture)
        assert channel.is_full
        waiting = asyncio.create_task(channel.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        if read is None:
            channel.ready()
        else:
            await read()
            await read()
            channel.put(picture)
        await waiting
