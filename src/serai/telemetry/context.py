"""Which request is being worked on: an id and a caller that every log line carries."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serai.ids import NewId, new_id

_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_caller: ContextVar[str | None] = ContextVar("caller", default=None)


def accept_request_id(offered: str | None, new_id: NewId = new_id) -> str:
    """Return the client's X-Request-Id if it is 1 to 64 of `A-Za-z0-9._-`, else a fresh id.

    Anything else could forge log lines, or be sent on in a header and be read as something there.
    """
    if offered is not None and _ACCEPTED.fullmatch(offered):
        return offered
    return new_id("req")


@contextmanager
def bind_request(request_id: str, *, caller: str | None = None) -> Iterator[None]:
    """Let the block, and the tasks that it starts, belong to a request."""
    id_token, caller_token = _request_id.set(request_id), _caller.set(caller)
    try:
        yield
    finally:
        _request_id.reset(id_token)
        _caller.reset(caller_token)


def bind_caller(caller: str) -> None:
    """Say who calls, once that is known; ends with the block of `bind_request`."""
    _caller.set(caller)


def current_request_id() -> str | None:
    """Return the id of the request that is being worked on, or None outside one."""
    return _request_id.get()


def current_caller() -> str | None:
    """Return the id of who calls, or None where nobody is known to."""
    return _caller.get()
