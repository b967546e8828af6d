"""What the first bytes of a file of weights say, read with hard limits: a header is what a stranger wrote.

safetensors: 8 bytes of length, JSON, data (https://huggingface.co/docs/safetensors: the tensors fill the
data without gap or overlap). GGUF: magic, version and two counts. Nothing here unpacks or runs anything.
All functions block.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from serai.hub.choice import Format, format_of
from serai.hub.errors import FileNotAsNamed

MAX_HEADER_BYTES = 25_000_000
"""Of a safetensors header: as the hub's own library has it; the largest known model's has about a tenth."""
MAX_JSON_BYTES = 64 * 2**20
MAX_RANK = 16
MAX_GGUF_COUNT = 2**24
INDEX_SUFFIX = ".safetensors.index.json"

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_AFTER_PROTOCOL = frozenset(b"}]()c\x8c\x95X\x8aK.NGJM")
"""What follows the protocol byte in the pickles that programs write."""


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFacts:
    """What the headers of some files of weights add up to."""

    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    """Number of weights by type, as safetensors names types."""


def check_content(path: Path, name: str, names: Iterable[str]) -> None:
    """Look whether the file at `path` is what `name`, one of `names`, says. Raises FileNotAsNamed.

    A pickle is refused under every name but a pickle's own.
    """
    found = format_of(name, names)
    with path.open("rb") as file:
        head = file.read(64)
    if found is Format.PICKLE:
        return
    if _is_pickle(head):
        raise _wrong(name, "it is a pickle or an archive, which can run code when it is read")
    match found:
        case Format.SAFETENSORS:
            read_header(path, name)
        case Format.GGUF:
            _check_gguf(head, name)
        case Format.IR if name.lower().endswith(".xml"):
            _check_xml(path, name)
        case _:
            pass


def read_header(path: Path, name: str) -> WeightFacts:
    """Return what a safetensors file holds. Raises FileNotAsNamed for a header that is not sound."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _wrong(name, "its header is longer than the file, or than any header is")
        header = file.read(length)
    if not header.startswith(b"{"):
        raise _wrong(name, "its header is not JSON")
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = [msgspec.json.decode(entry, type=_Tensor) for entry in entries.values()]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _wrong(name, "its header is not that of a safetensors file") from error
    return _facts(tensors, size - 8 - length, name)


def add_up(facts: Iterable[WeightFacts]) -> WeightFacts:
    """Return the sum over the files of one model."""
    dtypes: dict[str, int] = {}
    parameters = total = 0
    for one in facts:
        parameters, total = parameters + one.parameters, total + one.bytes
        for dtype, count in one.dtypes.items():
            dtypes[dtype] = dtypes.get(dtype, 0) + count
    return WeightFacts(parameters=parameters, bytes=total, dtypes=dtypes)


def check_index(path: Path, name: str, names: Iterable[str]) -> None:
    """Refuse an index of shards that names a file which is not there. Raises FileNotAsNamed."""
    known, folder = set(names), PurePosixPath(name).parent
    weight_map = read_json(path, name).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _wrong(name, "it maps no weights to files")
    for shard in set(map(str, weight_map.values())):
        if ".." in shard.split("/") or str(folder / shard) not in known:
            raise _wrong(name, "it names a file that the repository does not hold")


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file; a list or a text is an empty one. Raises FileNotAsNamed."""
    if path.stat().st_size > MAX_JSON_BYTES:
        return {}  # the large ones are tokenizers, which their own parser checks
    try:
        value = json.loads(path.read_bytes())  # unlike msgspec it reads NaN, which some configurations have
    except (ValueError, RecursionError) as error:
        raise _wrong(name, "it is not JSON") from error
    return value if isinstance(value, dict) else {}


def _facts(tensors: list[_Tensor], data_bytes: int, name: str) -> WeightFacts:
    dtypes: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda one: one.data_offsets):
        bits = DTYPE_BITS.get(tensor.dtype)
        if bits is None:
            raise _wrong(name, "it has a type of numbers that is not known")
        if len(tensor.shape) > MAX_RANK or any(not 0 <= length < 2**48 for length in tensor.shape):
            raise _wrong(name, "it has a tensor of no possible shape")
        count = prod(tensor.shape)
        start, stop = tensor.data_offsets
        if start != end or stop - start != (count * bits + 7) // 8:
            raise _wrong(name, "its tensors do not fill its data")
        end = stop
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + count
    if end != data_bytes:
        raise _wrong(name, "its tensors do not fill its data")
    return WeightFacts(parameters=sum(dtypes.values()), bytes=data_bytes, dtypes=dtypes)


def _check_gguf(head: bytes, name: str) -> None:
    counts = (int.from_bytes(head[8:16], "little"), int.from_bytes(head[16:24], "little"))
    version = int.from_bytes(head[4:8], "little")
    if head[:4] != b"GGUF" or len(head) < 24 or version not in (2, 3) or max(counts) > MAX_GGUF_COUNT:
        raise _wrong(name, "it does not begin as a GGUF file does")


def _check_xml(path: Path, name: str) -> None:
    with path.open("rb") as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \r\n\t")
    if not head.startswith((b"<?xml", b"<net")) or b"<!" in head:
        raise _wrong(name, "it does not begin as an OpenVINO model does")


def _is_pickle(head: bytes) -> bool:
    protocol = len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2] in _AFTER_PROTOCOL
    return head.startswith((_ZIP, _HDF5)) or protocol


def _wrong(name: str, why: str) -> FileNotAsNamed:
    return FileNotAsNamed(f"{name} is not what its name says: {why}.")
