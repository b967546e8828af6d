"""What is in memory on purpose: loading, unloading and pinning by name, and what is loaded for whom."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from serai.clock import Clock
from serai.engines.catalogue import RESERVATION
from serai.errors import SeraiError
from serai.registry.failure import failure_of
from serai.registry.plan import Request
from serai.registry.policy import make_plan
from serai.registry.reference import parse_reference
from serai.registry.registry import Registry
from serai.registry.service import Service
from serai.registry.snapshot import Candidate, RegistrySnapshot, refusal
from serai.runtime.model import UnitId
from serai.runtime.runtime import Loaded, Runtime
from serai.serving.errors import NotInMemory
from serai.serving.placer import Placer
from serai.serving.placing import Placement, blames_engine, unit_id
from serai.serving.standing import Standing

log = structlog.get_logger(__name__)

CALLER = "serai"
"""Who waits, in the queues, for what nobody in particular asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InMemory:
    """A unit that is in memory, and for whom."""

    loaded: Loaded
    versions: tuple[str, ...]
    """The versions that used it and still exist, 'model@version'."""
    services: tuple[str, ...]
    """Ids of the services that are bound to one of them."""


class Residency:
    """Loads and unloads by name: a model, a version, an alias, or a service (which means its binding)."""

    def __init__(self, registry: Registry, runtime: Runtime, placer: Placer, standing: Standing, clock: Clock) -> None:
        self._registry = registry
        self._runtime = runtime
        self._placer = placer
        self._standing = standing
        self._clock = clock
        self._pinned: set[UnitId] = set()

    async def preload(self, reference: str, *, keep_alive: float | None = None, timeout_s: float) -> Loaded:
        """Load what a name means, and keep it for `keep_alive` seconds after its last use.

        Raises what the name or the version has against it (ModelNotFound, ModelNotPulled, LicenceRefused, …),
        NotInMemory for a model on another server, and what the load failed of.
        """
        return await self.load(
            named(await self._registry.current(), reference), keep_alive=keep_alive, timeout_s=timeout_s
        )

    async def load(self, candidate: Candidate, *, keep_alive: float | None = None, timeout_s: float) -> Loaded:
        """Load a version with the first engine that can. Raises as `preload`."""
        refused = refusal(candidate)
        if refused is not None:
            raise refused
        placements = await self._placer.place(candidate)
        until = self._clock.monotonic() + timeout_s
        for number, placement in enumerate(placements, start=1):
            try:
                return await self._lease(placement, keep_alive, max(until - self._clock.monotonic(), 0.0))
            except SeraiError as error:
                others = placements[number:]
                if not others or not blames_engine(error, placement, others[0]):
                    units = [one.unit for one in placements if one.unit is not None]
                    now = self._clock.monotonic()
                    self._standing.on_failure(candidate.key, units, failure_of(error), now, was_running=False)
                    self._placer.forget(candidate.key)
                    raise
                log.warning(
                    "engine_fallback", candidate=candidate.name, engine=placement.engine.name, why=error.message
                )
        raise AssertionError("there is a placement, and the last one returns or raises")

    async def unload(self, reference: str, *, force: bool = False) -> tuple[Loaded, ...]:
        """Unload what a name means and return what was unloaded, also if other versions shared it; often nothing.

        Without `force`, when the answers that it gives are over.
        """
        candidate = named(await self._registry.current(), reference)
        units = await self._units(candidate)
        found = [one for one in self._runtime.loaded() if one.unit in units or candidate.name in one.names]
        for one in found:
            await self._runtime.unload(one.unit, force=force)
        return tuple(found)

    async def clear_cooldown(self, reference: str) -> None:
        """Let what a name means be tried again at once."""
        candidate = named(await self._registry.current(), reference)
        self._placer.forget(candidate.key)
        self._standing.clear(candidate.key, await self._units(candidate))

    async def loaded(self) -> tuple[InMemory, ...]:
        """Return what is in memory, with the versions and services that it is for."""
        snapshot = await self._registry.current()
        services = defaultdict(set)
        for service in snapshot.services.values():
            for candidate in bound(snapshot, service):
                services[candidate.name].add(service.id)
        return tuple(_in_memory(snapshot, one, services) for one in self._runtime.loaded())

    async def keep_pinned(self, *, timeout_s: float) -> None:
        """Load and pin what pinned services are bound to, and let go what no longer is; failures are logged."""
        snapshot = await self._registry.current()
        wanted: set[UnitId] = set()
        for service in snapshot.services.values():
            for candidate in bound(snapshot, service) if service.pinned else ():
                try:
                    loaded = await self.load(candidate, timeout_s=timeout_s)
                except NotInMemory:
                    continue
                except SeraiError as error:
                    log.warning("pinned_not_loaded", service=service.id, candidate=candidate.name, why=error.message)
                else:
                    wanted.add(loaded.unit)
                    self._runtime.pin(loaded.unit, pinned=True)
        for unit in self._pinned - wanted:
            self._runtime.pin(unit, pinned=False)
        self._pinned = wanted

    async def unload_deleted(self) -> None:
        """Unload what is idle and was only used by versions that were deleted since: nobody can ask for it again."""
        snapshot = await self._registry.current()
        for one in self._runtime.loaded():
            is_model = one.names and one.engine != RESERVATION
            if is_model and not one.in_flight and not _in_memory(snapshot, one, {}).versions:
                await self._runtime.unload(one.unit)

    async def _lease(self, placement: Placement, keep_alive: float | None, timeout_s: float) -> Loaded:
        if placement.claim is None:
            raise NotInMemory("The model runs on another server.")
        async with self._runtime.lease([placement.claim], caller=CALLER, timeout_s=timeout_s, keep_alive=keep_alive):
            before = self._find(placement.claim.unit.id)
        found = self._find(placement.claim.unit.id) or before
        assert found is not None, "what is leased is loaded"
        return found

    def _find(self, unit: UnitId) -> Loaded | None:
        return next((one for one in self._runtime.loaded() if one.unit == unit), None)

    async def _units(self, candidate: Candidate) -> list[UnitId]:
        """Return the units that a version can run on; none where its weights are gone."""
        try:
            placements = await self._placer.place(candidate)
        except SeraiError:
            return []
        return [one.unit for one in placements if one.unit is not None]


def named(snapshot: RegistrySnapshot, reference: str) -> Candidate:
    """Return what a name means: a service's binding, or a version. Raises what `RegistrySnapshot.resolve` raises."""
    service = snapshot.services.get(reference)
    if service is None:
        return snapshot.resolve(parse_reference(reference))
    meant = None if service.binding is None else snapshot.meant_by(service.binding)
    return meant or make_plan(snapshot, Request(service=reference)).candidate


def bound(snapshot: RegistrySnapshot, service: Service) -> list[Candidate]:
    """Return the versions that a service's targets mean now."""
    meant = (snapshot.meant_by(target) for target in service.revision.targets)
    return [candidate for candidate in meant if candidate is not None]


def in_use(snapshot: RegistrySnapshot, unit: UnitId) -> bool:
    """Say whether a service may come to a version that runs on this unit: as target, in its chain, or as shadow."""
    return any(
        unit_id(candidate.version, unit.engine, unit.device_kind) == unit
        for service in snapshot.services.values()
        for candidate in _reached(snapshot, service)
    )


def _reached(snapshot: RegistrySnapshot, service: Service) -> Iterable[Candidate]:
    revision = service.revision
    shadow = () if revision.shadow is None else (revision.shadow,)
    for target in (*revision.targets, *shadow, *revision.fallback):
        candidate = snapshot.meant_by(target)
        if candidate is not None:
            yield candidate


def _in_memory(snapshot: RegistrySnapshot, loaded: Loaded, services: Mapping[str, set[str]]) -> InMemory:
    def exists(name: str) -> bool:
        model, _, version = name.partition("@")
        entry = snapshot.models.get(model)
        return entry is not None and version in entry.candidates

    versions = tuple(name for name in loaded.names if exists(name))
    using = {service for name in versions for service in services.get(name, ())}
    return InMemory(loaded=loaded, versions=versions, services=tuple(sorted(using)))
