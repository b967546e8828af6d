"""Changes of services: what they are bound to, switches, rollbacks. Each runs inside `Registry.write`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from serai.registry import checks, store
from serai.registry.errors import NothingToRollBack, ServiceNotFound, VersionInUse
from serai.registry.model import check_task
from serai.registry.registry import Change
from serai.registry.service import FallbackEntry, Revision, Service, Target
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.version import Status

CONTENT = ("targets", "shadow", "fallback", "limits", "config")
"""What makes two revisions the same state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A service as it was written, and what may be amiss with it."""

    service: Service
    warnings: tuple[str, ...] = ()


def create_service(change: Change, service: Service) -> Written:
    """Add a service. Raises ServiceAlreadyExists, NameCollision, and what `checks.check_service` raises."""
    check_task(service.task)
    checks.check_new_service(change.snapshot, service.id)
    n = store.last_revision(change.connection, service.id) + 1
    service = replace(service, revision=replace(service.revision, n=n), version_updated_at=change.at)
    warnings = checks.check_service(change.snapshot, service)
    store.put_service(change.connection, service, new_revision=True)
    change.audit("services.create", "service", service.id, after=told(service))
    return Written(service=service, warnings=warnings)


def update_service(
    change: Change, service_id: str, fields: Mapping[str, Any], content: Mapping[str, Any], *, reason: str = ""
) -> Written:
    """Change a service: `fields` of the service itself, `content` of its revision (which makes a new one).

    Raises ServiceNotFound, and what `checks.check_service` raises.
    """
    before = service_of(change, service_id)
    after = replace(before, **fields, updated_at=change.at, updated_by=change.by)
    if any(getattr(before.revision, name) != value for name, value in content.items()):
        after = _with_revision(change, after, content, reason)
    warnings = checks.check_service(change.snapshot, after, before=before)
    return Written(service=_put(change, "services.update", before, after), warnings=warnings)


def switch_version(
    change: Change, service_id: str, *, model: str | None, version: str | None, alias: str | None, reason: str = ""
) -> Written:
    """Bind the service to another version of its model, all traffic; limits and chain stay.

    Raises ServiceNotFound, ServiceVersionSwitchError, VersionNotFound, VersionNotActive,
    DeprecatedVersion, LicenceRefused.
    """
    before = service_of(change, service_id)
    bound = before.binding
    wanted = model or (bound.model if bound else "")
    if alias is None:
        target = checks.check_switch(change.snapshot, before, wanted, version or "")
    else:
        entry = change.snapshot.find_model(wanted)
        number = entry.aliases.get(alias) if entry else None
        meant = checks.check_switch(change.snapshot, before, wanted, number or alias)
        target = Target(model=meant.model, alias=alias)
    after = _with_revision(change, before, {"targets": (target,)}, reason or f"switched to {target.reference}")
    after = replace(after, version_updated_at=change.at, updated_at=change.at, updated_by=change.by)
    warnings = checks.check_service(change.snapshot, after, before=before)
    return Written(service=_put(change, "services.switch", before, after), warnings=warnings)


def rollback(change: Change, service_id: str, *, to: int | None = None, reason: str = "") -> Written:
    """Make the previous state (or revision `to`) the current one, as a new revision.

    Going back again goes further back. What no longer may serve is refused, and the service stays
    as it is. Raises ServiceNotFound, NothingToRollBack, and what `checks.check_service` raises.
    """
    before = service_of(change, service_id)
    history = store.revisions(change.connection, service_id)
    if to is None:  # a deleted service of the same name is not a state of this one
        history = [revision for revision in history if revision.created_at >= before.created_at]
    goal = rollback_goal(history, before.revision, to)
    content = {name: getattr(goal, name) for name in CONTENT}
    after = _with_revision(change, before, content, reason or f"rolled back to revision {goal.n}")
    after = replace(
        after,
        revision=replace(after.revision, rolled_back_to=goal.n),
        version_updated_at=change.at,
        updated_at=change.at,
        updated_by=change.by,
    )
    # What it goes back to was in use before: a version deprecated since then may serve again, one retired may not.
    warnings = checks.check_service(change.snapshot, after, before=replace(before, revision=goal))
    return Written(service=_put(change, "services.rollback", before, after), warnings=warnings)


def rollback_goal(history: Iterable[Revision], current: Revision, to: int | None) -> Revision:
    """Return the revision to go back to. Raises NothingToRollBack."""
    base = current.rolled_back_to or current.n
    for revision in sorted(history, key=lambda one: one.n, reverse=True):
        if revision.n == to or (to is None and revision.n < base and not _same(revision, current)):
            return revision
    what = "no earlier state" if to is None else f"no revision {to}"
    raise NothingToRollBack(f"The service {current.service_id} has {what}.")


def set_published(change: Change, service_id: str, *, published: bool) -> Written:
    """Publish or unpublish a service. A published one makes the versions it uses immutable. Raises ServiceNotFound."""
    before = service_of(change, service_id)
    after = replace(before, published=published, updated_at=change.at, updated_by=change.by)
    action = "services.publish" if published else "services.unpublish"
    return Written(service=before if before.published == published else _put(change, action, before, after))


def delete_service(change: Change, service_id: str, *, force: bool = False) -> None:
    """Remove a service that no other falls back on; its history stays. Raises ServiceNotFound, VersionInUse."""
    before = service_of(change, service_id)
    chained = sorted(
        other.id
        for other in change.snapshot.services.values()
        if any(entry.service == service_id for entry in other.revision.fallback)
    )
    if chained and not force:
        message = f"The service {service_id} cannot be deleted: {len(chained)} service(s) fall back on it."
        raise VersionInUse(message, details=chained)
    store.bury_service(change.connection, service_id, change.at)
    change.audit("services.delete", "service", service_id, before=told(before))
    detach(change, chained)


def detach(change: Change, service_ids: Iterable[str]) -> None:
    """Give each service a revision without the targets and links that mean nothing any more, or cannot do its work.

    The weights that are left are scaled to 100. A service without any target lets the policy choose.
    """
    snapshot = change.reload()
    for service_id in service_ids:
        before = snapshot.services.get(service_id)
        if before is None:
            continue
        content = _living(snapshot, before)
        if all(getattr(before.revision, name) == value for name, value in content.items()):
            continue
        after = _with_revision(change, before, content, "what it used was removed")
        after = replace(after, version_updated_at=change.at, updated_at=change.at, updated_by=change.by)
        _put(change, "services.detach", before, after)


def service_of(change: Change, service_id: str) -> Service:
    """Return the service as the change found it. Raises ServiceNotFound."""
    service = change.snapshot.services.get(service_id)
    if service is None:
        raise ServiceNotFound(f"There is no service {service_id!r}.")
    return service


def _living(snapshot: RegistrySnapshot, service: Service) -> dict[str, Any]:
    def is_living(target: Target | FallbackEntry) -> bool:
        candidate = snapshot.meant_by(target)
        if candidate is None or candidate.version.status is Status.RETIRED:
            return False
        return not checks.lacking(service, candidate)

    revision = service.revision
    shadow = revision.shadow
    return {
        "targets": _scaled([target for target in revision.targets if is_living(target)]),
        "fallback": tuple(
            entry
            for entry in revision.fallback
            if (entry.service in snapshot.services if entry.service is not None else is_living(entry))
        ),
        "shadow": shadow if shadow is not None and is_living(shadow) else None,
    }


def _scaled(targets: list[Target]) -> tuple[Target, ...]:
    """Whole percents in the old proportions; the first takes what rounding leaves."""
    total = sum(target.weight for target in targets)
    if not targets or total == 100:
        return tuple(targets)
    weights = [target.weight * 100 // total if total else 0 for target in targets]
    weights[0] += 100 - sum(weights)
    return tuple(
        msgspec.structs.replace(target, weight=weight) for target, weight in zip(targets, weights, strict=True)
    )


def _with_revision(change: Change, service: Service, content: Mapping[str, Any], reason: str) -> Service:
    n = store.last_revision(change.connection, service.id) + 1
    revision = replace(
        service.revision,
        **content,
        n=n,
        reason=reason,
        rolled_back_to=None,
        created_at=change.at,
        created_by=change.by,
    )
    bound_anew = "targets" in content and content["targets"] != service.revision.targets
    at = change.at if bound_anew else service.version_updated_at
    return replace(service, revision=revision, version_updated_at=at)


def _put(change: Change, action: str, before: Service, after: Service) -> Service:
    store.put_service(change.connection, after, new_revision=after.revision.n != before.revision.n)
    change.audit(action, "service", after.id, before=told(before), after=told(after))
    return after


def _same(one: Revision, other: Revision) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in CONTENT)


def told(value: object) -> dict[str, Any]:
    """Return a domain value as the JSON object that the audit log keeps."""
    document: dict[str, Any] = msgspec.to_builtins(value)
    return document
