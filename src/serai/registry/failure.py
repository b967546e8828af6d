"""How a candidate can fail, which failures lead to the next one, and the cooldown after a failed load."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from serai.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Gone,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    OutOfMemory,
    QuotaExceeded,
    RateLimited,
    SeraiError,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
    WorkerCrashed,
    WorkerHung,
)
from serai.registry.errors import CandidateInCooldown, ModelNotPulled


class Failure(StrEnum):
    """Why a candidate did not answer."""

    LOAD_ERROR = "load_error"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"
    TIMEOUT = "timeout"
    REMOTE_5XX = "remote_5xx"
    REMOTE_429 = "remote_429"
    REJECTED_OUTPUT = "rejected_output"
    """It answered, and a check of the answer refused it (an edit that changed the product)."""
    COOLDOWN = "cooldown"
    UNAVAILABLE = "unavailable"
    """It could not even be tried: not active, not pulled, refused by its licence, no engine."""
    CLIENT_ERROR = "client_error"
    """The request itself is wrong, so it would be wrong for every candidate."""
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether no other candidate is tried after it."""
        return self in _FINAL

    @property
    def never_tried(self) -> bool:
        """Whether the candidate was passed over rather than tried."""
        return self in (Failure.COOLDOWN, Failure.UNAVAILABLE)

    @property
    def starts_cooldown(self) -> bool:
        """Whether the version is left alone for a while; only failures to load are."""
        return self in (Failure.LOAD_ERROR, Failure.OUT_OF_MEMORY, Failure.CRASH)


_FINAL = frozenset({Failure.CLIENT_ERROR, Failure.CANCELLED})


def failure_of(error: BaseException) -> Failure:
    """Return which failure an error of ours is; anything unexpected counts as a failed load or run."""
    if not isinstance(error, SeraiError):
        return Failure.OUT_OF_MEMORY if isinstance(error, MemoryError) else Failure.LOAD_ERROR
    for family, failure in _FAMILIES:
        if isinstance(error, family):
            return failure
    return Failure.LOAD_ERROR


_FAMILIES: tuple[tuple[type[SeraiError], Failure], ...] = (
    (CandidateInCooldown, Failure.COOLDOWN),
    (ModelNotPulled, Failure.UNAVAILABLE),
    (Cancelled, Failure.CANCELLED),
    (DeadlineExceeded, Failure.TIMEOUT),
    (OutOfMemory, Failure.OUT_OF_MEMORY),
    (WorkerCrashed, Failure.CRASH),
    (WorkerHung, Failure.TIMEOUT),
    (UpstreamFailed, Failure.REMOTE_5XX),
    (RateLimited, Failure.REMOTE_429),
    (Unavailable, Failure.UNAVAILABLE),
    (InvalidInput, Failure.CLIENT_ERROR),
    (Unauthenticated, Failure.CLIENT_ERROR),
    (Forbidden, Failure.CLIENT_ERROR),
    (NotFound, Failure.CLIENT_ERROR),
    (MethodNotAllowed, Failure.CLIENT_ERROR),
    (Conflict, Failure.CLIENT_ERROR),
    (Gone, Failure.CLIENT_ERROR),
    (QuotaExceeded, Failure.CLIENT_ERROR),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooldown:
    """A version that failed to load is left alone until `until`, on whatever clock the caller reads."""

    until: float
    seconds: float

    def remaining(self, now: float) -> float:
        """Return the seconds left, 0 when it is over."""
        return max(0.0, self.until - now)


FIRST_COOLDOWN_S = 300.0
LONGEST_COOLDOWN_S = 3600.0


def next_cooldown(before: Cooldown | None, now: float) -> Cooldown:
    """Return the cooldown after one more failure: 300 s first, then double, at most an hour.

    A success, or an admin, clears it by forgetting `before`; the time passing does not, so a version
    that fails again right after its cooldown waits longer.
    """
    seconds = FIRST_COOLDOWN_S if before is None else min(before.seconds * 2, LONGEST_COOLDOWN_S)
    return Cooldown(until=now + seconds, seconds=seconds)


Key = tuple[str, str]
"""(model id, version)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What changes from second to second and so is no part of a snapshot."""

    now: float = 0.0
    cooldowns: Mapping[Key, Cooldown]
    loaded: frozenset[Key] = frozenset()

    def blocked_for(self, key: Key) -> float:
        """Return the seconds for which a version is in cooldown; 0 for one that is loaded, always."""
        cooldown = self.cooldowns.get(key)
        if cooldown is None or key in self.loaded:
            return 0.0
        return cooldown.remaining(self.now)


QUIET = Situation(cooldowns={})
"""Nothing is loaded and nothing has failed."""
