"""The job kind `images`: a place in memory, a model that draws, pictures in the gallery.

It may be killed anywhere and be run again: a seed that nobody gave comes from the job's id, and so do the
pictures' ids; rows are written by the transaction that finishes the job.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from serai.clock import Clock
from serai.decode.decoder import Decoder
from serai.errors import OutOfMemory, SeraiError, WorkerCrashed, WorkerHung
from serai.events import Done, Event, Failed, Loading, Media, Progress, Queued
from serai.images import store as images_store
from serai.images.drawing import Drawing, Kept, pictures_of, result_of
from serai.images.errors import ImageWorkerLost, WrongPictures
from serai.images.inputs import find_inputs
from serai.images.keeping import Encoded, Keeper, tasks
from serai.images.model import KIND, ImageRequest
from serai.images.plan import planned
from serai.images.previews import shrunk
from serai.images.room import check_room
from serai.jobs.model import DEFAULT_PRIORITY, Job
from serai.jobs.runner import JobContext
from serai.registry.errors import CandidateInCooldown
from serai.registry.plan import Request
from serai.registry.registry import Registry
from serai.serving.answer import Answer
from serai.serving.call import Call
from serai.serving.errors import error_of
from serai.serving.serving import Serving
from serai.storage.blobs import Blobs
from serai.storage.database import Connection, Database
from serai.storage.locks import hold

RESOURCE: Final = "images"
REMOTE: Final = "remote"
"""The engine by which other servers draw."""
TOUCH_S: Final = 2.0
"""How often a job says that it lives while its model says nothing: who minds the model knows if that hangs."""
TRIAL_S: Final = 15.0
"""How long a job waits for a model that failed a short while ago, before it tries whether it works again."""
PICTURE: Final = "picture"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """What makes and keeps pictures."""

    serving: Serving
    registry: Registry
    database: Database
    blobs: Blobs
    decoder: Decoder
    clock: Clock
    embeds: bool
    """Whether a file says what made it."""
    quota_bytes: int
    """What a user may keep who has no quota of their own."""


class ImageRunner:
    """Payload: `ImageRequest`. The job's decision is the one that serving made, with the id under which it is stored.

    Result: images (id, url, thumb_url, seed, width, height, format, sha256, bytes), model, version, seed,
    settings, timings, and what the model told besides: device, batched, usage, revised_prompt; `reproducible`
    false where the same request may give another picture, `unused` for the settings that it knows none of, and
    `truncated` for how many tokens of a prompt it did not read.
    """

    kind = KIND
    version = 1
    resource = RESOURCE
    stall_s = 120.0
    cap_s = 12 * 3600.0

    def __init__(self, parts: ImageParts, *, trial_s: float = TRIAL_S) -> None:
        self._parts = parts
        self._trial_s = trial_s
        self._suspects = asyncio.Lock()
        self._keeper = Keeper(parts.blobs, parts.decoder)

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a payload that asks for no pictures."""
        ImageRequest.of(payload)

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        """Draw; tell the place in the queue, the load, each step, previews, and what is being stored."""
        asked, job = ImageRequest.of(context.payload), context.job
        parts = self._parts
        await parts.database.read(check_room, job.owner_id, parts.quota_bytes)
        inputs = await find_inputs(
            asked, job.owner_id, database=parts.database, blobs=parts.blobs, decoder=parts.decoder
        )
        drawing = Drawing(job=job, asked=asked, inputs=inputs)
        is_suspect = job.error is not None and job.error.get("code") == ImageWorkerLost.code
        async with self._alone(context, is_suspect):
            until = parts.clock.monotonic() + (0.0 if is_suspect else self._trial_s)
            async with aclosing(self._drawn(context, drawing, until)) as events:
                async for event in events:
                    yield event

    # Before

    @asynccontextmanager
    async def _alone(self, context: JobContext, is_suspect: bool) -> AsyncIterator[None]:
        """Let jobs whose worker ended under them go on one at a time: so the one that ends it takes no other along."""
        if not is_suspect:
            yield
            return
        while not await _within(TOUCH_S, self._suspects.acquire()):
            context.touch()
        try:
            yield
        finally:
            self._suspects.release()

    async def _admission(self, drawing: Drawing, until: float) -> Request | Progress:
        """Return what serving is asked for; or, while whoever can draw is left alone for a failure, what to tell.

        Jobs are patient where requests are refused; after `until` one tries whether the model works again.
        """
        serving, now = self._parts.serving, self._parts.clock.monotonic()
        snapshot, situation = await self._parts.registry.current(), serving.situation()
        try:
            return planned(snapshot, situation, drawing.asked).request
        except CandidateInCooldown as error:
            if now < until:
                left = round(min(until - now, error.retry_after or self._trial_s), 1)
                return Progress(stage="waiting", detail={"why": error.message, "eta_s": left})
        plan = planned(snapshot, replace(situation, cooldowns={}), drawing.asked)
        await serving.clear_cooldown(plan.candidate.name)
        return plan.request

    # Drawing

    async def _drawn(self, context: JobContext, drawing: Drawing, until: float) -> AsyncGenerator[Event, None]:
        while isinstance(step := await self._admission(drawing, until), Progress):
            yield step
            await asyncio.sleep(TOUCH_S)
        opened = self._parts.clock.monotonic()
        async with await self._parts.serving.open(self._call(drawing, step)) as answer, tasks() as work:
            drawing.course.is_free(self._parts.clock.monotonic())
            while True:
                event = await _next(answer, context)
                context.decision = {**answer.decision.document(), "id": answer.id}
                if isinstance(event, Failed):
                    raise _known(answer.error or error_of(event), has_begun=drawing.has_begun)
                if isinstance(event, Done):
                    _check_number(len(work), drawing, is_end=True)
                    storing = asyncio.create_task(self._kept(drawing, tuple(work)))
                    work.append(storing)
                    drawing.kept = await _result(storing, context)
                    yield self._end(context, drawing, event, opened)
                    return
                for told in self._told(drawing, event, len(work)):
                    if not isinstance(told, Media) or answer.engine != REMOTE:
                        yield told
                    elif (preview := await shrunk(told, self._parts.decoder)) is not None:
                        yield preview
                if isinstance(event, Media) and event.name == PICTURE:
                    # Beside the reading: a model that waits with more pictures than fit would lose them.
                    _check_number(len(work) + 1, drawing)
                    work.append(asyncio.create_task(self._encoded(drawing, event, len(work))))

    def _call(self, drawing: Drawing, request: Request) -> Call:
        job = drawing.job
        return Call(
            request=request,
            task=drawing.task,
            caller=job.owner_id,
            owner=job.owner_id,
            timeout_s=self.cap_s,
            priority=DEFAULT_PRIORITY - job.priority,
        )

    def _told(self, drawing: Drawing, event: Event, made: int) -> Iterator[Event]:
        """Yield what clients see of an event that came after so many pictures."""
        if drawing.has_begun and isinstance(event, Queued | Loading):
            # What the candidate before told last was read when the task for this one had been made.
            drawing.begin_anew()
        course, now = drawing.course, self._parts.clock.monotonic()
        match event:
            case Queued():
                course.is_queued()
                yield event
            case Loading():
                if not event.fraction:
                    yield event
                yield course.is_loading(event, now)
            case Progress(detail={"queue_position": int(position)}):
                course.is_queued()
                yield Queued(position=position)
            case Progress():
                drawing.has_begun = True
                yield course.is_generating(event, now)
            case Media(name=name):
                drawing.has_begun = True
                if name == PICTURE:
                    yield course.is_saving(made, now)
                elif drawing.wants(event):
                    yield event

    async def _encoded(self, drawing: Drawing, event: Media, position: int) -> Encoded:
        document = partial(drawing.document, drawing.used.seed + position) if self._parts.embeds else None
        return await self._keeper.encode(event, drawing.used, document)

    # Afterwards

    async def _kept(self, drawing: Drawing, encoding: Sequence["asyncio.Task[Encoded]"]) -> list[Kept]:
        """Store all pictures, as the last thing before the rows that name their blobs."""
        encoded = [await task for task in encoding]
        blobs = await self._keeper.store(encoded)
        return [
            Kept(position=position, seed=drawing.used.seed + position, size=one.size, file=file, thumb=thumb)
            for position, (one, (file, thumb)) in enumerate(zip(encoded, blobs, strict=True))
        ]

    def _end(self, context: JobContext, drawing: Drawing, done: Done, opened: float) -> Done:
        """Have everything written with the job's end, and return that."""
        now = self._parts.clock.monotonic()
        blobs = {blob for kept in drawing.kept for blob in (kept.file, kept.thumb)}
        at = self._parts.clock.now()
        pictures = pictures_of(drawing, context.decision or {}, at)

        def write(connection: Connection, job: Job) -> None:
            hold(connection, job.owner_id)  # jobs of one owner must not pass the quota together
            check_room(connection, job.owner_id, self._parts.quota_bytes, blobs)
            images_store.add(connection, pictures, at)

        context.write(write)
        return Done(result=result_of(drawing, pictures, done.result, total_s=now - opened))


def _check_number(made: int, drawing: Drawing, *, is_end: bool = False) -> None:
    """Raise WrongPictures where a model has made more pictures than were asked for; at its end, also for fewer."""
    wanted = drawing.used.images
    if made > wanted or (is_end and made < wanted):
        raise WrongPictures(f"The model made {made} pictures where {wanted} were asked for.")


def _known(error: SeraiError, *, has_begun: bool) -> SeraiError:
    """Return the error with which the job fails: one that is tried again where the worker was lost on the way."""
    if isinstance(error, WorkerCrashed | WorkerHung) or (has_begun and isinstance(error, OutOfMemory)):
        return ImageWorkerLost(error.message)
    return error


async def _next(answer: Answer, context: JobContext) -> Event:
    """Return the next event of an answer; say meanwhile that the job lives."""
    while True:
        context.touch()
        try:
            async with asyncio.timeout(TOUCH_S):
                return await anext(answer)
        except TimeoutError:
            continue


async def _result(task: "asyncio.Task[T]", context: JobContext) -> T:
    """Return what a task returns; say meanwhile that the job lives."""
    while not task.done():
        context.touch()
        await asyncio.wait((task,), timeout=TOUCH_S)
    return task.result()


async def _within(seconds: float, work: Awaitable[object]) -> bool:
    """Await `work` for so long; say whether it ended."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
