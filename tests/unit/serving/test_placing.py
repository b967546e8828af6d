"""Where a version runs: engine, unit in memory, bytes, threads, adapters."""

from pathlib import Path
from typing import Any

import pytest

from serai.engines.base import AdapterUse
from serai.engines.catalogue import CATALOGUE
from serai.engines.errors import EngineMissing
from serai.engines.footprint import Weights, estimate
from serai.engines.weights import weights_in
from serai.errors import InvalidInput, LoadFailed, OutOfMemory, WorkerCrashed
from serai.registry.rules import RegistryRules
from serai.registry.snapshot import Candidate, make_candidate
from serai.registry.source import Adapter, File, Footprint, HubSource, RemoteSource
from serai.runtime.errors import DoesNotFit, QueueFull, QueueTimeout
from serai.runtime.model import DeviceKind
from serai.serving.placer import Placer
from serai.serving.placing import Found, Machine, blames_engine, needs_weights, place, unit_id
from serai.serving.weights import LocalWeights
from unit.registry.build import a_model, a_version

MACHINE = Machine(device_kinds=frozenset({"cpu"}), threads=2, missing={})
CUDA = Machine(device_kinds=frozenset({"cpu", "cuda"}), threads=2, missing={})
IR = File(path="openvino_model.xml", size=1000, sha256="0" * 64)
SAFETENSORS = File(path="model.safetensors", size=1000, sha256="1" * 64)
HERE = Found(folder="/models/m/1.0.0")


def candidate(task: str = "chat", **values: Any) -> Candidate:
    values.setdefault("source", HubSource(repo="owner/m", revision="a" * 40))
    return make_candidate(a_model(task=task), a_version(**values), RegistryRules())


def test_the_best_engine_comes_first_and_says_why() -> None:
    """On a CPU OpenVINO GenAI, then transformers; with a card the card's engines before them."""
    both = candidate(files=(IR, SAFETENSORS))
    assert [one.engine.name for one in place(both, MACHINE, HERE)] == ["openvino-genai", "transformers"]
    kinds = [(one.engine.name, one.unit and one.unit.device_kind.value) for one in place(both, CUDA, HERE)]
    assert kinds == [("vllm", "cuda"), ("transformers", "cuda"), ("openvino-genai", "cpu"), ("transformers", "cpu")]
    assert "fastest on a CPU" in place(both, MACHINE, HERE)[0].why


def test_a_claim_says_all_that_a_worker_needs() -> None:
    """Folder, name, options, threads, quantization, bytes."""
    version = candidate(
        files=(SAFETENSORS,), quantization="int8", footprint=(Footprint(device="cpu", bytes=5000, measured=True),)
    )
    (placement,) = place(version, MACHINE, HERE)
    claim = placement.claim
    assert claim is not None
    assert (claim.engine.engine, claim.engine.name, claim.engine.folder) == ("transformers", "m@1.0.0", HERE.folder)
    assert (claim.engine.threads, claim.unit.threads) == (2, 2)
    assert (claim.engine.quantization, claim.unit.id.quantization) == ("int8", "int8")
    assert claim.unit.bytes == 5000
    assert claim.unit.id == unit_id(version.version, "transformers", DeviceKind.CPU)


GIB = 2**30
ON_DISK = Weights(files={"openvino_model.bin": GIB, "openvino_model.xml": 1000}, tensors={}, config={})
ESTIMATE = estimate(ON_DISK, engine="openvino-genai", device_kind="cpu", quantization="").bytes


@pytest.mark.parametrize(
    ("footprint", "files", "expected"),
    [
        ((Footprint(device="cpu", bytes=9 * GIB), Footprint(device="cpu", bytes=7, measured=True)), (IR,), 7),
        ((Footprint(device="cpu", bytes=7),), (), 7),  # declared
        ((Footprint(device="cpu", bytes=7),), (IR,), ESTIMATE),  # by a pull, perhaps for another engine
        ((Footprint(device="cpu", bytes=9 * GIB),), (IR,), 9 * GIB),
        ((Footprint(device="cuda", bytes=7),), (IR,), ESTIMATE),
        ((), (), ESTIMATE),
    ],
)
def test_bytes_are_what_is_known_best(footprint: Any, files: Any, expected: int) -> None:
    """Measured before declared before estimated; of two estimates the larger."""
    found = Found(folder="/f", weights=ON_DISK)
    (placement,) = place(candidate(footprint=footprint, files=files), MACHINE, found)
    assert placement.claim is not None
    assert placement.claim.unit.bytes == expected
    assert ESTIMATE > 2 * GIB


def test_every_engine_that_runs_here_is_reserved_something() -> None:
    """None is taken for free, however little is known of its files."""
    for engine in CATALOGUE.values():
        for kind in {kind.value for kind in DeviceKind} & set(engine.device_kinds):
            if engine.tasks:  # a reservation says itself what it takes
                assert estimate(ON_DISK, engine=engine.name, device_kind=kind, quantization="").bytes > 0, engine.name


@pytest.mark.anyio
async def test_the_estimate_is_made_from_what_lies_on_the_disk(tmp_path: Path) -> None:
    """In a thread, once for a version; weights that cannot be read are a failure of the candidate."""
    folder = tmp_path / "m" / "1.0.0"
    folder.mkdir(parents=True)
    for name, size in (("openvino_model.xml", 1000), ("openvino_model.bin", 10 * 2**20)):
        (folder / name).write_bytes(bytes(size))
    weights = LocalWeights(package=tmp_path, pulled=tmp_path, roots={})
    asked = candidate()
    (placement,) = await Placer(MACHINE, weights).place(asked)
    expected = estimate(weights_in(folder), engine="openvino-genai", device_kind="cpu", quantization="").bytes
    assert placement.claim is not None
    assert placement.claim.unit.bytes == expected > 20 * 2**20
    (folder / "model.safetensors").symlink_to("/proc/self/mem")  # a file whose first bytes nobody can read
    with pytest.raises(LoadFailed, match="cannot be read"):
        await Placer(MACHINE, weights).place(asked)


def test_what_shares_a_unit() -> None:
    """Adapters and parameters alone do; weights, options, quantization and remote code do not."""

    def unit(**values: Any) -> Any:
        return unit_id(candidate(files=(SAFETENSORS,), **values).version, "fake", DeviceKind.CPU)

    lora = Adapter(id="v2", source=HubSource(repo="owner/lora"))
    assert unit() == unit(adapters=(lora,)) == unit(version="2.0.0", steps=8)
    others = [
        unit(quantization="int4"),
        unit(engine_options={"max_runs": 2}),
        unit(allow_remote_code=True),
        unit(source=HubSource(repo="owner/other")),
    ]
    assert len({unit(), *others}) == len(others) + 1


def test_adapters_go_to_an_engine_that_takes_them() -> None:
    """And the uses travel with the placement; without such an engine there is no placement."""
    use = AdapterUse(id="sha256:1", path="/a", scale=0.5)
    lora = Adapter(id="v2", source=HubSource(repo="owner/lora"), scale=0.5)
    (placement,) = place(candidate(engine="fake", adapters=(lora,)), MACHINE, Found(adapters=(use,)))
    assert placement.adapters == (use,)
    with pytest.raises(EngineMissing):
        place(candidate(files=(IR,), adapters=(lora,)), MACHINE, HERE)


def test_a_model_on_another_server_needs_no_memory() -> None:
    """With the options of its engine, typed."""
    source = RemoteSource(endpoint="https://example.org/v1", model="big")
    (placement,) = place(candidate(source=source, engine_options={"max_concurrency": 3}), MACHINE, Found())
    assert (placement.engine.name, placement.claim, placement.unit) == ("remote", None, None)
    assert placement.remote == source
    assert placement.options is not None
    assert placement.options.max_concurrency == 3
    (placement,) = place(candidate("background-removal", source=source), MACHINE, Found())
    assert placement.engine.name == "http"


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"engine": "abacus"}, EngineMissing, "abacus"),
        ({"engine": "fake", "engine_options": {"wheels": 4}}, LoadFailed, "options of m@1.0.0"),
        ({"engine": "remote"}, LoadFailed, "its source names none"),
        ({"engine": "vllm", "files": (SAFETENSORS,)}, EngineMissing, "cuda"),
        ({"files": ()}, EngineMissing, "no known form"),
    ],
)
def test_what_a_version_has_wrong_is_no_mistake_of_the_caller(values: Any, error: type[Exception], words: str) -> None:
    """It is a failure of the candidate, so that the next may answer."""
    with pytest.raises(error, match=words) as caught:
        place(candidate(**values), MACHINE, Found())
    assert not isinstance(caught.value, InvalidInput)


def test_an_engine_without_its_packages_names_the_command() -> None:
    """It is passed over where another can; alone it is missing, with the remedy."""
    machine = Machine(device_kinds=frozenset({"cpu"}), missing={"openvino-genai": ("openvino_genai",)})
    assert [one.engine.name for one in place(candidate(files=(IR, SAFETENSORS)), machine, HERE)] == ["transformers"]
    with pytest.raises(EngineMissing) as caught:
        place(candidate(files=(IR,)), machine, HERE)
    assert "pip install" in str(caught.value.hint)


def test_what_needs_no_files() -> None:
    """Other servers and the fake engine; an unknown engine is told before its files are looked for."""
    assert needs_weights(a_version(engine="openvino"))
    assert needs_weights(a_version(engine=""))
    assert not needs_weights(a_version(engine="fake"))
    assert not needs_weights(a_version(engine="abacus"))
    assert not needs_weights(a_version(source=RemoteSource(endpoint="https://example.org", model="m")))


def test_when_another_engine_may_help() -> None:
    """Where the engine failed, or its device was too small; not where the caller or the queue is the reason."""
    gpu, _, cpu, cpu_too = place(candidate(files=(IR, SAFETENSORS)), CUDA, HERE)
    assert blames_engine(LoadFailed("a"), cpu, cpu_too)
    assert blames_engine(WorkerCrashed("a"), cpu, cpu_too)
    for error in (OutOfMemory("a"), DoesNotFit("a")):
        assert blames_engine(error, gpu, cpu)
        assert not blames_engine(error, cpu, cpu_too)
    for other in (QueueFull("a"), QueueTimeout("a"), InvalidInput("a")):
        assert not blames_engine(other, gpu, cpu)
