"""How a version's status may move, what may be changed of it, and the limit on active ones.

Everything here returns a new value or raises; the store that calls it holds the lock.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from serai.errors import Conflict, InvalidInput
from serai.registry.errors import (
    ActiveVersionLimitExceeded,
    AliasMoved,
    ImmutableVersion,
    InvalidStatusMove,
    VersionInUse,
)
from serai.registry.rules import RegistryRules
from serai.registry.semver import next_minor, parse
from serai.registry.source import File, Footprint, Source
from serai.registry.version import ALWAYS_EDITABLE, Status, Version, check_fields, check_version, seal

MOVES: Mapping[Status, frozenset[Status]] = {
    Status.DRAFT: frozenset({Status.ACTIVE, Status.TOMBSTONE}),
    Status.ACTIVE: frozenset({Status.DEPRECATED, Status.TOMBSTONE}),
    Status.DEPRECATED: frozenset({Status.ACTIVE, Status.RETIRED, Status.TOMBSTONE}),
    Status.RETIRED: frozenset({Status.TOMBSTONE}),
    Status.TOMBSTONE: frozenset(),
}
"""The only moves there are. Nothing moves to itself, and nothing leaves a tombstone."""


def can_move(before: Status, after: Status) -> bool:
    """Say whether the table has this move."""
    return after in MOVES[before]


def check_move(version: Version, after: Status) -> None:
    """Raises InvalidStatusMove that names the moves that are open."""
    if not can_move(version.status, after):
        named = sorted(status for status in MOVES[version.status] if status is not Status.TOMBSTONE)
        raise InvalidStatusMove(
            f"{version.model_id}@{version.version} is {version.status} and cannot become {after}.",
            details={"from": version.status, "to": after, "allowed": named},
        )


def move(version: Version, after: Status, *, at: datetime, by: str) -> Version:
    """Return `version` in its next status, sealed. Raises InvalidStatusMove."""
    check_move(version, after)
    moved = replace(version, status=after, updated_at=at, updated_by=by)
    return seal(moved) if version.status is Status.DRAFT else moved


def activate(version: Version, *, at: datetime, by: str) -> Version:
    """Return `version` active, its deprecation forgotten. Check the limit first (`make_room`)."""
    moved = move(version, Status.ACTIVE, at=at, by=by)
    return replace(moved, deprecated_at=None, sunset_at=None, deprecation_reason="")


def deprecate(
    version: Version, *, at: datetime, by: str, reason: str = "", sunset_at: datetime | None = None
) -> Version:
    """Return `version` deprecated, with the date from which it may stop answering. Raises InvalidStatusMove."""
    if sunset_at is not None and sunset_at <= at:
        raise InvalidInput.at("sunset_at", "must be in the future")
    moved = move(version, Status.DEPRECATED, at=at, by=by)
    return replace(moved, deprecated_at=at, sunset_at=sunset_at, deprecation_reason=reason)


def publish(version: Version, rules: RegistryRules, *, at: datetime, by: str) -> Version:
    """Return `version` published; a draft becomes active by it, and what it is cannot change any more.

    Check the limit first for a draft (`make_room`). Raises InvalidStatusMove for one that is retired
    or deleted.
    """
    if version.status in (Status.RETIRED, Status.TOMBSTONE):
        check_move(version, Status.ACTIVE)
    active = activate(version, at=at, by=by) if version.status is Status.DRAFT else version
    return replace(
        active,
        published_at=at,
        unpublished_at=None,
        immutable=version.immutable or rules.enable_version_immutability,
        updated_at=at,
        updated_by=by,
    )


def unpublish(version: Version, *, at: datetime, by: str) -> Version:
    """Return `version` unpublished. It stays immutable: what was once published is not rewritten."""
    if not version.is_published:
        raise Conflict(
            f"{version.model_id}@{version.version} is not published.",
            hint="Publish it with PATCH /models/{id}/versions/{version}/publish.",
        )
    return replace(version, unpublished_at=at, updated_at=at, updated_by=by)


def bury(version: Version, *, at: datetime, by: str) -> Version:
    """Return the tombstone of `version`: the row and its digest stay, so its number is never used again.

    What a tombstone names needs no keeping: the collector of blobs does not count its files.
    """
    return move(version, Status.TOMBSTONE, at=at, by=by)


def is_immutable(version: Version, used_by_published_service: bool) -> bool:
    """Say whether what a version is cannot change: it was published, or a published service uses it."""
    return version.immutable or used_by_published_service


def edit(
    version: Version, changes: Mapping[str, Any], *, used_by_published_service: bool, at: datetime, by: str
) -> Version:
    """Return `version` with `changes`, all of them, or raise.

    Raises InvalidInput for a field that cannot be set, ImmutableVersion (with the names) for one
    that an immutable version refuses. A change to the value there already is is no change.
    """
    check_fields(changes)
    real = {name: value for name, value in changes.items() if getattr(version, name) != value}
    if not real:
        return version
    if version.status is Status.TOMBSTONE:
        raise InvalidStatusMove(f"{version.model_id}@{version.version} was deleted and cannot be changed.")
    refused = sorted(set(real) - ALWAYS_EDITABLE)
    if refused and is_immutable(version, used_by_published_service):
        why = "is immutable" if version.immutable else "is used by a published service and so immutable"
        raise ImmutableVersion(
            f"{version.model_id}@{version.version} {why}: {', '.join(refused)} cannot change.", details=refused
        )
    edited = replace(version, **real, updated_at=at, updated_by=by)
    check_version(edited)
    return seal(edited)


def receive_files(
    version: Version,
    *,
    source: Source,
    files: tuple[File, ...],
    footprint: tuple[Footprint, ...],
    at: datetime,
    by: str,
) -> Version:
    """Return a draft with the files that its pull brought, and the source pinned as it was pulled.

    This completes what the draft announced, so it is no change of an immutable version; a version
    that has its files, or is no draft, refuses it. Raises ImmutableVersion.
    """
    if version.status is not Status.DRAFT or version.files:
        raise ImmutableVersion(f"{version.model_id}@{version.version} has its files already.", details=["files"])
    pulled = replace(version, source=source, files=files, footprint=footprint, updated_at=at, updated_by=by)
    check_version(pulled)
    return seal(pulled)


def make_room(versions: Iterable[Version], in_use: Collection[str], rules: RegistryRules) -> tuple[Version, ...]:
    """Return the versions to deprecate so that one more of this model may become active.

    `versions` are all of the model, `in_use` the versions that a service uses. Nothing is to be done
    below the limit. At it, the policy `deprecate-oldest` takes the oldest by `seq` that no service
    uses; the other policy, or none to take, raises ActiveVersionLimitExceeded. The caller applies
    the answer in the same transaction as the activation.
    """
    active = sorted((one for one in versions if one.status is Status.ACTIVE), key=lambda one: one.seq)
    excess = len(active) + 1 - rules.max_active_versions_per_model
    if excess <= 0:
        return ()
    free = [one for one in active if one.version not in in_use]
    if rules.on_limit == "deprecate-oldest" and len(free) >= excess:
        return tuple(free[:excess])
    held = " and a service uses each of them" if rules.on_limit == "deprecate-oldest" else ""
    raise ActiveVersionLimitExceeded(
        f"There are {len(active)} active versions; at most {rules.max_active_versions_per_model} are allowed{held}.",
        details=[one.version for one in active],
    )


def check_unused(version: Version, services: Collection[str], verb: str, *, force: bool = False) -> None:
    """Raises VersionInUse with the service ids, unless there are none or an admin forces it."""
    if services and not force:
        raise VersionInUse(
            f"{version.model_id}@{version.version} cannot be {verb}: {len(services)} service(s) use it.",
            details=sorted(services),
        )


def check_alias_swap(current: str | None, expected_from: str | None) -> None:
    """Raises AliasMoved unless the alias points where the caller believes; None stands for 'nowhere'."""
    if current != expected_from:
        raise AliasMoved(
            f"The alias points to {current or 'nothing'}, not to {expected_from or 'nothing'}.",
            details={"current": current, "expected_from": expected_from},
        )


def next_version(versions: Iterable[str]) -> str:
    """Return the number for a new commit of a model: the first is 1.0.0, then the next minor.

    `versions` holds every number that was ever used, tombstones too.
    """
    newest = max((parse(text) for text in versions), default=None)
    return "1.0.0" if newest is None else str(next_minor(newest))
