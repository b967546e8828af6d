"""Running the conversion program: a process of its own, under a reservation of memory and threads."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, get_args

import msgspec
import structlog

from serai.engines.base import EngineSpec
from serai.engines.catalogue import RESERVATION
from serai.errors import EngineFailed, InvalidInput, LoadFailed, OutOfMemory, SeraiError
from serai.pulls.conversion import (
    ARCHITECTURES,
    EMBEDDERS,
    PIPELINES,
    Converted,
    Message,
    Quantization,
    Refused,
    Request,
    Step,
)
from serai.pulls.errors import MissingExtra, UnsupportedWeights
from serai.pulls.model import ConversionPlan, Report
from serai.runtime.backends.launcher import ENVIRONMENT
from serai.runtime.lease import Claim
from serai.runtime.model import DeviceKind, UnitId, UnitSpec
from serai.runtime.runtime import Runtime

PACKAGES: Final = ("torch", "transformers", "nncf", "openvino")
LIBRARY_BYTES: Final = 2**30
"""What the libraries of a conversion take by themselves."""
WEIGHT_FACTOR: Final = 3.0
"""Memory for each byte of weights while they are converted: a 0.6B model in bf16 (1.2 GB) took 2.1 to 2.7 GB."""
QUEUE_S: Final = 6 * 3600.0
"""How long a conversion waits for memory: it is background work."""
QUANTIZATIONS: Final[Mapping[str, Quantization]] = {name: name for name in get_args(Quantization)}
MAX_LINE: Final = 64 * 1024
CALLER: Final = "conversion"
EMBEDDING: Final = "embedding"

log = structlog.get_logger("serai.pulls.conversion")
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class ChildConverter:
    """Implements `serai.pulls.model.Converter`.

    The process has no network (the libraries are told to be offline), a clean environment and the
    lowest priority; it ends with the conversion's task, and with the server.
    """

    def __init__(self, runtime: Runtime, *, threads: int, scratch: Path) -> None:
        """`scratch`: a folder of this server alone; what is in it was left by one that was killed, and is removed."""
        self._runtime = runtime
        self._threads = threads
        self._scratch = scratch
        for left in scratch.iterdir():
            shutil.rmtree(left, ignore_errors=True)

    def obstacle(self, architectures: Sequence[str], task: str = "") -> SeraiError | None:
        is_pipeline = bool(PIPELINES.intersection(architectures))
        wanted = (*PACKAGES, "diffusers") if is_pipeline else PACKAGES
        missing = [name for name in wanted if find_spec(name) is None]
        if missing:
            return MissingExtra(f"The weights must be converted, and {', '.join(missing)} is not installed.")
        known = EMBEDDERS if task == EMBEDDING else ARCHITECTURES | PIPELINES
        if architectures and not known.intersection(architectures):
            return UnsupportedWeights(
                f"The architecture {architectures[0]} cannot be converted for OpenVINO.",
                hint=f"Known: {', '.join(sorted(known))}. Or pull a repository that holds OpenVINO files.",
            )
        return None

    async def convert(self, folder_in: Path, folder_out: Path, plan: ConversionPlan, report: Report) -> None:
        quantization = QUANTIZATIONS.get(plan.quantization)
        if quantization is None:
            raise InvalidInput.at("quantize", f"cannot be {plan.quantization} for OpenVINO")
        request = Request(
            source=str(folder_in),
            target=str(folder_out),
            quantization=quantization,
            threads=self._threads,
            task=EMBEDDING if plan.task == EMBEDDING else "",
        )
        claims = [self._claim(folder_in, plan)]
        reserved = self._runtime.lease(claims, caller=CALLER, timeout_s=QUEUE_S, priority=-1, keep_alive=0)
        async with reserved, _running(request, self._scratch) as process:
            await _follow(process, report)

    def _claim(self, folder: Path, plan: ConversionPlan) -> Claim:
        size = int(plan.weight_bytes * WEIGHT_FACTOR) + LIBRARY_BYTES
        name = f"conversion of {folder.name}"
        unit = UnitId(
            weights=f"conversion:{folder.name}",
            engine=RESERVATION,
            quantization=plan.quantization,
            device_kind=DeviceKind.CPU,
        )
        return Claim(
            unit=UnitSpec(id=unit, bytes=size, threads=self._threads),
            engine=EngineSpec(engine=RESERVATION, name=name, quantization=plan.quantization),
        )


@asynccontextmanager
async def _running(request: Request, scratch: Path) -> AsyncIterator[Process]:
    """Start the program; when the block ends it is gone, with whatever it had started."""
    home = await asyncio.to_thread(tempfile.mkdtemp, dir=scratch)
    try:
        async with _started(request, home) as process:
            yield process
    finally:
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


@asynccontextmanager
async def _started(request: Request, home: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-s", "-m", "serai.pulls.conversion", msgspec.json.encode(request).decode()),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd=home,
        env=_environment(home, request.threads),
        start_new_session=True,
        limit=MAX_LINE,
    )
    listening = asyncio.create_task(_log_lines(process), name="conversion's words")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await listening


def _environment(home: str, threads: int) -> Mapping[str, str]:
    numbers = {name: str(threads) for name in ENVIRONMENT if name.endswith("_THREADS")}
    return {**ENVIRONMENT, **numbers, "HOME": home, "TMPDIR": home}


async def _follow(process: Process, report: Report) -> None:
    """Pass on how far it is, until it is done. Raises what it was refused for, OutOfMemory, LoadFailed."""
    assert process.stdout is not None, "its output is a pipe"
    async for line in process.stdout:
        match _decoder.decode(line):
            case Step(fraction=fraction):
                report(fraction)
            case Converted():
                return
            case Refused(code=code, message=message, hint=hint):
                raise (OutOfMemory if code == OutOfMemory.code else ConversionFailed)(message, hint=hint)
    status = await process.wait()
    if status == -signal.SIGKILL:
        raise OutOfMemory("The conversion was killed, most likely for want of memory.")
    raise LoadFailed(f"The conversion ended without a result (exit status {status}).")


async def _log_lines(process: Process) -> None:
    """Write what the program says beside its messages into models.log."""
    assert process.stderr is not None, "its errors are a pipe"
    while True:
        try:
            line = await process.stderr.readline()
        except ValueError:  # a line without end
            continue
        if not line:
            return
        log.debug("conversion", said=line.decode("utf-8", "replace").rstrip()[:2000])


class ConversionFailed(EngineFailed):
    """The weights could not be converted."""

    code = "CONVERSION_FAILED"
