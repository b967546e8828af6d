"""A single file at an address, with the SHA-256 that it must have."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from serai.errors import DeadlineExceeded, SeraiError, UpstreamFailed
from serai.hub.errors import GatedRepo, HubNonsense, RepoNotFound
from serai.hub.model import Listing, Reading, RemoteFile
from serai.hub.transfer import Answered, read_range, trouble, unreachable
from serai.outbound import Outbound
from serai.registry.source import FileSource


class UrlHub:
    """`Hub` for FileSource. Sends no credentials."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def look(self, source: FileSource) -> Listing:
        name = file_name(source.url)
        try:
            async with self._outbound.stream("GET", source.url, headers={"accept-encoding": "identity"}) as reply:
                status, headers = reply.status, reply.headers
        except (UpstreamFailed, DeadlineExceeded) as error:
            raise unreachable(error, name) from error
        if status != 200:
            raise _named(Answered(status, headers), name)
        size = headers.get("content-length", "")
        if not size.isdecimal() or len(size) > 18:
            raise HubNonsense("The server does not tell the file's size.")
        file = RemoteFile(path=name, size=int(size), sha256=source.sha256)
        return Listing(source=source, name=name, files=(file,))

    @asynccontextmanager
    async def read(
        self, listing: Listing, file: RemoteFile, *, start: int = 0, etag: str | None = None
    ) -> AsyncIterator[Reading]:
        if not isinstance(listing.source, FileSource):
            raise TypeError("this hub reads file sources only")
        try:
            async with read_range(self._outbound, listing.source.url, file, start=start, etag=etag) as reading:
                yield reading
        except Answered as answer:
            raise _named(answer, file.path) from None

    async def cached(self, listing: Listing, file: RemoteFile) -> Path | None:
        return None


def file_name(url: str) -> str:
    """Return the last part of the address's path, which becomes the file's name; `model` where there is none."""
    return PurePosixPath(unquote(urlsplit(url).path)).name or "model"


def _named(answer: Answered, name: str) -> SeraiError:
    if answer.status in (404, 410):
        return RepoNotFound(f"There is no {name} at this address.", hint="Check the address.")
    if answer.status in (401, 403):
        hint = "Only addresses that need no credentials can be pulled: put the file below a folder instead."
        return GatedRepo(f"The server does not give {name} to everybody.", hint=hint)
    return trouble(answer.status, answer.headers, name)
