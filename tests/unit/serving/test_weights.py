"""Weights are found where they may be, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest

from serai.registry.errors import ModelNotPulled
from serai.registry.source import Adapter, File, FileSource, FolderSource, HubSource, PackageSource, Source
from serai.serving.weights import LocalWeights, adapter_id
from unit.registry.build import a_version

DIGEST = "0" * 64
NAMES = {
    "package": PackageSource(name="tiny"),
    "root": FolderSource(root="lab", path="team/model"),
    "hub": HubSource(repo="owner/m"),
    "file": FileSource(url="https://example.org/m.onnx", sha256=DIGEST),
}


@pytest.fixture
def weights(tmp_path: Path) -> LocalWeights:
    for folder in ("package/tiny", "lab/team/model", "models/m/1.0.0", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.xml").write_bytes(b"four")
    return LocalWeights(package=tmp_path / "package", pulled=tmp_path / "models", roots={"lab": tmp_path / "lab"})


@pytest.mark.parametrize(
    ("source", "folder"),
    [("package", "package/tiny"), ("root", "lab/team/model"), ("hub", "models/m/1.0.0"), ("file", "models/m/1.0.0")],
)
def test_each_source_has_its_place(weights: LocalWeights, tmp_path: Path, source: str, folder: str) -> None:
    """An absolute folder, whole."""
    version = a_version(
        "n" if source == "root" else "m", source=NAMES[source], files=(File(path="model.xml", size=4, sha256=DIGEST),)
    )
    assert weights.locate(version) == tmp_path / folder


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (PackageSource(name="gone"), "Install"),
        (FolderSource(root="attic", path="model"), "'attic'"),
        (FolderSource(root="lab", path="team/gone"), "'lab'"),
        (HubSource(repo="owner/gone"), 'POST /pull {"model": "owner/gone"}'),
        (None, "PATCH /models/n/versions/1.0.0"),
    ],
)
def test_what_is_not_here_names_the_remedy(weights: LocalWeights, tmp_path: Path, source: Source, hint: str) -> None:
    """A missing folder, root or source is ModelNotPulled, and no path of the server is told."""
    with pytest.raises(ModelNotPulled) as caught:
        weights.locate(a_version("n", source=source))
    assert hint in str(caught.value.hint)
    assert str(tmp_path) not in f"{caught.value.message} {caught.value.hint} {caught.value.details}"


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_weights_are_whole_or_not_here(weights: LocalWeights, tmp_path: Path, change: str) -> None:
    """A file that is missing, or shorter than it was, is told by its name."""
    files = (File(path="model.xml", size=4 if change == "missing" else 5, sha256=DIGEST),)
    if change == "missing":
        (tmp_path / "models/m/1.0.0/model.xml").unlink()
    with pytest.raises(ModelNotPulled) as caught:
        weights.locate(a_version(source=NAMES["hub"], files=files))
    assert caught.value.details == ["model.xml"]


def test_what_was_pulled_from_a_root_goes_before_the_root(weights: LocalWeights, tmp_path: Path) -> None:
    """Its owner may have changed it since; a pull has a copy."""
    source = FolderSource(root="lab", path="team/model")
    assert weights.locate(a_version("other", source=source)) == tmp_path / "lab/team/model"
    assert weights.locate(a_version("m", source=source)) == tmp_path / "models/m/1.0.0"


ESCAPES = ["../outside", "team/../../outside", "/etc", "link", "team/link/../../outside", "a\0b"]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_of_a_root(weights: LocalWeights, tmp_path: Path, path: str) -> None:
    """Neither '..', nor an absolute path, nor a link."""
    (tmp_path / "lab" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "lab" / "team" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelNotPulled):
        weights.locate(a_version("n", source=FolderSource(root="lab", path=path)))
    with pytest.raises(ModelNotPulled):
        weights.locate(a_version(source=PackageSource(name=path)))


def test_no_file_of_a_folder_leads_out_of_a_root(weights: LocalWeights, tmp_path: Path) -> None:
    """A link deep in the folder is as bad as one on the way; links in a circle are no folder."""
    (tmp_path / "lab" / "team" / "model" / "deep").mkdir()
    (tmp_path / "lab" / "team" / "model" / "deep" / "w").symlink_to(tmp_path / "outside" / "model.xml")
    (tmp_path / "lab" / "round").symlink_to(tmp_path / "lab" / "round")
    for path in ("team/model", "round"):
        with pytest.raises(ModelNotPulled):
            weights.locate(a_version("n", source=FolderSource(root="lab", path=path)))


def test_a_link_within_a_root_is_followed(weights: LocalWeights, tmp_path: Path) -> None:
    """Roots are often caches full of links."""
    (tmp_path / "lab" / "newest").symlink_to(tmp_path / "lab" / "team" / "model")
    assert weights.locate(a_version("n", source=FolderSource(root="lab", path="newest"))) == tmp_path / "lab/team/model"


def test_adapters_lie_beside_the_base_or_have_a_place_of_their_own(weights: LocalWeights, tmp_path: Path) -> None:
    """Pulled ones below `adapters`, others where their source says; a missing one is named."""
    (tmp_path / "models/m/1.0.0/adapters/v2").mkdir(parents=True)
    pulled = Adapter(id="v2", source=HubSource(repo="owner/lora"))
    brought = Adapter(id="v1", source=FolderSource(root="lab", path="team"))
    gone = Adapter(id="v3", source=HubSource(repo="owner/other"))
    version = a_version(source=NAMES["hub"], adapters=(pulled, brought, gone))
    assert weights.locate_adapter(version, pulled) == tmp_path / "models/m/1.0.0/adapters/v2"
    assert weights.locate_adapter(version, brought) == tmp_path / "lab/team"
    with pytest.raises(ModelNotPulled) as caught:
        weights.locate_adapter(version, gone)
    assert "v3" in str(caught.value.details)


def test_an_adapters_id_is_its_content() -> None:
    """Equal files have one id under any name; other files, or another source, have another."""

    def id_of(name: str, digest: str | None, **values: Any) -> str:
        adapter = Adapter(id=name, source=values.get("source", HubSource(repo="owner/lora")))
        path = f"adapters/{name}/w.safetensors"
        files = () if digest is None else (File(path=path, size=1, sha256=digest * 64),)
        return adapter_id(a_version(adapters=(adapter,), files=files), adapter)

    assert id_of("a", "1") == id_of("b", "1")
    assert id_of("a", "1") != id_of("a", "2")
    assert id_of("a", None) == id_of("b", None)
    assert id_of("a", None) != id_of("a", None, source=HubSource(repo="owner/other"))
