"""Leases and streams: what a reader gets, how much is held for one who reads late, how a run is fed and ended."""

import asyncio

import pytest

from serai.engines.base import AdapterUse
from serai.events import Done, Failed, Media, Text
from serai.runtime.lease import EVENT_BYTES
from serai.runtime.worker.messages import Cancel, Start
from serai.runtime.workers import Pace
from support.runtime_stage import HELLO, A, claim, read, staged
from support.scripted_backend import turns

pytestmark = pytest.mark.anyio


async def test_what_is_here_already_can_be_taken_at_once() -> None:
    """`ready` returns further events without waiting, so that frames can carry several."""
    async with staged() as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        worker = stage.backend.workers[0]
        assert stream.ready() == []
        worker.tell(*(Text(delta=str(number)) for number in range(4)))
        await turns()
        assert await anext(stream) == Text(delta="0")
        assert [event.delta for event in stream.ready() if isinstance(event, Text)] == ["1", "2", "3"]
        worker.answer()
        assert await read(stream) == [Done(result={"words": 0})]
        assert stream.is_over


async def test_a_reader_who_waits_is_woken() -> None:
    """An event that comes while the reader waits is handed on; closing the stream ends the wait."""
    async with staged() as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        first = asyncio.ensure_future(anext(stream))
        await turns()
        stage.backend.workers[0].tell(Text(delta="x"))
        assert await asyncio.wait_for(first, 30) == Text(delta="x")
        last = asyncio.ensure_future(anext(stream, None))
        await turns()
        await stream.aclose()
        assert await asyncio.wait_for(last, 30) is None


async def test_adapters_go_with_the_run() -> None:
    """The worker is told which files lie over its weights, for this run alone."""
    async with staged() as stage:
        await stage.loaded(A)
        use = AdapterUse(id="sha256:1", path="/lora", scale=0.5)
        (await stage.ask(A).got()).run(HELLO, adapters=[use])
        (start,) = [message for message in stage.backend.workers[0].heard if isinstance(message, Start)]
        assert (start.run.adapters, start.run.task) == ((use,), HELLO)


async def test_a_slow_reader_is_cut_off() -> None:
    """Up to the bound everything is kept; beyond it the run is cancelled, and its reader is told."""
    bound = 10 * EVENT_BYTES
    async with staged(pace=Pace(buffer_bytes=bound)) as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        worker = stage.backend.workers[0]
        for number in range(1000):
            if worker.runs:
                worker.tell(Text(delta=str(number % 10)), run=1)
            await turns(3)
        assert worker.cancels() == [1]
        *kept, last = await read(stream)
        assert 0 < len(kept) < 12
        assert [event.delta for event in kept if isinstance(event, Text)] == [str(n % 10) for n in range(len(kept))]
        assert isinstance(last, Failed)
        assert last.code == "SLOW_CONSUMER"


async def test_one_large_event_is_not_slowness() -> None:
    """A picture larger than the bound arrives, and so does the end of a run whatever is held."""
    async with staged(pace=Pace(buffer_bytes=100)) as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        picture = Media(name="picture", media_type="image/png", data=bytes(1000))
        stage.backend.workers[0].tell(picture, Done(result={}))
        assert await read(stream) == [picture, Done(result={})]


async def test_who_reads_is_never_cut_off() -> None:
    """What was read is held no more, so the bound is on what lies here, not on the answer's length."""
    async with staged(pace=Pace(buffer_bytes=10 * EVENT_BYTES)) as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        for number in range(200):
            stage.backend.workers[0].tell(Text(delta="x"))
            if number % 5 == 0:
                await turns(3)
                stream.ready()
            else:
                await anext(stream)
        assert stage.backend.workers[0].cancels() == []


async def test_closing_a_stream_cancels_its_run_and_frees_the_place() -> None:
    """The worker hears of it once, late events are dropped, and a new run may follow at once."""
    async with staged() as stage:
        await stage.loaded(A)
        lease = await stage.ask(A).got()
        stream = lease.run(HELLO)
        with pytest.raises(RuntimeError, match="one run at a time"):
            lease.run(HELLO)
        await stream.aclose()
        await stream.aclose()
        worker = stage.backend.workers[0]
        assert worker.cancels() == [1]
        again = lease.run(HELLO)
        worker.tell(Text(delta="late"), run=1)
        worker.answer("new")
        assert (await read(again))[0] == Text(delta="new")
        assert await read(stream) == []


async def test_the_end_of_a_lease_cancels_what_runs() -> None:
    """The slot is given back at once: the worker hears `Cancel` before it hears of the next run."""
    async with staged() as stage:
        await stage.loaded(A)
        first, second = stage.ask(A), stage.ask(A, caller="bob")
        lease = await first.got()
        lease.run(HELLO)
        await first.done()
        (await second.got()).run(HELLO)
        kinds = [type(message) for message in stage.backend.workers[0].heard]
        assert kinds == [Start, Cancel, Start]
        with pytest.raises(RuntimeError, match="inside its block"):
            lease.run(HELLO)


async def test_a_run_is_fed() -> None:
    """Messages reach the run that they are for, and nobody once it is over."""
    async with staged() as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        worker = stage.backend.workers[0]
        stream.feed({"text": "more"})
        worker.answer()
        await read(stream)
        stream.feed({"text": "too late"})
        assert [(feed.run, feed.message) for feed in worker.feeds()] == [(1, {"text": "more"})]


async def test_answers_of_several_runs_do_not_mix() -> None:
    """Each stream gets the events of its own run, in order."""
    async with staged(max_runs=3) as stage:
        await stage.loaded(A)
        streams = [(await stage.ask(A, caller=str(number)).got()).run(HELLO) for number in range(3)]
        worker = stage.backend.workers[0]
        for number in range(30):
            worker.tell(Text(delta=f"{number % 3}:{number // 3}"), run=number % 3 + 1)
        for run in (3, 1, 2):
            worker.tell(Done(result={}), run=run)
        for number, stream in enumerate(streams):
            texts = [event.delta for event in await read(stream) if isinstance(event, Text)]
            assert texts == [f"{number}:{step}" for step in range(10)]


async def test_a_task_that_cannot_be_sent_leaves_the_lease_usable() -> None:
    """The error is the caller's; nothing waits for a run that never began."""
    from serai.errors import TooLarge

    async with staged() as stage:
        await stage.loaded(claim("a"))
        lease = await stage.ask(A).got()
        worker, send = stage.backend.workers[0], stage.backend.workers[0].send

        def refuse(message: object) -> None:
            raise TooLarge("Too large.")

        worker.send = refuse  # type: ignore[assignment]
        with pytest.raises(TooLarge):
            lease.run(HELLO)
        worker.send = send  # type: ignore[method-assign]
        stream = lease.run(HELLO)
        worker.answer("ok")
        assert len(await read(stream)) == 2
