"""What runs a job: a runner per kind, registered by name, and what it is handed.

A runner is an asynchronous generator in the server's process. It awaits; whatever computes for long
belongs to worker processes behind it. Being cancelled, it stops at its next `await`.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from serai.errors import ConfigurationError, InvalidInput
from serai.events import Event
from serai.ids import NewId
from serai.jobs.model import DEFAULT_PRIORITY, PRIORITIES, Job, NewJob, Reason, UnknownJobKind, check_json
from serai.storage.database import Connection

Write = Callable[[Connection, Job], None]

MAX_KEY_LENGTH = 255
MAX_URL_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Something that jobs compete for, on each server."""

    name: str
    concurrency: int
    """How many jobs may use it at the same time."""
    max_queued: int | None = None
    """How many may wait for it; None for any number."""


class JobContext:
    """What a runner knows of its job, and what it leaves besides events."""

    def __init__(self, job: Job, folder: Path, touch: Callable[[float | None], None]) -> None:
        self.job = job
        self.payload = job.payload
        self.digests: list[str] = []
        self.decision: Mapping[str, Any] | None = None
        self.writes: list[Write] = []
        self.has_folder = False
        self._folder = folder
        self._touch = touch

    @property
    def folder(self) -> Path:
        """Return the folder of this attempt alone, made when it is first asked for; it is gone afterwards."""
        self.has_folder = True
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def keep(self, digest: str) -> None:
        """Have the blob kept for the job's owner: linked in the transaction that finishes the job, or never."""
        self.digests.append(digest)

    def write(self, function: Write) -> None:
        """Have rows written in the transaction that finishes the job, or never; called with the finished job.

        The blobs that they name need no `keep`, if the function links them itself.
        """
        self.writes.append(function)

    def touch(self, *, budget_s: float | None = None) -> None:
        """Tell that work goes on where there is no event to say so; `budget_s`: for the phase that begins."""
        self._touch(budget_s)


class Runner(Protocol):
    """Runs the jobs of one kind.

    `version` is the newest form of payload that it reads, and it reads every earlier one. `stall_s` is
    how long it may be silent (a phase may get another budget through `JobContext.touch`), `cap_s` how
    long a run may take at all.
    """

    @property
    def kind(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def resource(self) -> str: ...
    @property
    def stall_s(self) -> float: ...
    @property
    def cap_s(self) -> float: ...

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a payload that could never run; called before it is stored."""

    def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        """Do the work; end with exactly one `Done` or `Failed`, or raise.

        May be run again from the start after a crash, so what it does outside must bear repeating.
        """


class Runners:
    """The kinds that this server knows, and the resources that they use."""

    def __init__(self, resources: Iterable[Resource], runners: Iterable[Runner]) -> None:
        self.resources = {resource.name: resource for resource in resources}
        self._runners: dict[str, Runner] = {}
        for runner in runners:
            if runner.kind in self._runners:
                raise ConfigurationError(f"Two runners are registered for jobs of kind '{runner.kind}'.")
            if runner.resource not in self.resources:
                raise ConfigurationError(f"The runner '{runner.kind}' uses the unknown resource '{runner.resource}'.")
            self._runners[runner.kind] = runner

    @property
    def kinds(self) -> Mapping[str, int]:
        """Return each kind with the newest payload version that can be run."""
        return {kind: runner.version for kind, runner in self._runners.items()}

    def of(self, kind: str) -> Runner:
        """Return the runner of a kind. Raises UnknownJobKind."""
        runner = self._runners.get(kind)
        if runner is None:
            known = ", ".join(sorted(self._runners))
            raise UnknownJobKind(f"No runner is registered for jobs of kind '{kind[:100]}'.", hint=f"Known: {known}")
        return runner

    def prepare(
        self,
        *,
        kind: str,
        payload: Mapping[str, Any],
        owner_id: str,
        new_id: NewId,
        priority: int = DEFAULT_PRIORITY,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        parent_id: str | None = None,
    ) -> NewJob:
        """Return a checked job for `store.enqueue`. Raises UnknownJobKind, InvalidInput."""
        runner = self.of(kind)
        check_json(payload, "payload")
        runner.check(payload)
        if priority not in PRIORITIES:
            raise InvalidInput.at("priority", f"must be {PRIORITIES[0]} (most urgent) to {PRIORITIES[-1]}")
        if idempotency_key is not None:
            check_json(idempotency_key, "idempotency_key")
            if not 1 <= len(idempotency_key) <= MAX_KEY_LENGTH:
                raise InvalidInput.at("idempotency_key", f"must have 1 to {MAX_KEY_LENGTH} characters")
        _check_webhook(webhook_url)
        return NewJob(
            id=new_id("job"),
            kind=kind,
            version=runner.version,
            payload=payload,
            owner_id=owner_id,
            resource=runner.resource,
            priority=priority,
            parent_id=parent_id,
            idempotency_key=idempotency_key,
            webhook_url=webhook_url,
            max_queued=self.resources[runner.resource].max_queued,
        )

    def reason(self, job: Job) -> Reason | None:
        """Return why a queued job is not merely waiting for its turn, or None."""
        if job.status != "queued":
            return None
        if job.cancel_requested_at is not None:
            return "cancelling"
        runner = self._runners.get(job.kind)
        if runner is None or job.version > runner.version:
            return "blocked"
        if job.open_children:
            return "children"
        return "backing_off" if job.run_at is not None else None


def _check_webhook(url: str | None) -> None:
    if url is None:
        return
    check_json(url, "webhook_url")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise InvalidInput.at("webhook_url", "is not a URL") from None
    if parts.scheme not in ("http", "https") or not host or len(url) > MAX_URL_LENGTH:
        raise InvalidInput.at("webhook_url", f"must be an http or https URL of at most {MAX_URL_LENGTH} characters")
