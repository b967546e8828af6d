"""Everything a decision reads, in memory and never changed: look-ups only, no search.

A change of one model or service makes a new snapshot that shares the rest with the old one.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from serai.registry.errors import (
    AliasNotFound,
    LicenceRefused,
    ModelNotFound,
    ModelNotPulled,
    ServiceNotFound,
    VersionNotFound,
)
from serai.registry.failure import Key
from serai.registry.licences import check_licence
from serai.registry.model import Alias, Model
from serai.registry.reference import Reference, lookup_key
from serai.registry.rules import RegistryRules
from serai.registry.service import FallbackEntry, Service, Target
from serai.registry.source import Availability, HubSource
from serai.registry.version import MemoryClass, Status, Version

ObstacleKind = Literal["draft", "retired", "inactive_model", "licence"]

FAST_STEPS = 30
QUALITY_STEPS = 40
ENHANCED = "enhanced"
QUALITY_TAGS = frozenset({"high-quality", ENHANCED})

Trait = Literal["any", "fast", "quality", "fast+quality", "enhanced", "low_memory"]
"""What the automatic choice can ask for; each has its own list per task, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a version may not answer, as the registry stands."""

    kind: ObstacleKind
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One version of one model, with everything that a decision asks of it worked out."""

    model: Model
    version: Version
    key: Key
    name: str
    """'model@version'."""
    tags: frozenset[str]
    steps: int | None
    memory_class: MemoryClass | None
    obstacle: Obstacle | None
    missing: str | None
    """What must be fetched first. Such a candidate comes after every one that is complete."""
    remedy: str | None
    """The call that would fetch it."""
    warnings: tuple[str, ...]

    @property
    def is_fast(self) -> bool:
        """Memory low or medium and at most 30 steps; what takes no steps takes none too many."""
        return self.memory_class in ("low", "medium") and (self.steps is None or self.steps <= FAST_STEPS)

    @property
    def is_high_quality(self) -> bool:
        return bool(self.tags & QUALITY_TAGS) or (self.steps is not None and self.steps >= QUALITY_STEPS)

    def has(self, trait: Trait) -> bool:
        match trait:
            case "any":
                return True
            case "fast":
                return self.is_fast
            case "quality":
                return self.is_high_quality
            case "fast+quality":
                return self.is_fast and self.is_high_quality
            case "enhanced":
                return ENHANCED in self.tags
            case "low_memory":
                return self.memory_class == "low"


TRAITS: tuple[Trait, ...] = ("any", "fast", "quality", "fast+quality", "enhanced", "low_memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model with its versions, newest first by precedence; tombstones are not among them."""

    model: Model
    candidates: Mapping[str, Candidate]
    aliases: Mapping[str, str]
    default: Candidate | None
    """The newest active version."""
    floating: Candidate | None
    """What a target without a version means: the default, else the newest deprecated one (existing
    bindings go on), else the newest draft, which cannot answer but says what it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySnapshot:
    rules: RegistryRules
    models: Mapping[str, ModelEntry]
    names: Mapping[str, str]
    services: Mapping[str, Service]
    tasks: Mapping[tuple[str, Trait], tuple[Candidate, ...]]

    @classmethod
    def build(
        cls,
        *,
        models: Iterable[Model],
        versions: Iterable[Version],
        aliases: Iterable[Alias] = (),
        services: Iterable[Service] = (),
        rules: RegistryRules,
    ) -> "RegistrySnapshot":
        """Return the index over rows of the database, in any order."""
        versions_of: defaultdict[str, list[Version]] = defaultdict(list)
        for version in versions:
            versions_of[version.model_id].append(version)
        aliases_of: defaultdict[str, list[Alias]] = defaultdict(list)
        for alias in aliases:
            aliases_of[alias.model_id].append(alias)
        entries = {model.id: make_entry(model, versions_of[model.id], aliases_of[model.id], rules) for model in models}
        listed: defaultdict[tuple[str, Trait], list[Candidate]] = defaultdict(list)
        for entry in entries.values():
            for key, candidates in _listed(entry).items():
                listed[key] += candidates
        return cls(
            rules=rules,
            models=entries,
            names={lookup_key(name): entry.model.id for entry in entries.values() for name in entry.model.lookup_names},
            services={service.id: service for service in services},
            tasks={key: tuple(sorted(candidates, key=_rank)) for key, candidates in listed.items()},
        )

    def with_model(self, model: Model, versions: Iterable[Version], aliases: Iterable[Alias]) -> "RegistrySnapshot":
        """Return a snapshot in which this model is as given and everything else as before."""
        return self._changed(model.id, make_entry(model, versions, aliases, self.rules))

    def without_model(self, model_id: str) -> "RegistrySnapshot":
        """Return a snapshot without this model; the same one if it has none such."""
        return self if model_id not in self.models else self._changed(model_id, None)

    def _changed(self, model_id: str, after: ModelEntry | None) -> "RegistrySnapshot":
        """Copies what it must and sorts nothing anew: a large registry changes in well under a millisecond."""
        before = self.models.get(model_id)
        models = dict(self.models)
        if after is None:
            del models[model_id]
        else:
            models[model_id] = after
        return replace(
            self,
            models=models,
            names=_renamed(self.names, before, after),
            tasks=_relisted(self.tasks, before, after),
        )

    def with_service(self, service: Service) -> "RegistrySnapshot":
        return replace(self, services={**self.services, service.id: service})

    def without_service(self, service_id: str) -> "RegistrySnapshot":
        return replace(self, services={id_: other for id_, other in self.services.items() if id_ != service_id})

    def find_model(self, name: str) -> ModelEntry | None:
        """Return the model with this id or, whatever the case, this lookup name."""
        entry = self.models.get(name)
        if entry is None:
            model_id = self.names.get(lookup_key(name))
            entry = self.models.get(model_id) if model_id is not None else None
        return entry

    def service(self, service_id: str) -> Service:
        """Return a service. Raises ServiceNotFound."""
        service = self.services.get(service_id)
        if service is None:
            raise ServiceNotFound(f"There is no service {service_id!r}.")
        return service

    def resolve(self, reference: Reference) -> Candidate:
        """Return what a client's reference names, whatever its status. Without a version: the newest active.

        Raises ModelNotFound, VersionNotFound, AliasNotFound or ModelNotPulled.
        """
        entry = self.find_model(reference.name)
        if entry is None:
            wanted = reference.name if "/" in reference.name else "owner/name"
            hint = f'GET /models lists the models; POST /pull {{"model": "{wanted}"}} fetches one from the hub.'
            raise ModelNotFound(f"There is no model {reference.name!r}.", hint=hint)
        if reference.is_default:
            if entry.default is None:
                raise _no_default(entry)
            return entry.default
        version = reference.version
        if reference.alias is not None:
            version = entry.aliases.get(reference.alias)
            if version is None:
                raise AliasNotFound(f"The model {entry.model.id} has no alias {reference.alias!r}.")
        candidate = entry.candidates.get(version or "")
        if candidate is None:
            raise VersionNotFound(f"The model {entry.model.id} has no version {version!r}.")
        return candidate

    def meant_by(self, target: Target | FallbackEntry) -> Candidate | None:
        """Return the version that a target or a link means now; None where it means none (any more)."""
        entry = self.models.get(target.model or "")
        if entry is None:
            return None
        if target.alias is not None:
            return entry.candidates.get(entry.aliases.get(target.alias, ""))
        if target.version is not None:
            return entry.candidates.get(target.version)
        return entry.floating


def make_entry(model: Model, versions: Iterable[Version], aliases: Iterable[Alias], rules: RegistryRules) -> ModelEntry:
    """Return the entry of one model from its rows, in any order."""
    living = [version for version in versions if version.status is not Status.TOMBSTONE]
    living.sort(key=lambda version: version.semver, reverse=True)
    candidates = {version.version: make_candidate(model, version, rules) for version in living}
    by_status = {
        status: next((candidates[one.version] for one in living if one.status is status), None)
        for status in (Status.ACTIVE, Status.DEPRECATED, Status.DRAFT)
    }
    return ModelEntry(
        model=model,
        candidates=candidates,
        aliases={alias.name: alias.version for alias in aliases},
        default=by_status[Status.ACTIVE],
        floating=by_status[Status.ACTIVE] or by_status[Status.DEPRECATED] or by_status[Status.DRAFT],
    )


def make_candidate(model: Model, version: Version, rules: RegistryRules) -> Candidate:
    """Return what a decision knows of one version under these rules."""
    name = f"{model.id}@{version.version}"
    licence = version.licence or model.licence
    clearance = check_licence(licence, version.commercial_use, version.duties, rules.deployment)
    warnings = [] if clearance.warning is None else [f"{name}: {clearance.warning}"]
    if version.status is Status.DEPRECATED and rules.warn_on_deprecated_version_usage:
        warnings.append(_deprecation(name, version))
    obstacle: Obstacle | None = None
    # What can never be put right goes first: a binding is refused for it, and only warned of the rest.
    if version.status in (Status.RETIRED, Status.TOMBSTONE):
        obstacle = Obstacle(kind="retired", why="it is retired")
    elif not clearance.allowed:
        obstacle = Obstacle(kind="licence", why=f"its licence refuses it: {clearance.reason}")
    elif not model.active:
        obstacle = Obstacle(kind="inactive_model", why="its model is switched off")
    elif version.status is Status.DRAFT:
        obstacle = Obstacle(kind="draft", why=_why_draft(version))
    return Candidate(
        model=model,
        version=version,
        key=(model.id, version.version),
        name=name,
        tags=frozenset((*model.tags, *version.tags)),
        steps=version.steps,
        memory_class=version.memory_class,
        obstacle=obstacle,
        missing=_missing(version),
        remedy=_remedy(version),
        warnings=tuple(warnings),
    )


def refusal(candidate: Candidate) -> LicenceRefused | ModelNotPulled | VersionNotFound | ModelNotFound | None:
    """Return the error that says why a candidate that was asked for by name may not answer, or None."""
    obstacle = candidate.obstacle
    if obstacle is None:
        return None
    sentence = f"{candidate.name} cannot be used: {obstacle.why}."
    match obstacle.kind:
        case "licence":
            return LicenceRefused(sentence)
        case "inactive_model":
            return ModelNotFound(sentence, hint='Switch it on with PATCH /models/{id} {"active": true}.')
        case "draft" if candidate.missing is not None:
            return ModelNotPulled(sentence, hint=candidate.remedy)
        case _:
            hint = "An active version answers; PATCH /models/{id}/versions/{version}/activate makes one."
            return VersionNotFound(sentence, hint=hint)


def _no_default(entry: ModelEntry) -> ModelNotPulled | VersionNotFound:
    newest = next(iter(entry.candidates.values()), None)
    if newest is not None and newest.obstacle is not None and newest.missing is not None:
        return ModelNotPulled(f"The model {entry.model.id} is not here: {newest.missing}.", hint=newest.remedy)
    return VersionNotFound(f"The model {entry.model.id} has no active version.")


_MISSING = {
    Availability.NEEDS_PULL: "its weights are not pulled",
    Availability.NEEDS_FILES: "its weights are not published anywhere and must be brought",
    Availability.NO_SOURCE: "it names no source of weights",
}


def _missing(version: Version) -> str | None:
    return _MISSING.get(version.availability)


def _remedy(version: Version) -> str | None:
    match version.availability:
        case Availability.NEEDS_PULL:
            repo = version.source.repo if isinstance(version.source, HubSource) else version.model_id
            return f'POST /pull {{"model": "{repo}"}}'
        case Availability.NEEDS_FILES:
            path = f"/models/{version.model_id}/versions/{version.version}"
            return (
                f"Put the files below a folder that an admin listed, then PATCH {path} with that source and its files."
            )
        case _:
            return None


def _why_draft(version: Version) -> str:
    missing = _missing(version)
    return f"it is a draft and {missing}" if missing else "it is a draft"


def _deprecation(name: str, version: Version) -> str:
    since = f" since {version.deprecated_at:%Y-%m-%d}" if version.deprecated_at else ""
    sunset = f" and may stop answering on {version.sunset_at:%Y-%m-%d}" if version.sunset_at else ""
    reason = f" ({version.deprecation_reason})" if version.deprecation_reason else ""
    return f"{name} is deprecated{since}{sunset}{reason}."


def _selectable(entry: ModelEntry) -> list[Candidate]:
    """The automatic choice takes active versions whose licence allows it, of models that are switched on."""
    return [one for one in entry.candidates.values() if one.version.status is Status.ACTIVE and one.obstacle is None]


def _rank(candidate: Candidate) -> tuple[bool, int, str]:
    """Complete ones first, then by priority, then by id.

    The versions of a model come newest first and stay so, because every sort is stable: the order is
    total.
    """
    return candidate.missing is not None, -candidate.model.priority, candidate.model.id


def _listed(entry: ModelEntry | None) -> dict[tuple[str, Trait], list[Candidate]]:
    """Return the candidates of one model under each task and trait, in their order."""
    found: dict[tuple[str, Trait], list[Candidate]] = {}
    for candidate in sorted(_selectable(entry), key=_rank) if entry is not None else ():
        for trait in TRAITS:
            if candidate.has(trait):
                found.setdefault((candidate.model.task, trait), []).append(candidate)
    return found


def _relisted(
    tasks: Mapping[tuple[str, Trait], tuple[Candidate, ...]], before: ModelEntry | None, after: ModelEntry | None
) -> Mapping[tuple[str, Trait], tuple[Candidate, ...]]:
    """Return the lists with the candidates of one model taken out, and those that it has now put in."""
    old, new = _listed(before), _listed(after)
    changed = dict(tasks)
    for key in old.keys() | new.keys():
        listed = changed.get(key, ())
        for rank, _ in groupby(old.get(key, ()), _rank):
            listed = listed[: bisect_left(listed, rank, key=_rank)] + listed[bisect_right(listed, rank, key=_rank) :]
        for rank, group in groupby(new.get(key, ()), _rank):
            place = bisect_left(listed, rank, key=_rank)
            listed = (*listed[:place], *group, *listed[place:])
        if listed:
            changed[key] = listed
        else:
            changed.pop(key, None)
    return changed


def _renamed(names: Mapping[str, str], before: ModelEntry | None, after: ModelEntry | None) -> Mapping[str, str]:
    old, new = (
        {} if entry is None else {lookup_key(name): entry.model.id for name in entry.model.lookup_names}
        for entry in (before, after)
    )
    if old == new:
        return names
    # A name that went from one model to another may have reached the other already.
    return {name: model_id for name, model_id in names.items() if old.get(name) != model_id} | new
