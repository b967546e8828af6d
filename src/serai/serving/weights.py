"""Where on this machine the weights of a version are. Everything here reads the disk, and so blocks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from serai.registry.canonical import digest_of
from serai.registry.errors import ModelNotPulled
from serai.registry.source import Adapter, FolderSource, HubSource, PackageSource, Source, source_document
from serai.registry.version import Version
from serai.storage.home import safe_join

ADAPTERS: Final = "adapters"
"""The folder, beside the base weights, that has one folder for each adapter that was pulled."""


class Weights(Protocol):
    """Finds weights. Blocks; raises ModelNotPulled, with the remedy, for what is not here."""

    def locate(self, version: Version) -> Path:
        """Return the absolute path of the folder of a version's base weights."""

    def locate_adapter(self, version: Version, adapter: Adapter) -> Path:
        """Return the absolute path of an adapter's file or folder."""


class LocalWeights:
    """Weights in the package, among what was pulled, and below folders that an admin listed.

    `package`: the folder of what ships; `pulled`: holds `<model id>/<version>`; `roots`: by name. What was
    pulled from a root is used before what lies there, which may have changed since.
    """

    def __init__(self, *, package: Path, pulled: Path, roots: Mapping[str, Path]) -> None:
        self._package = package
        self._pulled = pulled
        self._roots = dict(roots)

    def locate(self, version: Version) -> Path:
        folder = self._find(version, version.source, self._of(version))
        lacking = [
            file.path
            for file in version.files
            if not file.path.startswith(f"{ADAPTERS}/") and not _is_whole(folder / file.path, file.size)
        ]
        if lacking or not folder.is_dir():
            raise _missing(version, version.source, lacking)
        return folder

    def locate_adapter(self, version: Version, adapter: Adapter) -> Path:
        path = self._find(version, adapter.source, self._of(version) / ADAPTERS / adapter.id)
        if not path.exists():
            raise _missing(version, adapter.source, [f"the adapter {adapter.id}"])
        return path

    def _of(self, version: Version) -> Path:
        return safe_join(self._pulled, version.model_id, version.version)

    def _find(self, version: Version, source: Source | None, pulled: Path) -> Path:
        if isinstance(source, PackageSource):
            return _below(self._package, source.name, version, source)
        if isinstance(source, FolderSource) and not pulled.exists():
            root = self._roots.get(source.root)
            if root is None:
                raise _missing(version, source, [])
            return _below(root, source.path, version, source)
        return pulled.absolute()


def adapter_id(version: Version, adapter: Adapter) -> str:
    """Return an id that two adapters share only if they are the same file."""
    prefix = f"{ADAPTERS}/{adapter.id}/"
    files = [[file.path.removeprefix(prefix), file.sha256] for file in version.files if file.path.startswith(prefix)]
    if files:
        return digest_of({"files": sorted(files)})
    return digest_of({"source": source_document(adapter.source)})


def _below(root: Path, path: str, version: Version, source: Source) -> Path:
    """Return the path below `root`; what leads out of it, by '..' or through a link, is as if it were missing."""
    try:
        base = root.resolve()
        found = (base / path).resolve()
        inside = (found, *(one.resolve() for one in found.rglob("*") if one.is_symlink()))
    except (OSError, RuntimeError, ValueError):  # no permission, links in a circle, a null character
        raise _missing(version, source, []) from None
    if not all(one.is_relative_to(base) for one in inside):
        raise _missing(version, source, [])
    return found


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _missing(version: Version, source: Source | None, files: list[str]) -> ModelNotPulled:
    what = f"{version.model_id}@{version.version}"
    path = f"/models/{version.model_id}/versions/{version.version}"
    match source:
        case HubSource(repo=repo):
            hint = f'POST /pull {{"model": "{repo}"}}'
        case FolderSource(root=root):
            hint = f"Put its files below the folder that the server's settings list as {root!r}, as the version says."
        case PackageSource():
            hint = "Install the package again: this should have come with it."
        case _:
            hint = f"PATCH {path} with a source, or pull a version that has one with POST /pull."
    return ModelNotPulled(f"The weights of {what} are not on this machine.", hint=hint, details=files[:20] or None)
