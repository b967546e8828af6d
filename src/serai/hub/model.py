"""What a hub tells of a repository, and the seam that every kind of hub fulfils."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

from serai.registry.source import FileSource, FolderSource, HubSource

PulledSource = HubSource | FolderSource | FileSource
"""The sources that have files to fetch."""
S_contra = TypeVar("S_contra", bound=PulledSource, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository as its hub announces it."""

    path: str
    """Relative, with forward slashes; checked to lie below the repository."""
    size: int
    sha256: str | None = None
    git_id: str | None = None
    """SHA-1 of git's form of the file; known where the SHA-256 is not."""
    stamp: str = ""
    """Where there is neither: a text that changes when the file does."""

    def identity(self, source: str) -> str:
        """Return a name for the bytes: files with the same one may be finished with each other's part."""
        known = self.sha256 or (self.git_id and f"git {self.git_id} {self.size}")
        return sha256((known or f"{source}\0{self.path}\0{self.size}\0{self.stamp}").encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository (or folder, or file) at one commit: nothing that is told here changes any more."""

    source: PulledSource
    """Pinned: a hub's commit instead of a branch."""
    name: str
    """For people."""
    files: tuple[RemoteFile, ...]
    licence: str = ""
    """As its publisher writes it."""
    task: str = ""
    """One of the registry's tasks, where the hub tells."""
    architectures: tuple[str, ...] = ()
    """Classes that its configuration names; empty where the hub does not tell."""
    parameters: int | None = None
    """Number of weights, where the hub tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A file's bytes on their way; valid inside the `async with` that gave it."""

    start: int
    """Where they begin: as asked, or 0 where the source cannot go on in the middle or its file has changed."""
    etag: str | None
    """Names the content for a later `read`; None where the source has no such thing."""
    pieces: AsyncIterator[bytes]


class Hub(Protocol[S_contra]):
    """The seam. No method blocks the event loop.

    What is missing raises RepoNotFound, RevisionNotFound, GatedRepo or UnknownFolder; a source that does
    not answer raises HubUnreachable, HubFailed or HubRateLimited; one that answers nonsense HubNonsense.
    """

    async def look(self, source: S_contra) -> Listing:
        """Return what there is to fetch, pinned, with the size of every file."""
        ...

    def read(
        self, listing: Listing, file: RemoteFile, *, start: int = 0, etag: str | None = None
    ) -> AbstractAsyncContextManager[Reading]:
        """Give the bytes from `start` on, if the content is still the one of `etag`; else from 0.

        The errors above may also come between two pieces. Closing it stops the transfer.
        """
        ...

    async def cached(self, listing: Listing, file: RemoteFile) -> Path | None:
        """Return a whole copy that lies on this machine and that nobody changes, or None. It is not verified."""
        ...
