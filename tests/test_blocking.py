"""The guard of the event loop catches what it is for."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError

import serai
from support.blocking import guard_event_loop

pytestmark = pytest.mark.anyio
PATH = Path(serai.__file__).parent / "example.py"


def define(source: str) -> Any:
    """Return the function `example` as if `source` stood in a module of the package."""
    names: dict[str, Any] = {"asyncio": asyncio, "time": time, "Path": Path}
    exec(compile(source, str(PATH), "exec"), names)
    return names["example"]


@pytest.mark.parametrize("call", ["time.sleep(0.001)", "Path('/etc/hostname').read_text()", "Path('/').stat()"])
async def test_a_blocking_call_in_a_coroutine_of_ours_fails(call: str) -> None:
    """Whoever awaits it sees the error, however deep the call is."""
    example: Callable[[], Awaitable[None]] = define(f"def act():\n {call}\nasync def example():\n act()")
    with guard_event_loop(), pytest.raises(BlockingError):
        await example()


async def test_a_blocking_callback_of_ours_fails() -> None:
    """What the loop calls without a coroutine is guarded as well."""
    caught: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()
    act = define("def example(caught):\n try: time.sleep(0.001)\n except Exception as e: caught.set_result(type(e))")
    with guard_event_loop():
        asyncio.get_running_loop().call_soon(act, caught)
        assert await asyncio.wait_for(caught, 10) is BlockingError


async def test_threads_and_the_test_itself_may_block() -> None:
    """Blocking is for threads; and a test may use the synchronous functions to prepare and to look."""
    act = define("def example():\n time.sleep(0.001)")
    with guard_event_loop():
        await asyncio.to_thread(act)
        act()
