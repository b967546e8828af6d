"""What a job is, which moves it can make, and what can be wrong with one. Pure."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self, get_args

from serai.errors import (
    Conflict,
    InternalError,
    InvalidInput,
    NotFound,
    SeraiError,
    TooLarge,
    Unavailable,
)

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Move = Literal["claim", "finish", "fail", "retry", "release", "recover", "cancel"]
Reason = Literal["blocked", "children", "cancelling", "backing_off"]

STATUSES: tuple[Status, ...] = get_args(Status)
MOVES: tuple[Move, ...] = get_args(Move)
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})

TABLE: Mapping[tuple[Status, Move], Status] = {
    ("queued", "claim"): "running",
    ("queued", "cancel"): "cancelled",
    ("running", "finish"): "succeeded",
    ("running", "fail"): "failed",
    ("running", "retry"): "queued",  # failed, will be tried again after a pause
    ("running", "release"): "queued",  # interrupted by a shutdown: not an attempt
    ("running", "recover"): "queued",  # its holder died
    ("running", "cancel"): "cancelled",
}
"""Every legal move; what is not here is refused. The stores build their WHERE clauses from it."""

PRIORITIES = range(10)
"""0 is the most urgent."""
DEFAULT_PRIORITY = 5
ROUNDS_PER_PRIORITY = 32
"""How many rounds of the other owners' jobs one step of priority is worth: the bound of ageing."""

MAX_JSON_BYTES = 1_000_000
MAX_JSON_DEPTH = 32


def check_move(status: Status, move: Move) -> Status:
    """Return the status after `move`. Raises IllegalMove."""
    target = TABLE.get((status, move))
    if target is None:
        raise IllegalMove(f"A job that is {status} cannot {move}.")
    return target


def sources(move: Move) -> tuple[Status, ...]:
    """Return the statuses from which `move` is legal."""
    return tuple(status for status, known in TABLE if known == move)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of `jobs`."""

    id: str
    kind: str
    version: int
    payload: Mapping[str, Any]
    owner_id: str
    resource: str
    priority: int
    round: int
    rank: int
    status: Status
    claim: str | None
    holder: str | None
    lease_until: datetime | None
    run_at: datetime | None
    cancel_requested_at: datetime | None
    attempts: int
    error_count: int
    crash_count: int
    max_errors: int
    parent_id: str | None
    retry_of: str | None
    children: int
    open_children: int
    idempotency_key: str | None
    request_digest: str
    webhook_url: str | None
    last_seq: int
    progress: Mapping[str, Any] | None
    decision: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """Return the job of a row that has the columns of the table and no other."""
        return cls(**row._asdict())

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def log_context(self) -> dict[str, Any]:
        """Return what a log line about this job says; never its payload."""
        return {"job_id": self.id, "kind": self.kind, "attempt": self.attempts, "claim": self.claim}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to enqueue; made by `Runners.prepare`, which has checked it."""

    id: str
    kind: str
    version: int
    payload: Mapping[str, Any]
    owner_id: str
    resource: str
    priority: int = DEFAULT_PRIORITY
    max_errors: int = 3
    parent_id: str | None = None
    retry_of: str | None = None
    idempotency_key: str | None = None
    webhook_url: str | None = None
    max_queued: int | None = field(default=None)
    """Refuse the job when so many wait for its resource; None for no bound."""

    @property
    def request_digest(self) -> str:
        """Return the SHA-256 of what a client asked for: two requests with one key must agree on it."""
        asked = [self.kind, self.version, self.payload, self.priority, self.parent_id, self.webhook_url]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class JobNotFound(NotFound):
    code = "JOB_NOT_FOUND"
    default_hint = "GET /jobs lists your jobs; finished ones are removed after the retention time."


class JobFinished(Conflict):
    """The job has ended; `details` holds its status and result."""

    code = "JOB_FINISHED"

    @classmethod
    def of(cls, job: Job) -> "JobFinished":
        details = {"status": job.status, "result": job.result, "error": job.error}
        return cls(f"The job has already {job.status}.", details=details)


class JobNotFinished(Conflict):
    code = "JOB_NOT_FINISHED"
    default_hint = "Wait for the job to end, or cancel it with POST /jobs/{id}/cancel."


class IllegalMove(InternalError):
    code = "ILLEGAL_MOVE"


class ClaimLost(Conflict):
    """The writer holds the job no longer; whatever it made is to be thrown away."""

    code = "CLAIM_LOST"


class IdempotencyMismatch(InvalidInput):
    code = "IDEMPOTENCY_MISMATCH"
    default_hint = "Use a fresh idempotency key for a different request."


class UnknownJobKind(InvalidInput):
    code = "UNKNOWN_JOB_KIND"


class EventsGone(Conflict):
    code = "EVENTS_GONE"
    default_hint = "Follow the events anew without Last-Event-ID."


class QueueFull(Unavailable):
    code = "QUEUE_FULL"
    default_hint = "Try again after the seconds in Retry-After."


class JobCrashed(InternalError):
    code = "JOB_CRASHED"
    default_hint = "The server died each time it ran this job; look at its log before trying again."


class JobStalled(Unavailable):
    code = "JOB_STALLED"
    default_hint = "The work made no progress within its time; look at the server's log for the cause."


class OutputTooLarge(TooLarge):
    code = "JOB_OUTPUT_TOO_LARGE"


def is_retryable(code: str) -> bool:
    """Say whether work that failed with `code` may succeed later, as the error says. An unknown code is final."""
    pending = SeraiError.__subclasses__()
    while pending:
        kind = pending.pop()
        if kind.code == code:
            return kind.may_pass
        pending.extend(kind.__subclasses__())
    return False


MAX_PAUSE_S = 600.0 * 1.25


def backoff_s(errors: int, jitter: float) -> float:
    """Return seconds to wait after error number `errors` ≥ 1: 2, 8, 32 … ≤ 600, times 0.75 to 1.25.

    `jitter` in [0, 1) spreads jobs that failed together.
    """
    return min(600.0, 2.0 * 4.0 ** (errors - 1)) * (0.75 + jitter / 2)


def check_json(value: Any, what: str) -> None:
    """Raise InvalidInput unless both databases can hold `value` and give it back equal.

    Refused: NaN and infinities, integers of 64 bits or more, the character U+0000, lone surrogates,
    keys that are not strings, more than MAX_JSON_DEPTH levels, more than MAX_JSON_BYTES.
    """
    _check_json(value, what, MAX_JSON_DEPTH)
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_JSON_BYTES:
        raise TooLarge(f"{what}: is larger than {MAX_JSON_BYTES} bytes")


def _check_json(value: Any, what: str, depth: int) -> None:
    if depth == 0:
        raise InvalidInput.at(what, f"is nested deeper than {MAX_JSON_DEPTH} levels")
    if isinstance(value, str):
        _check_text(value, what)
    elif isinstance(value, int | float):
        _check_number(value, what)
    elif isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                raise InvalidInput.at(what, "has a key that is not a string")
            _check_text(key, what)
            _check_json(member, what, depth - 1)
    elif isinstance(value, list | tuple):
        for member in value:
            _check_json(member, what, depth - 1)
    elif value is not None:
        raise InvalidInput.at(what, "holds something that is not JSON")


def _check_number(value: float, what: str) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidInput.at(what, "holds an integer of more than 64 bits")
    if not math.isfinite(value):
        raise InvalidInput.at(what, "holds a number that is not finite")


def _check_text(text: str, what: str) -> None:
    if "\x00" in text:
        raise InvalidInput.at(what, "holds the character U+0000, which cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput.at(what, "holds a lone surrogate, which is not text") from None
