"""A server's serving on a registry of its own: models are fake engines in threads, or scripted workers."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from serai.clock import Clock, SystemClock
from serai.engines.base import EngineInfo
from serai.engines.catalogue import CATALOGUE
from serai.engines.remote.engine import RemoteEngine
from serai.engines.tasks import AnyTask, Chat, Generate
from serai.errors import NotFound
from serai.events import Done, Event, Failed, Text
from serai.ids import new_id
from serai.outbound import Outbound, OutboundSecret
from serai.registry import bindings
from serai.registry.plan import Request
from serai.registry.service import Limits as ServiceLimits
from serai.registry.snapshot import Candidate
from serai.registry.source import Footprint, RemoteSource
from serai.runtime.backends.base import Backend
from serai.runtime.backends.inline import InlineBackend
from serai.runtime.footprints import MemoryFootprints
from serai.runtime.model import Device, DeviceKind, Limits
from serai.runtime.runtime import Runtime
from serai.runtime.workers import Pace
from serai.serving.answer import Answer
from serai.serving.call import Call
from serai.serving.circuit import Circuits
from serai.serving.course import CourseParts
from serai.serving.metrics import ServingMetrics
from serai.serving.placer import Placer
from serai.serving.placing import Machine
from serai.serving.recorder import DecisionRecorder
from serai.serving.serving import Books, Serving
from serai.serving.standing import Standing
from serai.serving.store import DecisionRow, list_decisions
from serai.serving.weights import LocalWeights
from serai.storage.database import Database
from support.registry import Desk
from unit.registry.build import a_service, link, to

MIB = 2**20
GENEROUS_S = 60.0


def generate(candidate: Candidate, engine: EngineInfo) -> AnyTask:
    """Make a task of four words; a chat for another server."""
    if engine.name == "remote":
        return Chat(messages=({"role": "user", "content": "one two three four"},))
    return Generate(prompt="one two three four")


def call(service: str | None = "s", model: str | None = None, **values: Any) -> Call:
    """Return a call of a service, or of a model."""
    request = values.pop("request", None) or Request(service=service, model=model, **values.pop("ask", {}))
    defaults = {"task": generate, "caller": "key_1", "owner": "user_1", "timeout_s": GENEROUS_S}
    return Call(request=request, **(defaults | values))


def text_of(events: list[Event]) -> str:
    return "".join(event.delta for event in events if isinstance(event, Text))


class Stage:
    """The serving and all that a test looks at."""

    def __init__(self, desk: Desk, serving: Serving, runtime: Runtime, metrics: ServingMetrics, home: Path) -> None:
        self.desk = desk
        self.serving = serving
        self.runtime = runtime
        self.metrics = metrics
        self.home = home

    def fake(self, id_: str = "m", *numbers: str, size: int = MIB, **options: Any) -> None:
        """Create a model of the fake engine with these options."""
        values: dict[str, Any] = {
            "engine": "fake",
            "engine_options": options,
            "footprint": (Footprint(device="cpu", bytes=size),),
        }
        self.desk.model(id_, *numbers, **values)

    def remote(self, id_: str, endpoint: str, **values: Any) -> None:
        """Create a model behind another server."""
        source = RemoteSource(endpoint=endpoint, model="there", secret=values.pop("secret", None))
        self.desk.model(id_, source=source, **values)

    def service(self, *names: str, id_: str = "s", **limits: Any) -> None:
        """Create a service bound to the first name, with the others as its chain."""
        service = a_service(id_, to(names[0]), fallback=tuple(link(name) for name in names[1:]))
        service = replace(service, revision=replace(service.revision, limits=ServiceLimits(**limits)))
        self.desk.do(bindings.create_service, service)

    async def open(self, *args: Any, **kwargs: Any) -> Answer:
        return await self.serving.open(call(*args, **kwargs))

    async def ask(self, *args: Any, **kwargs: Any) -> tuple[Answer, list[Event]]:
        """Make a call and read its answer to the end."""
        answer = await self.open(*args, **kwargs)
        return answer, [event async for event in answer]

    async def rows(self) -> list[DecisionRow]:
        """Return the decisions that were stored, the first one first; no more calls afterwards."""
        await self.serving.close()
        return self.desk.database.read_sync(list_decisions)[::-1]

    def figure(self, name: str, **labels: str) -> float:
        """Return a metric's value, 0 where it was never counted."""
        for family in self.metrics.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0


def chain_of(answer: Answer) -> list[str]:
    """Return the chain of the decision as 'm@1.0.0 failed'."""
    return [f"{link.model}@{link.version} {link.outcome.value}" for link in answer.decision.chain]


def done(events: list[Event]) -> bool:
    return isinstance(events[-1], Done) and not any(isinstance(event, Failed | Done) for event in events[:-1])


async def _no_secret(name: str) -> OutboundSecret:
    raise NotFound(f"There is no secret {name}.")


@asynccontextmanager
async def staged(
    database: Database,
    home: Path,
    *,
    backend: Backend | None = None,
    clock: Clock | None = None,
    catalogue: Mapping[str, EngineInfo] = CATALOGUE,
    missing: Mapping[str, tuple[str, ...]] | None = None,
    budget: int = 2**30,
    limits: Limits | None = None,
    pace: Pace | None = None,
    circuits: Circuits | None = None,
    reveal: Callable[[str], Any] = _no_secret,
    **rules: Any,
) -> AsyncIterator[Stage]:
    """Open everything, and close it in order."""
    clock = clock or SystemClock()
    metrics = ServingMetrics()
    async with AsyncExitStack() as stack:
        desk = stack.enter_context(Desk(database, **rules))
        runtime = Runtime(
            backend=backend or InlineBackend(clock=clock, catalogue=catalogue),
            devices=(Device(id="cpu", kind=DeviceKind.CPU, budget=budget),),
            limits=limits or Limits(cores=2),
            clock=clock,
            new_id=new_id,
            footprints=MemoryFootprints(),
            pace=pace or Pace(),
            oom_kills=lambda: 0,
        )
        stack.push_async_callback(runtime.close)
        outbound = Outbound(clock=clock, allow=("127.0.0.1",), timeout_s=GENEROUS_S)
        stack.push_async_callback(outbound.aclose)
        machine = Machine(device_kinds=frozenset({"cpu"}), threads=1, missing=missing or {})
        weights = LocalWeights(package=home / "package", pulled=home / "models", roots={"lab": home / "lab"})
        parts = CourseParts(
            runtime=runtime,
            remote=RemoteEngine(outbound, clock=clock),
            reveal=reveal,
            placer=Placer(machine, weights),
            standing=Standing(runtime, circuits or Circuits()),
            clock=clock,
            metrics=metrics,
        )
        recorder = DecisionRecorder(database, on_dropped=metrics.dropped.inc)
        serving = Serving(desk.registry, parts, Books(recorder=recorder, new_id=new_id))
        stack.push_async_callback(serving.close)
        yield Stage(desk, serving, runtime, metrics, home)
