"""Memory and threads kept for work that is no engine: nothing is loaded, nothing runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serai.engines.base import EngineSpec, Footprint, Run
from serai.errors import InvalidInput
from serai.events import Event


class Reservation:
    """An engine by name only: who holds a lease on it has what the scheduler reserved, and works elsewhere."""

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        return Footprint(bytes=spec.memory_bytes or None)

    def start(self, run: Run) -> None:
        raise InvalidInput("A reservation runs no task.")

    def step(self) -> Sequence[tuple[int, Event]]:
        return ()

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        raise InvalidInput("A reservation runs no task.")

    def cancel(self, run: int) -> None:
        pass

    def close(self) -> None:
        pass
