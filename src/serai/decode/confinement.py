"""What takes from a process everything but reading, computing and writing to what is already open.

Rules of resources first, then a filter of system calls (seccomp) that lets pass only what
decoders need: no file can be opened, no socket made, no program started, no process or thread
made, nobody signalled. Linux only. On a machine whose calls are not listed here, or a kernel
without the filter, the rules of resources alone hold.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2

# Linux, include/uapi/linux/audit.h, and the tables of system calls of the two machines.
# Without sched_getaffinity FFmpeg counts one processor, so that it makes no threads.
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
            "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19,
            "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28, "getpid": 39, "sendto": 44, "exit": 60,
            "gettimeofday": 96, "sysinfo": 99, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
            "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231, "newfstatat": 262, "getrandom": 318,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222, "mprotect": 226, "munmap": 215,
            "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "pread64": 67, "readv": 65,
            "writev": 66, "sched_yield": 124, "mremap": 216, "madvise": 233, "getpid": 172, "sendto": 206, "exit": 93,
            "gettimeofday": 169, "sysinfo": 179, "sigaltstack": 132, "gettid": 178, "futex": 98,
            "restart_syscall": 128, "clock_gettime": 113, "exit_group": 94, "newfstatat": 79, "getrandom": 278,
        },
    ),
}  # fmt: skip

# BPF (linux/bpf_common.h, linux/seccomp.h): load a word of the call's description, compare, return.
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


# Bound before the child is forked: afterwards nothing can be loaded any more.
_libc = ctypes.CDLL(None, use_errno=True)


def can_filter() -> bool:
    """Say whether this machine and kernel have the filter of system calls."""
    return platform.machine() in _MACHINES and Path("/proc/sys/kernel/seccomp/actions_avail").exists()


_CAN_FILTER = can_filter()


def confine(*, memory_bytes: int, cpu_seconds: int, parent: int) -> None:
    """Give up, for good, what opening a file does not need; die when the process `parent` does.

    `memory_bytes` bounds the address space and the size of what is written. Raises OSError.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError(errno.ESRCH, "the parent is gone")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, memory_bytes),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        _, highest = resource.getrlimit(limit)
        bound = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(limit, (bound, bound))
    if _CAN_FILTER:
        _filter_calls()


def _filter_calls() -> None:
    architecture, numbers = _MACHINES[platform.machine()]
    instructions = [(_LOAD, 0, 0, _ARCHITECTURE_OFFSET), (_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    instructions.append((_LOAD, 0, 0, _NUMBER_OFFSET))
    for remaining, number in zip(range(len(numbers), 0, -1), numbers.values(), strict=True):
        instructions.append((_IF_EQUAL, remaining, 0, number))
    instructions += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    table = (_Instruction * len(instructions))(*(_Instruction(*fields) for fields in instructions))
    program = _Program(len(instructions), table)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in padded]
    if _libc.prctl(option, *words) != 0:
        raise OSError(ctypes.get_errno(), "prctl was refused")
