"""What an engine is: the seam between a model's weights and everything else.

An engine is one loaded unit in a process of its own. It is used from one thread, and told what to do
in small steps, so that starting, cancelling and feeding runs happens between two steps:

    engine = Engine()                     nothing is allocated yet
    engine.load(spec, report)             → Footprint
    engine.start(run); engine.step() …    → events of the runs there are
    engine.close()

An engine of one run at a time is written as a generator: see `serai.engines.stepwise`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import msgspec

from serai.engines.tasks import AnyTask
from serai.errors import InvalidInput
from serai.events import Event


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be loaded, where, and within which bounds."""

    engine: str
    name: str
    """For people: 'model@version'."""
    folder: str = ""
    """Absolute path of the weights on this machine; empty for an engine that needs none."""
    device: str = "cpu"
    """'cpu' or 'cuda:N'."""
    quantization: str = "none"
    options: Mapping[str, Any] = {}
    """Checked against `EngineInfo.options`."""
    threads: int = 1
    """CPU threads that the engine may use."""
    memory_bytes: int = 0
    """What the arbiter reserved: caches are sized so that all fits. 0: no bound."""
    allow_remote_code: bool = False


class AdapterUse(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter (LoRA) that is laid over the base weights for one run."""

    id: str
    """Two adapters with one id are the same file: digest, not name."""
    path: str
    scale: float = 1.0
    name: str = ""
    """What the version calls it; tasks that choose scales name it so."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One task on a loaded engine."""

    id: int
    task: AnyTask
    adapters: tuple[AdapterUse, ...] = ()


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What loading came to."""

    bytes: int | None = None
    """Memory of the device's own allocator; None where the process's own (PSS) is the measure."""
    max_runs: int = 1
    """How many runs the engine takes at once."""
    facts: Mapping[str, Any] = {}
    """For people and capabilities: context length, precision, the library's version."""


class Engine(Protocol):
    """One loaded unit. Each call may block for as long as its work takes; none is made from two threads.

    A `SeraiError` from `start` or `feed` ends that run alone. Any other exception, and any from `step`,
    means that the engine's state is unknown: every run fails, and the process ends.
    """

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Bring the weights into memory and warm up; `report` takes the fraction done, where it is known.

        Raises SeraiError (with a remedy) or MemoryError.
        """

    def start(self, run: Run) -> None:
        """Take a run on; its events come from `step`. Called for at most `max_runs` runs at a time."""

    def step(self) -> Sequence[tuple[int, Event]]:
        """Do a small piece of work for the runs there are and return new events with their run's id.

        Called again and again while there are runs. A run is over with its `Done` or `Failed`.
        """

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Hand a message to a run that goes on: more text, sound, an interruption. Raises InvalidInput."""

    def cancel(self, run: int) -> None:
        """Forget a run: no more events of it; what it holds is free within one step."""

    def close(self) -> None:
        """Free what the process's end would not free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What is known of an engine without importing it."""

    name: str
    target: str
    """'module:class' of the engine; empty for one that runs on other servers."""
    summary: str
    tasks: frozenset[str]
    """Tags of the tasks that it runs."""
    device_kinds: tuple[str, ...]
    """Kinds of device it runs on, best first: cpu, cuda, remote."""
    formats: frozenset[str]
    """Forms of weights that it reads: ir, safetensors, gguf, onnx; 'none' where it needs none."""
    options: type[msgspec.Struct]
    packages: tuple[str, ...] = ()
    """Importable names without which it cannot run."""
    remedy: str = ""
    """The command that installs them."""
    preload: tuple[str, ...] = ()
    """Modules that the fork server imports once, before it forks workers of this engine."""
    capabilities: frozenset[str] = frozenset()
    """What not every engine can do: batching, grammar, logprobs, top_logprobs, logit_bias, adapters, n."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed here."""
        return tuple(name for name in self.packages if find_spec(name) is None)

    def check_options(self, options: Mapping[str, Any]) -> msgspec.Struct:
        """Return the engine's options as its own type. Raises InvalidInput for an unknown or wrong one."""
        try:
            return msgspec.convert(dict(options), self.options)
        except msgspec.ValidationError as error:
            known = ", ".join(self.options.__struct_fields__) or "none"
            raise InvalidInput.at(
                "engine_options", f"are not options of the engine {self.name!r}: {error}", hint=f"Known: {known}"
            ) from None
