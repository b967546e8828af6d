"""The tiny Stable Diffusion of `image_models` in OpenVINO's form, made once per test session as pulls make it."""

import fcntl
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from serai.pulls.conversion import Quantization, Request
from support.image_models import made
from support.llm_models import child_environment

_TIMEOUT_S = 600


def image_ir(factory: pytest.TempPathFactory, quantization: Quantization = "fp32") -> Path:
    """Return the folder of the converted pipeline; in fp32 it draws what diffusers draws."""
    (source,) = made(factory, ["sd"])
    target = source.parent / f"sd-{quantization}"
    with (source.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            done = converted(source, target, quantization)
            assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return target


def converted(source: Path, target: Path, quantization: Quantization) -> subprocess.CompletedProcess[str]:
    """Run the conversion program."""
    request = msgspec.json.encode(Request(source=str(source), target=str(target), quantization=quantization)).decode()
    command = [sys.executable, "-m", "serai.pulls.conversion", request]
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
