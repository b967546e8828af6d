"""What a machine has, read from files as kernels write them, and what of it may be used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from serai.runtime import hardware
from serai.runtime.hardware import Card
from serai.runtime.model import Device, DeviceKind

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    """Write a machine's files below a folder."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "0::/app/web\n"
V1 = "12:memory:/app\n11:cpu,cpuacct:/app\n1:name=systemd:/app\n0::/app\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/web/memory.max": "max\n"}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/web/memory.max": f"{4 * GIB}\n"}, 4),
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/app/web/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/app/memory.max": f"{3 * GIB}\n",
            },
            3,
        ),
        ({"sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2),  # in a container, the cgroup is the root of its own
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/app/memory.limit_in_bytes": f"{5 * GIB}\n"}, 5),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{6 * GIB}\n"}, 6),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "9223372036854771712\n"}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/memory.max": f"{64 * GIB}\n"}, 16),
    ],
)
def test_memory_is_the_machines_or_what_a_cgroup_leaves_of_it(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    """The tightest limit of all cgroups around us counts, in both versions of cgroups."""
    assert hardware.usable_memory(machine(tmp_path, files)) == expected * GIB


@pytest.mark.parametrize(
    ("files", "allowed", "expected"),
    [
        ({}, 8, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/web/cpu.max": "max 100000\n"}, 8, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/web/cpu.max": "250000 100000\n"}, 8, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/cpu.max": "50000 100000\n"}, 8, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/cpu.max": "900000 100000\n"}, 3, 3),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000\n",
            },
            8,
            4,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000\n",
            },
            8,
            8,
        ),
    ],
)
def test_cores_are_those_we_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], allowed: int, expected: int
) -> None:
    """By affinity and by quota, whole ones, at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    assert hardware.usable_cores(machine(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/vmstat": "nr_free_pages 1\noom_kill 7\n"}, 7),
        ({"proc/vmstat": "oom_kill 7\n", "sys/fs/cgroup/memory.events": "low 0\noom 3\noom_kill 2\n"}, 2),
        ({"proc/vmstat": "oom_kill 7\n", "proc/self/cgroup": V1, "sys/fs/cgroup/memory/app/memory.oom_control":
            "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1),
    ],
)  # fmt: skip
def test_the_kernels_count_of_kills(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    """Our own cgroup's where it keeps one, else the machine's."""
    assert hardware.read_oom_kills(machine(tmp_path, files)) == expected


def test_devices_have_their_shares(tmp_path: Path) -> None:
    """Cards stand first, each with at most 0.9 of its memory; the processor has its share of the RAM."""
    cards = [Card(index=0, name="A", bytes=1000), Card(index=1, name="B", bytes=2000)]
    found = hardware.devices(cpu_share=0.5, cards=cards, root=machine(tmp_path, {}))
    assert found == (
        Device(id="cuda:0", kind=DeviceKind.CUDA, budget=900),
        Device(id="cuda:1", kind=DeviceKind.CUDA, budget=1800),
        Device(id="cpu", kind=DeviceKind.CPU, budget=8 * GIB),
    )


@pytest.mark.parametrize(("cpu", "card"), [(0, 0.5), (1.1, 0.5), (0.5, 0), (0.5, 0.91)])
def test_shares_have_bounds(tmp_path: Path, cpu: float, card: float) -> None:
    """A card is never planned full, and nothing is planned with no memory at all."""
    with pytest.raises(ValueError, match="share"):
        hardware.devices(cpu_share=cpu, card_share=card, root=machine(tmp_path, {}))


@pytest.mark.parametrize("answer", [None, "", "not json", "[]", '{"index": 1}'])
def test_without_a_driver_there_are_no_cards(answer: str | None) -> None:
    """Whatever the probe says or does not say, the server starts."""
    assert hardware.find_cards(lambda: answer) == ()


def test_cards_are_what_the_driver_says() -> None:
    """Index, name and bytes, as the probe prints them."""
    cards = [{"index": 0, "name": "NVIDIA H200", "bytes": 150_000_000_000}]
    assert hardware.find_cards(lambda: json.dumps(cards)) == (Card(index=0, name="NVIDIA H200", bytes=150_000_000_000),)


def test_the_probe_asks_the_driver_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Against a driver that answers as CUDA's does, two cards are found; against none, none."""
    if shutil.which("cc") is None:
        pytest.skip("NOT TESTED: there is no C compiler to make the driver with")
    library = _driver(tmp_path)
    probe = Path(hardware.__file__).with_name("cuda_probe.py")
    command = [sys.executable, "-I", str(probe)]
    environment = {"LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert hardware.find_cards(lambda: done.stdout) == (
        Card(index=0, name="Card 0", bytes=8 * GIB),
        Card(index=1, name="Card 1", bytes=16 * GIB),
    )
    library.write_bytes(b"no library")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]"


def _driver(folder: Path) -> Path:
    """Compile a library with the four functions of CUDA's driver API that the probe calls."""
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(
        """
        #include <stddef.h>
        #include <stdio.h>
        int cuInit(unsigned flags) { return 0; }
        int cuDeviceGetCount(int *count) { *count = 2; return 0; }
        int cuDeviceGet(int *device, int index) { *device = index + 40; return 0; }
        int cuDeviceGetName(char *name, int size, int device) {
            return snprintf(name, size, "Card %d", device - 40) < 0;
        }
        int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = ((size_t)8 << 30) * (device - 39); return 0; }
        """
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def test_this_machine_can_be_read() -> None:
    """The files of the machine that the tests run on are of a form that is understood."""
    assert hardware.usable_memory() > 2**28
    assert hardware.usable_cores() >= 1
    assert all(card.bytes > 0 for card in hardware.find_cards())
    assert list(hardware.parse_cgroups("0::/a/b", "memory")) == [
        PurePosixPath("a/b"), PurePosixPath("a"), PurePosixPath()
    ]  # fmt: skip
