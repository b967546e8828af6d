"""Pictures to start from: opened for a model's task, no larger than it needs them, and held by nothing else."""

import gc
import io
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from serai.clock import SystemClock
from serai.decode.decoder import DecodedImage, Decoder, Source
from serai.decode.errors import MediaMalformed
from serai.engines.catalogue import CATALOGUE
from serai.ids import new_id
from serai.images.drawing import Drawing
from serai.images.inputs import find_inputs
from serai.images.model import KIND, ImageRequest, ImageSettings
from serai.images.plan import accepts
from serai.jobs import store
from serai.jobs.model import NewJob
from serai.registry.failure import QUIET
from serai.registry.parameters import Parameter
from serai.registry.snapshot import Candidate
from serai.storage import links
from serai.storage.blobs import BlobNotFound, MemoryBlobs
from serai.storage.database import Database
from unit.registry.build import a_model, a_snapshot, a_version

pytestmark = pytest.mark.anyio

CLOCK = SystemClock()
OWNER = "ann"


class Noting(Decoder):
    """Notes how long sides it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int | None] = []

    async def image(self, data: Source, *, max_side: int | None = None) -> DecodedImage:
        self.asked.append(max_side)
        return await super().image(data, max_side=max_side)


@pytest.fixture
async def decoder() -> AsyncIterator[Noting]:
    opened = Noting()
    yield opened
    await opened.aclose()


def a_file(size: tuple[int, int], quarter_turns: int = 0) -> bytes:
    """Return a PNG, to be seen turned to the right so often."""
    exif = Image.Exif()
    exif[0x0112] = {0: 1, 1: 6}[quarter_turns]
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG", exif=exif)
    return file.getvalue()


def a_painter() -> Candidate:
    sides = {name: Parameter(default=64, max=256) for name in ("width", "height")}
    painter = a_version("painter", parameters=sides, capabilities=("image_to_image", "inpaint"))
    snapshot = a_snapshot(a_model("painter", task="image-generation"), painter)
    return accepts(snapshot, QUIET, ImageRequest(prompt="x", model="painter"))


async def a_drawing(
    database: Database, decoder: Decoder, image: bytes, mask: bytes | None = None, **settings: int
) -> Drawing:
    """Return an attempt of a job that starts from these, which its owner holds."""
    blobs, now = MemoryBlobs(clock=CLOCK), CLOCK.now()
    digests: list[str | None] = []
    for content in (image, mask):
        if content is None:
            digests.append(None)
            continue
        blob = await blobs.put(content, max_bytes=len(content))
        await database.run(links.record, blob, now)
        await database.run(lambda one, digest=blob.digest: links.link(one, holder="h", digest=digest, owner_id=OWNER))
        digests.append(blob.digest)
    asked = ImageRequest(prompt="x", image=digests[0], mask=digests[1], settings=ImageSettings(**settings))
    new = NewJob(id=new_id("job"), kind=KIND, version=1, payload={"prompt": "x"}, owner_id=OWNER, resource="images")
    job = await database.run(store.enqueue, CLOCK, new)
    inputs = await find_inputs(asked, OWNER, database=database, blobs=blobs, decoder=decoder)
    return Drawing(job=job, asked=asked, inputs=inputs)


def decoded() -> list[DecodedImage]:
    """Return all that are in memory."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is DecodedImage]


async def test_they_are_opened_small_and_for_a_task_alone(database: Database, decoder: Noting) -> None:
    """Nothing is opened before; after, the task holds arrays of the size that is drawn, and nobody more."""
    drawing = await a_drawing(database, decoder, a_file((1600, 800)), a_file((1600, 800)))
    assert decoder.asked == []
    task = await drawing.task(a_painter(), CATALOGUE["fake"])
    assert decoder.asked == [64, 64]
    assert task.source is not None
    assert task.mask is not None
    assert (task.source.shape, task.mask.shape) == ((32, 64, 3), (32, 64))
    assert decoded() == []
    assert set(drawing.document(1, (64, 32))) >= {"image_sha256", "mask_sha256"}


async def test_other_proportions_are_fitted_from_more(database: Database, decoder: Noting) -> None:
    """Where the size is given, what is squeezed one way has what it needs the other way."""
    drawing = await a_drawing(database, decoder, a_file((1600, 800)), width=64, height=48)
    task = await drawing.task(a_painter(), CATALOGUE["fake"])
    assert decoder.asked == [128]
    assert (task.width, task.height) == (64, 48)


async def test_proportions_are_those_that_are_seen(database: Database, decoder: Noting) -> None:
    """Of a picture that is turned when it is shown, the turned ones."""
    drawing = await a_drawing(database, decoder, a_file((400, 200), quarter_turns=1))
    task = await drawing.task(a_painter(), CATALOGUE["fake"])
    assert (task.width, task.height) == (32, 64)


async def test_what_cannot_be_opened_is_told_as_the_decoder_tells_it(database: Database, decoder: Noting) -> None:
    """A damaged file, and one that is gone."""
    whole = a_file((400, 200))
    drawing = await a_drawing(database, decoder, whole[: len(whole) // 2])
    with pytest.raises(MediaMalformed, match="damaged"):
        await drawing.task(a_painter(), CATALOGUE["fake"])
    assert drawing.inputs.image is not None
    await drawing.inputs.blobs.delete(drawing.inputs.image)
    with pytest.raises(BlobNotFound):
        await drawing.task(a_painter(), CATALOGUE["fake"])
