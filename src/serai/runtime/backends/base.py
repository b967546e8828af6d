"""The seam behind which workers live."""

from collections.abc import Sequence
from typing import Protocol

from serai.engines.base import EngineSpec
from serai.runtime.worker.messages import FromWorker, ToWorker


class Worker(Protocol):
    """One worker. After its end, `send` does nothing and `receive` raises what it died of, again and again."""

    @property
    def pid(self) -> int | None:
        """The id of its process on this machine, or None."""

    def send(self, message: ToWorker) -> None:
        """Queue a message; never blocks, does nothing for a worker that is gone.

        Raises TooLarge for a message over 1 GiB, of which nothing is sent then. A worker that has left as
        much unread is ended.
        """

    async def receive(self) -> Sequence[FromWorker]:
        """Return the next messages, at least one. A cancelled call loses none. One caller at a time.

        Nothing is read while nobody calls it: a worker that says more than is received has to wait.

        Raises `WorkerGone` (a `SeraiError`, see `serai.runtime.errors`) when there will be no more.
        """

    async def stop(self, grace_s: float) -> None:
        """End it: ask, wait so long, then kill. Returns when it is gone and its memory is free; may be repeated."""


class Backend(Protocol):
    """Starts workers."""

    async def spawn(self, spec: EngineSpec) -> Worker:
        """Start a worker and send it `Load(spec)`; returns before it is loaded. Raises LoadFailed if none can start."""

    async def close(self) -> None:
        """End every worker and what starts them."""
