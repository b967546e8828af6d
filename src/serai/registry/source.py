"""Where the weights of a version come from, and what they turned out to be.

These values are kept as JSON beside a row, so they are `msgspec.Struct`s: decoding refuses a key
that it does not know. Times, status and the like belong to the row itself (`version.Version`).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serai.registry.canonical import digest_of

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Meta(min_length=1, max_length=500)]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
DeviceKind = Literal["cpu", "cuda", "xpu", "mps", "remote"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a row that is stored as JSON. Defaults are left out of it."""


class HubSource(Value, frozen=True, kw_only=True, tag="hub", tag_field="kind"):
    """A repository of the hub; `revision` is a commit, or a branch that a pull pins to one."""

    repo: Text
    revision: Text = "main"

    @property
    def is_pinned(self) -> bool:
        return _COMMIT.fullmatch(self.revision) is not None


class FolderSource(Value, frozen=True, kw_only=True, tag="folder", tag_field="kind"):
    """A folder below a root that an admin listed under the name `root`; `path` is relative to it."""

    root: Text
    path: Text


class FileSource(Value, frozen=True, kw_only=True, tag="file", tag_field="kind"):
    """One file at an address, with the digest that it must have."""

    url: Text
    sha256: Sha256


class RemoteSource(Value, frozen=True, kw_only=True, tag="remote", tag_field="kind"):
    """A model behind another server; `secret` is a name, and the secret itself says where it may go."""

    endpoint: Text
    model: Text
    secret: Text | None = None


class PackageSource(Value, frozen=True, kw_only=True, tag="package", tag_field="kind"):
    """Something that ships with this package under `name`; it needs nothing fetched."""

    name: Text


Source = HubSource | FolderSource | FileSource | RemoteSource | PackageSource


class Adapter(Value, frozen=True, kw_only=True):
    """A LoRA that is laid over the base weights with the strength `scale`."""

    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
    source: Source
    scale: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class File(Value, frozen=True, kw_only=True):
    """One file of the weights; `path` is relative, with forward slashes."""

    path: Annotated[str, Meta(min_length=1, max_length=1000)]
    size: Bytes
    sha256: Sha256


class Footprint(Value, frozen=True, kw_only=True):
    """Memory that the loaded version takes on one kind of device: estimated, then measured."""

    device: DeviceKind
    bytes: Bytes
    measured: bool = False


class Benchmark(Value, frozen=True, kw_only=True):
    """One row of results, as its publisher or this machine found them."""

    name: Text
    dataset: str = ""
    metric: Text
    value: float
    unit: str = ""


class Availability(StrEnum):
    """Whether a version could be loaded now, as far as the registry can tell."""

    READY = "ready"
    NEEDS_PULL = "needs_pull"
    NEEDS_FILES = "needs_files"
    NO_SOURCE = "no_source"


def availability(source: Source | None, adapters: tuple[Adapter, ...], files: tuple[File, ...]) -> Availability:
    """Return what is missing before a version with this source, adapters and files can be loaded.

    A folder needs an operator (its files are not on the hub), which is why it outranks a pull.
    """
    if source is None:
        return Availability.NO_SOURCE
    if files:
        return Availability.READY
    sources = (source, *(adapter.source for adapter in adapters))
    if any(isinstance(one, FolderSource) for one in sources):
        return Availability.NEEDS_FILES
    if any(isinstance(one, HubSource | FileSource) for one in sources):
        return Availability.NEEDS_PULL
    return Availability.READY


def base_digest(source: Source | None, files: tuple[File, ...]) -> str:
    """Return a text that is equal for versions with the same base weights, whatever their adapters.

    Files below `adapters/` belong to adapters and do not count.
    """
    base = sorted((file.path, file.sha256) for file in files if not file.path.startswith("adapters/"))
    return digest_of({"source": source_document(source), "files": [list(entry) for entry in base]})


def source_document(source: Source | None) -> Mapping[str, object] | None:
    """Return `source` as a JSON object, or None."""
    return None if source is None else msgspec.to_builtins(source)
