"""Converting a checkpoint for OpenVINO: all or nothing, the same each time, in a process that can be killed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serai.pulls.conversion import Converted, Message, Refused, Request, Step
from support.llm_models import child_environment, made

pytestmark = pytest.mark.timeout(600)
DEADLINE_S = 300

COMPARE = """
import sys
from pathlib import Path
from serai.engines.quiet import quieten
quieten()
from serai.pulls.conversion.export import convert
network, target = map(Path, sys.argv[1:])
def quiet(stage, fraction): pass
convert(network, target / "int8", quantization="int8", report=quiet)
convert(network, target / "int8 again", quantization="int8", report=quiet)
"""
WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from pathlib import Path
from serai.engines.quiet import quieten
quieten()
from serai.pulls.conversion.export import convert
print(convert(Path(sys.argv[1]), Path(sys.argv[2]), quantization="int4", report=lambda stage, fraction: None))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def convert(**fields: Any) -> tuple[int, list[Message]]:
    """Run the program; return its exit code and what it said."""
    request = msgspec.json.encode(Request(**{name: str(value) for name, value in fields.items()})).decode()
    done = run("-m", "serai.pulls.conversion", request)
    return done.returncode, [msgspec.json.decode(line, type=Message) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source, network = made(tmp_path_factory, ["llama/hf", "llama/fp32"])
    return source, network


def changed(source: Path, target: Path, **members: Any) -> Path:
    """Return a copy of a checkpoint with other members in its config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | members
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_the_program_tells_its_progress_and_its_result(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Steps that go forward, then one `Converted`; the folder holds all that the engine needs, and nothing else."""
    target = tmp_path / "model"
    code, said = convert(source=models[0], target=target, quantization="int8")
    assert code == 0
    *steps, last = said
    assert isinstance(last, Converted)
    assert (last.architecture, last.quantization) == ("llama", "int8")
    fractions = [step.fraction for step in steps if isinstance(step, Step)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert last.bytes == sum(path.stat().st_size for path in target.iterdir())
    names = {path.name for path in target.iterdir()}
    assert {"openvino_model.xml", "openvino_model.bin", "tokenizer.json", "config.json", "chat_template.jinja"} <= names
    assert {"generation_config.json", "openvino_tokenizer.xml", "openvino_detokenizer.xml"} <= names
    assert not any("plain" in name for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_same_checkpoint_gives_the_same_bytes(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Network and weights are equal bit for bit, however often they were made."""
    for target in ("first", "again"):  # in a process each, as pulls do: the names of nodes count on within one
        code, _ = convert(source=models[0], target=tmp_path / target, quantization="fp32")
        assert code == 0
    for suffix in ("xml", "bin"):
        name = f"openvino_model.{suffix}"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    done = run("-c", COMPARE, str(models[1]), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    weights = "openvino_model.bin"
    assert (tmp_path / "int8" / weights).read_bytes() == (tmp_path / "int8 again" / weights).read_bytes()
    sizes = [(folder / weights).stat().st_size for folder in (tmp_path / "int8", models[1])]
    assert sizes[0] < sizes[1] / 2


def test_a_network_is_compressed_without_torch(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Where only OpenVINO and nncf are installed, int4 is made of a network that is there."""
    done = run("-c", WITHOUT_TORCH, str(models[1]), str(tmp_path / "int4"))
    assert done.returncode == 0, done.stderr[-3000:]
    size = (tmp_path / "int4" / "openvino_model.bin").stat().st_size
    assert size < (models[1] / "openvino_model.bin").stat().st_size / 4
    assert (tmp_path / "int4" / "openvino_tokenizer.xml").exists()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": []}, "unnamed"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    models: tuple[Path, Path], tmp_path: Path, members: dict[str, Any], words: str
) -> None:
    """With its reason, before anything heavy is read, and without a target."""
    source = changed(models[0], tmp_path / "source", **members)
    code, said = convert(source=source, target=tmp_path / "model", quantization="fp16")
    assert code == 1
    refused = said[-1]
    assert isinstance(refused, Refused)
    assert refused.code == "INVALID_INPUT"
    assert words in refused.message
    assert str(tmp_path) not in refused.message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_without_a_fast_tokenizer_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    """The engine needs tokenizer.json."""
    source = changed(models[0], tmp_path / "source")
    (source / "tokenizer.json").unlink()
    _, said = convert(source=source, target=tmp_path / "model", quantization="fp16")
    assert isinstance(said[-1], Refused)
    assert "tokenizer.json" in said[-1].message


def test_an_existing_target_is_left_alone(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing that is there is written over."""
    (tmp_path / "model").mkdir()
    _, said = convert(source=models[0], target=tmp_path / "model", quantization="fp16")
    assert isinstance(said[-1], Refused)
    assert said[-1].code == "CONFLICT"
    assert list((tmp_path / "model").iterdir()) == []


def test_a_compressed_network_is_not_compressed_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    """And none is made larger than it is."""
    _, said = convert(source=models[1], target=tmp_path / "model", quantization="fp16")
    assert isinstance(said[-1], Refused)
    assert said[-1].code == "INVALID_INPUT"


def test_a_request_that_is_none_is_refused() -> None:
    """Unknown members, wrong values, no request at all."""
    for argument in ('{"source": "a"}', '{"source": "a", "target": "b", "quantization": "int2"}', "{"):
        done = run("-m", "serai.pulls.conversion", argument)
        assert done.returncode == 1
        assert isinstance(msgspec.json.decode(done.stdout.splitlines()[-1], type=Message), Refused)


def test_a_killed_conversion_leaves_no_target(models: tuple[Path, Path], tmp_path: Path) -> None:
    """The target gets its name when it is complete."""
    target = tmp_path / "model"
    request = msgspec.json.encode(Request(source=str(models[0]), target=str(target), quantization="int8")).decode()
    command = [sys.executable, "-m", "serai.pulls.conversion", request]
    with subprocess.Popen(
        command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            step = msgspec.json.decode(line, type=Message)
            if isinstance(step, Step) and step.fraction >= 0.6:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL
    assert not target.exists()
