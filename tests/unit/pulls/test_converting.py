"""The conversion's process: under a reservation, killed with its task, its refusals and its death told as errors."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from serai.clock import SystemClock
from serai.errors import InvalidInput, OutOfMemory
from serai.pulls import converting
from serai.pulls.converting import CALLER, LIBRARY_BYTES, ChildConverter, ConversionFailed
from serai.pulls.errors import MissingExtra, UnsupportedWeights
from serai.pulls.model import ConversionPlan
from serai.runtime.backends.local import LocalBackend
from serai.runtime.errors import DoesNotFit
from serai.runtime.model import Device, DeviceKind
from serai.runtime.runtime import Runtime
from support.model_server import descendants, is_alive
from support.runtime_stage import opened
from support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

PLAN = ConversionPlan(quantization="int8", weight_bytes=2**20)
LLAMA = ["LlamaForCausalLM"]


@asynccontextmanager
async def runtime(budget: int = 4 * LIBRARY_BYTES) -> AsyncIterator[Runtime]:
    clock = SystemClock()
    backend = LocalBackend(clock=clock, environment={})
    try:
        async with opened(backend, clock, devices=(Device(id="cpu", kind=DeviceKind.CPU, budget=budget),)) as made:
            yield made
    finally:
        await backend.close()


def programs() -> list[int]:
    """Return the processes of this test that convert."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"serai.pulls.conversion\0" in command:
            found.append(pid)
    return found


async def started() -> int:
    """Return the process of the conversion, when it is there."""

    async def is_there() -> bool:
        return bool(await asyncio.to_thread(programs))

    await eventually(is_there, seconds=30)
    return programs()[0]


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode().split("=", 1) for pair in pairs if pair)


def checkpoint(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder whose configuration nobody ever writes, so that the conversion waits for it, and a target."""
    folder = tmp_path / "source"
    folder.mkdir()
    os.mkfifo(folder / "config.json")
    (folder / "model.safetensors").write_bytes(b"")
    return folder, tmp_path / "target"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def a_converter(made: Runtime, tmp_path: Path) -> ChildConverter:
    scratch = tmp_path / "conversions"
    scratch.mkdir(exist_ok=True)
    return ChildConverter(made, threads=1, scratch=scratch)


async def test_what_stands_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing packages with the command that installs them; an architecture with those that are known."""
    async with runtime() as made:
        converter = a_converter(made, tmp_path)
        assert converter.obstacle(LLAMA) is None
        assert converter.obstacle([]) is None
        unknown = converter.obstacle(["MambaForCausalLM"])
        assert isinstance(unknown, UnsupportedWeights)
        assert "MambaForCausalLM" in unknown.message
        assert "LlamaForCausalLM" in (unknown.hint or "")
        assert converter.obstacle(["BertModel"], "embedding") is None
        assert converter.obstacle(["Qwen3ForCausalLM"], "embedding") is None
        unfit = converter.obstacle(LLAMA, "embedding")
        assert "XLMRobertaModel" in (unfit.hint if unfit is not None else None or "")
        assert isinstance(converter.obstacle(["BertForMaskedLM"]), UnsupportedWeights)
        hidden = {"torch", "nncf"}
        monkeypatch.setattr(converting, "find_spec", lambda name: None if name in hidden else find_spec(name))
        missing = converter.obstacle(LLAMA)
    assert isinstance(missing, MissingExtra)
    assert "torch, nncf is not installed" in missing.message
    assert "pip install 'serai[torch]'" in (missing.hint or "")


async def test_a_quantization_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """Before anything is reserved."""
    async with runtime() as made:
        with pytest.raises(InvalidInput, match="nf4"):
            await a_converter(made, tmp_path).convert(
                tmp_path, tmp_path / "out", ConversionPlan(quantization="nf4", weight_bytes=1), lambda fraction: None
            )
        assert made.loaded() == ()


async def test_a_conversion_that_the_memory_can_never_hold_is_refused(tmp_path: Path) -> None:
    """No process is started for it."""
    async with runtime(budget=LIBRARY_BYTES // 2) as made:
        with pytest.raises(DoesNotFit):
            await a_converter(made, tmp_path).convert(tmp_path, tmp_path / "out", PLAN, lambda fraction: None)
    assert programs() == []


async def test_what_the_program_refuses_is_told_with_its_hint(tmp_path: Path) -> None:
    """Under its own code; the reservation is gone with it, and no folder was made."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    async with runtime() as made:
        with pytest.raises(ConversionFailed) as refused:
            await a_converter(made, tmp_path).convert(source, tmp_path / "out", PLAN, lambda fraction: None)
        assert await nothing_is_held(made)
    assert refused.value.code == "CONVERSION_FAILED"
    assert refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert not (tmp_path / "out").exists()


async def test_a_cancelled_conversion_leaves_no_process_and_no_memory_taken(tmp_path: Path) -> None:
    """While it runs, its reservation counts, in the name of conversions."""
    source, target = checkpoint(tmp_path)
    async with runtime() as made:
        work = asyncio.create_task(a_converter(made, tmp_path).convert(source, target, PLAN, print))
        pid = await started()
        (held,) = made.loaded()
        assert held.bytes >= LIBRARY_BYTES
        assert held.in_flight == 1
        assert CALLER in held.unit.weights
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not is_alive(pid)
        assert await nothing_is_held(made)
    assert not target.exists()


async def test_a_conversion_that_is_killed_is_told_as_want_of_memory(tmp_path: Path) -> None:
    """That is who kills such processes."""
    source, target = checkpoint(tmp_path)
    async with runtime() as made:
        work = asyncio.create_task(a_converter(made, tmp_path).convert(source, target, PLAN, print))
        os.kill(await started(), signal.SIGKILL)
        with pytest.raises(OutOfMemory, match="killed"):
            await work
        assert await nothing_is_held(made)


async def test_a_conversion_sees_nothing_of_the_servers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No secret, no proxy, no home: what it needs, and folders that are gone with it."""
    monkeypatch.setenv("SERAI_SECRET_OF_THE_SERVER", "hidden")
    source, target = checkpoint(tmp_path)
    async with runtime() as made:
        work = asyncio.create_task(a_converter(made, tmp_path).convert(source, target, PLAN, print))
        pid = await started()
        told = environment_of(pid)
        work.cancel()
        await asyncio.wait([work])
    assert "SERAI_SECRET_OF_THE_SERVER" not in told
    assert told["OMP_NUM_THREADS"] == "1"
    assert told["HF_HUB_OFFLINE"] == "1"
    assert told["HOME"] == told["TMPDIR"]
    assert Path(told["HOME"]).parent == tmp_path / "conversions"
    assert not os.access(told["HOME"], os.F_OK)


async def test_what_a_killed_server_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """Its conversion's folder, when the next server opens; the half of a model, when it is converted again."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    for left in (tmp_path / "conversions" / "tmpabc", tmp_path / ".out.part"):
        left.mkdir(parents=True)
        (left / "openvino_model.bin").write_bytes(b"half")
    async with runtime() as made:
        converter = a_converter(made, tmp_path)
        assert names_in(tmp_path / "conversions") == []
        with pytest.raises(ConversionFailed):
            await converter.convert(source, tmp_path / "out", PLAN, lambda fraction: None)
    assert names_in(tmp_path) == ["conversions", "source"]


async def nothing_is_held(made: Runtime) -> bool:
    """Say, when the reservation had time to go, that it is gone."""

    async def is_free() -> bool:
        return made.loaded() == ()

    await eventually(is_free, seconds=60)
    return True
