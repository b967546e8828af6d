"""The folder of weights: held once, counted by links, gone with the last version that needs it."""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serai.errors import InvalidInput
from serai.hub.files import ModelFiles

NOW = datetime.now(UTC)
BIG, SMALL = b"w" * 100_000, b"{}"


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "models")


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stage(files: ModelFiles, name: str, **contents: bytes) -> Path:
    """Bring files into a staging folder as a download does."""
    folder = files.staging(key(name))
    for path, data in contents.items():
        partial = files.partial(key(name + path))
        partial.write_bytes(data)
        files.stage_partial(partial, digest(data), folder / path)
    return folder


def publish(files: ModelFiles, folder: Path, number: str) -> None:
    files.publish(folder, files.describe(folder), "m", number)


def blobs(files: ModelFiles) -> set[str]:
    return {path.name for path in (files.root / "blobs").iterdir()}


def test_versions_share_what_they_have_in_common(files: ModelFiles) -> None:
    """The same bytes lie on the disk once, whatever they are called; each version's folder is whole."""
    publish(files, stage(files, "a", weights=BIG, config=SMALL), "1.0.0")
    publish(files, stage(files, "b", other_name=BIG, config=b"{1}"), "1.1.0")
    files.unstage(key("a"))
    files.unstage(key("b"))
    one, other = files.folder_of("m", "1.0.0"), files.folder_of("m", "1.1.0")
    assert (one / "weights").samefile(other / "other_name")
    assert {path.name for path in one.iterdir()} == {"weights", "config"}
    assert blobs(files) == {digest(BIG), digest(SMALL), digest(b"{1}")}


def test_removing_a_version_frees_what_nobody_else_has(files: ModelFiles) -> None:
    """The shared bytes go with the last version, and the answer says how many became free."""
    publish(files, stage(files, "a", weights=BIG, config=SMALL), "1.0.0")
    publish(files, stage(files, "b", weights=BIG, config=b"{1}"), "1.1.0")
    files.unstage(key("a"))
    files.unstage(key("b"))
    assert files.remove("m", "1.0.0") == len(SMALL)
    assert files.holds("m", "1.1.0", files.describe(files.folder_of("m", "1.1.0")))
    assert files.remove("m", "1.1.0") == len(BIG) + 3
    assert files.remove("m", "1.1.0") == 0
    assert blobs(files) == set()
    assert not (files.root / "versions" / "m").exists()


def test_staged_files_that_nobody_published_are_freed(files: ModelFiles) -> None:
    """What was only fetched for a conversion goes when that is over."""
    stage(files, "a", weights=BIG)
    files.unstage(key("a"))
    assert blobs(files) == set()


def test_a_damaged_or_missing_file_is_found(files: ModelFiles) -> None:
    """`holds` looks at names and sizes, `verify` reads everything."""
    folder = stage(files, "a", weights=BIG, config=SMALL)
    known = files.describe(folder)
    publish(files, folder, "1.0.0")
    assert files.holds("m", "1.0.0", known)
    assert not files.holds("m", "2.0.0", known)
    assert not files.holds("m", "1.0.0", ())
    target = files.folder_of("m", "1.0.0")
    (target / "weights").write_bytes(b"x" * len(BIG))
    (target / "config").unlink()
    assert files.verify("m", "1.0.0", known) == ("config", "weights")
    assert not files.holds("m", "1.0.0", known)


def test_a_damaged_blob_is_not_shared(files: ModelFiles) -> None:
    """A file that was changed behind the server's back is not linked into another version."""
    folder = stage(files, "a", weights=BIG)
    (folder / "weights").write_bytes(b"x" * len(BIG))
    assert not files.stage_blob(digest(BIG), len(BIG), folder / "again")
    fresh = stage(files, "b", weights=BIG)
    assert (fresh / "weights").read_bytes() == BIG
    assert (files.root / "blobs" / digest(BIG)).read_bytes() == BIG


def test_a_version_is_replaced_as_a_whole(files: ModelFiles) -> None:
    """Publishing again leaves nothing of what stood there."""
    publish(files, stage(files, "a", weights=BIG), "1.0.0")
    publish(files, stage(files, "b", config=SMALL), "1.0.0")
    assert [path.name for path in files.folder_of("m", "1.0.0").iterdir()] == ["config"]


def test_a_foreign_file_on_another_disk_is_linked_by_name(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no hard link can be made the file is not copied either; when it is gone, it is fetched."""
    cached = tmp_path / "cached"
    cached.write_bytes(BIG)
    real = os.link

    def link(source: Path, target: Path, **options: bool) -> None:
        if Path(source) == cached:
            raise OSError(18, "Invalid cross-device link")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    folder = files.staging(key("a"))
    files.stage_foreign(cached, digest(BIG), folder / "weights")
    publish(files, folder, "1.0.0")
    files.unstage(key("a"))
    published = files.folder_of("m", "1.0.0") / "weights"
    assert published.is_symlink()
    assert published.read_bytes() == BIG
    cached.unlink()
    assert not files.stage_blob(digest(BIG), len(BIG), tmp_path / "x")
    files.remove("m", "1.0.0")
    assert blobs(files) == set()


def test_a_sweep_takes_what_was_left_behind(files: ModelFiles) -> None:
    """Old parts, old staged files and versions that the registry does not know go; the rest stays."""
    publish(files, stage(files, "a", weights=BIG), "1.0.0")
    publish(files, stage(files, "b", weights=b"other"), "2.0.0")
    files.partial(key("part")).write_bytes(b"abc")
    assert files.sweep(NOW - timedelta(days=7), lambda *_: False).folders == 0
    swept = files.sweep(NOW + timedelta(days=1), lambda model_id, number: (model_id, number) == ("m", "1.0.0"))
    assert swept.folders == 3
    assert swept.bytes == 3 + len(b"other")
    assert blobs(files) == {digest(BIG)}
    assert not list((files.root / "partial").iterdir())
    assert files.folder_of("m", "1.0.0").exists()


@pytest.mark.parametrize("name", ["../x", "x" * 64, "", "A" * 64, "/" + "a" * 63])
def test_names_that_are_no_digests_are_refused(files: ModelFiles, name: str) -> None:
    """No path is made of anything else."""
    for function in (files.partial, files.staging, files.scratch, files.unstage):
        with pytest.raises(InvalidInput):
            function(name)
    with pytest.raises(InvalidInput):
        files.folder_of("..", "1.0.0")


def test_everything_belongs_to_the_server_alone(files: ModelFiles) -> None:
    """Folders are 0700."""
    publish(files, stage(files, "a", weights=BIG), "1.0.0")
    folders = [path for path in files.root.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
