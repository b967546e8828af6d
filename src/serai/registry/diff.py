"""What changed between two versions, in the terms of those who decide whether to switch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import msgspec

from serai.registry.model import Model
from serai.registry.parameters import Parameter
from serai.registry.schema_diff import SchemaChange, compare_schemas
from serai.registry.source import Benchmark, File, Footprint
from serai.registry.version import Version, digest

Change = Literal["added", "removed", "changed"]

_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
"""Files that say how text becomes tokens: a change there changes what every prompt means."""

_SEPARATELY = frozenset(
    {
        "model_id",
        "version",
        "seq",
        "based_on",
        "digest",
        "created_at",
        "created_by",
        "updated_at",
        "updated_by",
        "files",
        "engine_options",
        "parameters",
        "footprint",
        "benchmarks",
        "input_schema",
        "output_schema",
    }
)
"""Fields that differ by nature, or that have a part of the diff of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field or key, with its JSON values; None where it was not there."""

    name: str
    change: Change
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanges:
    """Paths, by digest. `moved` holds (old path, new path) of files with equal contents."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    same: tuple[str, ...] = ()
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def any(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkPair:
    """One benchmark side by side; None where a version has no value. `change` is after − before."""

    name: str
    dataset: str
    metric: str
    unit: str
    before: float | None
    after: float | None
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPair:
    """Bytes on one kind of device; `measured` only where both are."""

    device: str
    before: int | None
    after: int | None
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDiff:
    model_id: str
    before: str
    after: str
    identical: bool
    """Whether the two are the same thing: their manifests have one digest."""
    fields: tuple[FieldChange, ...]
    engine_options: tuple[FieldChange, ...]
    parameters: tuple[FieldChange, ...]
    files: FileChanges
    tokenizer: tuple[str, ...]
    """Files of the tokenizer or chat template that differ."""
    input_schema: SchemaChange
    output_schema: SchemaChange
    memory: tuple[MemoryPair, ...]
    benchmarks: tuple[BenchmarkPair, ...]
    breaking: tuple[str, ...]
    """What may hurt those who call it, as sentences; empty if nothing was found."""

    def document(self) -> dict[str, Any]:
        """Return the diff as JSON values."""
        return dict(msgspec.to_builtins(self))


def diff_versions(before: Version, after: Version) -> VersionDiff:
    """Return what changed from `before` to `after`, two versions of one model or of two."""
    files = _diff_files(before.files, after.files)
    parameters = diff_mappings(_spelled_out(before.parameters), _spelled_out(after.parameters))
    input_schema = compare_schemas(before.input_schema, after.input_schema, "input")
    output_schema = compare_schemas(before.output_schema, after.output_schema, "output")
    tokenizer = tuple(path for path in (*files.added, *files.removed, *files.changed) if _is_text_file(path))
    changes = diff_fields(before, after)
    return VersionDiff(
        model_id=after.model_id,
        before=before.version,
        after=after.version,
        identical=digest(before) == digest(after),
        fields=changes,
        engine_options=diff_mappings(before.engine_options, after.engine_options),
        parameters=parameters,
        files=files,
        tokenizer=tokenizer,
        input_schema=input_schema,
        output_schema=output_schema,
        memory=_diff_memory(before.footprint, after.footprint),
        benchmarks=_pair_benchmarks(before.benchmarks, after.benchmarks),
        breaking=tuple(_breaking(changes, parameters, tokenizer, input_schema, output_schema)),
    )


def diff_cards(before: Model, after: Model) -> tuple[FieldChange, ...]:
    """Return the fields of a card that changed, those apart that change with every change."""
    return diff_fields(before, after, leave_out=frozenset({"created_at", "created_by", "updated_at", "updated_by"}))


def diff_fields(before: object, after: object, *, leave_out: frozenset[str] = _SEPARATELY) -> tuple[FieldChange, ...]:
    """Return the fields of two values of one dataclass that differ, as JSON values; for the audit log too."""
    if type(before) is not type(after):
        raise TypeError("only two values of one class can be compared")
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    names = [entry.name for entry in fields(before) if entry.name not in leave_out]  # type: ignore[arg-type]
    return diff_mappings({name: old[name] for name in names}, {name: new[name] for name in names}, in_order=names)


def diff_mappings(
    before: Mapping[str, Any], after: Mapping[str, Any], *, in_order: Iterable[str] = ()
) -> tuple[FieldChange, ...]:
    """Return the keys that differ; an empty value counts as not there."""
    found: list[FieldChange] = []
    for name in tuple(in_order) or sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new and isinstance(old, bool) == isinstance(new, bool):
            continue
        change: Change = "added" if _is_empty(old) else "removed" if _is_empty(new) else "changed"
        found.append(FieldChange(name=name, change=change, before=old, after=new))
    return tuple(found)


def _spelled_out(parameters: Mapping[str, Parameter]) -> dict[str, dict[str, Any]]:
    """Each parameter with its defaults written out, so that one without bounds is not taken for none."""
    return {name: msgspec.structs.asdict(parameter) for name, parameter in parameters.items()}


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], (), {})


def _diff_files(before: tuple[File, ...], after: tuple[File, ...]) -> FileChanges:
    old = {file.path: file for file in before}
    new = {file.path: file for file in after}
    both = sorted(old.keys() & new.keys())
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    by_digest = {old[path].sha256: path for path in reversed(removed)}
    moved = []
    for path in list(added):
        source = by_digest.pop(new[path].sha256, None)
        if source is not None:
            moved.append((source, path))
            added.remove(path)
            removed.remove(source)
    return FileChanges(
        added=tuple(added),
        removed=tuple(removed),
        changed=tuple(path for path in both if old[path].sha256 != new[path].sha256),
        moved=tuple(moved),
        same=tuple(path for path in both if old[path].sha256 == new[path].sha256),
        bytes_before=sum(file.size for file in before),
        bytes_after=sum(file.size for file in after),
    )


def _is_text_file(path: str) -> bool:
    return path.rsplit("/", 1)[-1] in _TEXT_FILES


def _diff_memory(before: tuple[Footprint, ...], after: tuple[Footprint, ...]) -> tuple[MemoryPair, ...]:
    old, new = _best(before), _best(after)
    return tuple(
        MemoryPair(
            device=device,
            before=old[device].bytes if device in old else None,
            after=new[device].bytes if device in new else None,
            measured=device in old and device in new and old[device].measured and new[device].measured,
        )
        for device in sorted(old.keys() | new.keys())
    )


def _best(footprint: tuple[Footprint, ...]) -> dict[str, Footprint]:
    """By device, a measured figure before an estimate."""
    return {entry.device: entry for entry in sorted(footprint, key=lambda entry: entry.measured)}


def _pair_benchmarks(before: tuple[Benchmark, ...], after: tuple[Benchmark, ...]) -> tuple[BenchmarkPair, ...]:
    old = {(row.name, row.dataset, row.metric, row.unit): row.value for row in before}
    new = {(row.name, row.dataset, row.metric, row.unit): row.value for row in after}
    return tuple(
        BenchmarkPair(
            name=key[0],
            dataset=key[1],
            metric=key[2],
            unit=key[3],
            before=old.get(key),
            after=new.get(key),
            change=new[key] - old[key] if key in old and key in new else None,
        )
        for key in sorted(old.keys() | new.keys())
    )


def _breaking(
    changes: tuple[FieldChange, ...],
    parameters: tuple[FieldChange, ...],
    tokenizer: tuple[str, ...],
    input_schema: SchemaChange,
    output_schema: SchemaChange,
) -> Iterable[str]:
    for change in changes:
        if change.name == "capabilities":
            lost = sorted(set(change.before or ()) - set(change.after or ()))
            if lost:
                yield f"It can no longer do {', '.join(lost)}."
        if change.name in ("licence", "commercial_use"):
            yield f"{change.name} was {change.before!r} and is {change.after!r}."
    for change in parameters:
        if _narrows(change):
            yield f"The parameter {change.name} accepts less than before."
    if tokenizer:
        yield f"Text becomes other tokens: {', '.join(tokenizer)} differ."
    yield from (f"Input, {sentence}." for sentence in input_schema.breaking)
    yield from (f"Output, {sentence}." for sentence in output_schema.breaking)


def _narrows(change: FieldChange) -> bool:
    """Whether a value that was accepted may be refused now."""
    if change.change == "removed":
        return True
    if change.change == "added":
        return False
    old, new = change.before, change.after
    raised = new.get("min") is not None and (old.get("min") is None or new["min"] > old["min"])
    lowered = new.get("max") is not None and (old.get("max") is None or new["max"] < old["max"])
    fixed = bool(new.get("fixed")) and (not old.get("fixed") or new.get("default") != old.get("default"))
    step = new.get("multiple_of")
    coarser = step is not None and (old.get("multiple_of") or 1) % step != 0
    return raised or lowered or fixed or coarser
