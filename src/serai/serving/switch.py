"""Switching a service to other versions without dropping a request: load, then move, then let go.

preload what it is switched to      fails: nothing has changed
commit the change of the registry   from now on calls go to the new versions
drain what no service uses any more when the answers are over that began before
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import structlog

from serai.errors import SeraiError
from serai.registry.bindings import rollback_goal
from serai.registry.failure import Key
from serai.registry.registry import Registry
from serai.registry.service import Revision
from serai.registry.snapshot import Candidate, RegistrySnapshot
from serai.runtime.model import UnitId
from serai.runtime.runtime import Runtime
from serai.serving.answer import Answer
from serai.serving.errors import NotInMemory, PreloadFailed
from serai.serving.residency import Residency, bound, in_use, named

log = structlog.get_logger(__name__)

R = TypeVar("R")


class Switches:
    """Carries out switches and rollbacks; the draining goes on in the background."""

    def __init__(
        self, registry: Registry, runtime: Runtime, residency: Residency, answers: Callable[[], Iterable[Answer]]
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._residency = residency
        self._answers = answers
        self._drains: set[asyncio.Task[None]] = set()

    async def switch(
        self,
        service_id: str,
        to: Sequence[str],
        commit: Callable[[], Awaitable[R]],
        *,
        preload: bool | None = None,
        timeout_s: float,
    ) -> R:
        """Bind a service to the versions `to` by calling `commit`, and return what that returns.

        `to` are references as 'model@version' (`switch_target`, `rollback_targets`). They are loaded
        before if `preload` says so; None: if what the service is bound to now is loaded. Raises
        PreloadFailed, with the service as it was, ServiceNotFound, and what `commit` raises.
        """
        before = await self._registry.current()
        old = bound(before, before.service(service_id))
        if preload or (preload is None and self._any_loaded(old)):
            for candidate in [named(before, reference) for reference in to]:
                await self._preload(service_id, candidate, old, timeout_s)
        result = await commit()
        units = {one.unit for one in self._runtime.loaded() if _names(old).intersection(one.names)}
        if units:
            task = asyncio.create_task(self._drain(units, {candidate.key for candidate in old}), name="drain")
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)
        return result

    async def drained(self) -> None:
        """Return when what earlier switches left behind is gone."""
        while self._drains:
            await asyncio.wait(self._drains)

    async def close(self) -> None:
        """Stop draining; what is in memory stays there."""
        for task in self._drains:
            task.cancel()
        await self.drained()

    def _any_loaded(self, candidates: Sequence[Candidate]) -> bool:
        names = _names(candidates)
        return any(names.intersection(one.names) for one in self._runtime.loaded())

    async def _preload(self, service_id: str, candidate: Candidate, old: Sequence[Candidate], timeout_s: float) -> None:
        try:
            await self._residency.load(candidate, timeout_s=timeout_s)
        except NotInMemory:
            return
        except SeraiError as error:
            still = " and ".join(one.name for one in old) or "what the policy chooses"
            raise PreloadFailed(
                f"{candidate.name} could not be loaded, so {service_id} still answers with {still}: {error.message}",
                hint=error.hint,
                details={"code": error.code, "candidate": candidate.name},
                retry_after=error.retry_after,
            ) from error

    async def _drain(self, units: Iterable[UnitId], keys: set[Key]) -> None:
        """Unload units when the calls are over that were going to them, unless somebody uses them even then."""
        for answer in [one for one in self._answers() if one.course.plan.candidate.key in keys]:
            await answer.over()
        snapshot = await self._registry.current()
        for unit in units:
            busy = any(one.unit == unit and (one.in_flight or one.pinned) for one in self._runtime.loaded())
            if not busy and not in_use(snapshot, unit):
                log.info("unit_unused", engine=unit.engine)
                await self._runtime.unload(unit)


def switch_target(snapshot: RegistrySnapshot, service_id: str, *, version: str | None, alias: str | None) -> str:
    """Return the reference that a version switch of a service leads to, as `bindings.switch_version` will see it."""
    binding = snapshot.service(service_id).binding
    return f"{binding.model if binding is not None else ''}@{version or alias}"


def rollback_targets(
    snapshot: RegistrySnapshot, current: Revision, history: Iterable[Revision], *, to: int | None = None
) -> list[str]:
    """Return the versions that a rollback leads to, each as 'model@version'. Raises NothingToRollBack."""
    goal = rollback_goal(history, current, to)
    meant = (snapshot.meant_by(target) for target in goal.targets)
    return [candidate.name for candidate in meant if candidate is not None]


def _names(candidates: Sequence[Candidate]) -> set[str]:
    return {candidate.name for candidate in candidates}
