"""What a model is expected to take before its first load, and what it takes then, in a worker of its own."""

from dataclasses import dataclass

import pytest

from serai.clock import SystemClock
from serai.engines.base import EngineSpec
from serai.engines.footprint import estimate
from serai.engines.tasks import Generate, Sampling
from serai.engines.weights import weights_in
from serai.events import Done
from serai.runtime.backends.local import LocalBackend
from serai.runtime.footprints import MemoryFootprints
from serai.runtime.lease import Claim
from serai.runtime.model import Device, DeviceKind, UnitId, UnitSpec
from support.llm_models import CONTEXT_TOKENS, made
from support.runtime_stage import opened, read

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

NEARLY = 0.9
ROOM = 4 * 2**30


@dataclass(frozen=True)
class Case:
    engine: str
    name: str
    quantization: str


CASES = (
    Case("openvino-genai", "llama/fp32", "fp32"),
    Case("transformers", "llama/hf", "none"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.engine}-{case.name}")
async def test_the_estimate_is_not_below_what_is_taken(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """After the load, and after an answer as long as the context: else a first load passes the budget for a moment."""
    (folder,) = made(tmp_path_factory, [case.name])
    expected = estimate(weights_in(folder), engine=case.engine, device_kind="cpu", quantization=case.quantization).bytes
    unit = UnitId(weights=case.name, engine=case.engine, quantization=case.quantization, device_kind=DeviceKind.CPU)
    spec = EngineSpec(
        engine=case.engine, name=f"{case.name}@1.0.0", folder=str(folder), quantization=case.quantization, threads=1
    )
    claim = Claim(unit=UnitSpec(id=unit, bytes=expected, threads=1), engine=spec)
    clock, footprints = SystemClock(), MemoryFootprints()
    devices = (Device(id="cpu", kind=DeviceKind.CPU, budget=ROOM),)
    backend = LocalBackend(clock=clock, environment={"OMP_NUM_THREADS": "1"})
    try:
        async with (
            opened(backend, clock, devices=devices, footprints=footprints) as runtime,
            runtime.lease([claim], caller="test", timeout_s=300) as lease,
        ):
            taken = footprints.get(unit) or 0
            task = Generate(prompt="The quick brown fox", sampling=Sampling(max_tokens=CONTEXT_TOKENS - 64))
            assert isinstance((await read(lease.run(task)))[-1], Done)
    finally:
        await backend.close()
    used = footprints.get(unit) or 0
    assert 0 < taken <= used
    assert expected >= NEARLY * used
