"""How much memory a worker takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from serai.clock import Clock

_MIN_REST_S = 2.0
_SHARE_OF_TIME = 0.02


@runtime_checkable
class OwnAllocator(Protocol):
    """An engine whose weights are not in the process's own memory, and who knows how much its device holds of them."""

    def allocated_bytes(self) -> int:
        """Return what the device's allocator has taken for this engine. Does not block."""


def proportional_set_size() -> int:
    """Return the bytes of this process, its share of what it shares (PSS): Linux, Documentation/filesystems/proc.

    The kernel walks the process's pages for it, which takes milliseconds for each GiB.
    """
    for line in Path("/proc/self/smaps_rollup").read_bytes().splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Gauge:
    """Reads a figure again when it is old enough, and seldom enough that reading costs 2 % of the time at most."""

    def __init__(self, read: Callable[[], int], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._value = 0
        self._due = 0.0

    def value(self) -> int:
        begun = self._clock.monotonic()
        if not self._value or begun >= self._due:
            self._value = self._read()
            ended = self._clock.monotonic()
            self._due = ended + max(_MIN_REST_S, (ended - begun) / _SHARE_OF_TIME)
        return self._value
