"""The one error tree. Every error has a stable code and a hint; none of them knows HTTP.

    SeraiError
    ├── InvalidInput            what was sent is wrong; nothing was done
    │   ├── MalformedRequest    it could not even be parsed
    │   ├── TooLarge            it is over a bound
    │   └── UnsupportedMedia    it is of a type that is not accepted
    ├── Unauthenticated         nobody is known to be calling
    ├── Forbidden               the caller may not do this
    ├── NotFound                no such thing, or not the caller's
    ├── MethodNotAllowed        the path exists, the method does not
    ├── Conflict                the state of things refuses it
    ├── Gone                    it existed and was removed
    ├── RateLimited             too much, try again later
    ├── QuotaExceeded           the caller's share is used up
    ├── DeadlineExceeded        not finished in the time that was given
    ├── Cancelled               stopped because somebody asked
    ├── Unavailable             something that is needed does not answer now
    │   ├── DatabaseUnavailable
    │   └── DiskFull
    ├── EngineFailed            a model could not be loaded, or failed while it ran
    │   ├── LoadFailed
    │   ├── OutOfMemory
    │   ├── WorkerCrashed
    │   └── WorkerHung
    ├── UpstreamFailed          a server that we called failed or answered nonsense
    ├── OutboundRefused         the guard of the way out said no
    ├── ConfigurationError      the server cannot start as it is configured
    └── InternalError           a defect of ours

Packages add leaves under these families (`VersionNotFound(NotFound)`); `docs/reference/errors.md`
lists every code and a test holds that list against the code.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Self


class SeraiError(Exception):
    """An expected failure.

    `message` says what happened, in words for the person who called; it never holds a path of the
    server, an address, SQL or a trace. `hint` says what to do next. `details` is machine-readable.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    default_hint: ClassVar[str | None] = None
    may_pass: ClassVar[bool] = False
    """Whether the same work may succeed when it is tried again, though nobody has changed anything."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: Mapping[str, Any] | Sequence[Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.default_hint
        self.details = details
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None where it does not."""
        self.decision: str | None = None
        """The stored decision on who answers, of a call that ended with this."""

    def of_decision(self, decision: str) -> Self:
        """Return the error as the end of one call; itself it may be the end of others, too."""
        told = copy(self)
        told.decision = decision
        return told


class InvalidInput(SeraiError):
    code = "INVALID_INPUT"

    @classmethod
    def at(cls, field: str, problem: str, *, hint: str | None = None) -> "InvalidInput":
        """Return the error for one field: `problem` completes the sentence '`field` …'."""
        entry = {"field": field, "problem": problem}
        return cls(f"{field}: {problem}", hint=hint, details=[entry])


class MalformedRequest(InvalidInput):
    code = "MALFORMED_REQUEST"


class TooLarge(InvalidInput):
    code = "TOO_LARGE"


class UnsupportedMedia(InvalidInput):
    code = "UNSUPPORTED_MEDIA_TYPE"


class Unauthenticated(SeraiError):
    code = "UNAUTHENTICATED"
    default_hint = "Send 'Authorization: Bearer sk-serai-…'; an admin makes keys with 'serai keys create'."


class Forbidden(SeraiError):
    code = "FORBIDDEN"


class NotFound(SeraiError):
    code = "NOT_FOUND"


class MethodNotAllowed(SeraiError):
    code = "METHOD_NOT_ALLOWED"


class Conflict(SeraiError):
    code = "CONFLICT"


class Gone(SeraiError):
    code = "GONE"


class RateLimited(SeraiError):
    code = "RATE_LIMITED"
    may_pass = True
    default_hint = "Wait for the seconds in Retry-After, then try again."


class QuotaExceeded(SeraiError):
    code = "QUOTA_EXCEEDED"


class DeadlineExceeded(SeraiError):
    code = "DEADLINE_EXCEEDED"


class Cancelled(SeraiError):
    code = "CANCELLED"


class Unavailable(SeraiError):
    code = "UNAVAILABLE"
    may_pass = True
    default_hint = "Try again shortly; GET /health says what is wrong."


class DatabaseUnavailable(Unavailable):
    code = "DATABASE_UNAVAILABLE"


class DiskFull(Unavailable):
    code = "DISK_FULL"
    default_hint = "Free some space on the server's disk; nothing of this call was kept."


class EngineFailed(SeraiError):
    code = "ENGINE_FAILED"
    default_hint = "The server's models.log has the details under this request_id."


class LoadFailed(EngineFailed):
    code = "LOAD_FAILED"


class OutOfMemory(EngineFailed):
    code = "OUT_OF_MEMORY"
    default_hint = "Choose a smaller quantization, or lower the budget so that fewer models are loaded at once."


class WorkerCrashed(EngineFailed):
    code = "WORKER_CRASHED"
    default_hint = (
        "It is left alone for some minutes; POST /models/{ref}/cooldown/clear lets it be tried again at once."
    )


class WorkerHung(EngineFailed):
    code = "WORKER_HUNG"


class UpstreamFailed(SeraiError):
    code = "UPSTREAM_FAILED"
    may_pass = True


class OutboundRefused(SeraiError):
    code = "OUTBOUND_REFUSED"


class ConfigurationError(SeraiError):
    code = "CONFIGURATION_ERROR"


class InternalError(SeraiError):
    code = "INTERNAL_ERROR"
    may_pass = True
    default_hint = "This is a defect of the server: its log has the details under this request_id."
