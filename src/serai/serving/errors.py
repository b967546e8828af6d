"""What serving itself refuses, and how the code that a worker or a server told becomes an error again."""

from collections.abc import Iterator

from msgspec import UNSET

from serai.errors import Conflict, EngineFailed, InvalidInput, SeraiError, Unavailable
from serai.events import Failed


class ServiceQueueFull(Unavailable):
    """As many calls wait for the service as its revision allows; `retry_after` is set."""

    code = "SERVICE_QUEUE_FULL"
    default_hint = "Wait for the seconds in Retry-After, then try again."


class PreloadFailed(Conflict):
    """A service was not switched, because what it was to be switched to could not be loaded."""

    code = "PRELOAD_FAILED"
    default_hint = "GET /services/{id} shows that nothing changed; choose another version, or preload=false."


class NotInMemory(InvalidInput):
    """Models on other servers are neither loaded nor unloaded here."""

    code = "NOT_A_LOCAL_MODEL"
    default_hint = "It needs no loading; send the request."


def error_of(failed: Failed) -> SeraiError:
    """Return the error that an event tells of; one whose code nobody here knows is an `EngineFailed`."""
    kind = _named(failed.code)
    details = None if failed.details is UNSET else failed.details
    return (kind or EngineFailed)(failed.message, hint=failed.hint, details=details)


def _named(code: str) -> type[SeraiError] | None:
    """Return the class that this code belongs to: the one that says it itself, not one that inherited it."""
    return next((kind for kind in _below(SeraiError) if kind.__dict__.get("code") == code), None)


def _below(kind: type[SeraiError]) -> Iterator[type[SeraiError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
