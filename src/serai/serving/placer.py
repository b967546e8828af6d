"""Finding a version's weights and placing it, remembered until the version changes."""

import asyncio
from collections.abc import Collection
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


class Placer:
    """Places candidates on this machine; the disk is read in a thread."""

    def __init__(self, machine: Machine, weights: Weights) -> None:
        self._machine = machine
        self._weights = weights
        self._found: dict[Key, tuple[Version, Found]] = {}

    async def place(self, candidate: Candidate, needs: Collection[str] = ()) -> list[Placement]:
        """Return the ways to run a candidate, best first. Raises ModelNotPulled, and what `placing.place` raises."""
        known = self._found.get(candidate.key)
        if known is None or known[0] is not candidate.version:
            version = candidate.version
            found = await asyncio.to_thread(_find, version, self._weights) if _reads_disk(version) else Found()
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            known = self._found[candidate.key] = (version, found)
        return place(candidate, self._machine, known[1], needs=needs)

    def forget(self, key: Key) -> None:
        """Look for the weights again next time: a load has failed."""
        self._found.pop(key, None)


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
