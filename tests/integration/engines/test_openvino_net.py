"""Networks on OpenVINO: what comes out is right, what goes in is checked, and the facts are true."""

import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serai.engines.base import AdapterUse, EngineSpec, Footprint, Run
from serai.engines.tasks import Array, Generate, Infer
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import Done, Event

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402 - after the telemetry was switched off
import openvino as ov  # noqa: E402 - the same
from openvino import opset13 as op  # noqa: E402 - the same

from serai.engines.openvino_net import OpenvinoNet  # noqa: E402 - the same

MOST_STEPS = 10_000


def affine(folder: Path, name: str = "net.xml", *, rows: int = -1, dtype: Any = np.float32) -> None:
    """Write a network: sum = 2 × x + y, for x of rows × 3 and y of 1 × 3."""
    x, y = op.parameter([rows, 3], dtype, name="x"), op.parameter([1, 3], dtype, name="y")
    total = op.add(op.multiply(x, op.constant(np.array([2], dtype=dtype))), y)
    for node, label in ((x, "x"), (y, "y"), (total, "sum")):
        node.output(0).set_names({label})
    ov.save_model(ov.Model([total], [x, y], "affine"), folder / name, compress_to_fp16=False)


def load(folder: Path, **options: Any) -> tuple[OpenvinoNet, Footprint]:
    engine = OpenvinoNet()
    spec = EngineSpec(engine="openvino", name="net@1.0.0", folder=str(folder), options=options, threads=1)
    return engine, engine.load(spec, lambda _: None)


def floats(*rows: list[float]) -> Array:
    numbers = array("f", [number for row in rows for number in row])
    return Array(dtype="float32", shape=(len(rows), len(rows[0])), data=numbers.tobytes())


def outputs(engine: OpenvinoNet, **inputs: Array) -> dict[str, Array]:
    engine.start(Run(id=1, task=Infer(inputs=inputs)))
    events: list[tuple[int, Event]] = []
    for _ in range(MOST_STEPS):
        events += engine.step()
        if events:
            break
    assert isinstance(events[0][1], Done), events
    return {name: Array.of(value) for name, value in events[0][1].result["outputs"].items()}


def test_it_computes(tmp_path: Path) -> None:
    """Outputs come by name, for one row and for several."""
    affine(tmp_path)
    engine, _ = load(tmp_path)
    for rows in ([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]):
        told = outputs(engine, x=floats(*rows), y=floats([0.5, 0.5, 0.5]))
        assert set(told) == {"sum"}
        assert told["sum"].shape == (len(rows), 3)
        assert list(array("f", told["sum"].data)) == [2 * number + 0.5 for row in rows for number in row]
    engine.close()


def test_onnx_is_read(tmp_path: Path) -> None:
    """An ONNX file of the folder is found and run like any other."""
    (tmp_path / "net.onnx").write_bytes(onnx_identity())
    engine, footprint = load(tmp_path)
    assert footprint.facts["inputs"][0]["name"] == "x"
    assert list(array("f", outputs(engine, x=floats([1.0, -2.0]))["y"].data)) == [1.0, 0.0]


def onnx_identity() -> bytes:
    """Return an ONNX model y = Relu(x) of 1 × 2, encoded by hand (protobuf fields of onnx.proto3)."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    def info(name: bytes) -> bytes:
        dims = b"".join(field(1, field(1, size)) for size in (1, 2))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    node = field(1, b"x") + field(2, b"y") + field(4, b"Relu")
    graph = field(1, node) + field(2, b"g") + field(11, info(b"x")) + field(12, info(b"y"))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def test_the_facts_are_true(tmp_path: Path) -> None:
    """Precision as it is really used, threads as given, inputs and outputs as they are."""
    affine(tmp_path)
    _, footprint = load(tmp_path, precision="f32", max_runs=3)
    assert footprint.max_runs == 3
    assert footprint.facts["precision"] == "f32"
    assert footprint.facts["threads"] == 1
    assert footprint.facts["device"]
    assert footprint.facts["openvino"].startswith("20")
    assert footprint.facts["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": "[any,3]"},
        {"name": "y", "dtype": "float32", "shape": "[1,3]"},
    ]
    assert footprint.facts["outputs"] == [{"name": "sum", "dtype": "float32", "shape": "[any,3]"}]


def test_other_precisions_are_near(tmp_path: Path) -> None:
    """bf16 gives nearly the same, where the machine has it; else the facts say what was used instead."""
    affine(tmp_path)
    engine, footprint = load(tmp_path, precision="bf16")
    assert footprint.facts["precision"] in ("bf16", "f32")
    told = outputs(engine, x=floats([1.0, 2.0, 3.0]), y=floats([0.5, 0.5, 0.5]))
    assert list(array("f", told["sum"].data)) == pytest.approx([2.5, 4.5, 6.5], rel=0.02)


GOOD = floats([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({"x": GOOD}, "inputs.y", "missing"),
        ({"x": GOOD, "y": GOOD, "z": GOOD}, "inputs.z", "no input"),
        ({"x": floats([1.0, 2.0]), "y": GOOD}, "inputs.x", "shape"),
        ({"x": GOOD, "y": floats([1.0] * 3, [1.0] * 3)}, "inputs.y", "shape"),
        ({"x": Array(dtype="float32", shape=(3,), data=GOOD.data), "y": GOOD}, "inputs.x", "2 dimensions"),
        ({"x": Array(dtype="float64", shape=(1, 3), data=bytes(24)), "y": GOOD}, "inputs.x", "float32"),
        ({"x": Array(dtype="float32", shape=(2, 3), data=GOOD.data), "y": GOOD}, "inputs.x", "bytes"),
        ({"x": Array(dtype="float32", shape=(-1, 3), data=GOOD.data), "y": GOOD}, "inputs.x", "shape"),
        ({"x": Array(dtype="float32", shape=(2**62, 3), data=GOOD.data), "y": GOOD}, "inputs.x", "bytes"),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, inputs: dict[str, Array], field: str, words: str) -> None:
    """The first wrong input is named with what is wrong; the next run works."""
    affine(tmp_path)
    engine, _ = load(tmp_path)
    with pytest.raises(InvalidInput, match=words) as refused:
        engine.start(Run(id=1, task=Infer(inputs=inputs)))
    assert refused.value.details[0]["field"] == field  # type: ignore[index,call-overload]
    assert outputs(engine, x=GOOD, y=GOOD)


def test_no_rows_are_no_failure_of_the_engine(tmp_path: Path) -> None:
    """A dynamic dimension may be 0; the next run works."""
    affine(tmp_path)
    engine, _ = load(tmp_path)
    empty = Array(dtype="float32", shape=(0, 3), data=b"")
    assert outputs(engine, x=empty, y=GOOD)["sum"].shape == (0, 3)
    assert outputs(engine, x=GOOD, y=GOOD)["sum"].shape == (1, 3)


def test_other_tasks_and_adapters_are_refused(tmp_path: Path) -> None:
    """It runs networks, and those without adapters."""
    affine(tmp_path)
    engine, _ = load(tmp_path)
    with pytest.raises(InvalidInput, match="infer"):
        engine.start(Run(id=1, task=Generate(prompt="x")))
    with pytest.raises(EngineFailed, match="adapters"):
        engine.start(Run(id=1, task=Infer(inputs={}), adapters=(AdapterUse(id="a", path="/a"),)))


def two(folder: Path) -> None:
    affine(folder, "one.xml")
    affine(folder, "two.xml")


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return make


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (two, {}, "several networks: one.xml, two.xml"),
        (two, {"file": "three.xml"}, "no network 'three.xml'"),
        (two, {"file": "../one.xml"}, "no network"),
        (two, {"file": "/etc/hosts"}, "no network"),
        (two, {"file": "one.bin"}, "no network"),
        (lambda folder: None, {}, "no network"),
        (write("net.xml", b"junk"), {}, "net.xml"),
        (write("net.xml", b"<?xml version='1.0'?><net name='x' version='11'></net>"), {}, "no outputs"),
        (write("net.onnx", b"\x80\x04junk"), {}, "net.onnx"),
        (write("net.tflite", b"junk"), {}, "net.tflite"),
        (write("net.xml", b""), {}, "net.xml"),
    ],
)
def test_networks_that_cannot_be_loaded(
    tmp_path: Path, make: Callable[[Path], None], options: dict[str, Any], words: str
) -> None:
    """Missing, ambiguous, outside the folder, damaged: a failed load, without a path in its words."""
    make(tmp_path)
    with pytest.raises(LoadFailed, match=words) as failed:
        load(tmp_path, **options)
    assert str(tmp_path) not in f"{failed.value} {failed.value.hint}"


def test_one_of_several_can_be_named(tmp_path: Path) -> None:
    """The option `file` chooses."""
    two(tmp_path)
    engine, _ = load(tmp_path, file="two.xml")
    assert outputs(engine, x=GOOD, y=GOOD)


def test_only_the_cpu(tmp_path: Path) -> None:
    """Another device is refused, not replaced in silence."""
    affine(tmp_path)
    with pytest.raises(LoadFailed, match="cuda:0"):
        OpenvinoNet().load(
            EngineSpec(engine="openvino", name="n", folder=str(tmp_path), device="cuda:0"), lambda _: None
        )
