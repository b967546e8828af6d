"""The home folder: its modes, its lock, its secrets, and the paths below it."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serai.errors import ConfigurationError, DiskFull, InvalidInput
from serai.storage.home import Home, disk_errors, file_lock, make_folder, safe_join

HOSTILE = [
    "../x", "..", ".", "", "/abs", "a/b", "a\\b", "..%2f", "%252e", "C:\\", "\\\\?\\", "file:///etc/passwd", "~",
    "$HOME", "#/../", "?x", "x.", "x ", "a" * 256, "\u00e9", "e\u0301", "CON", "a\nb", "-rf", "a\0b", "%_", "1.0.0+x",
    "@prod", "\U0001f42b", "\ud800", "\u202e", "a\x7f", "نمونه\u200cای", ".../...", "....//",
]  # fmt: skip

HOLD_THE_HOME = """
import sys
from pathlib import Path
from serai.storage.home import Home

Home.open(Path(sys.argv[1])).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_new_home_is_private(tmp_path: Path) -> None:
    """The home, its missing parents and its folders get mode 0700 under any umask; each start has an own name."""
    before = os.umask(0)
    try:
        home = Home.open(tmp_path / "a" / "b")
        folder = home.folder("logs")
    finally:
        os.umask(before)
    assert [mode(path) for path in (tmp_path / "a", home.path, folder)] == [0o700] * 3
    assert home.incarnation != Home.open(home.path).incarnation


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o720, 0o777])
def test_a_home_that_others_can_write_is_refused(tmp_path: Path, bits: int) -> None:
    """Whoever could put files into the home could rule the server."""
    tmp_path.chmod(bits)
    with pytest.raises(ConfigurationError, match="other users"):
        Home.open(tmp_path)


def test_a_home_of_another_user_is_refused(tmp_path: Path) -> None:
    """The home must belong to the user that the server runs as."""
    foreign = tmp_path
    if os.geteuid() == 0:
        os.chown(foreign, 65534, -1)
    else:
        foreign = Path("/usr")
    with pytest.raises(ConfigurationError, match="another user"):
        Home.open(foreign)


def test_a_file_in_the_place_of_the_home_is_refused(tmp_path: Path) -> None:
    """A path that is a file is the administrator's mistake, told as one."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError):
        Home.open(tmp_path / "file")


def test_a_second_server_is_refused_and_told_which_one_runs(tmp_path: Path) -> None:
    """The lock is held by the process until it dies, however it dies; the error names its id and no path."""
    command = [sys.executable, "-c", HOLD_THE_HOME, str(tmp_path / "home")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        home = Home.open(tmp_path / "home")
        with pytest.raises(ConfigurationError, match=f"Process {holder.pid} ") as refusal:
            home.lock()
        assert str(tmp_path) not in f"{refusal.value.message}{refusal.value.hint}"
        holder.kill()
    home.lock()
    with pytest.raises(ConfigurationError, match=f"Process {os.getpid()} "):
        Home.open(home.path).lock()
    home.unlock()
    Home.open(home.path).lock()


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    """The file has mode 0600 and the last content; who reads the old one reads it whole; nothing is left beside it."""
    home = Home.open(tmp_path / "home")
    path = home.write_private("key", b"one")
    with path.open("rb") as reader:
        assert home.write_private("key", b"second") == path
        assert reader.read() == b"one"
    assert (path.read_bytes(), mode(path), names(home.path)) == (b"second", 0o600, ["key"])


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """What cannot be put in place leaves the old state and no temporary file."""
    home = Home.open(tmp_path / "home")
    home.folder("key")
    with pytest.raises(OSError, match="directory"):
        home.write_private("key", b"data")
    assert names(home.path) == ["key"]


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    """Eight that ask at the same time get the same 256 bits, and so does everyone later."""
    home = Home.open(tmp_path / "home")
    start = threading.Barrier(8)

    def ask(_: int) -> str:
        start.wait(10)
        return home.read_or_create_secret("jwt.key")

    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(ask, range(8)))
    assert len(made) == 1
    assert home.read_or_create_secret("jwt.key") in made
    assert len(made.pop()) == 64
    assert home.read_or_create_secret("other.key") not in made
    assert (mode(home.path / "jwt.key"), len(names(home.path))) == (0o600, 2)


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    """A secret file that others may read, or that is too short, stops the start instead of weakening it."""
    home = Home.open(tmp_path / "home")
    home.write_private("short", b"x" * 31)
    with pytest.raises(ConfigurationError, match="fewer than 32"):
        home.read_or_create_secret("short")
    home.write_private("open", b"x" * 64).chmod(0o640)
    with pytest.raises(ConfigurationError, match="other users"):
        home.read_or_create_secret("open")


NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8), st.sampled_from(["link", "inside", "up", "folder"]))


@given(parts=st.lists(NAMES, max_size=5))
@example(parts=["link", "secret"])
@example(parts=["inside", "secret"])
@example(parts=["up"])
@example(parts=["folder", "..", "..", "secret"])
@example(parts=["a" * 255] * 20)
def test_a_joined_path_is_always_below_its_root(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """Whatever the names are, the result is strictly below the root with no link on the way, or InvalidInput."""
    root = tmp_path_factory.getbasetemp() / "joined" / "root"
    if not root.exists():
        (root / "folder").mkdir(parents=True)
        (root.parent / "secret").write_bytes(b"")
        (root / "link").symlink_to(root.parent)
        (root / "up").symlink_to("..")
        (root / "inside").symlink_to("folder")
    try:
        path = safe_join(root, *parts)
    except InvalidInput:
        return
    real = root.resolve()
    assert path.resolve() == path
    assert path.is_relative_to(real)
    assert path != real
    assert path.relative_to(real).parts == tuple(parts)


@pytest.mark.parametrize(
    "name", ["a", "model-00001-of-00002.safetensors", "نمونه\u200cای", "...", "v1.0+x", "-rf", "~"]
)
def test_plain_names_are_joined(tmp_path: Path, name: str) -> None:
    """Names that are one name stay allowed."""
    assert safe_join(tmp_path, "sub", name) == tmp_path.resolve() / "sub" / name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0", "a\n", "\ud800", "a" * 256])
def test_names_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    """What is not one name is refused, and the message shows nothing of the server's folders."""
    with pytest.raises(InvalidInput) as refusal:
        safe_join(tmp_path, name)
    assert str(tmp_path) not in refusal.value.message


def test_a_lock_is_shared_or_exclusive(tmp_path: Path) -> None:
    """Shared holders go together; an exclusive one goes alone; not waiting says so."""
    lock = tmp_path / "lock"
    with file_lock(lock, shared=True), file_lock(lock, shared=True, wait=False) as shared:
        assert shared
        with file_lock(lock, shared=False, wait=False) as alone:
            assert not alone
    with file_lock(lock, shared=False, wait=False) as alone, file_lock(lock, shared=True, wait=False) as shared:
        assert (alone, shared) == (True, False)


def test_a_full_disk_is_told_as_one() -> None:
    """The system's 'no space left' becomes DiskFull, which every caller knows; other errors stay."""
    with pytest.raises(DiskFull), disk_errors(), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    with pytest.raises(FileNotFoundError), disk_errors():
        Path("/nowhere").read_bytes()


def test_making_a_folder_that_another_just_made_is_fine(tmp_path: Path) -> None:
    """Eight that make the same tree at once all find it made."""
    start = threading.Barrier(8)

    def make(_: int) -> None:
        start.wait(10)
        make_folder(tmp_path / "a" / "b" / "c")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(8)))
    assert mode(tmp_path / "a" / "b" / "c") == 0o700
