"""What a fork becomes before it runs an engine: a process of its own kind, which dies with its parent."""

import ctypes
import faulthandler
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 800
"""Out of 1000, on top of the kernel's own score: a worker is killed before any server is."""
_MAX_DESCRIPTORS = 4096

# What the libraries of the engines ask for their number of threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
    "TORCH_NUM_THREADS",
)

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int) -> None:
    """Have the kernel send this signal when the thread that started this process ends; 0 takes that back."""
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), *(ctypes.c_ulong(0),) * 3) != 0:
        raise OSError(ctypes.get_errno(), "prctl was refused")


def threads() -> int:
    """Return how many threads this process has, those of libraries included."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - as names: nothing is opened or looked at


def isolate(*, parent: int, output: int, thread_budget: int) -> None:
    """Make the fork a worker: a group of its own, no input, what it prints to `output`, bounds, first to be killed.

    Ends the process where `parent` is gone already. Libraries that were loaded before the fork have
    read their number of threads; an engine sets it for those itself.
    """
    os.setpgid(0, 0)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, standard)
    os.close(null)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(all_threads=False)
    Path("/proc/self/oom_score_adj").write_text(f"{_OOM_SCORE}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = _MAX_DESCRIPTORS if highest == resource.RLIM_INFINITY else min(_MAX_DESCRIPTORS, highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (bound, highest))
    for name in THREAD_VARIABLES:
        os.putenv(name, str(thread_budget))
