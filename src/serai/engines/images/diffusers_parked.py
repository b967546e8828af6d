"""A long call of a library, turned inside out: it goes on only while somebody waits for its next pause.

A pipeline of diffusers draws a whole picture in one call and tells of its steps by a callback. Here that
call runs in a thread of its own, and the callback is where it stands still. So the thread computes only
inside `resume`, and never beside its owner or another such call.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")
Pause = Callable[[], None]


class _Stopped(BaseException):
    """Nobody wants the call's result; not an Exception, so that no library takes it for one of its own."""


class Parked(Generic[R]):
    """The call `work(pause)`, which stands still in each `pause()` that it makes."""

    def __init__(self, work: Callable[[Pause], R]) -> None:
        self._work = work
        self._result: list[R] = []
        self._error: BaseException | None = None
        self._is_stopped = False
        self._is_over = False
        self._may_go = threading.Semaphore(0)
        self._has_halted = threading.Semaphore(0)
        # A daemon: a process that ends does not wait for a call that stands still.
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def resume(self) -> bool:
        """Let the call go on to its next pause; return False when it is over. Raises what the call raises."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._may_go.release()
        self._has_halted.acquire()
        if self._is_over:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return not self._is_over

    @property
    def result(self) -> R:
        """What the call has returned; there is one once `resume` has returned False."""
        return self._result[0]

    def stop(self) -> None:
        """End the call where it stands, and return when all that it held is free."""
        if self._thread.ident is not None and not self._is_over:
            self._is_stopped = True
            self._may_go.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._pause))
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for
            self._error = error
        self._is_over = True
        self._has_halted.release()

    def _pause(self) -> None:
        self._has_halted.release()
        self._may_go.acquire()
        if self._is_stopped:
            raise _Stopped
