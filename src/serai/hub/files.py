"""Where weights lie on this machine, so that two versions with one file hold it once.

    models/partial/<identity>          what has come of a file so far (+ .etag)
    models/staging/<key>/<path>        the finished and verified files of a pull that goes on
    models/blobs/<sha256>              each verified file, once
    models/versions/<model>/<number>/  what an engine loads

All of these are hard links to one file: the number of links says who needs it, and nothing is counted
anywhere else. A file that lies on another disk is a symbolic link, itself linked in the same way.
A version's folder appears whole or not at all. Every method blocks.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from serai.ids import NewId, new_id
from serai.registry.source import File
from serai.storage.blobs import check_digest, file_digest
from serai.storage.home import disk_errors, make_folder, safe_join, sync_folder
from serai.storage.tables.base import to_microseconds

ETAG_SUFFIX = ".etag"


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write on the folder's disk."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep removed."""

    folders: int
    bytes: int


class ModelFiles:
    """The folder `models` of one server's home."""

    def __init__(self, root: Path, *, free: Callable[[Path], int] = free_bytes, new_id: NewId = new_id) -> None:
        self.root = root
        self._free = free
        self._new_id = new_id
        self._blobs, self._partial = root / "blobs", root / "partial"
        self._staging, self._versions = root / "staging", root / "versions"
        for folder in (self._blobs, self._partial, self._staging, self._versions):
            make_folder(folder)

    def free(self) -> int:
        """Return the bytes that are free on the disk."""
        return self._free(self.root)

    def partial(self, identity: str) -> Path:
        """Return where the part of a file is kept that has come so far."""
        return safe_join(self._partial, check_digest(identity))

    def staging(self, key: str) -> Path:
        """Return the folder of a pull that goes on, made if it is missing."""
        folder = safe_join(self._staging, check_digest(key))
        make_folder(folder)
        return folder

    def scratch(self, key: str) -> Path:
        """Return a folder beside the staging folder, for what is made of it. It is not there yet."""
        folder = safe_join(self._staging, f"{check_digest(key)}.out")
        if folder.exists():
            shutil.rmtree(folder)
        return folder

    def unstage(self, key: str) -> None:
        """Remove the folders of a pull that is over, and the blobs that only it had."""
        for folder in (self._staging / check_digest(key), self._staging / f"{key}.out"):
            if folder.exists():
                self._remove_tree(folder)

    def stage_blob(self, digest: str, size: int, staged: Path) -> bool:
        """Link the blob, if it is here and still what its name says, as `staged`; says whether it was.

        It is read for that: a file that came from a cache may have been changed there.
        """
        blob = self._blob(digest)
        try:
            if blob.stat().st_size != size or not _is_whole(blob, digest):
                return False
            _link(blob, staged)
        except FileNotFoundError:  # never here, swept, or a symbolic link whose end is gone
            return False
        return True

    def stage_foreign(self, path: Path, digest: str, staged: Path) -> None:
        """Link a verified file that belongs to somebody else (a cache), as `staged` and as a blob."""
        with suppress(FileNotFoundError):
            staged.unlink()
        make_folder(staged.parent)
        try:
            os.link(path, staged)
        except OSError:  # on another disk, or of another user
            staged.symlink_to(path)
        self._add_blob(staged, digest)

    def stage_partial(self, partial: Path, digest: str, staged: Path) -> None:
        """Make a whole and verified file `staged` and a blob; where the blob is here already, that is taken."""
        with disk_errors():
            _sync(partial)
            if not self.stage_blob(digest, partial.stat().st_size, staged):
                _link(partial, staged)
                self._add_blob(staged, digest)
        partial.unlink()
        partial.with_name(partial.name + ETAG_SUFFIX).unlink(missing_ok=True)

    def describe(self, folder: Path, known: Mapping[str, str] | None = None) -> tuple[File, ...]:
        """Return the files in `folder` by path. `known`: digests of files that are verified; others are hashed."""
        files = []
        for path in _plain_files(folder):
            name = path.relative_to(folder).as_posix()
            digest = (known or {}).get(name) or _digest(path)
            files.append(File(path=name, size=path.stat().st_size, sha256=digest))
        return tuple(sorted(files, key=lambda file: file.path))

    def publish(self, folder: Path, files: Sequence[File], model_id: str, number: str) -> None:
        """Make the described files of `folder` those of a version, in place of what stood there."""
        target = self.folder_of(model_id, number)
        make_folder(target.parent)
        fresh = target.with_name(f".{self._new_id('tmp')}")
        with disk_errors():
            make_folder(fresh)
            for file in files:
                path, linked = folder / file.path, fresh / file.path
                if _is_same(path, self._blob(file.sha256)):
                    _link(path, linked)
                elif not self.stage_blob(file.sha256, file.size, linked):
                    _sync(path)
                    _link(path, linked)
                    self._add_blob(linked, file.sha256)
            if target.exists():
                self._remove_tree(target)
            fresh.rename(target)
            sync_folder(target.parent)

    def folder_of(self, model_id: str, number: str) -> Path:
        """Return the folder of a version, which may not be there."""
        return safe_join(self._versions, model_id, number)

    def holds(self, model_id: str, number: str, files: Sequence[File]) -> bool:
        """Say whether all files of a version are here, by name and size."""
        folder = self.folder_of(model_id, number)
        try:
            return bool(files) and all((folder / file.path).stat().st_size == file.size for file in files)
        except FileNotFoundError:
            return False

    def verify(self, model_id: str, number: str, files: Sequence[File]) -> tuple[str, ...]:
        """Read all files of a version and return the paths of those that are missing or damaged."""
        folder = self.folder_of(model_id, number)
        return tuple(file.path for file in files if not _is_whole(folder / file.path, file.sha256))

    def remove(self, model_id: str, number: str) -> int:
        """Remove a version's folder and every blob that nobody else has; return the bytes that became free."""
        folder = self.folder_of(model_id, number)
        removed = self._remove_tree(folder) if folder.exists() else 0
        with suppress(OSError):  # other versions are there
            folder.parent.rmdir()
        return removed

    def sweep(self, before: datetime, is_named: Callable[[str, str], bool]) -> Swept:
        """Remove what was left behind before a time: parts, staged files, and versions that `is_named` denies.

        `is_named(model_id, number)` says whether the registry knows a version.
        """
        moment = to_microseconds(before) / 1e6
        folders = freed = 0
        for partial in self._partial.iterdir():
            if partial.stat().st_mtime < moment:
                freed += partial.stat().st_size
                partial.unlink()
        for folder in (*self._staging.iterdir(), *self._versions.glob("*/*")):
            named = folder.parent != self._staging and is_named(folder.parent.name, folder.name)
            if not named and _newest(folder) < moment:
                freed += self._remove_tree(folder)
                folders += 1
        for blob in self._blobs.iterdir():
            freed += _unlink_last(blob)
        return Swept(folders=folders, bytes=freed)

    def _blob(self, digest: str) -> Path:
        return self._blobs / check_digest(digest)

    def _add_blob(self, path: Path, digest: str) -> None:
        temporary = self._blobs / f".{self._new_id('tmp')}"
        os.link(path, temporary, follow_symlinks=False)
        temporary.replace(self._blob(digest))
        temporary.unlink(missing_ok=True)  # a rename between two links of one file does nothing
        sync_folder(self._blobs)

    def _remove_tree(self, folder: Path) -> int:
        inodes = {path.lstat().st_ino for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
        shutil.rmtree(folder)
        unused = [blob for blob in self._blobs.iterdir() if blob.lstat().st_ino in inodes]
        return sum(_unlink_last(blob) for blob in unused)


def _link(source: Path, target: Path) -> None:
    make_folder(target.parent)
    with suppress(FileNotFoundError):
        target.unlink()
    os.link(source, target, follow_symlinks=False)


def _unlink_last(blob: Path) -> int:
    status = blob.lstat()
    if status.st_nlink > 1:
        return 0
    blob.unlink()
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _plain_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _newest(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")) if path == folder or path.is_dir())


def _digest(path: Path) -> str:
    return file_digest(path.resolve())


def _is_same(path: Path, blob: Path) -> bool:
    try:
        return path.samefile(blob)
    except FileNotFoundError:
        return False


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return _digest(path) == digest
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_of(*parts: str) -> str:
    """Return the name of a staging folder for what these texts say."""
    return sha256("\0".join(parts).encode()).hexdigest()
