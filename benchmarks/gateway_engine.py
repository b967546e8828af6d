"""What calling a model behind another server costs: the engine `remote` against one upstream on loopback.

    python benchmarks/gateway_engine.py [--words 20000] [--calls 1000] [--rounds 3] [--json FILE]

The upstream is the tests' stand-in, in a process of its own; it sends a word per chunk. Measured are

- streamed chunks per second and core: an answer of many words, by the CPU time of this process alone;
- the time of a call with one word, one after the other, beside the same call made by hand on a kept
  connection without any HTTP library: the difference is what the engine adds;
- calls per second and core, 16 at once, by the CPU time of this process.

All of it runs on uvloop, as the server does. Medians of the rounds are shown. What the whole server adds to
it is measured by gateway.py.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from serai.clock import SystemClock  # noqa: E402 - needs the path above
from serai.engines.options import RemoteOptions  # noqa: E402 - keeps the imports together
from serai.engines.remote.engine import RemoteEngine  # noqa: E402 - keeps the imports together
from serai.engines.tasks import Chat, Sampling  # noqa: E402 - keeps the imports together
from serai.events import Text  # noqa: E402 - keeps the imports together
from serai.outbound import Outbound, OutboundSecret  # noqa: E402 - keeps the imports together
from serai.registry.source import RemoteSource  # noqa: E402 - keeps the imports together
from support.servers import LOOPBACK, free_port  # noqa: E402 - needs the path
from support.upstream import END  # noqa: E402 - needs the path

AT_ONCE = 16
GOALS = {"chunks_per_core_s": 20_000.0, "added_p50_ms": 1.0}


@asynccontextmanager
async def upstream(words: int) -> AsyncIterator[int]:
    """Run the stand-in in a process of its own; give its port."""
    port = free_port()
    program = ROOT / "tests" / "support" / "upstream.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(port), str(words), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield port
    finally:
        process.terminate()
        await process.wait()


class Caller:
    """Calls one upstream through the engine, with a secret, as the server would."""

    def __init__(self, outbound: Outbound, port: int) -> None:
        origin = f"http://{LOOPBACK}:{port}"
        self._engine = RemoteEngine(outbound, clock=SystemClock())
        self._source = RemoteSource(endpoint=f"{origin}/v1", model="mock", secret="up")
        self._secret = OutboundSecret(name="up", value="benchmark", origins=frozenset({origin}))

    async def call(self, words: int | None) -> int:
        """Make one call; return how many chunks of text came."""
        task = Chat(messages=({"role": "user", "content": "a few words"},), sampling=Sampling(max_tokens=words))
        options = RemoteOptions()
        events = self._engine.run(task, self._source, options=options, secret=self._secret, timeout_s=600)
        return len([event async for event in events if isinstance(event, Text)])


async def chunk_rate(caller: Caller) -> float:
    """Return chunks per second of this process's CPU time."""
    began = time.process_time()
    chunks = await caller.call(None)
    return chunks / (time.process_time() - began)


async def call_times(call: Callable[[], Awaitable[Any]], calls: int) -> list[float]:
    """Return the milliseconds of each of so many calls, one after the other."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        times.append((time.perf_counter() - began) * 1000)
    return times


async def by_hand(port: int) -> tuple[Callable[[], Awaitable[None]], asyncio.StreamWriter]:
    """Return the same call of one word on a kept connection, and that connection."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    body = {"model": "mock", "messages": [{"role": "user", "content": "a few words"}], "stream": True, "max_tokens": 1}
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {LOOPBACK}\r\ncontent-length: {len(content)}\r\n\r\n".encode()

    async def call() -> None:
        writer.write(head + content)
        await reader.readuntil(END)

    return call, writer


async def call_rate(caller: Caller, calls: int) -> float:
    """Return calls of one word per second of this process's CPU time, several at once."""

    async def one_after_the_other() -> None:
        for _ in range(calls // AT_ONCE):
            await caller.call(1)

    began = time.process_time()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return (calls // AT_ONCE) * AT_ONCE / (time.process_time() - began)


async def measure(words: int, calls: int, rounds: int) -> dict[str, float]:
    """Return the medians of all rounds."""
    found: dict[str, list[float]] = {}
    async with upstream(words) as port, Outbound(clock=SystemClock(), allow=[LOOPBACK]) as outbound:
        caller = Caller(outbound, port)
        direct, writer = await by_hand(port)
        await call_times(lambda: caller.call(1), 50)
        for _ in range(rounds):
            ours = await call_times(lambda: caller.call(1), calls)
            theirs = await call_times(direct, calls)
            row = {
                "chunks_per_core_s": await chunk_rate(caller),
                "call_p50_ms": statistics.median(ours),
                "direct_p50_ms": statistics.median(theirs),
                "added_p50_ms": statistics.median(ours) - statistics.median(theirs),
                "call_p99_ms": statistics.quantiles(ours, n=100)[98],
                "calls_per_core_s": await call_rate(caller, calls),
            }
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        writer.close()
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = uvloop.run(measure(arguments.words, arguments.calls, arguments.rounds))
    for name, value in found.items():
        goal = f"   goal {GOALS[name]:,.1f}" if name in GOALS else ""
        print(f"{name:20} {value:12,.2f}{goal}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
