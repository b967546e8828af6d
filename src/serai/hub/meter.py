"""How far a download is: bytes, speed, and what is left. Pure but for the clock that it is handed."""

from dataclasses import dataclass

from serai.clock import Clock

SMOOTHING_S = 5.0
"""Half of the speed that is told comes from about the last 3.5 seconds (e-folding time 5 s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is told: bytes that lie on the disk, of how many; bytes per second; seconds that are left."""

    downloaded_bytes: int
    total_bytes: int
    speed: float
    eta_s: float | None

    @property
    def fraction(self) -> float:
        return min(1.0, self.downloaded_bytes / self.total_bytes) if self.total_bytes else 1.0

    def detail(self) -> dict[str, int | float | None]:
        """Return the figures under the names of the API."""
        eta_s = None if self.eta_s is None else round(self.eta_s, 1)
        return {
            "downloaded_bytes": self.downloaded_bytes,
            "total_bytes": self.total_bytes,
            "speed": round(self.speed, 1),
            "eta_s": eta_s,
        }


class Meter:
    """Counts the bytes of one download. What it tells never goes back, also where a file starts anew."""

    def __init__(self, total_bytes: int, clock: Clock) -> None:
        self.total_bytes = total_bytes
        self.fetched = 0
        """Bytes that came over the network, a second time included."""
        self.clock = clock
        self._on_disk: dict[str, int] = {}
        self._shown = 0
        self._speed: float | None = None
        self._sampled_at = clock.monotonic()
        self._sampled = 0

    def place(self, path: str, size: int) -> None:
        """Say how many bytes of a file lie on the disk."""
        self._on_disk[path] = size

    def count(self, path: str, size: int) -> None:
        """Add bytes that have come and were written."""
        self._on_disk[path] = self._on_disk.get(path, 0) + size
        self.fetched += size

    @property
    def left_bytes(self) -> int:
        """Bytes that do not lie on the disk yet."""
        return max(0, self.total_bytes - sum(self._on_disk.values()))

    def figures(self) -> Figures:
        """Return the figures now; the speed is averaged between calls."""
        self._sample()
        self._shown = max(self._shown, min(self.total_bytes, sum(self._on_disk.values())))
        left = self.total_bytes - self._shown
        speed = self._speed or 0.0
        eta_s = 0.0 if not left else left / speed if speed >= 1 else None
        return Figures(downloaded_bytes=self._shown, total_bytes=self.total_bytes, speed=speed, eta_s=eta_s)

    def _sample(self) -> None:
        now = self.clock.monotonic()
        passed = now - self._sampled_at
        if passed < 0.1:
            return
        current = (self.fetched - self._sampled) / passed
        weight = passed / (passed + SMOOTHING_S)
        self._speed = current if self._speed is None else self._speed + weight * (current - self._speed)
        self._sampled_at, self._sampled = now, self.fetched
