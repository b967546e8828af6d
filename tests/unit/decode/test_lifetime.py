"""Children and the helper process may die at any moment; the server does not, and keeps nothing of theirs."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from corpus.images import GREY, RGBA, black_png, saved, scan_bomb
from serai.decode.decoder import Decoder
from serai.decode.errors import DecoderUnavailable, MediaMalformed, MediaTooLarge
from serai.errors import SeraiError

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

PICTURE = saved("RGB", "PNG")
BUSY = scan_bomb(190, side=7000)
"""Takes minutes to decode."""


CHILD_WITH_A_PIPE = """
import os, select, signal, socket, sys
from serai.decode import child
from serai.decode.messages import Limits, Order, ToPixels, encode
limits = Limits(memory_bytes=2**31, seconds=60, max_pixels=10**8, max_video_pixels=10**9, max_media_seconds=60)
packet = encode(Order(media_type="image/jpeg", limits=limits, task=ToPixels(max_side=None)))
reader, writer = os.pipe()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
source, sink, parent = os.open(sys.argv[1], os.O_RDONLY), os.memfd_create("sink"), os.getpid()
pid = os.fork()
if pid == 0:
    child.serve_and_exit(packet, reply=theirs.fileno(), source=source, sink=sink, parent=parent)
os.close(writer)
ready = select.select([reader, ours], [], [], 30)[0]
sys.stdout.write("closed" if ready == [reader] and os.waitpid(pid, os.WNOHANG) == (0, 0) else "open")
os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
async def decoder() -> AsyncIterator[Decoder]:
    decoder = Decoder(timeout_s=60)
    yield decoder
    await decoder.aclose()


def children(pid: int) -> set[int]:
    """Return the processes that any thread of `pid` started and that have not been waited for."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child) for child in task.read_text().split()}
    return found


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def zygotes() -> set[int]:
    return {pid for pid in children(os.getpid()) if b"serai.decode.zygote" in cmdline(pid)}


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  nothing tells what the kernel's process table has in it
            await anyio.sleep(0.002)


@contextlib.asynccontextmanager
async def decoding(decoder: Decoder, expected: type[SeraiError]) -> AsyncIterator[tuple[int, int]]:
    """Decode something that takes minutes; yield the zygote and the child at work; expect this error."""

    async def decode() -> None:
        with pytest.raises(expected):
            await decoder.image(BUSY)

    before = zygotes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(decode)
        await until(lambda: [child for zygote in zygotes() - before for child in children(zygote)])
        (zygote,) = zygotes() - before
        (child,) = children(zygote)
        yield zygote, child


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGKILL, DecoderUnavailable), (signal.SIGSEGV, MediaMalformed), (signal.SIGXCPU, MediaTooLarge)],
)
async def test_a_child_that_dies_is_an_error_of_one_file(
    decoder: Decoder, number: signal.Signals, expected: type[SeraiError]
) -> None:
    """The file whose child dies gets an error that tells why; the next is opened as ever."""
    async with decoding(decoder, expected) as (zygote, child):
        os.kill(child, number)
    assert not alive(child)
    assert (await decoder.image(PICTURE)).width == 64
    assert alive(zygote)


async def test_a_zygote_that_dies_is_replaced(decoder: Decoder) -> None:
    """Its children die with it, their files get an error, the next file finds a new one."""
    async with decoding(decoder, DecoderUnavailable) as (zygote, child):
        os.kill(zygote, signal.SIGKILL)
    await until(lambda: not alive(child))
    assert (await decoder.image(PICTURE)).width == 64
    assert zygote not in zygotes()


async def test_a_zygote_that_died_idle_is_not_noticed(decoder: Decoder) -> None:
    """Between two files it may die without an error for anybody."""
    before = zygotes()
    await decoder.image(PICTURE)
    (zygote,) = zygotes() - before
    os.kill(zygote, signal.SIGKILL)
    await until(lambda: not alive(zygote))
    assert (await decoder.image(PICTURE)).width == 64


async def test_the_zygote_inherits_nothing(decoder: Decoder) -> None:
    """It has no environment, no descriptor of the server's, an empty working folder, and no terminal's signals."""
    before = zygotes()
    pipe = os.pipe()
    os.set_inheritable(pipe[0], True)
    await decoder.image(PICTURE)
    (zygote,) = zygotes() - before
    proc = Path(f"/proc/{zygote}")
    assert (proc / "environ").read_bytes() == b""
    assert {int(entry.name) for entry in (proc / "fd").iterdir()} == {0, 1, 2}
    assert str((proc / "cwd").readlink()).endswith("(deleted)")
    assert os.getsid(zygote) == zygote
    for descriptor in pipe:
        os.close(descriptor)


async def test_a_child_keeps_only_what_it_needs(tmp_path: Path) -> None:
    """A pipe that the zygote holds is closed in the child: its reader sees the end while the child is at work."""
    (tmp_path / "busy").write_bytes(BUSY)
    command = [sys.executable, "-c", CHILD_WITH_A_PIPE, str(tmp_path / "busy")]
    result = await anyio.run_process(command, stderr=None)
    assert result.stdout == b"closed"


async def test_a_cancelled_call_ends_its_child(decoder: Decoder) -> None:
    """Nobody decodes for a caller that has left."""
    await decoder.image(PICTURE)
    (zygote,) = zygotes()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(decoder.image, BUSY)
            await until(lambda: children(zygote))
            (child,) = children(zygote)
            scope.cancel()
    await until(lambda: not alive(child))
    assert (await decoder.image(PICTURE)).width == 64


async def test_a_file_that_takes_too_long_is_refused_and_its_child_ended() -> None:
    """The deadline is the server's, not the child's."""
    decoder = Decoder(timeout_s=0.3)
    try:
        async with decoding(decoder, MediaTooLarge) as (zygote, child):
            pass
        await until(lambda: not alive(child))
        assert alive(zygote)
    finally:
        await decoder.aclose()


async def test_memory_over_the_bound_is_an_error_of_the_file() -> None:
    """A picture that needs more memory than the child may have is too large; a small one is opened."""
    decoder = Decoder(memory_bytes=256 * 2**20)
    try:
        with pytest.raises(MediaTooLarge, match="memory"):
            await decoder.image(black_png(7000, 7000, 8, RGBA))
        assert (await decoder.image(PICTURE)).width == 64
    finally:
        await decoder.aclose()


async def test_closing_leaves_nothing_behind() -> None:
    """Neither process nor descriptor (and so no memory file) is left."""
    before, descriptors = children(os.getpid()), open_descriptors()
    decoder = Decoder()
    await decoder.image(PICTURE)
    with pytest.raises(MediaMalformed):
        await decoder.image(PICTURE[:1000])
    await decoder.aclose()
    assert children(os.getpid()) == before
    assert open_descriptors() == descriptors


async def test_closing_under_way_fails_the_call_and_ends_the_child(decoder: Decoder) -> None:
    """What is under way when the server stops gets an error at once, and nothing survives."""
    async with decoding(decoder, DecoderUnavailable) as (zygote, child):
        await decoder.aclose()
        assert not alive(zygote)
        assert not alive(child)
    with pytest.raises(DecoderUnavailable):
        await decoder.image(PICTURE)


async def test_at_most_so_many_children_work_at_once(decoder: Decoder) -> None:
    """Twenty files at once are opened by two children at a time, all of them well."""
    await decoder.image(PICTURE)
    (zygote,) = zygotes()
    widths: list[int] = []
    most = 0

    async def decode() -> None:
        widths.append((await decoder.image(black_png(1500, 1500, 8, GREY))).width)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(decode)
        while len(widths) < 20:
            most = max(most, sum(map(alive, children(zygote))))
            await anyio.sleep(0.001)
    assert widths == [1500] * 20
    assert most == 2


async def test_nothing_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the server ends the helper process and its children by itself."""
    (tmp_path / "busy").write_bytes(BUSY)
    code = (
        "import anyio, pathlib, sys\n"
        "from serai.decode.decoder import Decoder\n"
        "anyio.run(Decoder(timeout_s=60).image, pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "busy")]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as server:
        try:
            await until(lambda: [child for zygote in children(server.pid) for child in children(zygote)])
            (zygote,) = children(server.pid)
            (child,) = children(zygote)
        finally:
            server.kill()
    await until(lambda: not alive(zygote) and not alive(child))
