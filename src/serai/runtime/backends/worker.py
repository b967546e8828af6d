"""What the workers of this machine have in common: a channel, and an end."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import anyio

from serai.errors import SeraiError
from serai.runtime.errors import WorkerGone
from serai.runtime.worker.channel import LoopChannel
from serai.runtime.worker.frames import ChannelBroken
from serai.runtime.worker.messages import FromWorker, Stop, ToWorker

LINGER_S: Final = 5.0
"""How long a worker may take to end after its last word before it is helped."""


class ChannelWorker:
    """A worker behind a channel. A subclass knows its process or thread, and calls `on_end` when that is gone."""

    def __init__(self, channel: LoopChannel[FromWorker]) -> None:
        self._channel = channel
        self._ended = asyncio.Event()
        self._status: int | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        return None

    def send(self, message: ToWorker) -> None:
        """Queue a message. Raises TooLarge for one over the bound of all messages, and for nothing else."""
        if isinstance(message, Stop):
            if self._is_stopping:
                return
            self._is_stopping = True
        try:
            self._channel.send(message)
        except ChannelBroken:
            self._kill()  # it has let so much lie unread that it does not work any more

    async def receive(self) -> Sequence[FromWorker]:
        messages: Sequence[FromWorker] = ()
        try:
            messages = await self._channel.receive()
        except ChannelBroken:
            self._kill()
        if messages:
            return messages
        if not await self._ends_within(LINGER_S):
            self._kill()
            await self._ended.wait()
        self._channel.close()
        raise self._gone()

    async def stop(self, grace_s: float) -> None:
        raise NotImplementedError

    def on_end(self, status: int | None) -> None:
        """Take note that it is gone."""
        self._status = status
        self._ended.set()
        self._channel.shut_down()

    def _kill(self) -> None:
        raise NotImplementedError

    def _gone(self) -> SeraiError:
        how = "" if self._status is None else f" with status {self._status}"
        return WorkerGone(f"The worker has ended{how}.", status=self._status)

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError), anyio.fail_after(seconds):
            await self._ended.wait()
        return self._ended.is_set()
