"""What `make test-gpu` checks first: that there is a device, and how much memory it tells of."""

import shutil
import subprocess

import pytest

pytestmark = pytest.mark.gpu


def test_the_device_tells_its_memory() -> None:
    """nvidia-smi names at least one device with more free memory than nothing."""
    program = shutil.which("nvidia-smi")
    assert program is not None
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    told = subprocess.run([program, *query], check=True, capture_output=True, text=True).stdout.strip()
    print(told)  # noqa: T201 - the figure that make test-gpu is run for
    assert all(float(line.split(",")[2]) > 0 for line in told.splitlines())
    assert told
