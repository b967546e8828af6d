"""Downloads from a hub on loopback: what is fetched, kept, resumed, shared and refused."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serai.clock import SystemClock
from serai.errors import OutboundRefused, SeraiError
from serai.hub.choice import Choice, choose
from serai.hub.download import Download, Downloads
from serai.hub.errors import ChecksumMismatch, FileNotAsNamed, HubRateLimited, HubUnreachable, NotEnoughSpace
from serai.hub.fetching import WRITE_BYTES
from serai.hub.files import ModelFiles
from serai.hub.huggingface import HuggingFaceHub
from serai.hub.model import Listing
from serai.outbound import Outbound
from serai.registry.source import HubSource
from support.hub_server import HubServer, safetensors

pytestmark = pytest.mark.anyio

WEIGHTS = safetensors(400_000)
SMALL = b'{"model_type": "llama"}'
REPO = "acme/tiny"
MANY_MB = 10**12


@dataclass
class Desk:
    """A server's part that downloads, and the pauses that it asked for."""

    hub: HuggingFaceHub
    files: ModelFiles
    downloads: Downloads
    outbound: Outbound
    slept: list[float] = field(default_factory=list)

    async def listing(self, repo: str = REPO) -> tuple[Listing, Choice]:
        listing = await self.hub.look(HubSource(repo=repo))
        return listing, choose(listing.files)

    @asynccontextmanager
    async def start(self, repo: str = REPO, **options: Any) -> AsyncIterator[Download]:
        listing, choice = await self.listing(repo)
        async with self.downloads.of(self.hub, listing, choice.files, **options) as download:
            yield download

    async def bring(self, repo: str = REPO, **options: Any) -> Download:
        async with self.start(repo, **options) as download, asyncio.timeout(60):
            await download.wait()
        return download


@asynccontextmanager
async def a_desk(url: str, folder: Path, *, free: int = MANY_MB, **options: Any) -> AsyncIterator[Desk]:
    clock = SystemClock()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with Outbound(clock=clock, allow=["127.0.0.1"]) as outbound:
        files = ModelFiles(folder / "models", free=lambda _: free)
        downloads = Downloads(files, clock, sleep=sleep, min_free_bytes=options.pop("min_free_bytes", 0))
        yield Desk(HuggingFaceHub(outbound, address=url, **options), files, downloads, outbound, slept)


@pytest.fixture
def server() -> Any:
    with HubServer({REPO: {"config.json": SMALL, "model.safetensors": WEIGHTS, "weights.bin": b"x"}}) as server:
        yield server


@pytest.fixture
async def desk(server: HubServer, tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_desk(server.url, tmp_path) as desk:
        yield desk


def parts(desk: Desk) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (desk.files.root / "partial").iterdir() if not path.suffix}


async def test_the_chosen_files_come_whole_with_true_figures(desk: Desk, server: HubServer) -> None:
    """Every byte arrives under its own path, once, and the figures end at the total."""
    download = await desk.bring()
    assert (download.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (download.folder / "config.json").read_bytes() == SMALL
    assert download.digests["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    figures = download.meter.figures()
    assert (figures.downloaded_bytes, figures.total_bytes) == (len(WEIGHTS) + len(SMALL),) * 2
    assert figures.fraction == 1.0
    assert server.served == {"model.safetensors": len(WEIGHTS), "config.json": len(SMALL)}
    assert parts(desk) == {}


async def test_a_file_that_is_cut_off_goes_on_where_it_stopped(desk: Desk, server: HubServer) -> None:
    """A broken connection costs none of the bytes that came."""
    server.cut("model.safetensors", at=300_000)
    server.cut("model.safetensors", at=200_000)
    download = await desk.bring()
    assert (download.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.served["model.safetensors"] == len(WEIGHTS)
    assert desk.slept == [1.0, 1.0]


async def test_a_source_that_never_brings_a_byte_is_given_up(desk: Desk, server: HubServer) -> None:
    """After a few tries without progress the error says what to check; the parts stay."""
    server.cut("model.safetensors", at=100_000)
    server.cut("model.safetensors", at=0, times=50)
    with pytest.raises(HubUnreachable) as refused:
        await desk.bring()
    assert "hub_endpoint" in (refused.value.hint or "")
    assert max(parts(desk).values()) == 100_000


async def test_a_cancelled_download_keeps_its_part_and_resumes(desk: Desk, server: HubServer) -> None:
    """Pausing is cancelling: the next download asks for the rest alone."""
    held = server.hold("model.safetensors", at=500_000)
    async with desk.start() as download:
        while not download.meter.figures().downloaded_bytes > WRITE_BYTES:  # noqa: ASYNC110 - another thread serves
            await asyncio.sleep(0.01)
    held.release.set()
    kept = max(parts(desk).values())
    assert WRITE_BYTES <= kept <= 500_000
    await desk.bring()
    ranged = [headers["range"] for _, _, headers in server.requests if "range" in headers]
    assert ranged
    assert set(ranged) == {f"bytes={kept}-"}


async def test_a_server_without_ranges_starts_the_file_anew(desk: Desk, server: HubServer) -> None:
    """What cannot be resumed is fetched whole, and still verified."""
    server.ranges = False
    server.cut("model.safetensors", at=300_000)
    download = await desk.bring()
    assert (download.folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_part_of_another_content_starts_anew(desk: Desk, server: HubServer) -> None:
    """A part whose entity tag is no longer the server's is thrown away, not continued."""
    server.change("model.safetensors", safetensors(400_000, seed=1))
    server.cut("model.safetensors", at=300_000, times=1)
    server.cut("model.safetensors", at=0, times=50)
    with pytest.raises(HubUnreachable):
        await desk.bring()
    server._troubles.clear()
    server._changed.clear()
    download = await desk.bring()
    assert (download.folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_wrong_bytes_are_thrown_away(desk: Desk, server: HubServer) -> None:
    """A file that is not the announced one never gets a name, and is fetched anew the next time."""
    server.change("model.safetensors", safetensors(400_000, seed=1))
    with pytest.raises(ChecksumMismatch):
        await desk.bring()
    assert not list((desk.files.root / "staging").rglob("model.safetensors"))
    assert sum(parts(desk).values()) <= len(SMALL)
    server._changed.clear()
    await desk.bring()


async def test_a_part_that_was_damaged_is_fetched_anew(desk: Desk, server: HubServer) -> None:
    """Bytes that turned bad between two tries cost one more transfer, and not the download."""
    server.cut("model.safetensors", at=300_000, times=1)
    server.cut("model.safetensors", at=0, times=50)
    with pytest.raises(HubUnreachable):
        await desk.bring()
    server._troubles.clear()
    found = (path for path in (desk.files.root / "partial").iterdir() if not path.suffix)
    part = max(found, key=lambda path: path.stat().st_size)  # beside it, an empty one of a file that came no further
    damaged = bytearray(part.read_bytes())
    damaged[-1] ^= 1
    part.write_bytes(damaged)
    download = await desk.bring()
    assert (download.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert download.meter.figures().fraction == 1.0


async def test_wrong_bytes_of_a_small_file_are_noticed(desk: Desk, server: HubServer) -> None:
    """A file that git keeps itself is checked by git's own digest."""
    server.change("config.json", b'{"model_type": "other"}')
    with pytest.raises(ChecksumMismatch):
        await desk.bring()


async def test_a_pickle_under_a_safe_name_is_refused(tmp_path: Path) -> None:
    """The content counts, not the name."""
    with HubServer({REPO: {"model.safetensors": b"\x80\x02}q\x00." + b"x" * 100}}) as server:
        async with a_desk(server.url, tmp_path) as desk:
            with pytest.raises(FileNotAsNamed):
                await desk.bring()
            assert parts(desk) == {}


async def test_space_is_checked_before_the_first_byte(server: HubServer, tmp_path: Path) -> None:
    """A disk that is too small is told with the bytes that are missing, and nothing is fetched."""
    async with a_desk(server.url, tmp_path, free=500_000, min_free_bytes=100_000) as desk:
        with pytest.raises(NotEnoughSpace) as refused:
            await desk.bring(further_bytes=1000)
    missing = len(WEIGHTS) + len(SMALL) + 1000 + 100_000 - 500_000
    assert f"Free {missing} bytes" in (refused.value.hint or "")
    assert server.served == {}


async def test_two_downloads_of_one_thing_share_the_bytes(desk: Desk, server: HubServer) -> None:
    """The second joins the first; when the first leaves, the second goes on; both see the same figures."""
    held = server.hold("model.safetensors", at=100_000)
    async with desk.start() as second:
        async with desk.start() as first:
            assert first is second
            assert await asyncio.to_thread(held.reached.wait, 30)
        held.release.set()
        async with asyncio.timeout(60):
            await second.wait()
    assert server.served["model.safetensors"] == len(WEIGHTS)


async def test_a_download_joined_while_it_is_stopped_is_a_new_one(desk: Desk, server: HubServer) -> None:
    """Whoever comes while the last holder's task still ends waits, and never finds two writers on one file."""
    held = server.hold("model.safetensors", at=100_000)
    async with desk.start() as first:
        assert await asyncio.to_thread(held.reached.wait, 30)
        listing, choice = await desk.listing()
    # `first` was left above; the next one comes while another is just leaving.
    async with desk.downloads.of(desk.hub, listing, choice.files) as second:
        stopping = asyncio.create_task(desk.downloads._stop(second))
        await asyncio.sleep(0)
        async with desk.downloads.of(desk.hub, listing, choice.files) as download, asyncio.timeout(60):
            assert download is not second
            assert second.task.done()
            await download.wait()
        await stopping
    assert first.task.cancelled()
    held.release.set()
    assert (download.folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_hub_that_asks_to_wait_is_given_the_time(desk: Desk, server: HubServer) -> None:
    """Retry-After is what is slept; a wait that is too long is told instead."""
    listing, choice = await desk.listing()
    server.answer_next(429, retry_after="7")
    async with desk.downloads.of(desk.hub, listing, choice.files) as download:
        await download.wait()
    assert desk.slept == [7.0]
    server.answer_next(429, retry_after="4000")
    with pytest.raises(HubRateLimited) as refused:
        await desk.listing()
    assert refused.value.retry_after == 4000


async def test_a_redirect_to_a_private_address_is_refused(server: HubServer, tmp_path: Path) -> None:
    """A hub cannot send the server to an address that it may not reach."""
    with HubServer({}) as canary:
        server.cdn = canary.url.replace("127.0.0.1", "127.0.0.2")
        async with a_desk(server.url, tmp_path) as desk:
            with pytest.raises(OutboundRefused):
                await desk.bring()
        assert canary.requests == []


async def test_files_that_are_here_are_not_fetched(desk: Desk, server: HubServer) -> None:
    """Another repository with the same weights costs no byte of them, and no second copy on the disk."""
    first = await desk.bring()
    server.push("acme/copy", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    second = await desk.bring("acme/copy")
    assert server.served["model.safetensors"] == len(WEIGHTS)
    assert second.reused_bytes == len(WEIGHTS)
    one, other = (place.folder / "model.safetensors" for place in (first, second))
    assert one.samefile(other)


async def test_an_existing_cache_is_reused_after_verification(server: HubServer, tmp_path: Path) -> None:
    """Weights in the hub's own cache are linked, not fetched and not copied; damaged ones are fetched."""
    cache = tmp_path / "cache"
    blob = cache / "models--acme--tiny" / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS)
    async with a_desk(server.url, tmp_path, cache_folder=cache) as desk:
        download = await desk.bring()
        assert (download.folder / "model.safetensors").samefile(blob)
        assert server.served["model.safetensors"] == 0
        await desk.downloads.forget(download)
        blob.write_bytes(WEIGHTS[:-1] + b"?")
        again = await desk.bring()
    assert server.served["model.safetensors"] == len(WEIGHTS)
    assert (again.folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_figures_never_go_back(desk: Desk, server: HubServer) -> None:
    """Also when a file has to start anew, what is told does not fall."""
    server.ranges = False
    for at in (400_000, 100_000, 600_000):
        server.cut("model.safetensors", at=at)
    told: list[int] = []
    async with desk.start() as download:
        waiting = asyncio.create_task(download.wait())
        while not waiting.done():
            told.append(download.meter.figures().downloaded_bytes)
            await asyncio.sleep(0.001)
        await waiting
    assert told == sorted(told)


async def test_every_failure_has_a_remedy(desk: Desk, server: HubServer) -> None:
    """Whatever the hub answers while a file comes, the error names the next step."""
    listing, choice = await desk.listing()
    weights = choice.files[:1]
    for status in (500, 507, 404, 401, 403, 418):
        server.answer_next(status, times=20)
        with pytest.raises(SeraiError) as refused:
            async with desk.downloads.of(desk.hub, listing, weights) as download:
                await download.wait()
        server._answers.clear()
        assert refused.value.hint


async def test_a_download_joined_while_it_is_cleared_away_is_a_new_one(desk: Desk, server: HubServer) -> None:
    """Whoever comes while the staged files of a finished pull are removed gets files, not an empty folder."""
    listing, choice = await desk.listing()
    async with desk.downloads.of(desk.hub, listing, choice.files) as first:
        await first.wait()
        joining = asyncio.create_task(desk.bring())
        clearing = asyncio.create_task(desk.downloads.forget(first))
        await clearing
    second = await joining
    assert (second.folder / "model.safetensors").read_bytes() == WEIGHTS
