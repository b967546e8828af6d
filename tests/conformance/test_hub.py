"""Every kind of hub keeps the promises of the seam."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai.clock import SystemClock
from serai.errors import NotFound
from serai.hub.errors import ChecksumMismatch, FilesRefused, RepoNotFound, UnknownFolder
from serai.hub.folder import FolderHub
from serai.hub.huggingface import HuggingFaceHub
from serai.hub.model import Hub, PulledSource
from serai.hub.url import UrlHub
from serai.outbound import Outbound
from serai.registry.source import FileSource, FolderSource, HubSource
from support.hub_server import HubServer, safetensors

pytestmark = pytest.mark.anyio

WEIGHTS = safetensors(100_000)
NAME = "model.safetensors"


@dataclass
class Place:
    """A hub that holds WEIGHTS under NAME, where they are, where nothing is, and how to change them."""

    hub: Hub[Any]
    source: PulledSource
    nowhere: PulledSource
    change: Callable[[], None]


@pytest.fixture(params=["huggingface", "folder", "url"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "folder":
        yield a_folder(tmp_path)
        return
    with HubServer({"acme/tiny": {NAME: WEIGHTS}}) as server:
        async with Outbound(clock=SystemClock(), allow=["127.0.0.1"]) as outbound:

            def change() -> None:
                server.change(NAME, safetensors(100_000, seed=5))

            if request.param == "huggingface":
                hub: Hub[Any] = HuggingFaceHub(outbound, address=server.url)
                yield Place(hub, HubSource(repo="acme/tiny"), HubSource(repo="acme/none"), change)
            else:
                url = f"{server.url}/acme/tiny/resolve/main/{NAME}"
                source = FileSource(url=url, sha256=hashlib.sha256(WEIGHTS).hexdigest())
                nowhere = FileSource(url=url.replace(NAME, "none"), sha256="0" * 64)
                yield Place(UrlHub(outbound), source, nowhere, change)


def a_folder(tmp_path: Path) -> Place:
    folder = tmp_path / "root" / "tiny"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(WEIGHTS)

    def change() -> None:
        (folder / NAME).write_bytes(safetensors(100_000, seed=5))
        os.utime(folder / NAME, ns=(1, 1))

    hub = FolderHub({"root": tmp_path / "root"})
    return Place(hub, FolderSource(root="root", path="tiny"), FolderSource(root="root", path="none"), change)


async def test_a_look_tells_names_and_sizes_and_is_pinned(place: Place) -> None:
    """Every file has its size before the first byte; looking twice finds the same."""
    listing = await place.hub.look(place.source)
    assert [(file.path, file.size) for file in listing.files] == [(NAME, len(WEIGHTS))]
    assert await place.hub.look(listing.source) == listing
    if isinstance(listing.source, HubSource):
        assert listing.source.is_pinned


@pytest.mark.parametrize("start", [0, 1, 100_000, len(WEIGHTS) - 1])
async def test_bytes_come_from_where_they_are_asked_for(place: Place, start: int) -> None:
    """From any point, the rest is what the file has there."""
    listing = await place.hub.look(place.source)
    async with place.hub.read(listing, listing.files[0], start=start) as reading:
        assert reading.start == start
        assert b"".join([piece async for piece in reading.pieces]) == WEIGHTS[start:]


async def test_a_read_may_be_left_in_the_middle_and_continued(place: Place) -> None:
    """Closing is stopping; with the tag of the content the next read goes on."""
    listing = await place.hub.look(place.source)
    async with place.hub.read(listing, listing.files[0]) as reading:
        first = await anext(aiter(reading.pieces))
        etag = reading.etag
    async with place.hub.read(listing, listing.files[0], start=len(first), etag=etag) as reading:
        assert reading.start == len(first)
        assert first + b"".join([piece async for piece in reading.pieces]) == WEIGHTS


async def test_a_part_of_a_changed_file_is_never_continued(place: Place) -> None:
    """Once the content is another, the read starts at 0, or is refused."""
    listing = await place.hub.look(place.source)
    async with place.hub.read(listing, listing.files[0]) as reading:
        etag = reading.etag
    assert etag is not None
    place.change()
    came, started = b"", None
    with contextlib.suppress(ChecksumMismatch):
        async with place.hub.read(listing, listing.files[0], start=100, etag=etag) as reading:
            started = reading.start
            came = b"".join([piece async for piece in reading.pieces])
    assert came == b"" if isinstance(place.hub, FolderHub) else (started == 0 and came != WEIGHTS)


async def test_what_is_not_there_is_not_found(place: Place) -> None:
    """A missing thing is one error, with a next step, and no half answer."""
    with pytest.raises(NotFound) as refused:
        await place.hub.look(place.nowhere)
    assert isinstance(refused.value, RepoNotFound)
    assert refused.value.hint


async def test_nothing_is_said_to_be_cached_that_is_not(place: Place) -> None:
    """Without a cache of somebody else, there is no copy on this machine."""
    listing = await place.hub.look(place.source)
    assert await place.hub.cached(listing, listing.files[0]) is None


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = tmp_path / "shelf"
    (root / "model").mkdir(parents=True)
    (root / "model" / NAME).write_bytes(WEIGHTS)
    (tmp_path / "secret").write_text("secret")
    return root


@pytest.mark.parametrize("path", ["../secret", "..", "model/../../secret", "/etc", "model//x", "a\\b", "a\0b"])
async def test_no_path_leads_out_of_a_listed_folder(shelf: Path, path: str) -> None:
    """Whatever is written behind the name of the folder stays below it."""
    with pytest.raises((UnknownFolder, RepoNotFound)):
        await FolderHub({"shelf": shelf}).look(FolderSource(root="shelf", path=path))


async def test_links_and_devices_in_a_folder_are_refused(shelf: Path) -> None:
    """A link may lead anywhere and a pipe never ends: neither is a file of weights."""
    hub = FolderHub({"shelf": shelf})
    odd = shelf / "model" / "odd.json"
    for make in (lambda: odd.symlink_to(shelf.parent / "secret"), lambda: os.mkfifo(odd)):
        make()
        with pytest.raises(FilesRefused):
            await hub.look(FolderSource(root="shelf", path="model"))
        odd.unlink()
    (shelf / "linked").symlink_to(shelf / "model")
    with pytest.raises(UnknownFolder):
        await hub.look(FolderSource(root="shelf", path="linked"))
    with pytest.raises(UnknownFolder) as refused:
        await hub.look(FolderSource(root="other", path="model"))
    assert "shelf" in refused.value.message


async def test_a_file_that_became_a_link_is_not_followed(shelf: Path) -> None:
    """Swapping a file for a link between look and read gives nothing away."""
    hub = FolderHub({"shelf": shelf})
    listing = await hub.look(FolderSource(root="shelf", path="model"))
    (shelf / "model" / NAME).unlink()
    (shelf / "model" / NAME).symlink_to(shelf.parent / "secret")
    with pytest.raises(RepoNotFound):
        async with hub.read(listing, listing.files[0]) as reading:
            await anext(aiter(reading.pieces))
