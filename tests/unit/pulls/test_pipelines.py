"""Image pipelines: which files are taken, what is decided for them, and how they are converted for OpenVINO."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from serai.engines.footprint import estimate
from serai.engines.images.openvino_image_folder import PipelineShape
from serai.engines.weights import weights_in
from serai.errors import InvalidInput
from serai.hub.choice import Format, choose
from serai.hub.huggingface import _architectures
from serai.hub.model import Listing, RemoteFile
from serai.pulls import converting
from serai.pulls.arrival import check_staged, memory_bytes, parameters
from serai.pulls.conversion import Converted, Message, Refused, Step
from serai.pulls.converting import ChildConverter
from serai.pulls.errors import MissingExtra, UnsupportedWeights
from serai.pulls.model import Plan, PullPolicy, PullRequest
from serai.pulls.plan import plan, wanted
from serai.pulls.registering import with_told
from serai.registry.parameters import Parameter, check_parameters
from serai.registry.rules import RegistryRules
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.source import HubSource
from support.image_ir import converted, image_ir
from support.image_models import made

EMPTY = RegistrySnapshot.build(models=(), versions=(), rules=RegistryRules())
SMALL = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt")
PARTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
IR = tuple(f"{part}/openvino_model.{end}" for part in ("text_encoder", "unet", "vae_decoder") for end in ("bin", "xml"))
SD = "StableDiffusionPipeline"


def files(*names: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(path=name, size=100) for name in names)


def planned(*names: str, quantize: Any = "auto", device: Any = "cpu", name: str = SD) -> Plan:
    request = PullRequest.of({"model": "acme/pictures", "quantize": quantize})
    listing = Listing(
        source=HubSource(repo="acme/pictures", revision="a" * 40),
        name="acme/pictures",
        files=files(*names),
        architectures=(name,),
    )
    with TemporaryDirectory() as scratch:
        converter = ChildConverter(None, threads=1, scratch=Path(scratch))  # type: ignore[arg-type]
        return plan(EMPTY, request, wanted(EMPTY, request), listing, PullPolicy(device=device), converter)


def test_the_parts_are_taken_and_no_double() -> None:
    """Not the whole again as one file, no copies in half, nor a checker that no engine loads."""
    others = (
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "README.md",
    )
    choice = choose(files(*PARTS, *others, *SMALL))
    assert choice.format is Format.SAFETENSORS
    assert {file.path for file in choice.files} == {*PARTS, *SMALL}
    assert {file.path for file in choose(files(*IR, *SMALL)).files} == {*IR, *SMALL}
    single = choose(files("model_index.json", "whole.safetensors"))
    assert [file.path for file in single.files] == ["whole.safetensors", "model_index.json"]


def test_on_a_cpu_a_pipeline_is_converted() -> None:
    """To 16 bits, or as asked; four bits are refused by name; on CUDA it stays as it is."""
    made_ = planned(*PARTS, *SMALL)
    assert (made_.convert, made_.quantization, made_.listing.task) == (True, "fp16", "image-generation")
    assert planned(*PARTS, *SMALL, quantize="q8").quantization == "int8"
    assert planned(*PARTS, *SMALL, quantize="no").convert is False
    with pytest.raises(InvalidInput, match="quantize"):
        planned(*PARTS, *SMALL, quantize="q4")
    on_cuda = planned(*PARTS, *SMALL, device="cuda")
    assert (on_cuda.convert, on_cuda.quantization) == (False, "none")


def test_a_published_pipeline_needs_no_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """IR is taken as it is, also where torch is not installed; safetensors then say what to install."""
    monkeypatch.setattr(converting, "find_spec", lambda name: None if name == "diffusers" else object())
    assert planned(*IR, *SMALL).convert is False
    assert planned(*IR, *PARTS, *SMALL).choice.format is Format.IR
    with pytest.raises(MissingExtra, match="diffusers"):
        planned(*PARTS, *SMALL)


def test_pipelines_that_cannot_be_converted_are_refused_before_the_download() -> None:
    """By the class that the hub tells."""
    assert _architectures({"diffusers": {"_class_name": "FluxPipeline"}}) == ("FluxPipeline",)
    assert _architectures({"architectures": ["A", "B"], "diffusers": {"_class_name": "C"}}) == ("A", "B")
    assert _architectures({"diffusers": []}) == _architectures({"architectures": "A"}) == ()
    with pytest.raises(UnsupportedWeights, match="FluxPipeline"):
        planned(*PARTS, *SMALL, name="FluxPipeline")


@pytest.mark.timeout(900)
def test_the_memory_is_that_of_the_engine_that_will_run_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of openvino-image for what was converted, of diffusers for what was not."""
    (source,) = made(tmp_path_factory, ["sd"])
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*")) if path.is_file()]
    for quantize, engine, quantization in (("fp32", "openvino-image", "fp32"), ("no", "diffusers", "none")):
        made_ = planned(*names, quantize=quantize)
        check_staged(made_, source)
        expected = estimate(weights_in(source), engine=engine, device_kind="cpu", quantization=quantization).bytes
        assert memory_bytes(made_, source, PullPolicy()) == expected


@pytest.mark.timeout(900)
def test_a_version_says_which_sizes_its_pipeline_takes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """As the engine reads them from the same files; what was declared stays, where the pipeline takes it."""
    folder, names = image_ir(tmp_path_factory), (*IR, *SMALL)
    found = parameters(planned(*names), folder)
    shape = PipelineShape.read(folder)
    assert set(found) == {"width", "height"}
    assert (found["width"].default, found["width"].multiple_of) == (shape.side, shape.size_step)
    check_parameters(found)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "serai_pipeline.json").unlink()
    coarse = parameters(planned(*names), other)["height"]
    assert coarse.multiple_of is not None
    assert coarse.multiple_of > shape.size_step
    own = {"width": Parameter(default=coarse.multiple_of, max=64), "steps": Parameter(default=4)}
    merged = with_told(own, {"width": coarse, "height": coarse})
    assert merged["width"] == Parameter(default=coarse.multiple_of, max=64, multiple_of=coarse.multiple_of)
    assert merged["steps"] == own["steps"]
    assert with_told({"width": Parameter(default=coarse.multiple_of + 1)}, {"width": coarse}) == {"width": coarse}


@pytest.mark.timeout(900)
def test_a_version_says_what_its_pipeline_of_diffusers_takes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Sides by its kind and its autoencoder, and no negative prompt where guidance is built in; else nothing."""
    sd, kontext = made(tmp_path_factory, ["sd", "kontext"])
    wish = planned(*PARTS, *SMALL, quantize="no")
    plain, flux = parameters(wish, sd), parameters(wish, kontext)
    side = Parameter(min=8, max=2048, multiple_of=8)
    assert plain == {"width": side, "height": side}
    assert flux["width"] == flux["height"] == Parameter(min=16, max=2048, multiple_of=16)
    assert flux["negative_prompt"] == Parameter(default="", fixed=True)
    check_parameters({**plain, **flux})
    (tmp_path / "model_index.json").write_text('{"_class_name": "AnotherPipeline"}')
    shutil.copytree(sd / "vae", tmp_path / "vae")
    assert parameters(wish, tmp_path) == {}


def told(done: Any) -> list[Message]:
    return [msgspec.json.decode(line, type=Message) for line in done.stdout.splitlines()]


@pytest.mark.timeout(900)
def test_the_same_pipeline_gives_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """In a process each: every file is equal; the program tells steps that go forward, then one `Converted`."""
    (source,) = made(tmp_path_factory, ["sd"])
    first, again = image_ir(tmp_path_factory), tmp_path / "again"
    done = converted(source, again, "fp32")
    *steps, last = told(done)
    assert isinstance(last, Converted)
    assert (last.architecture, last.quantization) == (SD, "fp32")
    fractions = [step.fraction for step in steps if isinstance(step, Step)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    paths = sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    assert paths == sorted(path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file())
    assert {f"{part}/openvino_model.xml" for part in ("text_encoder", "unet", "vae_decoder", "vae_encoder")} <= {*paths}
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"} <= {*paths}
    assert [path for path in paths if (first / path).read_bytes() != (again / path).read_bytes()] == []
    assert last.bytes == sum((again / path).stat().st_size for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.timeout(900)
def test_eight_bits_are_smaller(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The weights of denoiser and text encoder are; the decoder's keep 16 bits, which its colours need."""
    sizes = {
        (form, part): (image_ir(tmp_path_factory, form) / part / "openvino_model.bin").stat().st_size
        for form in ("fp32", "int8")
        for part in ("unet", "text_encoder", "vae_decoder")
    }
    assert sizes["int8", "unet"] < sizes["fp32", "unet"] / 2.5
    assert sizes["int8", "text_encoder"] < sizes["fp32", "text_encoder"] / 2.5
    assert sizes["fp32", "vae_decoder"] / 2.2 < sizes["int8", "vae_decoder"] < sizes["fp32", "vae_decoder"] / 1.8
    assert not [path for path in image_ir(tmp_path_factory, "int8").rglob("*") if "plain" in path.name]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("path", "members", "quantization", "words"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "fp16", "FluxPipeline"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "fp16", "T5EncoderModel"),
        ("model_index.json", {"unet": [None, None]}, "fp16", "unet is missing"),
        ("unet/config.json", {"in_channels": 9}, "fp16", "inpainting"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "fp16", "time_cond_proj_dim"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "fp16", "LCMScheduler"),
        ("model_index.json", {}, "int4", "int8, fp16 or fp32"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    path: str,
    members: dict[str, Any],
    quantization: Any,
    words: str,
) -> None:
    """With its reason, before anything heavy is read, and without a target."""
    (base,) = made(tmp_path_factory, ["sd"])
    source = Path(shutil.copytree(base, tmp_path / "source"))
    (source / path).write_text(json.dumps(json.loads((source / path).read_text()) | members))
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    done = converted(source, tmp_path / "target", quantization)
    refused = told(done)[-1]
    assert done.returncode == 1
    assert isinstance(refused, Refused)
    assert words in refused.message
    assert str(tmp_path) not in refused.message
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


@pytest.mark.timeout(900)
def test_a_target_that_is_there_is_left_alone(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Nothing is written over."""
    (source,) = made(tmp_path_factory, ["sd"])
    done = converted(source, tmp_path, "fp16")
    refused = told(done)[-1]
    assert isinstance(refused, Refused)
    assert refused.code == "CONFLICT"
    assert list(tmp_path.iterdir()) == []
