"""Waiting for what another process or server does at its own time, where there is no event of it here."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PAUSE_S = 0.02


async def eventually(*conditions: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Return when each condition has held once, in turn; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        for condition in conditions:
            while not await condition():  # noqa: ASYNC110 - what is waited for happens outside of this loop
                await asyncio.sleep(PAUSE_S)


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Return when the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(PAUSE_S)
