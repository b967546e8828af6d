"""The learning rate over a run, and what a run says of itself."""

import json
import math
from pathlib import Path

from serai.clock import SystemClock


def rate_at(rate: float, warm_up: int, steps: int, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to a fiftieth."""
    if step < warm_up:
        return rate * (step + 1) / warm_up
    passed = (step - warm_up) / max(1, steps - warm_up)
    return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, passed))))


def late_rate_at(rate: float, warm_up: int, steps: int, step: int) -> float:
    """Return the learning rate of a step: level, and over the last third straight down, so that the end may move."""
    level = min(1.0, (step + 1) / warm_up)
    return rate * min(level, max(0.01, 3 * (steps - step) / max(1, steps)))


class Log:
    """Means of figures since the last line; each line goes to the terminal and to a file."""

    def __init__(self, path: Path, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._stage = path, stage
        self._clock = SystemClock()
        self._begun = self._clock.monotonic()
        self._figures: dict[str, list[float]] = {}

    def add(self, **figures: float) -> None:
        for name, figure in figures.items():
            self._figures.setdefault(name, []).append(figure)

    def tell(self, step: int, **more: float) -> None:
        """Write a line."""
        means = {name: round(sum(some) / len(some), 5) for name, some in self._figures.items()}
        self._figures = {}
        seconds = round(self._clock.monotonic() - self._begun)
        line = json.dumps({"stage": self._stage, "step": step, **means, **more, "seconds": seconds})
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
