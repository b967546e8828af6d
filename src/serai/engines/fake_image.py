"""Pictures of the engine without a model: gradients that depend on what was asked for, and on nothing else."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image, ImageChops

from serai.clock import Clock
from serai.engines.base import AdapterUse
from serai.engines.tasks import Array, GenerateImage
from serai.errors import InvalidInput
from serai.events import PREVIEW, Done, Event, Media, Progress

_PREVIEW_SIDE = 64
_MEDIA_TYPE = "image/x-portable-pixmap"


def generate_image(task: GenerateImage, adapters: Sequence[AdapterUse], device: str, clock: Clock) -> Iterator[Event]:
    """Return the events of a task, one for each step and each picture. Raises InvalidInput for wrong arrays."""
    source, mask = _source(task), _mask(task)
    if mask is not None and source is None:
        raise InvalidInput.at("mask", "needs a source")
    return _drawn(task, _scales(task.adapter_scales, adapters), (source, mask), (device, clock))


def _drawn(
    task: GenerateImage,
    scales: Mapping[str, float],
    given: tuple[Image.Image | None, Image.Image | None],
    place: tuple[str, Clock],
) -> Iterator[Event]:
    source, mask = given
    device, clock = place
    began = clock.monotonic()
    steps = task.steps if source is None else max(1, int(task.steps * task.strength))
    pictures = [_picture(task, image, scales, source, mask) for image in range(task.images)]
    for image, picture in enumerate(pictures):
        for step in range(1, steps + 1):
            told = {"image": image, "images": task.images}
            share = (image + step / steps) / task.images
            yield Progress(stage="generating", fraction=share, done=step, total=steps, unit="steps", detail=told)
            if task.preview_steps and step % task.preview_steps == 0 and step < steps:
                yield Media(name=PREVIEW, media_type="image/webp", data=_webp(picture), index=image)
    for image, picture in enumerate(pictures):  # all at once, as an engine does that draws them in one batch
        yield Media(name="picture", media_type=_MEDIA_TYPE, data=_ppm(picture), index=image)
    yield Done(
        result={
            "seeds": [task.seed + image for image in range(task.images)],
            "steps": steps,
            "timings": {"prompt_s": 0.0, "denoising_s": clock.monotonic() - began, "decoding_s": 0.0},
            "device": device,
            "batched": False,
        }
    )


def _scales(chosen: Mapping[str, float], adapters: Sequence[AdapterUse]) -> dict[str, float]:
    """Return the adapters that do anything, each with its scale."""
    scales = {use.name or use.id: chosen.get(use.name, use.scale) for use in adapters}
    return {name: scale for name, scale in sorted(scales.items()) if scale}


def _picture(
    task: GenerateImage,
    image: int,
    scales: Mapping[str, float],
    source: Image.Image | None,
    mask: Image.Image | None,
) -> Image.Image:
    """Return a diagonal gradient between colours that are drawn from all that the task says."""
    size = (task.width, task.height)
    said = (task.prompt, task.negative_prompt, task.seed + image, task.steps, task.guidance_scale, *scales.items())
    digest = hashlib.blake2b(repr((*said, size)).encode()).digest()
    ramps = (Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L"))
    bands = []
    for number, ramp in enumerate(ramps):
        low, high = sorted(digest[2 * number : 2 * number + 2])
        bands.append(ramp.resize(size).point(lambda value, low=low, high=high: low + value * (high - low) // 255))
    drawn = Image.merge("RGB", bands)
    if source is None:
        return drawn
    edited = ImageChops.blend(source, drawn, task.strength)
    return edited if mask is None else Image.composite(edited, source, mask)


def _source(task: GenerateImage) -> Image.Image | None:
    return None if task.source is None else _image("source", task.source, (task.height, task.width, 3))


def _mask(task: GenerateImage) -> Image.Image | None:
    return None if task.mask is None else _image("mask", task.mask, (task.height, task.width))


def _image(name: str, array: Array, shape: tuple[int, ...]) -> Image.Image:
    size = shape[0] * shape[1] * (shape[2] if len(shape) == 3 else 1)
    if array.dtype != "uint8" or array.shape != shape or len(array.data) != size:
        raise InvalidInput.at(name, f"must be uint8 of {' × '.join(map(str, shape))}")
    return Image.frombytes("RGB" if len(shape) == 3 else "L", (shape[1], shape[0]), array.data)


def _ppm(picture: Image.Image) -> bytes:
    return b"P6\n%d %d\n255\n" % picture.size + picture.tobytes()


def _webp(picture: Image.Image) -> bytes:
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    small.save(file, "WEBP", quality=60)
    return file.getvalue()
