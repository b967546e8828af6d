"""What a worker of its own costs: per call, per event, and until it is ready.

    python benchmarks/runtime.py [--rounds 2000] [--events 300000] [--starts 50] [--json out/runtime.json]

The engine is the fake one, so the figures are those of the run loop, the channel and the worker's loop,
with nothing computed. *Call*: a lease from the run loop, a run of one event, the lease given back. *Round
trip*: a task is sent to a worker and its only event received, one at a time. *Events a second*: one run
whose events are single words, from the call to its end, in a consumer that looks at each event; the engine
makes one event in each step, and in the second row a hundred. *Start to ready*: from `spawn` to `Ready`,
when the fork server has the imports done; the first start of all, which starts that too, is apart. A row
that has a bound says whether it was kept. The loop is uvloop, as in the server.

To add rows, add an async function that returns `Row`s to MEASURES.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import uvloop

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from serai.clock import SystemClock  # noqa: E402 - needs the path above
from serai.engines.base import EngineSpec, Run  # noqa: E402 - keeps the imports together
from serai.engines.catalogue import CATALOGUE  # noqa: E402 - keeps the imports together
from serai.engines.tasks import AnyTask, Fetch, Generate, Sampling  # noqa: E402 - keeps the imports together
from serai.events import Done  # noqa: E402 - keeps the imports together
from serai.ids import new_id  # noqa: E402 - keeps the imports together
from serai.runtime.backends.base import Backend, Worker  # noqa: E402 - keeps the imports together
from serai.runtime.backends.inline import InlineBackend  # noqa: E402 - keeps the imports together
from serai.runtime.backends.local import LocalBackend  # noqa: E402 - keeps the imports together
from serai.runtime.footprints import MemoryFootprints  # noqa: E402 - keeps the imports together
from serai.runtime.model import Device, DeviceKind, Limits, UnitId, UnitSpec  # noqa: E402 - keeps the imports together
from serai.runtime.runtime import Claim, Runtime  # noqa: E402 - keeps the imports together
from serai.runtime.worker.messages import Ready, Start, Told  # noqa: E402 - keeps the imports together
from support.worker_engine import ENGINES  # noqa: E402 - needs the path

FAKE = EngineSpec(engine="fake", name="fake@1", options={"max_runs": 8})
SCRIPTED = EngineSpec(engine="scripted", name="scripted@1")
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `bound` with its sign is what was promised."""

    name: str
    value: float
    unit: str
    bound: str = ""

    @property
    def is_kept(self) -> bool | None:
        if not self.bound:
            return None
        limit = float(self.bound[1:])
        return self.value <= limit if self.bound[0] == "≤" else self.value >= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    rounds: int
    events: int
    starts: int


def quantiles(name: str, seconds: list[float], *, bound: str = "") -> list[Row]:
    ordered = sorted(seconds)
    return [
        Row(name=f"{name}, p50", value=1000 * ordered[len(ordered) // 2], unit="ms", bound=bound),
        Row(name=f"{name}, p95", value=1000 * ordered[len(ordered) * 95 // 100], unit="ms"),
    ]


@asynccontextmanager
async def local() -> AsyncIterator[LocalBackend]:
    environment = {"PYTHONPATH": str(ROOT / "tests")}
    backend = LocalBackend(clock=SystemClock(), catalogue={**CATALOGUE, **ENGINES}, environment=environment)
    try:
        yield backend
    finally:
        await backend.close()


async def until_ready(worker: Worker) -> None:
    while not any(isinstance(message, Ready) for message in await worker.receive()):
        pass


async def loaded(backend: Backend, spec: EngineSpec) -> Worker:
    worker = await backend.spawn(spec)
    await until_ready(worker)
    return worker


async def perform(worker: Worker, number: int, task: AnyTask) -> int:
    """Run the task to its end; return how many events came."""
    worker.send(Start(run=Run(id=number, task=task)))
    count = 0
    while True:
        for message in await worker.receive():
            if isinstance(message, Told) and message.run == number:
                count += 1
                if isinstance(message.event, Done):
                    return count


async def timed(worker: Worker, rounds: int, task: AnyTask) -> list[float]:
    seconds = []
    for number in range(rounds):
        begun = time.perf_counter()
        await perform(worker, number, task)
        seconds.append(time.perf_counter() - begun)
    return seconds[rounds // 10 :]


async def round_trips(sizes: Sizes) -> list[Row]:
    """A call through channel and worker, in a process and, for comparison, in a thread."""
    task = Fetch(body={"a": 1})
    rows = []
    async with local() as backend:
        worker = await loaded(backend, FAKE)
        rows += quantiles("round trip, process", await timed(worker, sizes.rounds, task), bound="≤0.5")
        large = Fetch(body={"a": bytes(50 * MIB)})
        rows += quantiles("round trip, 50 MiB each way", await timed(worker, 10, large))[:1]
    inline = InlineBackend(clock=SystemClock())
    worker = await loaded(inline, FAKE)
    rows += quantiles("round trip, thread", await timed(worker, sizes.rounds, task))
    await inline.close()
    return rows


async def leases(sizes: Sizes) -> list[Row]:
    """A whole call as serving makes it: a lease, a run of one event, and the lease given back."""
    unit = UnitSpec(
        id=UnitId(weights="fake", engine="fake", quantization="none", device_kind=DeviceKind.CPU),
        bytes=64 * MIB,
        threads=1,
        max_leases=8,
    )
    device = Device(id="cpu", kind=DeviceKind.CPU, budget=1024 * MIB)
    task, seconds = Fetch(body={"a": 1}), []
    async with local() as backend:
        runtime = Runtime(
            backend=backend,
            devices=[device],
            limits=Limits(cores=2),
            clock=SystemClock(),
            new_id=new_id,
            footprints=MemoryFootprints(),
        )
        for _ in range(sizes.rounds):
            begun = time.perf_counter()
            async with runtime.lease([Claim(unit=unit, engine=FAKE)], caller="one", timeout_s=60) as lease:
                async for _ in lease.run(task):
                    pass
            seconds.append(time.perf_counter() - begun)
        await runtime.close()
    return quantiles("call through lease and worker", seconds[sizes.rounds // 10 :], bound="≤0.5")


async def events(sizes: Sizes) -> list[Row]:
    """Events of one run through one worker into one consumer."""
    rows = []
    words = Generate(prompt="word", sampling=Sampling(max_tokens=sizes.events))
    async with local() as backend:
        for name, spec, task in (
            (
                "events, one a step",
                EngineSpec(engine="fake", name="fake@1", options={"tokens": min(sizes.events, 100_000)}),
                words,
            ),
            ("events, 100 a step", SCRIPTED, Fetch(body={"do": "count", "to": sizes.events, "batch": 100})),
        ):
            worker = await loaded(backend, spec)
            begun = time.perf_counter()
            count = await perform(worker, 1, task)
            rate = count / (time.perf_counter() - begun)
            rows.append(Row(name=name, value=rate, unit="/s", bound="≥30000"))
    return rows


async def starts(sizes: Sizes) -> list[Row]:
    """From `spawn` to `Ready`, and from `stop` to the end of the process."""
    up, down = [], []
    async with local() as backend:
        begun = time.perf_counter()
        first = await loaded(backend, FAKE)
        rows = [Row(name="first start, with the fork server", value=1000 * (time.perf_counter() - begun), unit="ms")]
        for _ in range(sizes.starts):
            begun = time.perf_counter()
            worker = await loaded(backend, FAKE)
            up.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            await worker.stop(10)
            down.append(time.perf_counter() - begun)
        await first.stop(10)
    return rows + quantiles("start to ready, imports done", up) + quantiles("stop to gone", down)


MEASURES: list[Callable[[Sizes], Awaitable[list[Row]]]] = [leases, round_trips, events, starts]


def show(row: Row) -> None:
    verdict = "" if row.is_kept is None else f"  promised {row.bound}: {'kept' if row.is_kept else 'NOT KEPT'}"
    print(
        f"{row.name:36}{row.value:12.3f} {row.unit:4}{verdict}"
        if row.value < 1000
        else f"{row.name:36}{row.value:12.0f} {row.unit:4}{verdict}",
        flush=True,
    )


async def measure(sizes: Sizes) -> list[Row]:
    rows = []
    for one in MEASURES:
        for row in await one(sizes):
            show(row)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "runtime.json")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    sizes = Sizes(rounds=options.rounds, events=options.events, starts=options.starts)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measure(sizes))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([{**asdict(row), "is_kept": row.is_kept} for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
