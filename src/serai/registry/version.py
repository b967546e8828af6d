"""One version of a model: what it is, what is said of it, and its digest."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

from serai.errors import InvalidInput
from serai.registry.canonical import digest_of
from serai.registry.parameters import Parameter, check_parameters, default_steps
from serai.registry.semver import SemVer, parse
from serai.registry.source import (
    Adapter,
    Availability,
    Benchmark,
    DeviceKind,
    File,
    Footprint,
    Source,
    availability,
    base_digest,
    source_document,
)

MemoryClass = Literal["low", "medium", "high"]
"""What a version asks of a machine, for the automatic choice: about ≤ 4 GB, ≤ 16 GB, more."""


class Status(StrEnum):
    """Where a version is in its life. A tombstone keeps the number of a deleted one from coming back."""

    DRAFT = "draft"
    ACTIVE = "active"
    DEPRECATED = "deprecated"
    RETIRED = "retired"
    TOMBSTONE = "tombstone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One release.

    `seq` counts the releases of a model up and is never used again; `digest` is that of the
    manifest, from the moment the version leaves the draft.
    """

    model_id: str
    version: str
    seq: int
    status: Status
    release_notes: str = ""
    tags: tuple[str, ...] = ()
    based_on: str | None = None

    source: Source | None = None
    engine: str = ""
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "none"
    adapters: tuple[Adapter, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    allow_remote_code: bool = False
    allow_pickle: bool = False

    footprint: tuple[Footprint, ...] = ()
    memory_class: MemoryClass | None = None
    capabilities: tuple[str, ...] = ()
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    licence: str = ""
    commercial_use: bool | None = None
    duties: tuple[str, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()

    immutable: bool = False
    digest: str | None = None
    published_at: datetime | None = None
    unpublished_at: datetime | None = None
    deprecated_at: datetime | None = None
    sunset_at: datetime | None = None
    deprecation_reason: str = ""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str

    @property
    def semver(self) -> SemVer:
        return parse(self.version)

    @property
    def is_published(self) -> bool:
        return self.published_at is not None and self.unpublished_at is None

    @property
    def availability(self) -> Availability:
        return availability(self.source, self.adapters, self.files)

    @property
    def steps(self) -> int | None:
        """Denoising steps by default; None for what has none."""
        return default_steps(self.parameters)

    @property
    def base_digest(self) -> str:
        """Equal for versions that can share the base weights in memory."""
        return base_digest(self.source, self.files)

    def bytes_on(self, device: DeviceKind) -> int | None:
        """Return the footprint on a kind of device in bytes, a measured one before an estimate; or None."""
        found = sorted((entry for entry in self.footprint if entry.device == device), key=lambda entry: entry.measured)
        return found[-1].bytes if found else None


IDENTITY = (
    "source",
    "engine",
    "engine_options",
    "quantization",
    "adapters",
    "parameters",
    "files",
    "allow_remote_code",
    "allow_pickle",
)
"""What a version *is*: the fields of its manifest."""

TECHNICAL = (
    *IDENTITY,
    "footprint",
    "memory_class",
    "capabilities",
    "input_schema",
    "output_schema",
    "licence",
    "commercial_use",
    "duties",
    "tags",
)
"""What a new version takes over from the one it is based on."""

ALWAYS_EDITABLE = frozenset({"release_notes", "tags", "benchmarks", "footprint"})
"""What may be changed of an immutable version; its status moves by its own calls."""

_WRITABLE = frozenset({*TECHNICAL, "release_notes", "benchmarks"})


def manifest(version: Version) -> dict[str, Any]:
    """Return what a version is, as JSON values; equal manifests are the same version by another name.

    Defaults are left out, so that a field added later does not change the digests there are.
    """
    document = {name: msgspec.to_builtins(getattr(version, name)) for name in IDENTITY if name != "source"}
    document["source"] = source_document(version.source)
    document["files"] = sorted(document["files"], key=lambda file: file["path"])
    return {name: value for name, value in document.items() if value not in (None, "", False, (), [], {})}


def digest(version: Version) -> str:
    """Return 'sha256:…' of the canonical manifest. Raises InvalidInput."""
    return digest_of(manifest(version))


def check_version(version: Version) -> None:
    """Refuse a version whose parts contradict each other. Raises InvalidInput or InvalidVersionFormat."""
    parse(version.version)
    check_parameters(version.parameters)
    for name, values in (
        ("files", [file.path for file in version.files]),
        ("adapters", [adapter.id for adapter in version.adapters]),
        ("footprint", [f"{entry.device}/{entry.measured}" for entry in version.footprint]),
    ):
        if len(set(values)) != len(values):
            raise InvalidInput.at(name, "names the same thing twice")
    for file in version.files:
        parts = file.path.split("/")
        if file.path.startswith("/") or "\\" in file.path or "\0" in file.path or {"", ".", ".."} & set(parts):
            raise InvalidInput.at("files", "must have relative paths without '..'")


def check_fields(changes: Mapping[str, Any]) -> None:
    """Refuse a field that no caller may set on a version. Raises InvalidInput that names it."""
    unknown = sorted(set(changes) - _WRITABLE)
    if unknown:
        raise InvalidInput.at(unknown[0], f"cannot be set on a version (these can: {', '.join(sorted(_WRITABLE))})")


def derive(
    base: Version,
    overrides: Mapping[str, Any],
    *,
    version: str,
    seq: int,
    status: Status,
    at: datetime,
    by: str,
) -> Version:
    """Return a new version with the technical fields of `base`, except those in `overrides`.

    Weights of another source are other weights: where source or adapters change and no files are
    given, files and footprint start empty. Raises InvalidInput, InvalidVersionFormat.
    """
    check_fields(overrides)
    taken = {name: getattr(base, name) for name in TECHNICAL}
    moved = any(name in overrides and overrides[name] != taken[name] for name in ("source", "adapters"))
    if moved:
        taken["files"] = ()
        taken["footprint"] = ()
    made = Version(
        model_id=base.model_id,
        version=version,
        seq=seq,
        status=status,
        based_on=base.version,
        created_at=at,
        created_by=by,
        updated_at=at,
        updated_by=by,
        **(taken | dict(overrides)),
    )
    check_version(made)
    return seal(made)


def seal(version: Version) -> Version:
    """Return `version` with the digest that its status calls for: none for a draft."""
    return replace(version, digest=None if version.status is Status.DRAFT else digest(version))
