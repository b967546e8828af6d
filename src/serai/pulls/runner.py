"""The job kind `pull`: resolve → download → verify → convert → register → load.

It may be killed or cancelled anywhere and be run again: what was fetched lies on the disk under the
identity of its bytes, the commit is kept with the job, and a version is registered once, because files
that a version has already are that version.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from anyio.to_thread import run_sync

from serai.audit import Actor
from serai.clock import Clock
from serai.errors import SeraiError
from serai.events import Done, Event
from serai.hub.download import Download, Downloads
from serai.hub.errors import HubRateLimited
from serai.hub.fetching import MAX_WAIT_S, Sleep, to_the_end
from serai.hub.files import ModelFiles
from serai.hub.model import Hub, Listing, PulledSource
from serai.jobs.runner import JobContext
from serai.pulls.arrival import check_staged, memory_bytes, parameters
from serai.pulls.course import Course, Work
from serai.pulls.errors import InitFailed, RegistryBusy
from serai.pulls.model import Arrival, ConversionPlan, Converter, Loader, Plan, PullPolicy, PullRequest
from serai.pulls.plan import as_draft, pinned_again, plan, registered, wanted
from serai.pulls.registering import draft_to_fill, next_number, register, same_version, with_default_told
from serai.registry import store
from serai.registry.errors import ActiveVersionLimitExceeded
from serai.registry.registry import Registry
from serai.registry.source import File, FileSource, FolderSource, HubSource
from serai.registry.version import Version
from serai.storage.database import Database

KIND = "pull"
RESOURCE = "pulls"
_TRIES = 8


class Hubs:
    """The hub for each kind of source."""

    def __init__(self, hub: Hub[HubSource], folder: Hub[FolderSource], url: Hub[FileSource]) -> None:
        self._hub, self._folder, self._url = hub, folder, url

    def of(self, source: PulledSource) -> Hub[Any]:
        match source:
            case HubSource():
                return self._hub
            case FolderSource():
                return self._folder
            case FileSource():
                return self._url


class PullRunner:
    """Payload: `PullRequest`. The job's decision holds the commit, the quantization and why.

    Result: model, version, status, quantization, why, source, files, bytes, fetched_bytes, reused_bytes,
    already (nothing had to be done), loaded, warnings.
    """

    kind = KIND
    version = 1
    resource = RESOURCE
    stall_s = 300.0
    cap_s = 14 * 86400.0

    def __init__(
        self,
        *,
        hubs: Hubs,
        downloads: Downloads,
        files: ModelFiles,
        database: Database,
        registry: Registry,
        clock: Clock,
        policy: PullPolicy,
        converter: Converter,
        loader: Loader,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._hubs = hubs
        self._downloads = downloads
        self._files = files
        self._database = database
        self._registry = registry
        self._clock = clock
        self._policy = policy
        self._converter = converter
        self._loader = loader
        self._sleep = sleep
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a payload that is no pull."""
        PullRequest.of(payload)

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        """Pull, and tell how far it is at every stage and at least every second."""
        request, course = PullRequest.of(context.payload), Course()
        yield course.event()
        async with Work(self._resolve(request, context.job.decision), course) as resolving:
            while await resolving.goes_on():
                yield course.event()
        made = resolving.result
        course.converts = made.convert
        context.decision = made.decision()
        async with Work(self._obtain(context, made, course), course) as obtaining:
            while await obtaining.goes_on():
                yield course.event()
        version, result = obtaining.result
        course.enter("load" if request.init else "register")
        yield course.event()
        if request.init:
            async with Work(self._load(version), course) as loading:
                while await loading.goes_on():
                    yield course.event()
            loading.result  # noqa: B018 - raises what the loading raised
        yield course.last_event()
        yield Done(result=result | {"loaded": request.init})

    async def _resolve(self, request: PullRequest, decision: Mapping[str, Any] | None) -> Plan:
        snapshot = await self._registry.current()
        wish = pinned_again(wanted(snapshot, request), decision)
        listing = await self._patiently(self._hubs.of(wish.source), wish.source)
        return plan(snapshot, request, wish, listing, self._policy, self._converter)

    async def _patiently(self, hub: Hub[Any], source: PulledSource) -> Listing:
        """Look, and wait as long as the hub asks, within reason."""
        for _ in range(_TRIES):
            try:
                return await hub.look(source)
            except HubRateLimited as refusal:
                seconds = refusal.retry_after
                if seconds is None or seconds > MAX_WAIT_S:
                    raise
                await self._sleep(seconds)
        return await hub.look(source)

    async def _done(self, made: Plan) -> Version | None:
        """Return the version that this pull is of, if it is registered and its files are on this server."""
        entry = (await self._registry.current()).models.get(made.model_id)
        version = registered(entry, made.listing.source, made.quantization)
        if version is None:
            return None
        held = await run_sync(self._files.holds, version.model_id, version.version, version.files)
        return version if held else None

    async def _obtain(self, context: JobContext, made: Plan, course: Course) -> tuple[Version, dict[str, Any]]:
        """Return the version with its files on this server, and what to tell of it."""
        version = await self._done(made)
        if version is not None:
            return version, _result(made, version, already=True)
        hub = self._hubs.of(made.listing.source)
        async with self._downloads.of(
            hub, made.listing, made.choice.files, further_bytes=made.scratch_bytes
        ) as download:
            course.meter = download.meter
            course.enter("download")
            await download.wait()
            made, version = await self._complete(context, made, download, course)
            await self._downloads.forget(download)
        return version, _result(made, version, fetched=download.meter.fetched, reused=download.reused_bytes)

    async def _complete(
        self, context: JobContext, made: Plan, download: Download, course: Course
    ) -> tuple[Plan, Version]:
        """Verify, convert, register: one pull of a model at a time, so that the second finds what the first made."""
        course.enter("verify")
        async with self._locks.setdefault(made.model_id, asyncio.Lock()):
            version = await self._done(made)
            if version is not None:
                return made, version
            await run_sync(check_staged, made, download.folder)
            folder, known = download.folder, download.digests
            if made.convert:
                course.enter("convert")
                folder, known = await self._convert(made, download, course), {}
            course.enter("register")
            files = await to_the_end(self._files.describe, folder, known)
            size = await run_sync(memory_bytes, made, folder, self._policy)
            told = await run_sync(parameters, made, folder)
            arrival = Arrival(plan=made, memory_bytes=size, parameters=told)

            async def publish(number: str) -> None:
                await to_the_end(self._files.publish, folder, files, made.model_id, number)

            return await self._register(Actor(id=context.job.owner_id), arrival, files, publish)

    async def _convert(self, made: Plan, download: Download, course: Course) -> Path:
        folder = await to_the_end(self._files.scratch, download.key)
        order = ConversionPlan(
            quantization=made.quantization,
            weight_bytes=made.choice.weight_bytes,
            task=made.listing.task,
            allow_remote_code=made.wanted.allow_remote_code,
        )
        await self._converter.convert(download.folder, folder, order, course.report)
        return folder

    async def _register(
        self, actor: Actor, arrival: Arrival, files: tuple[File, ...], publish: Callable[[str], Awaitable[None]]
    ) -> tuple[Plan, Version]:
        """Publish the files under the version's number and write the version; files first, as everywhere."""
        for _ in range(_TRIES):
            made, snapshot = arrival.plan, await self._registry.current()
            known = same_version(snapshot, made, files)
            if known is not None:
                if not await run_sync(self._files.holds, known.model_id, known.version, files):
                    await publish(known.version)
                return made, known
            draft = draft_to_fill(snapshot, made)
            numbers, _ = await self._database.read(store.version_numbers, made.model_id)
            number = draft.version if draft is not None else next_number(snapshot, made, numbers)
            await publish(number)
            try:
                version = await self._database.run(
                    self._registry.write,
                    register,
                    actor,
                    self._clock.now(),
                    arrival,
                    files,
                    number,
                    self._policy.device,
                )
            except ActiveVersionLimitExceeded as refusal:
                arrival = arrival.with_plan(as_draft(made, f"The version stays a draft: {refusal.message}"))
            except RegistryBusy:
                continue
            else:
                return with_default_told(made, version, snapshot), version
        raise RegistryBusy(f"No number was free for a version of {arrival.plan.model_id}.")

    async def _load(self, version: Version) -> None:
        try:
            await self._loader.load(version.model_id, version.version)
        except SeraiError as error:
            name = f"{version.model_id}@{version.version}"
            message = f"{name} was pulled and registered, but it could not be loaded: {error.message}"
            hint = f"{error.hint or ''} {InitFailed.default_hint}".strip()
            raise InitFailed(message, hint=hint, details={"version": name, "code": error.code}) from error


def _result(
    made: Plan, version: Version, *, already: bool = False, fetched: int = 0, reused: int = 0
) -> dict[str, Any]:
    return {
        "model": version.model_id,
        "version": version.version,
        "status": version.status.value,
        "quantization": version.quantization,
        "why": made.why,
        "source": msgspec.to_builtins(version.source),
        "files": len(version.files),
        "bytes": sum(file.size for file in version.files),
        "fetched_bytes": fetched,
        "reused_bytes": reused,
        "already": already,
        "warnings": list(made.warnings),
    }
