"""The engine `diffusers`, whose previews fail where the prompt says so: as a defect, or for want of memory."""

from collections.abc import Iterator, Sequence

from serai.engines.images.diffusers_batch import Batch
from serai.engines.images.diffusers_image import DiffusersImage
from serai.events import Event

FAILURES = {"a defect": ValueError, "no memory": MemoryError}
"""By the prompt."""


class FailingDiffusers(DiffusersImage):
    def _previews(self, batch: Batch, numbers: Sequence[int]) -> Iterator[tuple[int, Event]]:
        failure = FAILURES.get(batch.places[0].drawing.task.prompt)
        if failure is not None:
            raise failure
        yield from super()._previews(batch, numbers)
