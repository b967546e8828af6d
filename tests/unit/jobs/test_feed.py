"""Following a job: stored events without a gap, live ones where it runs, text whole."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serai.events import Done, Event, Failed, Progress, Text
from serai.jobs.feed import Feed, Followed
from serai.jobs.model import EventsGone, JobNotFound
from serai.jobs.runner import JobContext
from serai.storage.database import Database
from support.scripted_backend import turns

pytestmark = pytest.mark.anyio


class Steps:
    """A script that yields what the test sends, one at a time."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def __call__(self, context: JobContext) -> AsyncGenerator[Event, None]:
        while True:
            yield await self.queue.get()
            self.queue.task_done()

    def send(self, *events: Event) -> None:
        for event in events:
            self.queue.put_nowait(event)


def stored(followed: list[Followed]) -> list[int]:
    return [entry.seq for entry in followed if entry.seq is not None]


async def test_a_finished_job_is_replayed_from_any_number(database: Database, serve: Any) -> None:
    """Without a number all kept events come; with one, those after it; after the last, none."""
    steps = Steps()
    steps.send(Progress(stage="a"), Progress(stage="b"), Done(result={}))
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        whole = await server.follow(job)
        assert stored(whole) == [1, 2, 3, 4]
        assert stored(await server.follow(job, after=2)) == [3, 4]
        assert await server.follow(job, after=4) == []


async def test_a_follower_sees_a_live_event_before_it_is_stored_and_then_its_number(
    database: Database, serve: Any
) -> None:
    """Every step reaches a live follower, stored or not."""
    steps = Steps()
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        following = server.feed.follow(job.id, owner_id="ann", after=None)
        assert (await anext(following)).event == Progress(stage="started", detail={"attempt": 1})
        steps.send(*(Progress(stage="s", done=step) for step in range(50)))
        live: list[Event] = []
        while len(live) < 50:
            followed = await anext(following)
            if followed.seq is None:
                live.append(followed.event)
        assert live == [Progress(stage="s", done=step) for step in range(50)]
        steps.send(Done(result={}))
        rest = [followed async for followed in following]
        assert stored(rest) == list(range(2, 2 + len(stored(rest))))
        assert [followed.event for followed in rest if not followed.was_shown] == [Done(result={})]


async def test_who_comes_back_hears_nothing_out_of_order(database: Database, serve: Any) -> None:
    """What was shown live and is stored later comes before what is shown now, and not after it."""
    steps = Steps()
    shown = [Progress(stage=f"s{step}", done=step) for step in range(20)]  # each is stored, for each is news
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        early = server.feed.follow(job.id, owner_id="ann", after=None)
        steps.send(*shown[:10])
        while (await anext(early)).event != shown[9]:
            pass
        back = server.feed.follow(job.id, owner_id="ann", after=1)
        first = asyncio.create_task(anext(back))
        await turns()  # it follows now, and waits: nothing is stored yet
        steps.send(*shown[10:])
        seen = [await first]
        while seen[-1].event != shown[19]:
            seen.append(await anext(back))
        steps.send(Done(result={}))
        seen += [followed async for followed in back]
        await early.aclose()
    told = [entry.event.done for entry in seen if isinstance(entry.event, Progress) and not entry.was_shown]
    assert told == sorted(told)
    assert seen[-1].event == Done(result={})


async def test_text_reaches_every_follower_whole_and_in_order(database: Database, serve: Any) -> None:
    """Early, late and slow followers read the same text; not one delta is a row."""
    steps = Steps()
    deltas = [Text(delta=f"{number} سلام\n") for number in range(2000)]
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        early = asyncio.create_task(server.follow(job))
        steps.send(*deltas[:1000], Progress(stage="half"))
        slow = server.feed.follow(job.id, owner_id="ann", after=None)
        seen_by_slow = [await anext(slow)]
        while seen_by_slow[-1].event != Progress(stage="half"):
            seen_by_slow.append(await anext(slow))
        late = asyncio.create_task(server.follow(job))
        steps.send(*deltas[1000:])
        await steps.queue.join()
        seen_by_slow += [await anext(slow) for _ in range(900)]
        seen_by_slow += [await anext(slow) for _ in range(2000 - sum(isinstance(f.event, Text) for f in seen_by_slow))]
        steps.send(Done(result={}))
        for followed in (await early, await late, [*seen_by_slow, *[entry async for entry in slow]]):
            assert [entry.event for entry in followed if isinstance(entry.event, Text)] == deltas
            assert followed[-1].event == Done(result={})
        await asyncio.gather(*server.supervisor._tasks)  # the end is seen a moment before the run is over
        assert not any(isinstance(e.event, Text) for e in await server.follow(job))


async def test_a_slow_follower_loses_live_events_and_no_stored_one(database: Database, serve: Any) -> None:
    """What waits for a follower that does not read is bounded; the numbers it then reads have no gap."""
    steps = Steps()
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        slow = server.feed.follow(job.id, owner_id="ann", after=None)
        seen = [await anext(slow)]
        steps.send(*(Progress(stage="s", done=step) for step in range(5000)), Done(result={}))
        await server.follow(job)
        seen += [followed async for followed in slow]
    assert stored(seen) == list(range(1, len(stored(seen)) + 1))
    assert len(seen) < 300
    assert seen[-1].event == Done(result={})


async def test_a_job_that_ends_without_running_is_followed_to_its_end(database: Database, serve: Any) -> None:
    """A cancel of a waiting job reaches those who follow it."""
    steps = Steps()
    async with serve(database, {"steps": steps}, concurrency=1) as server:
        running, waiting = await server.put("steps"), await server.put("steps")
        following = asyncio.create_task(server.follow(waiting))
        await server.cancel(waiting)
        (end,) = await following
        assert (end.seq, end.event) == (1, Failed(code="CANCELLED", message="The job was cancelled."))
        await server.cancel(running)


async def test_closing_a_look_does_not_cancel_the_job(database: Database, serve: Any) -> None:
    """The job goes on, and nothing of the follower is kept."""
    steps = Steps()
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        following = server.feed.follow(job.id, owner_id="ann", after=None)
        await anext(following)
        await following.aclose()
        assert server.feed._followers == {}
        steps.send(Done(result={}))
        assert (await server.ended(job)).status == "succeeded"
    assert server.feed._runs == {}


async def test_a_foreign_job_and_an_evicted_offset_are_refused(
    database: Database, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """404 for what is not the caller's; EVENTS_GONE for what is no longer kept; nothing is left registered."""
    from serai.jobs.store import reading, rows

    monkeypatch.setattr(rows, "KEEP_EVENTS", 2)
    monkeypatch.setattr(reading, "KEEP_EVENTS", 2)
    steps = Steps()
    steps.send(*(Progress(stage=stage) for stage in "abcdef"), Done(result={}))
    async with serve(database, {"steps": steps}) as server:
        job = await server.put("steps")
        await server.until(job, lambda row: row.is_terminal)
        with pytest.raises(JobNotFound):
            await anext(server.feed.follow(job.id, owner_id="eve", after=None))
        with pytest.raises(EventsGone):
            await anext(server.feed.follow(job.id, owner_id="ann", after=3))
        assert stored(await server.follow(job)) == [7, 8]
        assert server.feed._followers == {}


async def test_a_second_attempt_streams_its_text_anew(database: Database, serve: Any) -> None:
    """Text of the attempt that was lost is followed by the text of the next, from its start."""
    attempts = 0

    async def twice(context: JobContext) -> AsyncGenerator[Event, None]:
        nonlocal attempts
        attempts += 1
        yield Text(delta=f"try {attempts}")
        await first.wait()
        if attempts == 1:
            raise ConnectionError
        yield Done(result={})

    first = asyncio.Event()
    async with serve(database, {"twice": twice}) as server:
        job = await server.put("twice")
        following = server.feed.follow(job.id, owner_id="ann", after=None)
        seen = [await anext(following), await anext(following)]
        first.set()
        async with asyncio.timeout(30):
            seen += [followed async for followed in following]
    assert [entry.event for entry in seen if isinstance(entry.event, Text)] == [
        Text(delta="try 1"),
        Text(delta="try 2"),
    ]


@pytest.mark.postgres
async def test_a_job_of_another_server_is_followed_to_its_end(postgres_url: str, serve: Any) -> None:
    """Stored events arrive through the database's notices, live ones are that server's own."""
    from serai.storage.connect import open_postgresql

    steps = Steps()
    here, there = (open_postgresql(postgres_url, pool_size=3) for _ in range(2))
    feed = Feed(here)
    feed.open()
    try:
        async with serve(there, {"steps": steps}) as server:
            job = await server.put("steps")
            following = feed.follow(job.id, owner_id="ann", after=None)
            first = await anext(following)
            steps.send(Progress(stage="a"))
            second = await anext(following)
            steps.send(Done(result={"x": 1}))
            async with asyncio.timeout(30):
                rest = [followed async for followed in following]
    finally:
        feed.close()
        here.close_sync()
        there.close_sync()
    assert [first.seq, second.seq, *stored(rest)] == [1, 2, 3]
    assert rest[-1].event == Done(result={"x": 1})
