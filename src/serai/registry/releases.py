"""Changes of models, versions and aliases. Each runs inside `Registry.write`, judges, writes, and audits.

`force` is an admin's word: what services use goes all the same, and they are put right in the same
transaction, so that nothing dangles.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from serai.registry import checks, lifecycle, store
from serai.registry.bindings import detach, told
from serai.registry.errors import (
    AliasNotFound,
    ModelNotFound,
    VersionAlreadyExists,
    VersionInUse,
    VersionNotActive,
    VersionNotFound,
)
from serai.registry.model import Alias, AliasEvent, Model, check_model
from serai.registry.reference import check_alias
from serai.registry.registry import Change
from serai.registry.semver import parse
from serai.registry.service import Target
from serai.registry.snapshot import ModelEntry
from serai.registry.version import Status, Version, check_version, derive, seal


def create_model(change: Change, model: Model, first: Version) -> Model:
    """Add a card with its first version.

    Raises ModelAlreadyExists, NameCollision, VersionAlreadyExists, InvalidInput.
    """
    check_model(model)
    checks.check_new_model(change.snapshot, model)
    check_version(first)
    numbers, seq = store.version_numbers(change.connection, model.id)
    _check_unused_number(first.version, numbers, model.id)
    store.put_model(change.connection, model)
    version = seal(replace(first, seq=seq + 1))
    store.put_version(change.connection, version)
    change.audit("models.create", "model", model.id, after={**told(model), "version": told(version)})
    return model


def update_model(change: Change, model_id: str, changes: Mapping[str, Any], *, force: bool = False) -> Model:
    """Change the card; what services use is switched off by force only.

    Raises ModelNotFound, NameCollision, InvalidInput, VersionInUse.
    """
    before = entry_of(change, model_id).model
    after = replace(before, **changes, updated_at=change.at, updated_by=change.by)
    used_by = checks.impact(change.snapshot, model_id).services if before.active and not after.active else ()
    if used_by and not force:
        message = f"The model {model_id} cannot be switched off: {len(used_by)} service(s) use it."
        raise VersionInUse(message, details=list(used_by))
    check_model(after)
    checks.check_names(change.snapshot, after)
    store.put_model(change.connection, after)
    change.audit("models.update", "model", model_id, before=told(before), after=told(after))
    return after


def delete_model(change: Change, model_id: str, *, force: bool = False) -> None:
    """Remove the card, its aliases and versions; the numbers stay used. Raises ModelNotFound, VersionInUse."""
    entry = entry_of(change, model_id)
    used_by = checks.impact(change.snapshot, model_id).services
    if used_by and not force:
        message = f"The model {model_id} cannot be deleted: {len(used_by)} service(s) use it."
        raise VersionInUse(message, details=list(used_by))
    for candidate in entry.candidates.values():
        buried = lifecycle.bury(candidate.version, at=change.at, by=change.by)
        store.put_version(change.connection, buried)
    for name, version in entry.aliases.items():
        store.delete_alias(change.connection, _alias_event(change, model_id, name, version, None, "model deleted"))
    store.bury_model(change.connection, model_id, change.at)
    versions = [told(candidate.version) for candidate in entry.candidates.values()]
    held = {**told(entry.model), "versions": versions, "aliases": dict(entry.aliases)}
    change.audit("models.delete", "model", model_id, before=held)
    detach(change, used_by)


def create_version(
    change: Change,
    model_id: str,
    number: str,
    overrides: Mapping[str, Any],
    *,
    based_on: str | None = None,
    status: Status | None = None,
) -> Version:
    """Add a release with the technical fields of `based_on` (default: the newest), except the overrides.

    Raises ModelNotFound, VersionNotFound (the base), VersionAlreadyExists, ActiveVersionLimitExceeded,
    InvalidVersionFormat, InvalidInput.
    """
    parse(number)
    entry = entry_of(change, model_id)
    numbers, seq = store.version_numbers(change.connection, model_id)
    _check_unused_number(number, numbers, model_id)
    base = _version(entry, based_on) if based_on is not None else _newest(change, entry)
    overrides = _without_leave(base, overrides)
    wanted = status or Status(change.snapshot.rules.default_version_status)
    made = derive(base, overrides, version=number, seq=seq + 1, status=wanted, at=change.at, by=change.by)
    if base.seq == 0:
        made = replace(made, based_on=None)
    if wanted is Status.ACTIVE:
        _make_room(change, entry)
    store.put_version(change.connection, made)
    change.audit("versions.create", "version", f"{model_id}@{number}", after=told(made))
    return made


def update_version(change: Change, model_id: str, number: str, changes: Mapping[str, Any]) -> Version:
    """Change a version's fields, all or none. Raises VersionNotFound, ImmutableVersion, InvalidInput."""
    before = version_of(change, model_id, number)
    changes = _without_leave(before, changes)
    published = checks.impact(change.snapshot, model_id, number).published_services
    after = lifecycle.edit(before, changes, used_by_published_service=bool(published), at=change.at, by=change.by)
    return _put(change, "versions.update", before, after)


def deprecate(
    change: Change,
    model_id: str,
    number: str,
    *,
    reason: str = "",
    sunset_at: datetime | None = None,
    force: bool = False,
) -> Version:
    """Deprecate a version; the services that use it go on. Raises VersionNotFound, VersionInUse, InvalidStatusMove."""
    before = version_of(change, model_id, number)
    lifecycle.check_move(before, Status.DEPRECATED)
    used_by = _check_unused(change, before, "deprecated", force=force)
    after = lifecycle.deprecate(before, at=change.at, by=change.by, reason=reason, sunset_at=sunset_at)
    _put(change, "versions.deprecate", before, after)
    detach(change, used_by)
    return after


def activate(change: Change, model_id: str, number: str) -> Version:
    """Make a draft or a deprecated version active.

    Raises VersionNotFound, ActiveVersionLimitExceeded, InvalidStatusMove.
    """
    before = version_of(change, model_id, number)
    lifecycle.check_move(before, Status.ACTIVE)
    _make_room(change, entry_of(change, model_id))
    return _put(change, "versions.activate", before, lifecycle.activate(before, at=change.at, by=change.by))


def publish(change: Change, model_id: str, number: str) -> Version:
    """Publish a version: what it is cannot change any more. Raises VersionNotFound, ActiveVersionLimitExceeded."""
    before = version_of(change, model_id, number)
    if before.status is Status.DRAFT:
        _make_room(change, entry_of(change, model_id))
    after = lifecycle.publish(before, change.snapshot.rules, at=change.at, by=change.by)
    return _put(change, "versions.publish", before, after)


def unpublish(change: Change, model_id: str, number: str, *, force: bool = False) -> Version:
    """Take a version back from publication; it stays immutable. Raises VersionNotFound, VersionInUse."""
    before = version_of(change, model_id, number)
    _check_unused(change, before, "unpublished", force=force)
    return _put(change, "versions.unpublish", before, lifecycle.unpublish(before, at=change.at, by=change.by))


def retire(change: Change, model_id: str, number: str, *, force: bool = False) -> Version:
    """End a deprecated version: it answers no more. Raises VersionNotFound, VersionInUse, InvalidStatusMove."""
    before = version_of(change, model_id, number)
    lifecycle.check_move(before, Status.RETIRED)
    used_by = _check_unused(change, before, "retired", force=force)
    after = _put(change, "versions.retire", before, lifecycle.move(before, Status.RETIRED, at=change.at, by=change.by))
    _drop_aliases(change, model_id, number, "version retired")
    detach(change, used_by)
    return after


def delete_version(change: Change, model_id: str, number: str, *, force: bool = False) -> None:
    """Leave a tombstone: the number is not used again. Raises VersionNotFound, VersionInUse."""
    before = version_of(change, model_id, number)
    used_by = _check_unused(change, before, "deleted", force=force)
    _drop_aliases(change, model_id, number, "version deleted")
    _put(change, "versions.delete", before, lifecycle.bury(before, at=change.at, by=change.by))
    detach(change, used_by)


def put_alias(
    change: Change, model_id: str, name: str, to: str, *, expected_from: str | None, check: bool, reason: str = ""
) -> Alias:
    """Make or move an alias; with `check`, only if it points to `expected_from` (None: nowhere).

    The services that name it are switched by that, so what a switch refuses is refused here. Raises
    VersionNotFound, AliasMoved, InvalidInput, VersionNotActive, DeprecatedVersion, LicenceRefused,
    IncompatibleFallback.
    """
    check_alias(name)
    entry = entry_of(change, model_id)
    if version_of(change, model_id, to).status is Status.RETIRED:
        raise VersionNotActive(f"{model_id}@{to} is retired: no alias can point to it.")
    current = entry.aliases.get(name)
    if check:
        lifecycle.check_alias_swap(current, expected_from)
    for service_id in checks.services_naming_alias(change.snapshot, model_id, name):
        checks.check_reach(change.snapshot, change.snapshot.services[service_id], Target(model=model_id, version=to))
    event = _alias_event(change, model_id, name, current, to, reason)
    alias = Alias(
        model_id=model_id, name=name, version=to, epoch=event.epoch, updated_at=change.at, updated_by=change.by
    )
    store.put_alias(change.connection, alias, event)
    before = None if current is None else {"version": current}
    after = {"version": to, "epoch": event.epoch, "reason": reason}
    change.audit("aliases.put", "alias", f"{model_id}@{name}", before=before, after=after)
    return alias


def delete_alias(change: Change, model_id: str, name: str, *, force: bool = False, reason: str = "") -> None:
    """Remove an alias that no service names. Raises AliasNotFound, VersionInUse."""
    current = entry_of(change, model_id).aliases.get(name)
    if current is None:
        raise AliasNotFound(f"The model {model_id} has no alias {name!r}.")
    used_by = checks.services_naming_alias(change.snapshot, model_id, name)
    if used_by and not force:
        raise VersionInUse(f"The alias {model_id}@{name} is used by {len(used_by)} service(s).", details=list(used_by))
    store.delete_alias(change.connection, _alias_event(change, model_id, name, current, None, reason))
    change.audit("aliases.delete", "alias", f"{model_id}@{name}", before={"version": current})
    detach(change, used_by)


def entry_of(change: Change, model_id: str) -> ModelEntry:
    """Return the model's entry as the change found it. Raises ModelNotFound."""
    entry = change.snapshot.models.get(model_id)
    if entry is None:
        raise ModelNotFound(f"There is no model {model_id!r}.")
    return entry


def version_of(change: Change, model_id: str, number: str) -> Version:
    """Return the version as the change found it. Raises ModelNotFound, VersionNotFound."""
    return _version(entry_of(change, model_id), number)


def _version(entry: ModelEntry, number: str) -> Version:
    candidate = entry.candidates.get(number)
    if candidate is None:
        raise VersionNotFound(f"The model {entry.model.id} has no version {number!r}.")
    return candidate.version


def _newest(change: Change, entry: ModelEntry) -> Version:
    """Return the newest version; of a model whose versions were all deleted, one that says nothing."""
    newest = next(iter(entry.candidates.values()), None)
    if newest is not None:
        return newest.version
    by: dict[str, Any] = {
        "created_at": change.at,
        "created_by": change.by,
        "updated_at": change.at,
        "updated_by": change.by,
    }
    return Version(model_id=entry.model.id, version="0.0.0", seq=0, status=Status.DRAFT, **by)


def _check_unused_number(number: str, used: list[str], model_id: str) -> None:
    if number in used:
        raise VersionAlreadyExists(f"The model {model_id} has or had a version {number}.")


def _make_room(change: Change, entry: ModelEntry) -> None:
    """Deprecate what the limit's policy says must go before one more version becomes active."""
    versions = [candidate.version for candidate in entry.candidates.values()]
    in_use = checks.versions_in_use(change.snapshot, entry.model.id)
    for oldest in lifecycle.make_room(versions, in_use, change.snapshot.rules):
        reason = "the limit of active versions"
        after = lifecycle.deprecate(oldest, at=change.at, by=change.by, reason=reason)
        _put(change, "versions.deprecate", oldest, after)


def _check_unused(change: Change, version: Version, verb: str, *, force: bool) -> tuple[str, ...]:
    """Return the services that use the version. Raises VersionInUse if there are any, unless forced."""
    services = checks.impact(change.snapshot, version.model_id, version.version).services
    lifecycle.check_unused(version, services, verb, force=force)
    return services


def _drop_aliases(change: Change, model_id: str, number: str, reason: str) -> None:
    for name, to in entry_of(change, model_id).aliases.items():
        if to == number:
            store.delete_alias(change.connection, _alias_event(change, model_id, name, number, None, reason))
            change.audit("aliases.delete", "alias", f"{model_id}@{name}", before={"version": number})


def _put(change: Change, action: str, before: Version, after: Version) -> Version:
    if after is before:
        return before
    store.put_version(change.connection, after)
    name = f"{after.model_id}@{after.version}"
    change.audit(action, "version", name, before=told(before), after=told(after))
    return after


_LEAVE_IS_FOR = ("source", "adapters", "files", "engine")


def _without_leave(version: Version, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave to run a source's code was given for that source: another one starts without it, unless it is given too."""
    moved = any(changes.get(name, getattr(version, name)) != getattr(version, name) for name in _LEAVE_IS_FOR)
    return {"allow_remote_code": False, "allow_pickle": False, **changes} if moved else changes


def _alias_event(
    change: Change, model_id: str, name: str, before: str | None, after: str | None, reason: str
) -> AliasEvent:
    epoch = store.last_epoch(change.connection, model_id, name) + 1
    return AliasEvent(
        model_id=model_id,
        name=name,
        epoch=epoch,
        before=before,
        after=after,
        reason=reason,
        at=change.at,
        by=change.by,
    )
