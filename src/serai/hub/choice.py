"""Which files of a repository are taken. Pure.

Weights come in formats, and one format is taken; the small files around them (configuration, tokenizer,
templates) always are. What runs code when it is read (pickles, Python) is left, unless that was allowed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from serai.hub.errors import FilesRefused, HubNonsense
from serai.hub.model import RemoteFile

MAX_FILES = 10_000
MAX_SMALL_BYTES = 256 * 2**20
"""A configuration or a tokenizer is never larger."""


class Format(StrEnum):
    """The forms of weights; the words are those of the engines."""

    SAFETENSORS = "safetensors"
    IR = "ir"
    ONNX = "onnx"
    GGUF = "gguf"
    PICKLE = "pickle"


PIPELINE = "model_index.json"
"""What a repository holds whose weights are parts of one pipeline, a folder for each."""

ORDER = (Format.SAFETENSORS, Format.IR, Format.ONNX, Format.GGUF)
"""What is taken first where a repository holds several."""

_SMALL = frozenset({".json", ".txt", ".jinja", ".jsonl", ".model", ".spm", ".tiktoken", ".vocab"})
_ONNX = frozenset({".onnx", ".onnx_data", ".data"})
_NETWORKS = (("model", ".onnx"), ("openvino_model", ".xml"))
"""A network's usual name; `name_….suffix` beside it are its other precisions."""
_PICKLE = frozenset(
    {".bin", ".pt", ".pth", ".pt2", ".ckpt", ".pkl", ".pickle", ".h5", ".hdf5", ".keras", ".joblib", ".npy", ".npz"}
    | {".msgpack", ".mar", ".dill", ".th", ".pb", ".nemo"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is taken of a repository."""

    format: Format
    files: tuple[RemoteFile, ...]
    """Weights first, then the small ones; each by path."""
    weight_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def choose(
    files: Sequence[RemoteFile],
    *,
    allow_pickle: bool = False,
    allow_remote_code: bool = False,
    order: Sequence[Format] = ORDER,
) -> Choice:
    """Return what is taken: the first format of `order` that there is, and the small files.

    Raises FilesRefused where nothing is safe to take, HubNonsense for names and numbers that no repository has.
    """
    check_names(files)
    names = {file.path for file in files}
    by_format: dict[Format, list[RemoteFile]] = {}
    for file in files:
        found = format_of(file.path, names)
        if found is not None:
            by_format.setdefault(found, []).append(file)
    wanted = (*order, Format.PICKLE) if allow_pickle else tuple(order)
    chosen = next((format_ for format_ in wanted if by_format.get(format_)), None)
    if chosen is None:
        raise _nothing(files, bool(by_format.get(Format.PICKLE)))
    weights = _without_doubles(_of_pipeline(by_format[chosen]) if PIPELINE in names else by_format[chosen])
    small = [file for file in files if _is_small(file.path) or (allow_remote_code and file.path.endswith(".py"))]
    too_large = [file.path for file in small if file.size > MAX_SMALL_BYTES]
    if too_large:
        raise FilesRefused("A file that should be small is not.", details=too_large)
    return Choice(
        format=chosen,
        files=(*sorted(weights, key=_path), *sorted(small, key=_path)),
        weight_bytes=sum(file.size for file in weights),
    )


def format_of(path: str, names: Iterable[str]) -> Format | None:
    """Return the format of weights that a name says, None for what holds none; `names`: all of the repository."""
    pure = PurePosixPath(path)
    suffix = pure.suffix.lower()
    if suffix == ".safetensors":
        return Format.SAFETENSORS
    if suffix == ".gguf":
        return Format.GGUF
    if suffix == ".xml":
        return Format.IR if _beside(pure, ".bin") in names else None
    if suffix == ".bin" and _beside(pure, ".xml") in names:
        return Format.IR
    if suffix in _ONNX and (suffix != ".data" or path.lower().endswith(".onnx.data")):
        return Format.ONNX
    return Format.PICKLE if suffix in _PICKLE else None


def check_names(files: Sequence[RemoteFile]) -> None:
    """Raise HubNonsense unless every name is a plain relative path, and none stands twice or under another."""
    if len(files) > MAX_FILES:
        raise HubNonsense(f"The repository lists more than {MAX_FILES} files.")
    paths = {file.path for file in files}
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    for file in files:
        parts = file.path.split("/")
        odd = "\\" in file.path or not file.path.isprintable() or len(file.path.encode()) > 1000
        if odd or {"", ".", ".."} & set(parts) or max(len(part.encode()) for part in parts) > 250:
            raise HubNonsense("The repository lists a file whose name leads out of it, or is none.")
        if file.size < 0:
            raise HubNonsense("The repository lists a file of no possible size.")
    if len(paths) != len(files) or paths & folders:
        raise HubNonsense("The repository lists two files under one name.")


def _beside(path: PurePosixPath, suffix: str) -> str:
    return str(path.with_suffix(suffix))


def _is_small(path: str) -> bool:
    """Say whether it is configuration, tokenizer or template; other repositories' leftovers do not hide there."""
    pure = PurePosixPath(path)
    return pure.suffix.lower() in _SMALL and not any(part.startswith(".") for part in pure.parts)


def _of_pipeline(weights: Sequence[RemoteFile]) -> Sequence[RemoteFile]:
    """Leave what no engine here loads: the whole again as one file beside the folders, and the safety checker."""
    parts = [file for file in weights if "/" in file.path and not file.path.startswith("safety_checker/")]
    return parts or weights


def _without_doubles(weights: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Leave what repeats the same weights.

    That is `consolidated…` beside `model…`, `x.fp16.…` beside `x.…`, and `model_….onnx` beside `model.onnx`,
    `openvino_model_….xml` beside `openvino_model.xml`, which are the same network in other precisions.
    """
    names = {file.path for file in weights}
    kept = []
    for file in weights:
        pure = PurePosixPath(file.path)
        has_model = any(PurePosixPath(name).parent == pure.parent and _base(name).startswith("model") for name in names)
        plain = str(pure.with_name(pure.name.replace(".fp16.", ".").replace(".non_ema.", ".")))
        if (pure.name.startswith("consolidated") and has_model) or (plain != file.path and plain in names):
            continue
        if any(
            pure.name.startswith(f"{stem}_") and str(pure.with_name(stem + suffix)) in names
            for stem, suffix in _NETWORKS
        ):
            continue
        kept.append(file)
    return kept


def _base(path: str) -> str:
    return PurePosixPath(path).name


def _path(file: RemoteFile) -> str:
    return file.path


def _nothing(files: Sequence[RemoteFile], has_pickles: bool) -> FilesRefused:
    if has_pickles:
        message = "The repository's weights are pickle files only, which run code when they are read."
    else:
        message = "The repository holds no weights of a kind that is taken (safetensors, OpenVINO, ONNX, GGUF)."
    return FilesRefused(message, details=sorted(file.path for file in files)[:50])
