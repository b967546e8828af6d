"""Finding a version's weights and placing it, remembered until the version changes."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from serai.engines.base import AdapterUse
from serai.engines.weights import weights_in
from serai.errors import LoadFailed
from serai.registry.failure import Key
from serai.registry.snapshot import Candidate
from serai.registry.version import Version
from serai.serving.placing import Found, Machine, Placement, needs_weights, place
from serai.serving.weights import Weights, adapter_id

_REMEMBERED: Final = 1024
_REMEMBERED_NEEDS: Final = 32


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found of a version, and how it is placed, by what calls need of the engine."""

    version: Version
    task: str
    found: Found
    placements: dict[frozenset[str], Sequence[Placement]] = field(default_factory=dict)


class Placer:
    """Places candidates on this machine; the disk is read in a thread."""

    def __init__(self, machine: Machine, weights: Weights) -> None:
        self._machine = machine
        self._weights = weights
        self._known: dict[Key, _Known] = {}

    async def place(self, candidate: Candidate, needs: Collection[str] = ()) -> Sequence[Placement]:
        """Return the ways to run a candidate, best first. Raises ModelNotPulled, and what `placing.place` raises."""
        known = self._known.get(candidate.key)
        if known is None or known.version is not candidate.version or known.task != candidate.model.task:
            version = candidate.version
            found = await asyncio.to_thread(_find, version, self._weights) if _reads_disk(version) else Found()
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[candidate.key] = _Known(version, candidate.model.task, found)
        asked = frozenset(needs)
        placements = known.placements.get(asked)
        if placements is None:
            placements = place(candidate, self._machine, known.found, needs=asked)
            if len(known.placements) < _REMEMBERED_NEEDS:
                known.placements[asked] = placements
        return placements

    def forget(self, key: Key) -> None:
        """Look for the weights again next time: a load has failed."""
        self._known.pop(key, None)


def _reads_disk(version: Version) -> bool:
    return bool(version.adapters) or needs_weights(version)


def _find(version: Version, weights: Weights) -> Found:
    adapters = tuple(
        AdapterUse(
            id=adapter_id(version, adapter),
            path=str(weights.locate_adapter(version, adapter)),
            scale=adapter.scale,
            name=adapter.id,
        )
        for adapter in version.adapters
    )
    if not needs_weights(version):
        return Found(adapters=adapters)
    folder = weights.locate(version)
    try:
        return Found(folder=str(folder), weights=weights_in(folder), adapters=adapters)
    except OSError as error:
        raise LoadFailed(f"The weights of {version.model_id}@{version.version} cannot be read.") from error
