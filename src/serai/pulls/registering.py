"""From files that have arrived to a version: the registry's own commands, in one transaction each."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from serai.pulls.errors import ModelNameTaken, RegistryBusy
from serai.pulls.model import Arrival, Plan
from serai.pulls.plan import fits, is_same_repo
from serai.registry import lifecycle, releases, store
from serai.registry.bindings import told
from serai.registry.model import Model
from serai.registry.parameters import Parameter, Value
from serai.registry.registry import Change
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.source import File, FolderSource, Footprint, HubSource
from serai.registry.version import MemoryClass, Status, Version

LOW_BYTES, MEDIUM_BYTES = 4 * 10**9, 16 * 10**9
"""Bounds of the memory classes, as the registry describes them."""


def same_version(snapshot: RegistrySnapshot, plan: Plan, files: tuple[File, ...]) -> Version | None:
    """Return the version that has these very files of this source already."""
    entry = snapshot.models.get(plan.model_id)
    if entry is None:
        return None
    for candidate in entry.candidates.values():
        version = candidate.version
        is_same = version.source == plan.listing.source and version.quantization == plan.quantization
        if is_same and version.files == files and version.status is not Status.RETIRED:
            return version
    return None


def draft_to_fill(snapshot: RegistrySnapshot, plan: Plan) -> Version | None:
    """Return the draft that announced these files and still waits for them."""
    entry = snapshot.models.get(plan.model_id)
    candidate = entry.candidates.get(plan.wanted.draft or "") if entry is not None else None
    if candidate is None or candidate.version.status is not Status.DRAFT or candidate.version.files:
        return None
    return candidate.version if fits(candidate.version, plan.listing.source) else None


def sibling(snapshot: RegistrySnapshot, plan: Plan) -> Version | None:
    """Return the newest version that has this commit in another quantization. A folder's content may have changed."""
    entry = snapshot.models.get(plan.model_id)
    if entry is None or isinstance(plan.listing.source, FolderSource):
        return None
    versions = (candidate.version for candidate in entry.candidates.values())
    same = (one for one in versions if one.source == plan.listing.source and one.files)
    return next((one for one in same if one.status not in (Status.DRAFT, Status.RETIRED)), None)


def next_number(snapshot: RegistrySnapshot, plan: Plan, numbers: Collection[str]) -> str:
    """Return the number for what arrives: the next minor one; of a commit that is there, one below that one's.

    1.0.0 in another quantization is 1.0.0-int4, so that the model's bare name means what it meant before.
    `numbers`: every one that was ever used.
    """
    known = sibling(snapshot, plan)
    if known is None:
        return lifecycle.next_version(numbers)
    semver = known.semver
    below = "0." if semver.is_prerelease else ""
    made = f"{semver.major}.{semver.minor}.{semver.patch}-{below}{plan.quantization}"
    further = (f"{made}.{count}" for count in itertools.count(2))
    return made if made not in numbers else next(one for one in further if one not in numbers)


def with_default_told(plan: Plan, version: Version, before: RegistrySnapshot) -> Plan:
    """Return the plan with a word for whoever would expect that the model's bare name means the new version."""
    entry = before.models.get(plan.model_id)
    default = None if entry is None or entry.default is None else entry.default.version
    if default is None or version.status is not Status.ACTIVE or version.semver > default.semver:
        return plan
    sentence = f"{plan.model_id} still means {default.version}; this one is {plan.model_id}@{version.version}."
    return replace(plan, warnings=(*plan.warnings, sentence))


def register(change: Change, arrival: Arrival, files: tuple[File, ...], number: str, device: str) -> Version:
    """Write the version `number`: a draft that is filled, the first of a new model, or one more.

    Raises ActiveVersionLimitExceeded, RegistryBusy where the number was taken meanwhile.
    """
    plan = arrival.plan
    draft = draft_to_fill(change.snapshot, plan)
    if draft is not None and draft.version == number:
        return _fill(change, draft, arrival, files, device)
    numbers, _ = store.version_numbers(change.connection, plan.model_id)
    if draft is not None or number != next_number(change.snapshot, plan, numbers):
        raise RegistryBusy(f"Another version of {plan.model_id} was added meanwhile.")
    if plan.wanted.model_id is None and plan.wanted.name is None:
        check_own(change.snapshot, plan)
    values = _values(arrival, files, device)
    entry = change.snapshot.models.get(plan.model_id)
    if arrival.parameters:
        newest = None if entry is None else next(iter(entry.candidates.values()), None)
        values["parameters"] = with_told({} if newest is None else newest.version.parameters, arrival.parameters)
    if entry is None:
        releases.create_model(change, _model(change, plan), _first(change, plan, number, values))
        return change.reload().models[plan.model_id].candidates[number].version
    known = sibling(change.snapshot, plan)
    based_on = None if known is None else known.version
    return releases.create_version(change, plan.model_id, number, values, based_on=based_on, status=plan.status)


def check_own(snapshot: RegistrySnapshot, plan: Plan) -> None:
    """Refuse a name made from the source that something else has taken meanwhile. Raises ModelNameTaken."""
    entry, source = snapshot.models.get(plan.model_id), plan.listing.source
    if entry is None:
        return
    sources = [candidate.version.source for candidate in entry.candidates.values()]
    if source in sources or any(isinstance(source, HubSource) and is_same_repo(one, source) for one in sources):
        return
    raise ModelNameTaken(f"The name {plan.model_id!r}, made from the source, belongs to another model now.")


def _fill(change: Change, draft: Version, arrival: Arrival, files: tuple[File, ...], device: str) -> Version:
    plan = arrival.plan
    values = _values(arrival, files, device)
    others = tuple(one for one in draft.footprint if one.device != device)
    received = lifecycle.receive_files(
        draft,
        source=plan.listing.source,
        files=files,
        footprint=(*others, *values["footprint"]),
        at=change.at,
        by=change.by,
    )
    filled = replace(
        received,
        quantization=plan.quantization,
        release_notes=f"{draft.release_notes} {plan.why}".strip(),
        licence=draft.licence or plan.listing.licence,
    )
    filled = replace(filled, parameters=with_told(draft.parameters, arrival.parameters))
    store.put_version(change.connection, filled)
    name = f"{draft.model_id}@{draft.version}"
    change.audit("versions.pull", "version", name, before=told(draft), after=told(filled))
    if plan.status is not Status.ACTIVE:
        return filled
    change.reload()
    return releases.activate(change, draft.model_id, draft.version)


def with_told(declared: Mapping[str, Parameter], told: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Return what was declared of settings, and what the files tell of those and of others.

    Which values a model takes at all its files decide; what somebody declared within that stays.
    """
    merged = {**told, **declared}
    for name in told.keys() & declared.keys():
        own, step = declared[name], told[name].multiple_of
        if own.default is None or _is_multiple(own.default, step):
            merged[name] = msgspec.structs.replace(own, multiple_of=step)
        else:
            merged[name] = told[name]
    return merged


def _is_multiple(value: Value, step: int | None) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (step is None or value % step == 0)


def _values(arrival: Arrival, files: tuple[File, ...], device: str) -> dict[str, Any]:
    plan = arrival.plan
    return {
        "source": plan.listing.source,
        "files": files,
        "quantization": plan.quantization,
        "footprint": (Footprint(device="cuda" if device == "cuda" else "cpu", bytes=arrival.memory_bytes),),
        "memory_class": _memory_class(arrival.memory_bytes),
        "licence": plan.listing.licence,
        "allow_pickle": plan.wanted.allow_pickle,
        "allow_remote_code": plan.wanted.allow_remote_code,
        "release_notes": f"Pulled from {_origin(plan)}. {plan.why}",
    }


def _origin(plan: Plan) -> str:
    source = plan.listing.source
    return f"{source.repo} at {source.revision[:12]}" if isinstance(source, HubSource) else plan.listing.name


def _memory_class(size: int) -> MemoryClass:
    return "low" if size <= LOW_BYTES else "medium" if size <= MEDIUM_BYTES else "high"


def _model(change: Change, plan: Plan) -> Model:
    source = plan.listing.source
    repo = source.repo if isinstance(source, HubSource) else None
    is_free = repo is not None and change.snapshot.find_model(repo) is None
    return Model(
        id=plan.model_id,
        name=repo.rpartition("/")[2] if repo is not None else plan.model_id,
        task=plan.listing.task or "chat",
        description=f"Pulled from {plan.listing.name}.",
        publisher=repo.partition("/")[0] if repo is not None else "",
        licence=plan.listing.licence,
        lookup_names=(repo,) if repo is not None and is_free else (),
        created_at=change.at,
        created_by=change.by,
        updated_at=change.at,
        updated_by=change.by,
    )


def _first(change: Change, plan: Plan, number: str, values: dict[str, Any]) -> Version:
    return Version(
        model_id=plan.model_id,
        version=number,
        seq=1,
        status=plan.status,
        capabilities=("text",) if (plan.listing.task or "chat") == "chat" else (),
        created_at=change.at,
        created_by=change.by,
        updated_at=change.at,
        updated_by=change.by,
        **values,
    )
