"""Headers of weights: sound ones are read, and whatever a stranger writes there is refused, never believed."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.hub.choice import Format, format_of
from serai.hub.errors import FileNotAsNamed
from serai.hub.inspect import (
    MAX_HEADER_BYTES,
    add_up,
    check_content,
    check_index,
    read_header,
    read_json,
)
from support.hub_server import safetensors

NAME = "model.safetensors"


def file_of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F16", shape: object = (2,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def write(tmp_path: Path) -> object:
    def put(data: bytes, name: str = NAME) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return put


def test_a_sound_header_is_added_up(write: object) -> None:
    """Number of weights, bytes, and the types, over several files."""
    assert callable(write)
    data = file_of(
        {"a": tensor("F32", [2, 3], [0, 24]), "b": tensor("BF16", [5], [24, 34]), "__metadata__": {"format": "pt"}},
        bytes(34),
    )
    facts = read_header(write(data), NAME)
    assert (facts.parameters, facts.bytes, facts.dtypes) == (11, 34, {"F32": 6, "BF16": 5})
    both = add_up([facts, read_header(write(safetensors(7)), NAME)])
    assert (both.parameters, both.bytes, both.dtypes) == (18, 48, {"F32": 6, "BF16": 5, "F16": 7})


def test_what_the_library_writes_is_read(write: object) -> None:
    """The reference implementation's own files pass."""
    import numpy as np
    from safetensors.numpy import save

    assert callable(write)
    arrays = {"x": np.zeros((3, 4), np.float32), "empty": np.zeros((0, 4), np.int8), "scalar": np.zeros((), np.float64)}
    assert read_header(write(save(arrays)), NAME).parameters == 13


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        file_of({}, length=2**60),
        file_of({}, length=MAX_HEADER_BYTES + 1),
        file_of(b"[]"),
        file_of(b"{\xff}"),
        file_of(b'{"a":' * 5000),
        file_of({"a": tensor(shape=[4])}, bytes(4)),
        file_of({"a": tensor(offsets=[0, 2**50])}, bytes(4)),
        file_of({"a": tensor(offsets=[4, 0])}, bytes(4)),
        file_of({"a": tensor(offsets=[-4, 0])}, bytes(4)),
        file_of({"a": tensor(offsets=[2, 6])}, bytes(6)),
        file_of({"a": tensor(), "b": tensor()}, bytes(4)),
        file_of({"a": tensor()}, bytes(5)),
        file_of({"a": tensor("F17")}, bytes(4)),
        file_of({"a": tensor(shape=[-2])}, bytes(4)),
        file_of({"a": tensor(shape=[2**62, 4], offsets=[0, 0])}),
        file_of({"a": tensor(shape=[1] * 20)}, bytes(2)),
        file_of({"a": tensor(shape=[2.5])}, bytes(4)),
        file_of({"a": {**tensor(), "more": 1}}, bytes(4)),
        file_of({"a": "x"}),
    ],
)
def test_a_header_that_is_not_sound_is_refused(write: object, data: bytes) -> None:
    """Lengths, offsets, shapes and types that do not add up are an error, not a crash."""
    assert callable(write)
    with pytest.raises(FileNotAsNamed):
        read_header(write(data), NAME)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(file_of))
def test_nothing_but_a_refusal_comes_of_noise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any bytes are read or refused."""
    path = tmp_path_factory.mktemp("noise") / NAME
    path.write_bytes(data)
    with contextlib.suppress(FileNotAsNamed):
        assert read_header(path, NAME).bytes <= len(data)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model.onnx", "config.json", "openvino_model.bin"])
@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01s.",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
        b"PK\x03\x04" + bytes(60),
        b"\x89HDF\r\n\x1a\n" + bytes(60),
    ],
)
def test_pickles_and_archives_are_refused_under_every_safe_name(write: object, name: str, data: bytes) -> None:
    """The content decides: what could run code does not hide behind a suffix."""
    assert callable(write)
    names = [name, "openvino_model.xml", "openvino_model.bin"]
    with pytest.raises(FileNotAsNamed):
        check_content(write(data, name), name, names)


@pytest.mark.parametrize(
    ("name", "data", "is_sound"),
    [
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 10, 5) + bytes(8), True),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 5), False),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 99, 1, 5), False),
        ("model.gguf", b"GGML" + bytes(40), False),
        ("m.xml", b"<?xml version='1.0'?>\n<net name='a'/>", True),
        ("m.xml", b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><net/>", False),
        ("m.xml", b"<html>", False),
        ("m.bin", bytes(50), True),
        ("merges.txt", b"anything", True),
    ],
)
def test_other_forms_are_known_by_their_beginning(write: object, name: str, data: bytes, is_sound: bool) -> None:
    """GGUF by magic and counts, OpenVINO by its XML without a document type."""
    assert callable(write)
    path = write(data, name)
    if is_sound:
        check_content(path, name, [name, "m.xml", "m.bin"])
    else:
        with pytest.raises(FileNotAsNamed):
            check_content(path, name, [name, "m.xml", "m.bin"])


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "missing.safetensors", "a/../b.safetensors"])
def test_an_index_names_only_files_that_are_there(write: object, shard: str) -> None:
    """A shard outside of the repository, or one that is missing, is refused."""
    assert callable(write)
    name = "model.safetensors.index.json"
    sound = write(json.dumps({"weight_map": {"a": "one.safetensors"}}).encode(), name)
    check_index(sound, name, ["one.safetensors", name])
    with pytest.raises(FileNotAsNamed):
        check_index(write(json.dumps({"weight_map": {"a": shard}}).encode(), name), name, ["one.safetensors", name])


def test_json_may_have_what_python_writes(write: object) -> None:
    """NaN in a configuration is read; what is no JSON is refused; a list is no configuration."""
    assert callable(write)
    assert read_json(write(b'{"alpha": NaN}', "config.json"), "config.json").keys() == {"alpha"}
    assert read_json(write(b"[1]", "config.json"), "config.json") == {}
    for data in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(FileNotAsNamed):
            read_json(write(data, "config.json"), "config.json")


def test_a_bin_file_is_openvino_only_beside_its_xml() -> None:
    """The same suffix is a pickle everywhere else."""
    assert format_of("a/openvino_model.bin", {"a/openvino_model.xml"}) is Format.IR
    assert format_of("a/openvino_model.bin", {"openvino_model.xml"}) is Format.PICKLE
    assert format_of("pytorch_model.bin", {"openvino_model.xml"}) is Format.PICKLE
