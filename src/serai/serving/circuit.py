"""Leaving a candidate alone for a short while after it failed again and again. Pure: the time comes in.

    closed ── enough failures in a row ──▶ open ── its time is over ──▶ one trial
       ▲                                    ▲                             │
       └───────────── success ──────────────┼──────────── failure ────────┘

For failures of runs: workers that crash or hang, servers elsewhere that fail. A load that fails has the
runtime's own, longer cooldown.
"""

from dataclasses import dataclass, replace

from serai.registry.failure import Cooldown, Failure, Key

COUNTED = frozenset({Failure.CRASH, Failure.TIMEOUT, Failure.OUT_OF_MEMORY, Failure.REMOTE_5XX, Failure.REMOTE_429})
"""The failures that say something of the candidate, and not of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a circuit opens, and for how long: `first_s`, doubled with each failed trial, at most `longest_s`."""

    failures: int = 3
    first_s: float = 5.0
    longest_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """The state of one candidate. One that never failed has none."""

    failures: int = 0
    """In a row."""
    opened: Cooldown | None = None
    in_trial: bool = False

    def blocked_for(self, now: float) -> float:
        """Return the seconds until a request may try, 0 for now; while another one tries, the time it was open for."""
        if self.opened is None:
            return 0.0
        return self.opened.seconds if self.in_trial else self.opened.remaining(now)


class Circuits:
    """The circuits of all candidates of one server."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._circuits: dict[Key, Circuit] = {}

    def __len__(self) -> int:
        """Return how many are open or in trial."""
        return sum(circuit.opened is not None for circuit in self._circuits.values())

    def blocked(self, now: float) -> dict[Key, Cooldown]:
        """Return what may not be tried now, each with the time until it may."""
        waits = {key: circuit.blocked_for(now) for key, circuit in self._circuits.items()}
        return {key: Cooldown(until=now + wait, seconds=wait) for key, wait in waits.items() if wait > 0}

    def begin(self, key: Key, now: float) -> bool:
        """Say whether a request may try; behind a circuit that was open, it is the only one until it has ended."""
        circuit = self._circuits.get(key)
        if circuit is None or circuit.opened is None:
            return True
        if circuit.blocked_for(now) > 0:
            return False
        self._circuits[key] = replace(circuit, in_trial=True)
        return True

    def on_failure(self, key: Key, failure: Failure, now: float) -> None:
        """Count a failure. One that says nothing of the candidate ends a trial without a verdict."""
        if failure not in COUNTED:
            self.on_abandoned(key)
            return
        circuit = self._circuits.get(key, Circuit())
        failures = circuit.failures + 1
        opened = circuit.opened
        if circuit.in_trial or (opened is None and failures >= self._bounds.failures):
            seconds = self._bounds.first_s if opened is None else min(opened.seconds * 2, self._bounds.longest_s)
            opened = Cooldown(until=now + seconds, seconds=seconds)
        self._circuits[key] = Circuit(failures=failures, opened=opened)

    def on_success(self, key: Key) -> None:
        """Close it: it answered."""
        self._circuits.pop(key, None)

    def on_abandoned(self, key: Key) -> None:
        """End a trial that came to no verdict (the client left); the next request is the trial."""
        circuit = self._circuits.get(key)
        if circuit is not None and circuit.in_trial:
            self._circuits[key] = replace(circuit, in_trial=False)

    def clear(self, key: Key) -> None:
        """Forget everything, because somebody said so."""
        self._circuits.pop(key, None)
