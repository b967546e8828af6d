"""Workers, fork servers and the server are killed, stuck and flooded: told as what it is, and nothing stays behind."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from serai.errors import LoadFailed
from serai.events import Done
from serai.runtime.backends import local, output
from serai.runtime.backends.base import Backend
from serai.runtime.errors import WorkerGone
from serai.runtime.worker.messages import Exit, Stop
from support.workers import (
    TESTS,
    Heard,
    backend_of,
    children,
    fork_servers,
    is_alive,
    loaded,
    open_descriptors,
    spec,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

MIB = 2**20


@pytest.fixture(autouse=True)
def _all_is_logged() -> Iterator[None]:
    """The other tests show errors alone."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.configure(**before)


@pytest.fixture
async def backend(anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backend]:
    """One whose end leaves nothing: no process, no descriptor, no shared memory, no folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = trace(tmp_path)
    async with backend_of("local") as made:
        yield made
    assert trace(tmp_path) == before


def trace(temporary: Path) -> tuple[Any, ...]:
    """What a backend could leave on the machine."""
    shared = {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("PostgreSQL.")}
    return fork_servers(), open_descriptors(), shared, set(temporary.iterdir())


def server_of(heard: Heard) -> int:
    """Return the fork server of a worker."""
    pid = heard.worker.pid
    assert pid is not None
    (server,) = [one for one in fork_servers() if pid in children(one)]
    return server


def pid_of(heard: Heard) -> int:
    assert heard.worker.pid is not None
    return heard.worker.pid


def is_known(pid: int) -> bool:
    """Say whether the process is there, if only to be waited for."""
    return Path(f"/proc/{pid}").exists()


def entries(pid: int, folder: str) -> int:
    """Return how many threads (task) or descriptors (fd) a process has."""
    return len(list(Path(f"/proc/{pid}/{folder}").iterdir()))


# Kill -9, in every state


async def in_state(backend: Backend, state: str) -> Heard:
    heard = Heard(await backend.spawn(spec(load="hang" if state == "loading" else "", bytes=50 * MIB)))
    if state == "loading":
        await heard.until(lambda: heard.messages)
    elif state != "starting":
        await heard.ready()
    if state == "running":
        for run in (1, 2, 3):
            heard.run(run, do="count", to=10**9)
        await heard.until(lambda: all(len(heard.events(run)) > 3 for run in (1, 2, 3)))
    if state == "stepping":
        await hang(heard)
    return heard


async def hang(heard: Heard) -> None:
    """Have the worker begin a step that does not end, and wait until it is in it."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        heard.run(1, do="hang", mark=str(mark))
        await heard.until(lambda: heard.events(1))
        await until(mark.exists)


@pytest.mark.parametrize("state", ["starting", "loading", "idle", "running", "stepping"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_worker_is_told_as_killed(backend: Backend, state: str, number: signal.Signals) -> None:
    """Receive raises WorkerGone with the signal, the process is gone, the fork server forks the next one."""
    other = await loaded(backend)
    heard = await in_state(backend, state)
    server, pid = server_of(heard), pid_of(heard)
    os.kill(pid, number)
    gone = await heard.gone()
    assert gone.status == -number
    assert not is_known(pid)
    await heard.worker.stop(10)
    with pytest.raises(WorkerGone):
        await heard.worker.receive()
    assert await other.ask(1, do="echo", what=1) == {"body": 1}
    again = await loaded(backend)
    assert server_of(again) == server
    for one in (other, again):
        await one.worker.stop(10)


async def test_a_worker_that_is_killed_while_nobody_listens_is_told_later(backend: Backend) -> None:
    """Death waits for its reader."""
    heard = await loaded(backend)
    pid = pid_of(heard)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not is_known(pid))
    assert (await heard.gone()).status == -signal.SIGKILL


async def test_a_worker_that_leaves_by_itself_is_told_by_its_status(backend: Backend) -> None:
    """An engine that ends its process takes nobody by surprise."""
    heard = Heard(await backend.spawn(spec(load="leave")))
    assert (await heard.gone()).status == 7


async def test_what_a_worker_started_goes_with_it(backend: Backend) -> None:
    """A process of an engine's own does not outlive its worker, however that ends."""
    for end in ("stop", "kill"):
        heard = await loaded(backend)
        child = (await heard.ask(1, do="subprocess"))["pid"]
        assert is_alive(child)
        if end == "kill":
            os.kill(pid_of(heard), signal.SIGKILL)
            await heard.gone()
        await heard.worker.stop(10)
        await until(lambda child=child: not is_alive(child))


# Stop


@pytest.mark.parametrize(("engine", "status"), [("scripted", -signal.SIGTERM), ("stubborn", -signal.SIGKILL)])
@pytest.mark.parametrize("state", ["load", "step"])
async def test_a_worker_that_ignores_stop_is_killed(backend: Backend, engine: str, status: int, state: str) -> None:
    """After the grace it is asked by a signal, then killed; stop returns when it is gone."""
    heard = Heard(await backend.spawn(spec(engine, load="hang" if state == "load" else "")))
    if state == "load":
        await heard.until(lambda: heard.messages)
    else:
        await heard.ready()
        await hang(heard)
    pid = pid_of(heard)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heard.worker.stop, 0.05)
        assert (await heard.gone()).status == status
    assert not is_known(pid)


async def test_a_worker_that_nobody_reads_is_stopped(backend: Backend) -> None:
    """It hangs in sending, so it does not hear Stop; it is ended all the same."""
    heard = await loaded(backend)
    heard.run(1, do="count", to=10**9, batch=1000)
    await until(lambda: "S" in Path(f"/proc/{pid_of(heard)}/stat").read_text().rpartition(")")[2].split()[0])
    await heard.worker.stop(0.1)
    assert not is_known(pid_of(heard))


async def test_a_stuck_fork_server_is_replaced(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it does not carry out a kill, it is killed itself, and its workers with it; the next load finds another."""
    monkeypatch.setattr(local, "KILL_S", 0.2)
    heard, other = await loaded(backend), await loaded(backend)
    server = server_of(heard)
    await hang(heard)
    os.kill(server, signal.SIGSTOP)
    await heard.worker.stop(0.05)
    assert not is_alive(pid_of(heard))
    assert (await other.gone()).status == -signal.SIGKILL
    again = await loaded(backend)
    assert server_of(again) != server
    await again.worker.stop(10)


# The fork server


async def test_there_is_no_fork_server_before_the_first_load(backend: Backend) -> None:
    """It comes with the first model of its kind of engine, and stays for the next."""
    before = fork_servers()
    first = await loaded(backend)
    (server,) = fork_servers() - before
    second = await loaded(backend)
    stubborn = await loaded(backend, "stubborn")  # imports the same
    assert {server_of(one) for one in (first, second, stubborn)} == {server}
    threaded = await loaded(backend, "threaded")
    assert server_of(threaded) != server


async def test_a_fork_server_that_dies_takes_its_workers_and_is_replaced(backend: Backend) -> None:
    """All its workers are told as killed, idle or at work, with what they started; the next load has a new one."""
    idle, busy = await loaded(backend), await loaded(backend)
    child = (await busy.ask(1, do="subprocess"))["pid"]
    busy.run(2, do="count", to=10**9)
    loading = Heard(await backend.spawn(spec(load="hang")))
    server = server_of(idle)
    os.kill(server, signal.SIGKILL)
    for heard in (idle, busy, loading):
        assert (await heard.gone()).status == -signal.SIGKILL
        assert not is_alive(pid_of(heard))
    await until(lambda: not is_alive(child))
    again = await loaded(backend)
    assert server_of(again) != server
    for heard in (idle, busy, loading, again):
        await heard.worker.stop(10)


async def test_a_fork_server_that_died_unseen_is_replaced_within_one_load(backend: Backend) -> None:
    """Nobody gets an error for it."""
    first = await loaded(backend)
    server = server_of(first)
    os.kill(server, signal.SIGKILL)
    again = await loaded(backend)  # in the same turn of the loop: nothing has been noticed yet
    assert server_of(again) != server
    assert (await first.gone()).status == -signal.SIGKILL


async def test_libraries_that_start_threads_are_imported_after_the_fork(backend: Backend) -> None:
    """The fork server stays alone in its process; each worker imports the library for itself; the log says so."""
    with capture_logs() as logged:
        heard = await loaded(backend, "threaded")
        server = server_of(heard)
        assert entries(server, "task") == 1
        seen = await heard.ask(1, do="look")
        assert seen["threads"] == 1
        assert "support.worker_threads" not in seen["modules"]
        await heard.ask(2, do="import", module="support.worker_threads")
        assert (await heard.ask(3, do="look"))["threads"] == 2
        await heard.worker.stop(10)
        await until(lambda: any("starts threads" in str(line.get("problem")) for line in logged))


async def test_a_library_that_cannot_be_imported_is_the_workers_matter(backend: Backend) -> None:
    """The fork server goes on without it."""
    heard = await loaded(backend, "broken_preload")
    assert await heard.ask(1, do="echo", what=1) == {"body": 1}
    await heard.worker.stop(10)


async def test_a_fork_server_that_cannot_start_is_a_failed_load(backend: Backend) -> None:
    """A library that kills whoever imports it; the backend goes on with other engines."""
    with pytest.raises(LoadFailed):
        await backend.spawn(spec("dying_preload"))
    heard = await loaded(backend)
    await heard.worker.stop(10)


async def test_a_cancelled_load_leaves_no_process(backend: Backend) -> None:
    """Whoever gives up while the fork server starts, or while it forks, leaves nothing running for nobody."""
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.spawn, spec())
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    heard = await loaded(backend)
    server = server_of(heard)
    await until(lambda: children(server) == {heard.worker.pid})


# What is left


async def test_300_loads_and_unloads_leave_nothing(backend: Backend, tmp_path: Path) -> None:
    """No process, no descriptor, no shared memory, whichever way the worker ends."""
    first = await loaded(backend)
    server = server_of(first)
    before = trace(tmp_path), entries(server, "fd")
    for number in range(300):
        heard = await loaded(backend, bytes=MIB)
        match number % 4:
            case 0:
                heard.run(1, do="give", bytes=200_000)
            case 1:
                await heard.ask(1, do="give", bytes=200_000)
            case 2:
                os.kill(pid_of(heard), signal.SIGKILL)
                await heard.gone()
        await heard.worker.stop(10)
    assert children(server) == {first.worker.pid}
    assert (trace(tmp_path), entries(server, "fd")) == before


SERVER = """
import sys, anyio
from support.workers import backend_of, loaded, Heard, spec
async def main():
    async with backend_of("local") as backend:
        idle = await loaded(backend)
        busy = await loaded(backend)
        busy.run(1, do="count", to=10**9)
        hung = await loaded(backend, "stubborn")
        hung.run(1, do="hang")
        loading = await backend.spawn(spec(load="hang"))
        parent = await loaded(backend)
        child = (await parent.ask(1, do="subprocess"))["pid"]
        workers = [one.worker.pid for one in (idle, busy, hung, parent)] + [loading.pid, child]
        print(*workers, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_a_server_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    """kill -9 of the server ends fork servers, workers in any state, and what those started; their folder goes."""
    environment = {**os.environ, "PYTHONPATH": TESTS, "TMPDIR": str(tmp_path)}
    async with await anyio.open_process(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=None, env=environment
    ) as server:
        assert server.stdout is not None
        line = b""
        with anyio.fail_after(60):
            while b"\n" not in line:
                line += await server.stdout.receive()
        processes = [int(pid) for pid in line.split()]
        processes += fork_servers(server.pid)
        assert len(processes) == 7
        assert all(map(is_alive, processes))
        os.kill(server.pid, number)
    await until(lambda: not any(map(is_alive, processes)))
    await until(lambda: not list(tmp_path.iterdir()))


async def test_an_import_that_does_not_end_ends_with_the_server(tmp_path: Path) -> None:
    """kill -9 of the server while a fork server hangs in a library's import leaves no process."""
    code = SERVER.partition("async def main")[0] + (
        "async def main():\n"
        "    async with backend_of('local') as backend:\n"
        "        await backend.spawn(spec('hanging_preload'))\n"
        "anyio.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": TESTS, "TMPDIR": str(tmp_path)}
    async with await anyio.open_process(
        [sys.executable, "-c", code], stdout=None, stderr=None, env=environment
    ) as server:
        await until(lambda: list(tmp_path.glob("*/begun")))
        (hanging,) = fork_servers(server.pid)
        server.kill()
    await until(lambda: not is_alive(hanging))


# What a worker is


async def test_a_worker_has_nothing_of_the_server(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is its own and offline, its folder empty; bounds hold, and it goes before any server does."""
    monkeypatch.setenv("SERAI_SECRET", "planted")
    pipe = os.pipe()
    os.set_inheritable(pipe[0], True)
    heard = Heard(await backend.spawn(spec(threads=len(os.sched_getaffinity(0)))))
    seen = await heard.ask(1, do="look")
    environment = seen["environment"]
    assert "planted" not in str(environment)
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert environment["HOME"] == seen["folder"]
    assert set(environment) <= {*local_environment(), "HOME", "PYTHONPATH"}
    assert seen["in_folder"] == []
    assert seen["core"] == [0, 0]
    assert seen["files"] <= 4096
    assert seen["oom_score_adj"] == 800
    assert seen["group"] == heard.worker.pid
    assert seen["threads"] == 1
    kinds = sorted(name.partition(":")[0] for name in seen["descriptors"].values() if "/proc/" not in name)
    assert kinds == ["/dev/null", "pipe", "pipe", "socket"]
    for descriptor in pipe:
        os.close(descriptor)


def local_environment() -> set[str]:
    from serai.runtime.backends.launcher import ENVIRONMENT

    return set(ENVIRONMENT)


async def test_nothing_looks_up_a_name_or_leaves_the_machine(backend: Backend) -> None:
    """Not while the fork server imports OpenVINO, whose plain import starts a telemetry process, nor in a worker."""
    heard = await loaded(backend, "heard")
    assert entries(server_of(heard), "task") == 1
    assert "openvino" in (await heard.ask(1, do="look"))["modules"]
    await heard.ask(2, do="echo", what=1)
    own = [event for event in (await heard.ask(3, do="heard"))["heard"] if "'env'" not in event]
    assert own == ["os.fork"]  # that of this worker; the hook of the fork server came along
    await heard.ask(4, do="look_up")
    assert "socket.getaddrinfo" in (await heard.ask(5, do="heard"))["heard"][-1]  # it would have noticed
    await heard.worker.stop(10)


async def test_what_an_engine_prints_disturbs_nobody(backend: Backend) -> None:
    """10 MB on stdout: the run ends, its lines are in the log as far as the bound goes, the rest is counted."""
    with capture_logs() as logged:
        heard = await loaded(backend)
        await heard.ask(1, do="print", bytes=10_000_000)
        assert await heard.ask(2, do="echo", what=1) == {"body": 1}
        heard.run(3, do="raise")
        await heard.gone()
    lines = [line["line"] for line in logged if line["event"] == "worker_output"]
    assert lines == ["x" * 99] * output.MAX_LINES
    (dropped,) = [line["lines"] for line in logged if line["event"] == "worker_output_dropped"]
    assert dropped == 100_000 - output.MAX_LINES + 1
    (failed,) = [line for line in logged if line["event"] == "worker_failed"]
    assert failed["problem"] == "the engine failed"
    assert "RuntimeError: broken at /etc/passwd" in failed["trace"]
    assert isinstance(heard.messages[-1], Exit)


async def test_a_crash_in_native_code_leaves_its_trace(backend: Backend) -> None:
    """Where a worker was when it crashed stands in the log."""
    with capture_logs() as logged:
        heard = await in_state(backend, "stepping")
        os.kill(pid_of(heard), signal.SIGSEGV)
        await heard.gone()
    text = "\n".join(str(line.get("line")) for line in logged)
    assert "Segmentation fault" in text
    assert "most recent call first" in text


async def test_answers_that_were_sent_before_a_death_arrive(backend: Backend) -> None:
    """A kill costs nothing of what was on its way."""
    heard = await loaded(backend)
    heard.run(1, do="count", to=50, batch=50)
    heard.run(2, do="give", bytes=3 * MIB)
    heard.run(3, do="die")
    await until(lambda: not is_known(pid_of(heard)))
    assert (await heard.gone()).status == -signal.SIGKILL
    assert len(heard.events(1)) == 51
    assert heard.events(2) == [Done(result={"body": b"y" * 3 * MIB})]


async def test_stop_in_any_state_ends_at_once(backend: Backend) -> None:
    """Idle or at work, a worker that hears Stop ends in order, without a signal."""
    for state in ("idle", "running"):
        heard = await in_state(backend, state)
        heard.worker.send(Stop())
        assert (await heard.gone()).status == 0
