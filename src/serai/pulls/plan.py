"""From a request, the registry as it stands and the hub's list to what will be done. Pure."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import msgspec

from serai.engines.language.embedding_folder import MODULES
from serai.errors import InvalidInput
from serai.hub.choice import ORDER, PIPELINE, Choice, Format, choose
from serai.hub.model import Listing, PulledSource
from serai.pulls.conversion import ENCODERS
from serai.pulls.errors import ModelNameTaken, NothingToPull, UnsupportedWeights
from serai.pulls.model import Converter, Plan, PullPolicy, PullRequest, Quantize, Wanted
from serai.registry import lifecycle
from serai.registry.checks import versions_in_use
from serai.registry.errors import ActiveVersionLimitExceeded, ModelNotFound, VersionNotFound
from serai.registry.reference import is_hub_name, parse_reference
from serai.registry.snapshot import ModelEntry, RegistrySnapshot
from serai.registry.source import FileSource, FolderSource, HubSource, Source
from serai.registry.version import Status, Version

_NOT_SLUG = re.compile(r"[^a-z0-9._-]+")
_STORED: dict[Quantize, str] = {"q4": "int4", "q8": "int8", "fp16": "fp16", "fp32": "fp32", "no": "none"}
_ON_CUDA = {"int4": "nf4", "fp16": "none", "fp32": "none"}
_BITS = {"int4": 5.0, "int8": 8.5, "fp16": 16.0, "fp32": 32.0}
"""Bits per weight with scales, rounded up; 4-bit profiles keep embeddings at 8."""
_NAMED_BITS = re.compile(r"(?:^|[-_.])(int4|int8|fp16|fp32|bf16)(?:[-_.]|$)")


def wanted(snapshot: RegistrySnapshot, request: PullRequest) -> Wanted:
    """Return what the request means. Raises ModelNotFound, VersionNotFound, NothingToPull, InvalidReference."""
    source: PulledSource | None = request.source()
    if source is not None:
        found = _entry_with_source(snapshot, source)
        return _wanted(snapshot, found, source, request)
    reference = parse_reference(request.model)
    entry = snapshot.find_model(reference.name)
    if entry is None:
        if not is_hub_name(reference.name):
            hint = "Write a hub's repository as 'owner/name'; GET /models lists the models of the registry."
            raise ModelNotFound(f"There is no model {reference.name!r}.", hint=hint)
        return _wanted(snapshot, None, HubSource(repo=reference.name, revision=request.revision or "main"), request)
    if reference.version is not None and reference.version not in entry.candidates:
        raise VersionNotFound(f"The model {entry.model.id} has no version {reference.version!r}.")
    named = _source_in(entry, reference.version, reference.name)
    if not isinstance(named, HubSource):
        return _wanted(snapshot, entry, named, request)
    return _wanted(
        snapshot, entry, msgspec.structs.replace(named, revision=request.revision or named.revision), request
    )


def plan(
    snapshot: RegistrySnapshot,
    request: PullRequest,
    wish: Wanted,
    listing: Listing,
    policy: PullPolicy,
    converter: Converter,
) -> Plan:
    """Return what will be done, or raise before anything is fetched.

    Raises FilesRefused, UnsupportedWeights, what the converter names as obstacle, ModelNameTaken.
    """
    listing = replace(listing, task=_task(snapshot, wish, listing))
    choice = _choice(wish, listing, converter)
    if is_pipeline(choice) and not listing.task:
        listing = replace(listing, task="image-generation")
    quantization, convert, why = decide(request.quantize, choice, listing, policy)
    if convert and (obstacle := converter.obstacle(listing.architectures, listing.task)) is not None:
        raise obstacle
    model_id = wish.model_id or _free_id(snapshot, wish, listing)
    entry = snapshot.models.get(model_id)
    status, warnings = _status(snapshot, entry)
    halves = _halves(choice, listing)
    return Plan(
        wanted=wish,
        listing=listing,
        choice=choice,
        model_id=model_id,
        quantization=quantization,
        convert=convert,
        why=why,
        status=status,
        # The intermediate form at 16 bits and the result lie beside each other for a while.
        scratch_bytes=int(halves * (1 + _BITS[quantization] / 16)) if convert else 0,
        warnings=(*warnings, *_from_elsewhere(entry, listing.source)),
    )


def decide(quantize: Quantize, choice: Choice, listing: Listing, policy: PullPolicy) -> tuple[str, bool, str]:
    """Return what the version's quantization is, whether a conversion makes it, and why.

    Raises UnsupportedWeights, InvalidInput for what cannot be made of these weights.
    """
    if choice.format is Format.GGUF:
        raise UnsupportedWeights(
            "The repository holds GGUF files, which no engine here reads.",
            hint="Pull the repository with the safetensors that they were made from, or one with OpenVINO files.",
        )
    if choice.format is not Format.SAFETENSORS or not (_has_config(choice) or is_pipeline(choice)):
        if quantize not in ("auto", "no"):
            kept = "These weights are taken as they are published; only safetensors of a whole model are converted."
            raise InvalidInput.at("quantize", f"must be 'auto' or 'no' here: {kept}")
        return _published(choice, listing), False, f"The published {choice.format} files are taken as they are."
    size, where = _halves(choice, listing), f"{listing.name}"
    on_cpu = is_pipeline(choice) and policy.device == "cpu"
    if on_cpu and quantize == "q4":
        raise InvalidInput.at("quantize", "must be 'auto', 'q8', 'fp16', 'fp32' or 'no' for image pipelines on a CPU")
    if quantize == "auto":
        # A pipeline computes in 32 bits on a CPU, and so is held, whatever its file is in: 8 bits would save nothing.
        why = "16 bits: an image pipeline is held in 32 bits on a CPU whatever its files are in."
        quantization, why = ("fp16", why) if on_cpu else _automatic(size, policy)
    else:
        quantization, why = _STORED[quantize], f"quantize={quantize} was asked for."
    if policy.device == "cuda":
        stored = _ON_CUDA.get(quantization, quantization)
        return stored, False, f"{why} On CUDA {where} is loaded from its safetensors."
    return quantization, quantization != "none", why


def _automatic(size: int, policy: PullPolicy) -> tuple[str, str]:
    """Return the decision of `auto` for weights of `size` bytes at 16 bits each."""
    full = size if policy.device == "cuda" else int(size * _BITS["int8"] / 16)
    if size > policy.q4_threshold_bytes:
        return "int4", f"4 bits: the weights ({size} bytes) are over q4_threshold_bytes ({policy.q4_threshold_bytes})."
    if policy.budget_bytes is not None and full > policy.budget_bytes:
        return "int4", f"4 bits: {full} bytes would not fit the device's budget ({policy.budget_bytes})."
    if policy.device == "cuda":
        return "none", f"As published: the weights ({size} bytes) fit the device's budget."
    return "int8", f"8 bits: the weights ({size} bytes) are not over q4_threshold_bytes, and fit the device's budget."


def _halves(choice: Choice, listing: Listing) -> int:
    """Return the bytes of the weights at 16 bits each; as published where their number is not known."""
    return listing.parameters * 2 if listing.parameters else choice.weight_bytes


def _task(snapshot: RegistrySnapshot, wish: Wanted, listing: Listing) -> str:
    """Return the task: of the model that it becomes a version of, as the hub tells it, or as the files show."""
    entry = snapshot.models.get(wish.model_id or wish.name or "")
    if entry is not None:
        return entry.model.task
    is_embedding = ENCODERS.intersection(listing.architectures) or any(one.path == MODULES for one in listing.files)
    return listing.task or ("embedding" if is_embedding else "")


def _choice(wish: Wanted, listing: Listing, converter: Converter) -> Choice:
    """Choose files; where safetensors could not be converted, OpenVINO files of the same repository go first.

    Of an embedding model ONNX files, too: there is an engine for them.
    """
    ready = (Format.IR, Format.ONNX) if listing.task == "embedding" else (Format.IR,)
    can_convert = converter.obstacle(listing.architectures, listing.task) is None
    order = ORDER if can_convert else (*ready, *(one for one in ORDER if one not in ready))
    return choose(listing.files, allow_pickle=wish.allow_pickle, allow_remote_code=wish.allow_remote_code, order=order)


def is_pipeline(choice: Choice) -> bool:
    """Say whether the weights are parts of one pipeline."""
    return any(file.path == PIPELINE for file in choice.files)


def _has_config(choice: Choice) -> bool:
    return any(file.path == "config.json" for file in choice.files)


def _published(choice: Choice, listing: Listing) -> str:
    found = _NAMED_BITS.search(listing.name.lower()) if choice.format is Format.IR else None
    return found[1] if found is not None else "none"


def _wanted(snapshot: RegistrySnapshot, entry: ModelEntry | None, source: PulledSource, request: PullRequest) -> Wanted:
    """Return the wish with the draft that may be filled, and the leave that an admin gave to that draft."""
    if request.name is not None and (entry is None or entry.model.id != request.name):
        entry = snapshot.models.get(request.name)
    draft = next((one for one in _drafts(entry) if _is_filled_by(one, source)), None)
    return Wanted(
        source=source,
        model_id=entry.model.id if entry is not None else None,
        name=request.name,
        draft=draft.version if draft is not None else None,
        allow_pickle=draft is not None and draft.allow_pickle,
        allow_remote_code=draft is not None and draft.allow_remote_code,
    )


def _drafts(entry: ModelEntry | None) -> list[Version]:
    if entry is None:
        return []
    versions = (candidate.version for candidate in entry.candidates.values())
    return [one for one in versions if one.status is Status.DRAFT and not one.files]


def _is_filled_by(draft: Version, source: PulledSource) -> bool:
    """Say whether a draft waits for these files; whether the commit fits too shows when it is known."""
    return draft.source == source or (isinstance(source, HubSource) and is_same_repo(draft.source, source))


def fits(draft: Version, source: PulledSource) -> bool:
    """Say whether a draft announced this very source: its commit, or a branch that a pull pins."""
    if isinstance(source, HubSource) and isinstance(draft.source, HubSource) and draft.source.is_pinned:
        return draft.source.revision == source.revision
    return True


def _source_in(entry: ModelEntry, number: str | None, name: str) -> PulledSource:
    """Return the source that a name means in a model: the version's, a draft's that waits, the newest's."""
    drafts = _drafts(entry)
    versions: Sequence[Version] = [candidate.version for candidate in entry.candidates.values()]
    if number is not None:
        versions = [entry.candidates[number].version]
    elif is_hub_name(name) and not any(is_same_repo(one.source, HubSource(repo=name)) for one in versions):
        return HubSource(repo=name)
    for version in (*(one for one in drafts if one in versions), *versions):
        if isinstance(version.source, HubSource | FolderSource | FileSource):
            if number is None and version not in drafts and isinstance(version.source, HubSource):
                return HubSource(repo=version.source.repo)  # a new commit, if there is one
            return version.source
    raise NothingToPull(
        f"{entry.model.id} names no source that could be pulled.",
        hint="Pull a repository with 'name' set to this model's id.",
    )


def _from_elsewhere(entry: ModelEntry | None, source: PulledSource) -> tuple[str, ...]:
    """Return a warning where a model takes in what comes from elsewhere than all that it holds."""
    versions = [candidate.version for candidate in entry.candidates.values()] if entry is not None else []
    held = [version.source for version in versions if version.files]
    known = any(is_same_repo(one, source) if isinstance(source, HubSource) else one == source for one in held)
    if entry is None or not held or known:
        return ()
    return (f"{entry.model.id} holds versions of another source; its bare name means the newest active one of all.",)


def is_same_repo(one: Source | None, other: HubSource) -> bool:
    """Say whether both are of one repository, at whatever commit; hubs ignore case."""
    return isinstance(one, HubSource) and one.repo.lower() == other.repo.lower()


def _entry_with_source(snapshot: RegistrySnapshot, source: PulledSource) -> ModelEntry | None:
    for entry in snapshot.models.values():
        if any(candidate.version.source == source for candidate in entry.candidates.values()):
            return entry
    return None


def _free_id(snapshot: RegistrySnapshot, wish: Wanted, listing: Listing) -> str:
    """Return the id for the model: the one that was asked for, or one made from the source's name."""
    if wish.name is not None:
        if wish.name in snapshot.services:
            raise ModelNameTaken(f"A service has the name {wish.name!r}.")
        return wish.name
    made = slug(listing.source)
    if made in snapshot.models or made in snapshot.services or snapshot.find_model(made) is not None:
        raise ModelNameTaken(f"The name {made!r}, made from the source, belongs to something else.")
    return made


def slug(source: PulledSource) -> str:
    """Return an id made from a source's own name: 'Qwen/Qwen3-0.6B' becomes 'qwen3-0.6b'."""
    match source:
        case HubSource():
            text = source.repo
        case FolderSource():
            text = source.path
        case _:
            text = str(PurePosixPath(source.url).with_suffix(""))
    made = _NOT_SLUG.sub("-", PurePosixPath(text).name.lower()).strip("-._")[:128]
    return made if made not in ("", "auto", "latest") else f"pulled-{made or 'model'}"


def registered(entry: ModelEntry | None, source: PulledSource, quantization: str) -> Version | None:
    """Return the version that holds this commit in this quantization already. A folder's content may have changed."""
    if entry is None or isinstance(source, FolderSource):
        return None
    for candidate in entry.candidates.values():
        version = candidate.version
        if version.files and version.source == source and version.quantization == quantization:
            return version if version.status is not Status.RETIRED else None
    return None


def _status(snapshot: RegistrySnapshot, entry: ModelEntry | None) -> tuple[Status, tuple[str, ...]]:
    """Return the status that one more version would get: checked before the download, and again at its end."""
    if snapshot.rules.default_version_status == "draft":
        return Status.DRAFT, ("The version stays a draft, as the setting default_version_status says.",)
    if entry is None:
        return Status.ACTIVE, ()
    versions = [candidate.version for candidate in entry.candidates.values()]
    try:
        lifecycle.make_room(versions, versions_in_use(snapshot, entry.model.id), snapshot.rules)
    except ActiveVersionLimitExceeded as refusal:
        return Status.DRAFT, (f"The version stays a draft: {refusal.message} {refusal.hint}",)
    return Status.ACTIVE, ()


def as_draft(before: Plan, warning: str) -> Plan:
    """Return the plan for a version that may not become active after all."""
    return replace(before, status=Status.DRAFT, warnings=(*before.warnings, warning))


def pinned_again(wish: Wanted, decision: Any) -> Wanted:
    """Return the wish with the commit that an earlier attempt of the same job has pinned."""
    source = decision.get("source") if isinstance(decision, dict) else None
    if not isinstance(wish.source, HubSource) or not isinstance(source, dict):
        return wish
    try:
        earlier = msgspec.convert(source, HubSource)
    except msgspec.ValidationError:
        return wish
    return replace(wish, source=msgspec.structs.replace(wish.source, revision=earlier.revision))
