"""The whole corpus of bad pictures, sound and video against the decoder, as a server would call it."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from corpus.audio import AUDIO
from corpus.images import IMAGES
from corpus.specimen import Specimen
from corpus.video import VIDEO
from serai.decode.decoder import Decoder
from serai.decode.errors import MediaMalformed, MediaTooLarge
from serai.errors import InvalidInput, UnsupportedMedia

pytestmark = pytest.mark.anyio

MIB = 2**20
MAX_SECONDS = 2.0
MAX_GROWTH = 200 * MIB
MAX_BLOCKED_SECONDS = 0.2
LEAK = re.compile(r"0x[0-9a-f]|[/\\]\w|Traceback|Error|Errno|PIL|Pillow|FFmpeg|libav|memfd|<.*>", re.ASCII)
KINDS: dict[str, type[InvalidInput]] = {
    "malformed": MediaMalformed,
    "too_large": MediaTooLarge,
    "unsupported": UnsupportedMedia,
    "rejected": InvalidInput,
    "any": InvalidInput,
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for the whole module, so that one decoder serves it."""
    return "asyncio"


@pytest.fixture(scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    decoder = Decoder(memory_bytes=2048 * MIB, timeout_s=1.5, max_media_seconds=600, max_video_pixels=10**9)
    yield decoder
    await decoder.aclose()


def memory(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Set VmHWM back to VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


def waited_for_processor() -> float:
    """Return the seconds that this thread could have run but for other processes."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


@asynccontextmanager
async def unblocked() -> AsyncIterator[None]:
    """Expect that the event loop turns all the while, and that little memory is taken."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            start, waited = time.monotonic(), waited_for_processor()
            await anyio.sleep(0.005)
            longest = max(longest, time.monotonic() - start - (waited_for_processor() - waited))

    before = memory("VmRSS")
    forget_peak()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        yield
        tasks.cancel_scope.cancel()
    assert longest < MAX_BLOCKED_SECONDS
    assert memory("VmHWM") - before < MAX_GROWTH


async def expect(specimen: Specimen, data: bytes, opening: Callable[[bytes], Awaitable[object]]) -> None:
    error: InvalidInput | None = None
    start = time.monotonic()
    async with unblocked():
        try:
            await opening(data)
        except InvalidInput as caught:
            error = caught
    assert time.monotonic() - start < MAX_SECONDS
    if error is None:
        assert specimen.expectation in ("ok", "any")
    else:
        assert specimen.expectation != "ok", error.message
        assert isinstance(error, KINDS[specimen.expectation])
        assert LEAK.search(f"{error.message} {error.hint} {error.details}") is None


def named(specimens: list[Specimen]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("specimen", specimens, ids=lambda specimen: specimen.name)


@named(IMAGES)
async def test_pictures_end_as_expected(decoder: Decoder, specimen: Specimen) -> None:
    """Every picture is opened or refused as the corpus says: soon, in little memory, without a block or a leak."""
    await expect(specimen, specimen.build(), decoder.image)


@named(AUDIO)
async def test_sounds_end_as_expected(decoder: Decoder, specimen: Specimen) -> None:
    """Every sound is decoded or refused as the corpus says."""
    await expect(specimen, specimen.build(), decoder.audio)


@named(VIDEO)
async def test_videos_end_as_expected(decoder: Decoder, specimen: Specimen) -> None:
    """Every video is probed and shown, or refused, as the corpus says."""

    async def probe_and_show(data: bytes) -> None:
        await decoder.probe(data)
        await decoder.video_frame(data)

    await expect(specimen, specimen.build(), probe_and_show)


async def test_names_of_specimens_are_unique() -> None:
    """A failure names one file."""
    for specimens in (IMAGES, AUDIO, VIDEO):
        assert len({specimen.name for specimen in specimens}) == len(specimens)


async def test_a_playlist_in_disguise_opens_no_other_file(decoder: Decoder, tmp_path: Path) -> None:
    """A list of files, named like a sound and lying beside one, is refused, and the sound is not decoded."""
    (plain,) = (specimen for specimen in AUDIO if specimen.name == "wav-telephone")
    (tmp_path / "other.wav").write_bytes(plain.build())
    for name in ("ffconcat", "wav-ffconcat", "mp3-ffconcat", "hls", "sdp"):
        (disguised,) = (specimen for specimen in AUDIO if specimen.name == name)
        path = tmp_path / "upload.wav"
        path.write_bytes(disguised.build())
        with pytest.raises(InvalidInput):
            await decoder.audio(path)
