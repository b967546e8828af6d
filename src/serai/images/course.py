"""How far a job of pictures is: what its model tells, as the progress that clients see, with the time that is left."""

from dataclasses import dataclass
from typing import Any, Literal

from serai.events import Loading, Progress

Stage = Literal["waiting", "loading", "generating", "saving"]


@dataclass(slots=True)
class ImageCourse:
    """Turns progress into progress. `seconds` are those of a stopwatch, given with each event."""

    images: int = 1
    steps: int = 0
    loading_s: float = 0.0
    """From the begin of the load to its end."""
    generating_s: float = 0.0
    """From the begin of the run to the last picture so far, as it came from the model."""
    _loading_since: float | None = None
    _free_since: float | None = None
    """Since when nothing is waited for, as far as that is known."""
    _first: tuple[float, float] | None = None
    """When the first step was told, and how much was done by then, as a share of all."""
    _began: float | None = None

    def is_free(self, seconds: float) -> None:
        """Note that nothing keeps the run from beginning now: unless a place in a queue or a load is told next."""
        self._free_since = seconds

    def is_queued(self) -> None:
        """Note that something is waited for: where that ends untold, the run is taken to begin when it is heard of."""
        self._free_since = None

    def is_loading(self, event: Loading, seconds: float) -> Progress:
        """Return the progress of a load."""
        if self._loading_since is None:
            self._loading_since = seconds
        self._free_since = seconds if event.fraction is not None and event.fraction >= 1.0 else None
        told = {"model": event.model, "version": event.version}
        return Progress(stage="loading", fraction=event.fraction, detail=told)

    def is_generating(self, event: Progress, seconds: float) -> Progress:
        """Return the progress of a step: `done` of `total` steps of a picture, and of which."""
        self._begin(seconds)
        detail = dict(event.detail or {})
        image, images = int(detail.get("image", 0)), int(detail.get("images", self.images))
        self.images = images
        self.steps = event.total or self.steps
        fraction = _fraction(event, image, images)
        told: dict[str, Any] = {"image": image, "images": images, "step": event.done, "steps": event.total}
        told["eta_s"] = self._eta(fraction, seconds)
        return Progress(
            stage="generating", fraction=fraction, done=event.done, total=event.total, unit="steps", detail=told
        )

    def is_saving(self, image: int, seconds: float) -> Progress:
        """Return the progress of a picture that came from the model and is about to be stored."""
        self.generating_s = seconds - self._begin(seconds)
        told = {"image": image, "images": self.images, "step": self.steps, "steps": self.steps, "eta_s": None}
        return Progress(stage="saving", fraction=min(1.0, (image + 1) / self.images), detail=told)

    def _begin(self, seconds: float) -> float:
        """Return when the run began, of which something is heard now."""
        if self._began is None:
            self._began = seconds if self._free_since is None else self._free_since
            if self._loading_since is not None:
                self.loading_s = self._began - self._loading_since
        return self._began

    def _eta(self, fraction: float | None, seconds: float) -> float | None:
        """Return the seconds until all pictures are made, by the steps since the first, which alone warms up."""
        if fraction is None:
            return None
        if self._first is None:
            self._first = (seconds, fraction)
        since, start = self._first
        if fraction <= start:
            return None
        return round((seconds - since) / (fraction - start) * (1.0 - fraction), 1)


def _fraction(event: Progress, image: int, images: int) -> float | None:
    """Return the share of all pictures' steps that is done, as told or counted; None where it is not known."""
    if event.fraction is not None:
        return event.fraction
    if not event.total or event.done is None:
        return None
    return min(1.0, (image + event.done / event.total) / images)
