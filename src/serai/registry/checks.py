"""May this be written? Bindings, chains and names against a snapshot, and who would be hurt by a change.

A chain may name services; the chain of a service is a graph then, and it must have no cycle. That is
asked when a service is written, so a decision never meets one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serai.registry.errors import (
    DeprecatedVersion,
    FallbackCycle,
    IncompatibleFallback,
    LicenceRefused,
    ModelAlreadyExists,
    ModelNotFound,
    NameCollision,
    ServiceAlreadyExists,
    ServiceNotFound,
    ServiceVersionSwitchError,
    VersionNotActive,
    VersionNotFound,
)
from serai.registry.model import Model
from serai.registry.reference import lookup_key, parse_reference
from serai.registry.service import FallbackEntry, Revision, Service, Target, check_shape
from serai.registry.snapshot import Candidate, RegistrySnapshot
from serai.registry.version import Status


def check_service(snapshot: RegistrySnapshot, service: Service, *, before: Service | None = None) -> tuple[str, ...]:
    """Refuse a service whose revision could not serve, and return warnings about what may be amiss.

    `before` is the service as it was: what it already used, it may go on using although deprecated.
    A draft may be bound (it becomes active when its weights arrive) and is told as a warning; what
    is retired, unknown, of another task or refused by its licence may not. Raises InvalidInput,
    InvalidSplit, ModelNotFound, VersionNotFound, ServiceNotFound, VersionNotActive,
    DeprecatedVersion, LicenceRefused, IncompatibleFallback or FallbackCycle.
    """
    check_shape(service)
    kept = frozenset() if before is None else _keys(snapshot, before.revision)
    warnings: list[str] = []
    shadow = () if service.revision.shadow is None else (service.revision.shadow,)
    links = [entry for entry in service.revision.fallback if entry.service is None]
    for target in (*service.revision.targets, *shadow, *links):
        candidate = _existing(snapshot, target)
        _check_fit(service, candidate)
        warnings += _check_bindable(snapshot, candidate, kept)
    for entry in service.revision.fallback:
        if entry.service is not None:
            _check_service_link(snapshot, service, entry.service)
    _check_acyclic(snapshot, service)
    return tuple(warnings)


def check_reach(snapshot: RegistrySnapshot, service: Service, target: Target) -> tuple[str, ...]:
    """Refuse that a service reaches a version which it may not be bound to, and return warnings; as `check_service`."""
    candidate = _existing(snapshot, target)
    _check_fit(service, candidate)
    return tuple(_check_bindable(snapshot, candidate, _keys(snapshot, service.revision)))


def check_switch(snapshot: RegistrySnapshot, service: Service, model: str, version: str) -> Target:
    """Return the target of a version switch. The model stays; another one is another binding.

    Raises ServiceVersionSwitchError, ModelNotFound, VersionNotFound, VersionNotActive,
    DeprecatedVersion or LicenceRefused.
    """
    bound = service.binding
    entry = snapshot.find_model(model)
    if bound is None or entry is None or entry.model.id != bound.model:
        raise ServiceVersionSwitchError(
            f"The service {service.id} is bound to {bound.model if bound else 'no model'}"
            f"{f', not to {model}' if model else ''}; a switch changes the version alone.",
            details={"bound": bound.model if bound else None, "asked": model},
        )
    target = Target(model=entry.model.id, version=version)
    # What only stands in the chain was not chosen to answer first: to bind it is a new binding.
    _check_bindable(snapshot, _existing(snapshot, target), _target_keys(snapshot, service.revision))
    return target


def parse_target(snapshot: RegistrySnapshot, text: str, weight: int = 100) -> Target:
    """Return the target that a client's 'model', 'model@version' or 'model@alias' means, by the model's id.

    Raises InvalidReference, InvalidVersionFormat or ModelNotFound.
    """
    reference = parse_reference(text)
    entry = snapshot.find_model(reference.name)
    if entry is None:
        raise ModelNotFound(f"There is no model {reference.name!r}.")
    return Target(model=entry.model.id, version=reference.version, alias=reference.alias, weight=weight)


def check_new_model(snapshot: RegistrySnapshot, model: Model) -> None:
    """Refuse a model whose id or lookup name is taken. Raises ModelAlreadyExists, NameCollision."""
    if model.id in snapshot.models:
        raise ModelAlreadyExists(f"There is a model {model.id!r} already.")
    check_names(snapshot, model)


def check_names(snapshot: RegistrySnapshot, model: Model) -> None:
    """Refuse a name of a model that a service or another model answers to. Raises NameCollision."""
    for name in (model.id, *model.lookup_names):
        owner = snapshot.find_model(name)
        if name in snapshot.services:
            raise NameCollision(f"A service has the name {name!r}, and a service's name goes first.")
        if owner is not None and owner.model.id != model.id:
            raise NameCollision(f"The model {owner.model.id} answers to {name!r} already.")


def check_new_service(snapshot: RegistrySnapshot, service_id: str) -> None:
    """Refuse a service id that is taken, also by a model. Raises ServiceAlreadyExists, NameCollision."""
    if service_id in snapshot.services:
        raise ServiceAlreadyExists(f"There is a service {service_id!r} already.")
    if snapshot.find_model(service_id) is not None or lookup_key(service_id) in snapshot.names:
        raise NameCollision(f"A model answers to {service_id!r}; a service of that name would hide it.")


def check_promises(before: RegistrySnapshot, after: RegistrySnapshot) -> None:
    """Refuse a change after which a service would reach what cannot do something that the service promises.

    Such a change may be far from the service: a moved alias, a newer version that a floating target
    follows, an edited version, another service that promises less. Nor may one bring a service that
    it does not touch to a version whose licence refuses it. What was amiss before is no ground to
    refuse. Raises IncompatibleFallback, LicenceRefused.
    """
    for service in after.services.values():
        earlier = before.services.get(service.id)
        if earlier is not None and earlier.revision.n == service.revision.n:
            for name, why in sorted(_refused(after, service) - _refused(before, earlier)):
                raise LicenceRefused(f"The service {service.id} would come to {name}: {why}.")
        known = frozenset() if earlier is None else _broken(before, earlier)
        for name, capability in sorted(_broken(after, service) - known):
            raise IncompatibleFallback(
                f"The service {service.id} promises {capability}, and would reach {name}, which does not have it.",
                details=[capability],
            )


def lacking(service: Service, candidate: Candidate) -> frozenset[str]:
    """Return the capabilities that a service promises and a candidate does not have."""
    return frozenset(service.required) - frozenset(candidate.version.capabilities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One way in which a service would reach a version."""

    service: str
    reference: str
    role: str
    """'target', 'shadow', 'fallback', or 'through' another service whose chain has it."""
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Impact:
    """Who is touched when a version goes: services (transitively) and the aliases that point to it."""

    uses: tuple[Use, ...]
    aliases: tuple[str, ...]

    @property
    def services(self) -> tuple[str, ...]:
        """The ids of the services, each once, sorted."""
        return tuple(sorted({use.service for use in self.uses}))

    @property
    def published_services(self) -> tuple[str, ...]:
        return tuple(sorted({use.service for use in self.uses if use.published}))


def impact(snapshot: RegistrySnapshot, model_id: str, version: str | None = None) -> Impact:
    """Return who uses a version, or (without one) any version of a model.

    A floating target or an alias uses the version that it means now.
    """
    direct = [
        Use(service=service.id, reference=target.reference, role=role, published=service.published)
        for service in snapshot.services.values()
        for role, target in _roles(service.revision)
        if _means(snapshot, target, model_id, version)
    ]
    reached = {use.service for use in direct}
    through: list[Use] = []
    while True:
        more = [
            Use(service=service.id, reference=entry.service, role="through", published=service.published)
            for service in snapshot.services.values()
            if service.id not in reached
            for entry in service.revision.fallback
            if entry.service is not None and entry.service in reached
        ]
        if not more:
            break
        through += more
        reached |= {use.service for use in more}
    entry = snapshot.models.get(model_id)
    pointing = () if entry is None else entry.aliases.items()
    aliases = tuple(sorted(name for name, to in pointing if version is None or to == version))
    return Impact(uses=(*direct, *through), aliases=aliases)


def versions_in_use(snapshot: RegistrySnapshot, model_id: str) -> frozenset[str]:
    """Return the versions of a model that a service or an alias means now, for `lifecycle.make_room`."""
    entry = snapshot.models.get(model_id)
    if entry is None:
        return frozenset()
    used = {
        candidate.version.version
        for service in snapshot.services.values()
        for _, target in _roles(service.revision)
        if target.model == model_id and (candidate := snapshot.meant_by(target)) is not None
    }
    return frozenset(used | set(entry.aliases.values()))


def services_naming_alias(snapshot: RegistrySnapshot, model_id: str, alias: str) -> tuple[str, ...]:
    """Return the ids of the services whose targets or links name this alias."""
    naming = {
        service.id
        for service in snapshot.services.values()
        for _, target in _roles(service.revision)
        if target.model == model_id and target.alias == alias
    }
    return tuple(sorted(naming))


def deprecated_uses(snapshot: RegistrySnapshot, model_id: str) -> dict[str, tuple[Use, ...]]:
    """Return, for each deprecated version of a model that somebody uses, who uses it."""
    entry = snapshot.models.get(model_id)
    versions = [] if entry is None else list(entry.candidates.values())
    found = {
        one.version.version: impact(snapshot, model_id, one.version.version).uses
        for one in versions
        if one.version.status is Status.DEPRECATED
    }
    return {version: uses for version, uses in found.items() if uses}


def bound_versions(snapshot: RegistrySnapshot, revision: Revision) -> tuple[str, ...]:
    """Return 'model@version' for what each target means now, for a line of the history."""
    meant = [snapshot.meant_by(target) for target in revision.targets]
    return tuple(candidate.name for candidate in meant if candidate is not None)


def _existing(snapshot: RegistrySnapshot, target: Target | FallbackEntry) -> Candidate:
    candidate = snapshot.meant_by(target)
    if candidate is not None:
        return candidate
    if target.model not in snapshot.models:
        raise ModelNotFound(f"There is no model {target.model!r}.")
    raise VersionNotFound(f"{target.reference!r} names no version of the model {target.model}.")


def _check_fit(service: Service, candidate: Candidate) -> None:
    if candidate.model.task != service.task:
        raise IncompatibleFallback(
            f"{candidate.name} does {candidate.model.task}, and the service {service.id} does {service.task}."
        )
    missing = sorted(lacking(service, candidate))
    if missing:
        raise IncompatibleFallback(
            f"{candidate.name} cannot do {', '.join(missing)}, which the service {service.id} promises.",
            details=missing,
        )


def _broken(snapshot: RegistrySnapshot, service: Service) -> frozenset[tuple[str, str]]:
    """Return who lacks what, of all that a service reaches in one step."""
    if not service.required:
        return frozenset()
    meant = [snapshot.meant_by(target) for _, target in _roles(service.revision)]
    broken = {(one.name, what) for one in meant if one is not None for what in lacking(service, one)}
    others = [snapshot.services[other] for other in _service_links(service) if other in snapshot.services]
    broken |= {(other.id, what) for other in others for what in set(service.required) - set(other.required)}
    return frozenset(broken)


def _refused(snapshot: RegistrySnapshot, service: Service) -> frozenset[tuple[str, str]]:
    """Return which targets' licences refuse them, and why."""
    meant = [snapshot.meant_by(target) for target in service.revision.targets]
    obstacles = [(one.name, one.obstacle) for one in meant if one is not None]
    return frozenset((name, found.why) for name, found in obstacles if found is not None and found.kind == "licence")


def _check_bindable(snapshot: RegistrySnapshot, candidate: Candidate, kept: frozenset[tuple[str, str]]) -> list[str]:
    obstacle = candidate.obstacle
    if obstacle is not None and obstacle.kind == "licence":
        raise LicenceRefused(f"{candidate.name} cannot be bound: {obstacle.why}.")
    if obstacle is not None and obstacle.kind == "retired":
        raise VersionNotActive(f"{candidate.name} cannot be bound: {obstacle.why}.")
    deprecated = candidate.version.status is Status.DEPRECATED and candidate.key not in kept
    if deprecated and not snapshot.rules.allow_service_deprecated_version_switch:
        raise DeprecatedVersion(f"{candidate.name} is deprecated and takes no new bindings.")
    if obstacle is not None:
        return [f"{candidate.name} cannot answer yet: {obstacle.why}."]
    return list(candidate.warnings)


def _check_service_link(snapshot: RegistrySnapshot, service: Service, other_id: str) -> None:
    if other_id == service.id:
        raise FallbackCycle(f"The service {service.id} falls back on itself.", details=[service.id, service.id])
    other = snapshot.services.get(other_id)
    if other is None:
        raise ServiceNotFound(f"There is no service {other_id!r} to fall back on.")
    if other.task != service.task:
        raise IncompatibleFallback(f"The service {other_id} does {other.task}, and {service.id} does {service.task}.")
    missing = sorted(set(service.required) - set(other.required))
    if missing:
        raise IncompatibleFallback(
            f"The service {other_id} does not promise {', '.join(missing)}, which {service.id} does.", details=missing
        )


def _check_acyclic(snapshot: RegistrySnapshot, service: Service) -> None:
    """Raises FallbackCycle with the services on the way round, the first named again at the end."""
    pending: list[tuple[str, ...]] = [(service.id,)]
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        current = service if path[-1] == service.id else snapshot.services.get(path[-1])
        for next_id in _service_links(current):
            if next_id == service.id:
                way = (*path, next_id)
                raise FallbackCycle(f"The fallback chain runs in a circle: {' → '.join(way)}.", details=way)
            if next_id not in seen:
                seen.add(next_id)
                pending.append((*path, next_id))


def _service_links(service: Service | None) -> Iterable[str]:
    fallback = () if service is None else service.revision.fallback
    return (entry.service for entry in fallback if entry.service is not None)


def _roles(revision: Revision) -> Iterable[tuple[str, Target | FallbackEntry]]:
    yield from (("target", target) for target in revision.targets)
    if revision.shadow is not None:
        yield "shadow", revision.shadow
    yield from (("fallback", entry) for entry in revision.fallback if entry.service is None)


def _means(snapshot: RegistrySnapshot, target: Target | FallbackEntry, model_id: str, version: str | None) -> bool:
    if target.model != model_id:
        return False
    candidate = snapshot.meant_by(target)
    return version is None or (candidate is not None and candidate.version.version == version)


def _target_keys(snapshot: RegistrySnapshot, revision: Revision) -> frozenset[tuple[str, str]]:
    meant = (snapshot.meant_by(target) for target in revision.targets)
    return frozenset(candidate.key for candidate in meant if candidate is not None)


def _keys(snapshot: RegistrySnapshot, revision: Revision) -> frozenset[tuple[str, str]]:
    meant = (snapshot.meant_by(target) for _, target in _roles(revision))
    return frozenset(candidate.key for candidate in meant if candidate is not None)
