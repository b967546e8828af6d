"""A confined process can read and compute, and nothing else. Each test confines a process of its own."""

import signal
import subprocess
import sys

import pytest

from serai.decode.confinement import can_filter

PROLOGUE = """
import mmap, os, signal, socket, sys, threading
from serai.decode.confinement import confine
parent = os.getppid()
memory = os.memfd_create("result")
confine(memory_bytes=2**30, cpu_seconds=1, parent=parent)
"""


def confined(attempt: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROLOGUE + attempt]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


needs_filter = pytest.mark.skipif(not can_filter(), reason="this kernel or machine has no filter of system calls")

ATTEMPTS = {
    "open a file": "open('/etc/hostname')",
    "open a file for writing": "os.open('x', os.O_CREAT | os.O_WRONLY)",
    "list a folder": "os.listdir('/')",
    "make a socket": "socket.socket()",
    "make a unix socket": "socket.socketpair()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "start a thread": "threading.Thread(target=print).start()",
    "signal its parent": "os.kill(parent, 0)",
    "make a memory file": "os.memfd_create('x')",
    "copy a descriptor": "os.dup(1)",
    "make a pipe": "os.pipe()",
    "remove a file": "os.unlink('x')",
    "change the folder": "os.chdir('/')",
    "resize its result": "os.ftruncate(memory, 0)",
}


@needs_filter
@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_a_confined_process_cannot(attempt: str) -> None:
    """Whatever reaches beyond the process is refused, and the process goes on."""
    code = f"try:\n    {attempt}\nexcept (OSError, RuntimeError):\n    os.write(1, b'refused')\nos._exit(0)"
    result = confined(code)
    assert (result.stdout, result.returncode) == ("refused", 0), result.stderr


def test_a_confined_process_can_still_compute_and_write_its_result() -> None:
    """What was open stays usable."""
    result = confined("os.write(memory, bytes(range(256)) * 4096)\nos.write(1, b'done')\nos._exit(0)")
    assert result.stdout == "done"


def test_memory_beyond_the_bound_is_an_error_inside() -> None:
    """An allocation over the bound fails; the machine does not feel it."""
    result = confined("try:\n    bytearray(2**30)\nexcept MemoryError:\n    os.write(1, b'refused')\nos._exit(0)")
    assert result.stdout == "refused"


def test_a_result_beyond_the_bound_is_an_error_inside() -> None:
    """The file of the result cannot grow over the bound either."""
    code = "os.lseek(memory, 2**30, 0)\ntry:\n    os.write(memory, b'x')\nexcept OSError:\n    os.write(1, b'refused')"
    assert confined(code + "\nos._exit(0)").stdout == "refused"


def test_a_bound_that_holds_already_stays() -> None:
    """Under a lower limit than the one asked for, as a service manager sets it, the lower one holds."""
    lower = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))"
    look = "try:\n    bytearray(2**28)\nexcept MemoryError:\n    os.write(1, b'refused')\nos._exit(0)"
    command = [sys.executable, "-c", lower + PROLOGUE + look]
    assert subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout == "refused"


def test_time_beyond_the_bound_ends_the_process() -> None:
    """A process that computes for ever is ended by the kernel, whether anybody watches it or not."""
    assert -confined("while True: pass").returncode in (signal.SIGXCPU, signal.SIGKILL)


def test_an_orphan_is_not_confined_but_stopped() -> None:
    """A process whose parent is gone before it can ask to die with it does not begin."""
    result = subprocess.run(
        [sys.executable, "-c", PROLOGUE.replace("os.getppid()", "1 if os.getppid() != 1 else 2")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "ProcessLookupError" in result.stderr
