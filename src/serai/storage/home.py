"""The folder that a server lives in, and the few operations on files that have to be exactly right.

Everything under it belongs to the server's own user: folders have mode 0700, files 0600. A file is
written under a temporary name, synced and renamed, so that no name ever stands for half a file.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serai.errors import ConfigurationError, DiskFull, InvalidInput
from serai.ids import NewId, new_id

_LOCK_NAME = "serve.lock"
_MAX_NAME_BYTES = 255  # NAME_MAX and PATH_MAX of Linux
_MAX_PATH_BYTES = 4095
_MIN_SECRET_CHARACTERS = 32


class Home:
    """A server's folder. Made by `open`; its methods block for the time of a few file operations."""

    def __init__(self, path: Path, incarnation: str) -> None:
        self.path = path
        self.incarnation = incarnation
        """Names this start of the server: what an older incarnation left running is not running."""
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path, *, new_id: NewId = new_id) -> "Home":
        """Return the home at `path`, made (mode 0700, parents too) if it is missing.

        Raises ConfigurationError for a folder that another user owns or could write in: whoever can
        put a file there could hand the server a secret, a database or a link to somewhere else.
        """
        make_folder(path)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise ConfigurationError(
                "The home folder belongs to another user.", hint="Run as its owner, or choose another `home`."
            )
        if found.st_mode & 0o022:
            raise ConfigurationError("The home folder can be written by other users.", hint="chmod 700 it.")
        return cls(path, new_id("incarnation"))

    def folder(self, name: str) -> Path:
        """Return the folder `name` of this home, made with mode 0700 if it is missing."""
        path = safe_join(self.path, name)
        make_folder(path)
        return path

    def lock(self) -> None:
        """Keep this home for this process until `unlock` or the process's end, however it ends.

        Raises ConfigurationError, naming the process, where another one has it.
        """
        descriptor = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).split(b" ")[0].decode("ascii", "replace") or "(starting)"
            os.close(descriptor)
            raise ConfigurationError(
                f"Process {holder} already serves from this home.", hint="Stop it first, or choose another `home`."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {self.incarnation}\n".encode(), 0)
        self._lock = descriptor

    def unlock(self) -> None:
        """Give the home free."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_private(self, name: str, data: bytes) -> Path:
        """Replace the file `name` (mode 0600) by one that holds `data`; readers see the old or the new, whole."""
        path = safe_join(self.path, name)
        with disk_errors(), _temporary_beside(path, data) as temporary:
            temporary.replace(path)
        sync_folder(self.path)
        return path

    def read_or_create_secret(self, name: str) -> str:
        """Return the secret in the file `name`; made once, of 256 random bits in hexadecimal.

        Two processes that make it at the same time return the same one. Raises ConfigurationError
        for a file that other users may read or that is too short to be a secret.
        """
        path = safe_join(self.path, name)
        if not path.exists():
            fresh = secrets.token_hex(32).encode()
            with disk_errors(), _temporary_beside(path, fresh) as temporary, suppress(FileExistsError):
                os.link(temporary, path)  # unlike a rename, a link never replaces the other process's secret
            sync_folder(self.path)
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"The secret file {name} can be read by other users.", hint="chmod 600 it.")
        text = path.read_text("utf-8").strip()
        if len(text) < _MIN_SECRET_CHARACTERS:
            raise ConfigurationError(
                f"The secret file {name} holds fewer than {_MIN_SECRET_CHARACTERS} characters.",
                hint="Remove it to have a new one made; what the old one signed or encrypted is then lost.",
            )
        return text


def safe_join(root: Path, *parts: str) -> Path:
    """Return the path of `parts` strictly below `root`; raises InvalidInput where that cannot be.

    A part is one name of at most 255 bytes, not `.` or `..`, without slash, backslash or control
    character, and nothing below `root` on the way may be a symbolic link. What it returns stays
    below `root` as long as nobody else can write there.
    """
    real_root = root.resolve()
    path = real_root
    for part in parts:
        if not _is_name(part) or len(os.fsencode(path / part)) > _MAX_PATH_BYTES:
            raise InvalidInput("A name is not allowed.", hint="Use letters, digits, '.', '-' and '_'; no path.")
        path /= part
        if path.is_symlink():
            raise InvalidInput("A name leads to a symbolic link, which is not followed.")
    if path == real_root or not path.resolve().is_relative_to(real_root):
        raise InvalidInput("A path leads out of its folder.")
    return path


def make_folder(path: Path) -> None:
    """Make `path` and its missing parents, each with mode 0700 and synced into its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        if not path.is_dir():
            raise ConfigurationError("A file stands where a folder is needed.", hint="Move it away.") from None
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_private(path: str, flags: int) -> int:
    """Open as `open(…, opener=open_private)`: a new file gets mode 0600, a symbolic link is refused."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


@contextmanager
def file_lock(path: Path, *, shared: bool, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `path` against other threads and processes, those of other servers too; blocks.

    With `wait=False` it yields False, holding nothing, where another holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise DiskFull for the system's errors that say so (no space left, quota used up)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The disk is full.") from error
        raise


def _is_name(part: str) -> bool:
    if part in ("", ".", "..") or any(c in "/\\\x7f" or c < " " for c in part):
        return False
    try:
        return len(part.encode()) <= _MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False


@contextmanager
def _temporary_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a synced file with `data` in the folder of `path`; gone afterwards unless it was renamed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb", opener=open_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
