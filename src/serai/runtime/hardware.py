"""What this machine has: cores, memory, CUDA cards. Parsing is apart from reading, reading apart from judging."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from serai.runtime.model import Device, DeviceKind

LARGEST_CARD_SHARE: Final = 0.9
"""Of a card's memory; the rest is for the driver, and for what is allocated beside the weights."""
ROOT: Final = Path("/")
PROBE_TIMEOUT_S: Final = 30.0

_CGROUPS: Final = "sys/fs/cgroup"
_NO_LIMIT: Final = 2**60
"""Version 1 of cgroups writes no limit as a number near 2^63."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A CUDA device as the driver shows it to this process; `index` is the N of 'cuda:N'."""

    index: int
    name: str
    bytes: int


def devices(
    *, cpu_share: float, card_share: float = LARGEST_CARD_SHARE, cards: Iterable[Card] = (), root: Path = ROOT
) -> tuple[Device, ...]:
    """Return the devices to plan with: cards first, then the CPU with its share of the memory that we may use.

    Raises ValueError for a share that is not above 0, above 1, or above 0.9 of a card.
    """
    if not 0 < cpu_share <= 1 or not 0 < card_share <= LARGEST_CARD_SHARE:
        raise ValueError("a share is above 0 and at most 1; of a card at most 0.9")
    found = [
        Device(id=f"cuda:{card.index}", kind=DeviceKind.CUDA, budget=int(card.bytes * card_share)) for card in cards
    ]
    found.append(Device(id="cpu", kind=DeviceKind.CPU, budget=int(usable_memory(root) * cpu_share)))
    return tuple(found)


def usable_memory(root: Path = ROOT) -> int:
    """Return the bytes of RAM that this process may use: the machine's, or less where a cgroup limits it."""
    total = parse_meminfo(_read(root / "proc/meminfo") or "")
    limits = (parse_limit(text) for text in _cgroup_files(root, "memory", ("memory.max", "memory.limit_in_bytes")))
    return min([total, *(limit for limit in limits if limit is not None)])


def usable_cores(root: Path = ROOT) -> int:
    """Return how many threads may compute at once: by affinity, and by the quotas of our cgroups; at least 1."""
    quotas = [parse_quota(text) for text in _quotas(root)]
    cores = min([float(len(os.sched_getaffinity(0))), *(quota for quota in quotas if quota is not None)])
    return max(1, math.floor(cores))


def read_oom_kills(root: Path = ROOT) -> int | None:
    """Return how often the kernel has killed for want of memory: in our cgroup, else on the machine; None if untold."""
    texts = [*_cgroup_files(root, "memory", ("memory.events", "memory.oom_control"))][:1]
    texts += [text for text in [_read(root / "proc/vmstat")] if text is not None]
    counts = (parse_counters(text).get("oom_kill") for text in texts)
    return next((count for count in counts if count is not None), None)


def find_cards(run: Callable[[], str | None] | None = None) -> tuple[Card, ...]:
    """Return the CUDA cards that workers will see; none without a driver. Blocks for up to seconds.

    A child process asks the driver itself, with our environment (`CUDA_VISIBLE_DEVICES`), so the numbers
    are those that engines use; and this process, which forks, never has a CUDA context.
    """
    answer = (run or _ask_driver)()
    try:
        return tuple(msgspec.json.decode(answer or "[]", type=list[Card]))
    except msgspec.DecodeError:
        return ()


# Parsing


def parse_meminfo(text: str) -> int:
    """Return the bytes of RAM in /proc/meminfo. Raises ValueError where it names none."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    raise ValueError("the size of the memory is not in /proc/meminfo")


def parse_limit(text: str) -> int | None:
    """Return a cgroup's limit in bytes; None for 'max' and for the number that means it."""
    word = text.strip()
    return int(word) if word.isdigit() and int(word) < _NO_LIMIT else None


def parse_quota(text: str) -> float | None:
    """Return the cores that 'quota period' (cpu.max) allows; None for 'max' and for -1."""
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() and int(period) else None


def parse_counters(text: str) -> Mapping[str, int]:
    """Return the numbers of a file of lines 'name number'."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def parse_cgroups(text: str, controller: str) -> Iterator[PurePosixPath]:
    """Yield the folders of the cgroups that bind us, below the mount point: innermost first, then those around it."""
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        inner = PurePosixPath(controller if names else "", path.lstrip("/"))
        yield inner
        yield from inner.parents


# Reading


def _cgroup_files(root: Path, controller: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts of files with one of these names, of our cgroup first, then of those around it."""
    for group in _cgroups(root, controller):
        for name in names:
            text = _read(group / name)
            if text is not None:
                yield text


def _quotas(root: Path) -> Iterator[str]:
    """Yield 'quota period' of each of our cgroups, from one file or, in version 1, from two."""
    yield from _cgroup_files(root, "cpu", ("cpu.max",))
    for group in _cgroups(root, "cpu"):
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota is not None and period is not None:
            yield f"{quota.strip()} {period}"


def _cgroups(root: Path, controller: str) -> list[Path]:
    groups = parse_cgroups(_read(root / "proc/self/cgroup") or "0::/", controller)
    return [root / _CGROUPS / group for group in dict.fromkeys(groups)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return None


def _ask_driver() -> str | None:
    command = [sys.executable, "-I", str(Path(__file__).with_name("cuda_probe.py"))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
