"""How candidates stand: who is in cooldown, whose circuit is open, who is loaded: the situation of a decision."""

from collections.abc import Sequence
from typing import Protocol

from serai.registry.failure import Cooldown, Failure, Key, Situation
from serai.runtime.model import UnitId
from serai.runtime.runtime import Loaded
from serai.serving.circuit import Circuits


class Memory(Protocol):
    """What is asked of the runtime."""

    def loaded(self) -> tuple[Loaded, ...]:
        """Return what is in memory."""

    def cooldown(self, unit: UnitId) -> float:
        """Return the seconds for which a unit is left alone."""

    def clear_cooldown(self, unit: UnitId) -> None:
        """Let it be loaded again at once."""


class Standing:
    """Kept for the versions that failed here; of all others there is nothing to know."""

    def __init__(self, memory: Memory, circuits: Circuits) -> None:
        self._memory = memory
        self._circuits = circuits
        self._failing: dict[Key, tuple[UnitId, ...]] = {}
        """The units that a version could run on, when it failed last."""
        self._waits: dict[Key, float] = {}

    @property
    def open_circuits(self) -> int:
        return len(self._circuits)

    def situation(self, now: float) -> Situation:
        """Return how things stand now; a version whose units are not all in cooldown is in none."""
        cooldowns = self._circuits.blocked(now)
        for key, units in tuple(self._failing.items()):
            seconds = min((self._memory.cooldown(unit) for unit in units), default=0.0)
            if seconds > 0:
                cooldowns[key] = Cooldown(until=now + seconds, seconds=seconds)
            elif key not in cooldowns:
                del self._failing[key]
        if not cooldowns:
            return Situation(now=now, cooldowns={})
        present = {loaded.unit for loaded in self._memory.loaded()}
        loaded = (key for key in cooldowns if present.intersection(self._failing.get(key, ())))
        return Situation(now=now, cooldowns=cooldowns, loaded=frozenset(loaded))

    def begin(self, key: Key, now: float) -> bool:
        """Say whether a request may try a version; it then says how that ended, whatever happens."""
        return self._circuits.begin(key, now) or self.situation(now).blocked_for(key) == 0

    def on_failure(self, key: Key, units: Sequence[UnitId], failure: Failure, now: float, *, was_running: bool) -> None:
        """Note a failure; only those of runs count for the circuit, loads have the runtime's cooldown."""
        self._failing[key] = tuple(units)
        if was_running:
            self._circuits.on_failure(key, failure, now)
        else:
            self._circuits.on_abandoned(key)

    def on_success(self, key: Key) -> None:
        """Forget what failed before."""
        self._failing.pop(key, None)
        self._circuits.on_success(key)

    def on_abandoned(self, key: Key) -> None:
        """Note that a try ended without a verdict."""
        self._circuits.on_abandoned(key)

    def clear(self, key: Key, units: Sequence[UnitId]) -> None:
        """Let a version be tried again at once."""
        for unit in (*units, *self._failing.pop(key, ())):
            self._memory.clear_cooldown(unit)
        self._circuits.clear(key)
