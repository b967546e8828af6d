"""The guard of the event loop: a call of ours that blocks it fails the test that ran it."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockbuster import BlockBuster

TESTS = str(Path(__file__).resolve().parents[1])
BEFORE_SERVING = (
    ("serai/app/__init__.py", {"lifespan"}),
    ("serai/app/opening.py", {"open_parts"}),
    ("serai/app/ground.py", {"open_ground"}),
)
"""While it starts and after it has drained, the server answers nobody and may block."""


@contextmanager
def guard_event_loop() -> Iterator[None]:
    """Raise BlockingError where the package blocks a running event loop: disk, SQL, sockets, locks, sleep.

    Threads may block. So may a test's own coroutine when it calls the package's synchronous
    functions to prepare or to look; what it awaits is guarded.
    """
    guard = BlockBuster("serai")
    for function in guard.functions.values():
        function.can_block_predicate = _or_called_by_a_test(function.can_block_predicate)
        for place in BEFORE_SERVING:
            function.can_block_in(*place)
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()


def _or_called_by_a_test(may_block: Callable[..., bool]) -> Callable[..., bool]:
    def predicate(*args: Any, **kwargs: Any) -> bool:
        return may_block(*args, **kwargs) or _nearest_coroutine_file().startswith(TESTS)

    return predicate


def _nearest_coroutine_file() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return frame.f_code.co_filename
        frame = frame.f_back
    return ""
