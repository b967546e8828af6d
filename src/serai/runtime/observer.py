"""What the runtime tells those who count: few kinds of event, each with the engine's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Left(StrEnum):
    """Why a unit was told to leave memory."""

    EVICTED = "evicted"
    """Another unit needed its place."""
    EXPIRED = "expired"
    """Its keep_alive was over."""
    COMMANDED = "commanded"
    """Somebody unloaded it, or the server stops."""
    ABORTED = "aborted"
    """It was still loading, and nobody wanted it any more."""


class Observer(Protocol):
    """Told of what happened, on the event loop; must neither block nor raise."""

    def on_wait(self, engine: str, outcome: str, seconds: float) -> None:
        """A request waits no more: `outcome` is 'granted', 'cancelled', or the code of the error."""

    def on_load(self, engine: str, outcome: str, seconds: float) -> None:
        """A load has ended: `outcome` is 'ready', 'stopped', or the code of the error."""

    def on_leave(self, engine: str, why: Left) -> None:
        """A worker was told to stop."""

    def on_lost(self, engine: str, code: str) -> None:
        """A loaded worker ended by itself or was killed for its silence; `code` is that of the error."""


class NoObserver:
    """Counts nothing."""

    def on_wait(self, engine: str, outcome: str, seconds: float) -> None:
        pass

    def on_load(self, engine: str, outcome: str, seconds: float) -> None:
        pass

    def on_leave(self, engine: str, why: Left) -> None:
        pass

    def on_lost(self, engine: str, code: str) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How things stand at a moment."""

    waiting: int
    leases: int
    loaded: int
    """Units that are in memory, whatever their state."""
    bytes: Mapping[str, int]
    """In use, by device."""
    budgets: Mapping[str, int]
    threads: int
    cores: int
