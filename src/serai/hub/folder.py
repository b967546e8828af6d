"""A folder below one that an admin listed under a name, on this machine or mounted."""

import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

from anyio.to_thread import run_sync

from serai.hub.choice import MAX_FILES
from serai.hub.errors import ChecksumMismatch, FilesRefused, HubUnreachable, RepoNotFound, UnknownFolder
from serai.hub.model import Listing, Reading, RemoteFile
from serai.registry.source import FolderSource
from serai.storage.home import open_private

_PIECE = 2**20


class FolderHub:
    """`Hub` for FolderSource. Its files are copied, because their owner may change them later.

    Links, devices and pipes are refused: a name below the folder means the bytes that lie there.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots = dict(roots)

    async def look(self, source: FolderSource) -> Listing:
        files = await run_sync(_files, *self._place(source))
        return Listing(source=source, name=f"folder:{source.root}/{source.path}", files=files)

    @asynccontextmanager
    async def read(
        self, listing: Listing, file: RemoteFile, *, start: int = 0, etag: str | None = None
    ) -> AsyncIterator[Reading]:
        if not isinstance(listing.source, FolderSource):
            raise TypeError("this hub reads folder sources only")
        root, parts = self._place(listing.source)
        path = root.joinpath(*parts, *file.path.split("/"))
        begin = start if etag in (None, file.stamp) else 0
        yield Reading(start=begin, etag=file.stamp, pieces=_pieces(path, begin, file))

    async def cached(self, listing: Listing, file: RemoteFile) -> Path | None:
        return None

    def _place(self, source: FolderSource) -> tuple[Path, list[str]]:
        root = self._roots.get(source.root)
        if root is None:
            known = ", ".join(sorted(self._roots)) or "none"
            raise UnknownFolder(f"No folder is listed under the name {source.root!r} (there are: {known}).")
        parts = source.path.split("/") if source.path not in ("", ".") else []
        if "\\" in source.path or "\0" in source.path or {"", ".", ".."} & set(parts):
            raise UnknownFolder("The path leads out of the listed folder, or is none.")
        return root, parts


def _files(root: Path, parts: list[str]) -> tuple[RemoteFile, ...]:
    folder = root.joinpath(*parts)
    try:
        # A link on the way could lead anywhere, so the folder must be where it says.
        if folder.resolve(strict=True) != root.resolve(strict=True).joinpath(*parts) or not folder.is_dir():
            raise UnknownFolder("The path is not a folder, or leads through a link.")
        found = list(_walk(folder, ""))
    except FileNotFoundError:
        raise RepoNotFound("There is no such folder.", hint=UnknownFolder.default_hint) from None
    except PermissionError:
        hint = "Let the user that the server runs as read the folder."
        raise HubUnreachable("The folder cannot be read.", hint=hint) from None
    return tuple(found)


def _walk(folder: Path, prefix: str) -> Iterator[RemoteFile]:
    with os.scandir(folder) as found:
        entries = sorted(islice(found, MAX_FILES + 1), key=lambda one: one.name)
    if len(entries) > MAX_FILES:
        raise FilesRefused(f"The folder holds more than {MAX_FILES} files.")
    for entry in entries:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if not entry.name.startswith("."):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif stat.S_ISREG(status.st_mode):
            yield RemoteFile(path=prefix + entry.name, size=status.st_size, stamp=_stamp(status))
        else:
            hint = "Put the files themselves there instead of links, pipes or devices."
            raise FilesRefused("The folder holds something that is no plain file.", hint=hint, details=[entry.name])


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


async def _pieces(path: Path, start: int, file: RemoteFile) -> AsyncIterator[bytes]:
    while start < file.size:
        piece = await run_sync(_read_at, path, start, file)
        start += len(piece)
        yield piece


def _read_at(path: Path, start: int, file: RemoteFile) -> bytes:
    """Return the next piece; each look is at the file that was listed, or it is refused."""
    try:
        with open(path, "rb", buffering=0, opener=open_private) as opened:
            opened.seek(start)
            piece = opened.read(min(_PIECE, file.size - start))
            unchanged = _stamp(os.fstat(opened.fileno())) == file.stamp
    except OSError as error:
        raise RepoNotFound(f"{file.path} is not in the folder any more.") from error
    if not piece or not unchanged:
        raise ChecksumMismatch(f"{file.path} was changed while it was copied.")
    return piece
