"""Which files are taken, and which names no repository has."""

import pytest

from serai.hub.choice import MAX_FILES, MAX_SMALL_BYTES, Format, choose
from serai.hub.errors import FilesRefused, HubNonsense
from serai.hub.model import RemoteFile


def files(*names: str, size: int = 10) -> list[RemoteFile]:
    return [RemoteFile(path=name, size=size) for name in names]


def taken(*names: str, **options: object) -> list[str]:
    return [file.path for file in choose(files(*names), **options).files]  # type: ignore[arg-type]


def test_safetensors_go_before_everything_else() -> None:
    """Of several forms of the same weights one is taken, with the small files, and no picture or readme."""
    repo = (
        "model.safetensors",
        "pytorch_model.bin",
        "model.onnx",
        "openvino_model.xml",
        "openvino_model.bin",
        "a.gguf",
    )
    small = ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "tokenizer.model")
    other = ("README.md", "logo.png", ".gitattributes", "modeling_x.py", ".cache/x.json")
    assert sorted(taken(*repo, *small, *other)) == sorted(["model.safetensors", *small])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.xml", "a.bin", "b.onnx", "config.json"), Format.IR),
        (("b.onnx", "b.onnx_data", "c.gguf"), Format.ONNX),
        (("c.gguf", "x.bin"), Format.GGUF),
    ],
)
def test_the_order_of_formats(names: tuple[str, ...], expected: Format) -> None:
    """What an engine can use at once goes before what must be converted from something unsafe."""
    assert choose(files(*names)).format is expected


def test_pickles_alone_are_refused_with_the_way_to_allow_them() -> None:
    """Nothing safe is an error that lists what there is; an admin's leave takes them."""
    with pytest.raises(FilesRefused) as refused:
        choose(files("pytorch_model.bin", "config.json"))
    assert "allow_pickle" in (refused.value.hint or "")
    assert refused.value.details == ["config.json", "pytorch_model.bin"]
    assert taken("pytorch_model.bin", "config.json", allow_pickle=True) == ["pytorch_model.bin", "config.json"]
    assert taken("model.safetensors", "x.pt", allow_pickle=True) == ["model.safetensors"]
    with pytest.raises(FilesRefused):
        choose(files("config.json"))


def test_python_is_taken_only_where_it_was_allowed() -> None:
    """Code of a repository stays there by default."""
    assert "modeling.py" not in taken("a.safetensors", "modeling.py")
    assert "modeling.py" in taken("a.safetensors", "modeling.py", allow_remote_code=True)


def test_doubles_of_the_same_weights_are_left() -> None:
    """The publisher's own form and half-precision copies beside the model are not fetched as well."""
    names = ("model-1.safetensors", "consolidated.safetensors", "unet/d.fp16.safetensors", "unet/d.safetensors")
    assert taken(*names) == ["model-1.safetensors", "unet/d.safetensors"]
    assert taken("consolidated.safetensors") == ["consolidated.safetensors"]
    assert taken("d.fp16.safetensors") == ["d.fp16.safetensors"]
    onnx = ("onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_fp16.onnx", "onnx/model_fp16.onnx_data")
    assert taken(*onnx) == ["onnx/model.onnx", "onnx/model.onnx_data"]
    assert taken("model_fp16.onnx") == ["model_fp16.onnx"]
    stems = ("openvino_model", "openvino_model_qint8", "openvino_tokenizer")
    network = [f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".xml")]
    assert taken(*network) == [name for name in network if "qint8" not in name]


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "a//x.safetensors", "a/./x", "a\\x", "a\nx", "", "a/..", "x" * 300, "a\0x"],
)
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    """A hub that lists such a name is not believed in anything."""
    with pytest.raises(HubNonsense):
        choose(files("model.safetensors", name))


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b.json"), tuple(f"{n}.json" for n in range(MAX_FILES + 1))])
def test_a_list_that_cannot_be_is_refused(names: tuple[str, ...]) -> None:
    """One name twice, a file that is a folder too, and lists without an end."""
    with pytest.raises(HubNonsense):
        choose(files("model.safetensors", *names))


def test_sizes_are_believed_only_where_they_can_be() -> None:
    """A negative size is nonsense; a configuration of gigabytes is refused."""
    with pytest.raises(HubNonsense):
        choose(files("model.safetensors", size=-1))
    huge = RemoteFile(path="config.json", size=MAX_SMALL_BYTES + 1)
    with pytest.raises(FilesRefused):
        choose([*files("model.safetensors"), huge])
