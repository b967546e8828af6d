"""What becomes of pictures that another server made: events. Pure."""

from collections.abc import Sequence
from typing import Any

from serai.engines.errors import RemoteFailed
from serai.engines.remote.images_pixels import MAX_PICTURE_BYTES, media_type_of
from serai.engines.tasks import GenerateImage
from serai.events import PREVIEW, Done, Media


def media_of(name: str, data: bytes, *, index: int = 0) -> Media:
    """Return the event of a preview or a picture. Raises RemoteFailed for one that is too large, or is none."""
    if len(data) > MAX_PICTURE_BYTES:
        raise RemoteFailed("The server behind this model sent a picture that is too large.")
    return Media(name=name, media_type=media_type_of(data), data=data, index=index)


def preview_of(data: bytes) -> Media | None:
    """Return the event of a preview; None for one that is too large, or is none: a picture may follow all the same."""
    try:
        return media_of(PREVIEW, data)
    except RemoteFailed:
        return None


def done_of(
    task: GenerateImage,
    *,
    seeds: Sequence[int],
    spent_s: float,
    fetching_s: float,
    unused: Sequence[str] = (),
    **told: Any,
) -> Done:
    """Return the last event. `told`: what else the server told, None for what it did not."""
    return Done(
        result={
            "seeds": list(seeds),
            "steps": task.steps,
            "timings": {"prompt_s": 0.0, "denoising_s": spent_s - fetching_s, "decoding_s": fetching_s},
            "device": "remote",
            "batched": False,
            "reproducible": False,
            "unused": list(unused),
            **{name: value for name, value in told.items() if value is not None},
        }
    )
