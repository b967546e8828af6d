"""How a version can be run on this machine: engines in order, the unit in memory that each needs, and why. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from serai.engines import footprint
from serai.engines.base import AdapterUse, EngineInfo, EngineSpec
from serai.engines.catalogue import CATALOGUE
from serai.engines.choose import Choice, Choices, choose, formats_of, tasks_for
from serai.engines.errors import EngineMissing, EngineUnknown
from serai.engines.footprint import Weights
from serai.engines.options import HttpOptions, RemoteOptions
from serai.errors import InvalidInput, LoadFailed, OutOfMemory, SeraiError
from serai.registry.canonical import digest_of
from serai.registry.failure import failure_of
from serai.registry.snapshot import Candidate
from serai.registry.source import RemoteSource
from serai.registry.version import Version
from serai.runtime.errors import DoesNotFit, QueueFull, QueueTimeout
from serai.runtime.lease import Claim
from serai.runtime.model import DeviceKind, UnitId, UnitSpec

NO_WEIGHTS: Final = Weights(files={}, tensors={}, config={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine has for models."""

    device_kinds: frozenset[str]
    threads: int = 1
    """CPU threads of one model that runs on the processor."""
    missing: Mapping[str, tuple[str, ...]]
    """Packages that are not installed, by engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a version's weights are, as far as an engine needs any."""

    folder: str = ""
    weights: Weights = NO_WEIGHTS
    """What its files tell."""
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to run a version."""

    engine: EngineInfo
    why: str
    claim: Claim | None = None
    """What it needs in memory here; None for what runs on another server."""
    adapters: tuple[AdapterUse, ...] = ()
    remote: RemoteSource | None = None
    options: RemoteOptions | HttpOptions | None = None
    """Of a remote engine; those of the others are in the claim."""

    @property
    def unit(self) -> UnitId | None:
        return None if self.claim is None else self.claim.unit.id


def needs_weights(version: Version) -> bool:
    """Say whether files of the version must be on this machine before it can be run; not for an unknown engine."""
    if isinstance(version.source, RemoteSource):
        return False
    if not version.engine:
        return True
    named = CATALOGUE.get(version.engine)
    return named is not None and "none" not in named.formats


def place(candidate: Candidate, machine: Machine, found: Found, *, needs: Collection[str] = ()) -> list[Placement]:
    """Return the ways to run a candidate, best first, at least one.

    `needs`: capabilities of an engine that the call cannot do without. Raises EngineMissing where no
    engine is here, InvalidInput where one is that lacks what the call needs, LoadFailed for options that
    no engine takes.
    """
    version = candidate.version
    required = frozenset(needs) | ({"adapters"} if version.adapters else frozenset())
    choices = _choices(candidate, machine, found, required)
    if not choices.order:
        _refuse_needs(candidate, machine, found, frozenset(needs))
        choices.first()
    placements, problem = [], ""
    for choice in choices.order:
        try:
            options = choice.engine.check_options(version.engine_options)
        except InvalidInput as error:
            problem = error.message
        else:
            placements.append(_placement(candidate, choice, options, machine, found))
    if not placements:
        raise LoadFailed(
            f"The options of {candidate.name} are wrong: {problem}.",
            hint="An admin corrects engine_options in a new version.",
        )
    return placements


def unit_id(version: Version, engine: str, device_kind: DeviceKind) -> UnitId:
    """Return what is in memory once: versions with the same base weights, engine, options and quantization share it."""
    weights = version.base_digest
    if version.engine_options or version.allow_remote_code:
        options = {"options": dict(version.engine_options), "remote_code": version.allow_remote_code}
        weights = digest_of({"weights": weights, **options})
    return UnitId(weights=weights, engine=engine, quantization=version.quantization, device_kind=device_kind)


def estimate(version: Version, engine: str, device_kind: DeviceKind, weights: Weights) -> int:
    """Return the bytes to reserve: what was measured or declared, else an estimate for the engine.

    Of a version whose files were pulled, what was not measured is itself an estimate, perhaps for another
    engine: the larger one counts.
    """
    known = version.bytes_on(device_kind.value) or 0
    is_measured = any(entry.measured for entry in version.footprint if entry.device == device_kind.value)
    if known and (is_measured or not version.files):
        return known
    estimated = footprint.estimate(
        weights,
        engine=engine,
        device_kind=device_kind.value,
        quantization=version.quantization,
        options=version.engine_options,
    )
    return max(known, estimated.bytes)


def blames_engine(error: SeraiError, placement: Placement, other: Placement) -> bool:
    """Say whether `other` may load what `placement` could not: a queue and the caller's mistakes are no reason.

    What was too large for a device is too large for the next engine on it.
    """
    if isinstance(error, QueueFull | QueueTimeout) or failure_of(error).is_final:
        return False
    if isinstance(error, OutOfMemory | DoesNotFit):
        kinds = {one.unit.device_kind for one in (placement, other) if one.unit is not None}
        return len(kinds) > 1
    return True


def _choices(candidate: Candidate, machine: Machine, found: Found, needs: frozenset[str]) -> Choices:
    version = candidate.version
    paths = [file.path for file in version.files] or list(found.weights.files)
    try:
        return choose(
            engine=version.engine or None,
            tasks=tasks_for(candidate.model.task),
            formats=formats_of(version.source, paths),
            device_kinds=machine.device_kinds,
            missing=machine.missing,
            needs=needs,
            is_remote=isinstance(version.source, RemoteSource),
        )
    except EngineUnknown as error:
        # The version is wrong, not the call.
        raise EngineMissing(f"{candidate.name} needs an engine that is not here. {error.message}") from error


def _refuse_needs(candidate: Candidate, machine: Machine, found: Found, needs: frozenset[str]) -> None:
    """Raise InvalidInput if the version can be run, but not for what the call asks."""
    if needs and _choices(candidate, machine, found, frozenset()).order:
        raise InvalidInput.at(
            min(
                (one for one in needs if not _choices(candidate, machine, found, frozenset({one})).order),
                default=min(needs),
            ),
            f"is not possible with {candidate.name} on this machine",
            hint="Leave it out, or choose a model whose engine can: GET /status lists the capabilities of each.",
        )


def _placement(
    candidate: Candidate, choice: Choice, options: msgspec.Struct, machine: Machine, found: Found
) -> Placement:
    version = candidate.version
    why = f"{choice.engine.name} on {choice.device_kind}: {choice.why}"
    if choice.device_kind == "remote":
        if not isinstance(version.source, RemoteSource) or not isinstance(options, RemoteOptions | HttpOptions):
            raise LoadFailed(f"{candidate.name} is to run on another server, and its source names none.")
        return Placement(engine=choice.engine, why=why, remote=version.source, options=options)
    device_kind = DeviceKind(choice.device_kind)
    threads = machine.threads if device_kind is DeviceKind.CPU else 1
    unit = UnitSpec(
        id=unit_id(version, choice.engine.name, device_kind),
        bytes=estimate(version, choice.engine.name, device_kind, found.weights),
        threads=threads,
    )
    spec = EngineSpec(
        engine=choice.engine.name,
        name=candidate.name,
        folder=found.folder,
        device=device_kind.value,
        quantization=version.quantization,
        options=dict(version.engine_options),
        threads=threads,
        allow_remote_code=version.allow_remote_code,
    )
    return Placement(engine=choice.engine, why=why, claim=Claim(unit=unit, engine=spec), adapters=found.adapters)
