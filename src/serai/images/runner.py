"""The job kind `images`: a place in memory, a model that draws, pictures in the gallery.

It may be killed anywhere and be run again: a seed that nobody gave comes from the job's id, and so do the
pictures' ids; rows are written by the transaction that finishes the job.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from anyio.to_thread import run_sync

from serai.auth import store as auth_store
from serai.clock import Clock
from serai.decode.decoder import DecodedImage, Decoder
from serai.errors import EngineFailed, InvalidInput, OutOfMemory, SeraiError, WorkerCrashed, WorkerHung
from serai.events import Done, Event, Failed, Loading, Media, Progress, Queued
from serai.files.store import over_quota
from serai.images import store as images_store
from serai.images.drawing import Drawing, Kept, pictures_of, result_of
from serai.images.errors import ImageWorkerLost, WrongPictures
from serai.images.inputs import read_inputs
from serai.images.model import KIND, ImageRequest
from serai.images.plan import Resolved, planned
from serai.jobs.model import DEFAULT_PRIORITY, Job
from serai.jobs.runner import JobContext
from serai.registry.decision import Decision
from serai.registry.errors import CandidateInCooldown
from serai.registry.plan import Request
from serai.registry.registry import Registry
from serai.serving.answer import Answer
from serai.serving.call import Call
from serai.serving.errors import error_of
from serai.serving.serving import Serving
from serai.storage import links
from serai.storage.blobs import Blob, BlobNotFound, Blobs
from serai.storage.database import Connection, Database
from serai.storage.locks import hold

if TYPE_CHECKING:
    from serai.images.pixels import Made

RESOURCE: Final = "images"
TOUCH_S: Final = 2.0
"""How often a job says that it lives while its model says nothing: who minds the model knows if that hangs."""
TRIAL_S: Final = 15.0
"""How long a job waits for a model that failed a short while ago, before it tries whether it works again."""
ENCODERS: Final = 2
"""Pictures that are turned into files at the same time."""
PPM: Final = "image/x-portable-pixmap"
PICTURE: Final = "picture"


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
    """Payload: `ImageRequest`. The job's decision is the one that serving made.

    Result: images (id, url, thumb_url, seed, width, height, format, sha256, bytes), model, version, seed,
    settings, timings, and what the model told besides (device, batched, usage, revised_prompt).
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
        self._encoding = asyncio.Semaphore(ENCODERS)

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a payload that asks for no pictures."""
        ImageRequest.of(payload)

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        """Draw; tell the place in the queue, the load, each step, previews, and what is being stored."""
        asked, job = ImageRequest.of(context.payload), context.job
        parts = self._parts
        await parts.database.read(_check_room, job.owner_id, parts.quota_bytes)
        inputs = await read_inputs(
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
        async with await self._parts.serving.open(self._call(drawing, step)) as answer, _tasks() as keeping:
            while True:
                event = await _next(answer, context)
                if isinstance(event, Failed):
                    raise _known(answer.error or error_of(event), has_begun=drawing.has_begun)
                if isinstance(event, Done):
                    drawing.kept = [await _result(task, context) for task in keeping]
                    yield await self._end(context, drawing, answer.decision, event, opened)
                    return
                context.decision = answer.decision.document()
                for told in self._told(drawing, event, len(keeping)):
                    yield told
                if isinstance(event, Media) and event.name == PICTURE:
                    # Beside the reading: a model that waits with more pictures than fit would lose them.
                    keeping.append(asyncio.create_task(self._keep(drawing, event, len(keeping))))

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
        course, now = drawing.course, self._parts.clock.monotonic()
        match event:
            case Queued():
                yield event
            case Loading():
                if not event.fraction:
                    yield event
                yield course.is_loading(event, now)
            case Progress():
                drawing.has_begun = True
                yield course.is_generating(event, now)
            case Media(name=name):
                drawing.has_begun = True
                if name == PICTURE:
                    yield course.is_saving(made, now)
                elif drawing.wants(event):
                    yield event

    async def _keep(self, drawing: Drawing, event: Media, position: int) -> Kept:
        """Store the file and the thumbnail of a picture."""
        parts = self._parts
        seed = drawing.used.seed + position
        document = partial(drawing.document, seed) if parts.embeds else None
        try:
            async with self._encoding:
                pixels = event.data if event.media_type == PPM else await parts.decoder.image(event.data)
                made = await run_sync(_made, pixels, drawing.used, document)
        except (InvalidInput, EngineFailed) as error:
            raise WrongPictures("The model made a picture that cannot be opened.") from error
        return Kept(
            position=position,
            seed=seed,
            size=made.size,
            file=await parts.blobs.put(made.file, max_bytes=len(made.file)),
            thumb=await parts.blobs.put(made.thumb, max_bytes=len(made.thumb)),
        )

    # Afterwards

    async def _end(self, context: JobContext, drawing: Drawing, decision: Decision, done: Done, opened: float) -> Done:
        """Have everything written with the job's end, and return that."""
        now = self._parts.clock.monotonic()
        drawing.course.is_over(now)
        wanted = drawing.used.images
        if len(drawing.kept) != wanted:
            raise WrongPictures(f"The model made {len(drawing.kept)} pictures where {wanted} were asked for.")
        blobs = {blob for kept in drawing.kept for blob in (kept.file, kept.thumb)}
        context.decision = decision.document()
        at = self._parts.clock.now()
        pictures = pictures_of(drawing, context.decision, at)

        def write(connection: Connection, job: Job) -> None:
            hold(connection, job.owner_id)  # jobs of one owner must not pass the quota together
            _check_room(connection, job.owner_id, self._parts.quota_bytes, blobs)
            images_store.add(connection, pictures, at)

        context.write(write)
        return Done(result=result_of(drawing, pictures, done.result, total_s=now - opened))


def _made(
    pixels: bytes | DecodedImage, used: Resolved, document: Callable[[tuple[int, int]], Mapping[str, Any]] | None
) -> "Made":
    from serai.images.pixels import make  # the server starts without Pillow

    return make(pixels, format=used.format, quality=used.quality, document=document)


def _check_room(connection: Connection, owner_id: str, usual: int, new: Collection[Blob] = ()) -> None:
    """Raise QuotaExceeded where the owner has no room for these blobs; without any, for a single byte."""
    asked = sum(blob.size for blob in new if not _is_held(connection, owner_id, blob)) if new else 1
    used, quota = links.usage(connection, owner_id), _quota(connection, owner_id, usual)
    if asked and used + asked > quota:
        raise over_quota(used, quota, asked)


def _quota(connection: Connection, owner_id: str, usual: int) -> int:
    """Return what a user may keep."""
    try:
        own = auth_store.get_user(connection, owner_id).disk_quota_bytes
    except auth_store.UserNotFound:  # where nobody is asked who they are
        return usual
    return usual if own is None else own


def _is_held(connection: Connection, owner_id: str, blob: Blob) -> bool:
    try:
        links.check_held(connection, owner_id, blob.digest)
    except BlobNotFound:
        return False
    return True


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


async def _result(task: "asyncio.Task[Kept]", context: JobContext) -> Kept:
    """Return what a task returns; say meanwhile that the job lives."""
    while not task.done():
        context.touch()
        await asyncio.wait((task,), timeout=TOUCH_S)
    return task.result()


@asynccontextmanager
async def _tasks() -> AsyncIterator[list["asyncio.Task[Kept]"]]:
    """Give a list for tasks, none of which outlives the block."""
    tasks: list[asyncio.Task[Kept]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _within(seconds: float, work: Awaitable[object]) -> bool:
    """Await `work` for so long; say whether it ended."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
