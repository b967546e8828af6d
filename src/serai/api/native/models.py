"""Models, their versions and aliases."""

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.native import registry_wire as wire
from serai.api.native.registry_changes import changed, check_admin_fields, forced, given, registry_change
from serai.api.wire import Cursor, Limit, Moment, Page, page_of, place_of
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.registry import releases, store
from serai.registry.checks import deprecated_uses, impact
from serai.registry.diff import diff_versions
from serai.registry.errors import AliasNotFound, ModelNotFound, VersionNotFound
from serai.registry.model import Model, alias_at
from serai.registry.semver import is_version
from serai.registry.snapshot import ModelEntry, RegistrySnapshot
from serai.registry.version import Status, Version

routes = Routes("models")

ModelId = Annotated[str, Path(max_length=128)]
Number = Annotated[str, Path(max_length=100)]
AliasName = Annotated[str, Path(max_length=128)]
Asked = Annotated[str | None, Query(max_length=100)]
Flag = Annotated[bool, Query()]
Force = Annotated[bool, Query(description="An admin's word: do it although services use it; they are put right.")]

_VERSION_ONLY = frozenset(wire.VersionFields.model_fields)


@routes.get("/models", access=Role.VIEWER)
async def list_models(
    request: Request,
    limit: Limit = 50,
    cursor: Cursor = None,
    task: Asked = None,
    version_status: Annotated[Literal["draft", "active", "deprecated", "retired"] | None, Query()] = None,
    tag: Asked = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
    include_deprecated: Flag = False,
) -> Page[wire.ModelOut]:
    """List the models. Old versions, and models that have no others, are left out unless asked for."""
    ids = await parts_of(request).database.read(
        store.find_models,
        limit=limit + 1,
        after=place_of(cursor),
        task=task,
        tag=tag,
        search=search,
        version_status=Status(version_status) if version_status else None,
        include_deprecated=include_deprecated,
    )
    snapshot = await parts_of(request).registry.current()
    with_old = include_deprecated or version_status in ("deprecated", "retired")
    return wire.page_of_ids(
        ids, limit, snapshot.models, lambda entry: wire.show_model(entry, include_deprecated=with_old)
    )


@routes.post("/models", access=Role.MODERATOR, status_code=201)
async def create_model(request: Request, body: wire.ModelIn) -> wire.ModelOut:
    """Register a model with its first version."""
    parts, caller, now = parts_of(request), caller_of(request), parts_of(request).clock.now()
    values = given(body)
    check_admin_fields(caller, values)
    version_values = {name: values.pop(name) for name in list(values) if name in _VERSION_ONLY}
    number, status = values.pop("version"), values.pop("version_status", None)
    by: dict[str, Any] = {
        "created_at": now,
        "created_by": caller.user_id,
        "updated_at": now,
        "updated_by": caller.user_id,
    }
    model = Model(**{"name": body.id, **values}, **by)
    first = Version(
        model_id=model.id,
        version=number,
        seq=1,
        status=Status(status or parts.settings.default_version_status),
        **version_values,
        **by,
    )
    await registry_change(request, releases.create_model, model, first)
    return await _model_view(request, model.id)


@routes.get("/models/{model_id}", access=Role.VIEWER)
async def get_model(request: Request, model_id: ModelId, version: Asked = None) -> wire.ModelOut:
    """Show a model; with `version` (a number or an alias) also all of that version."""
    return await _model_view(request, model_id, version)


@routes.patch("/models/{model_id}", access=Role.MODERATOR)
async def update_model(
    request: Request, model_id: ModelId, body: wire.ModelChange, force: Force = False
) -> wire.ModelOut:
    """Change the card. To change what belongs to a version, name it in `version`."""
    values = changed(body)
    check_admin_fields(caller_of(request), values)
    number = values.pop("version", None)
    of_version = {name: values.pop(name) for name in list(values) if name in _VERSION_ONLY}
    if of_version and number is None:
        raise InvalidInput.at("version", f"is missing: {min(of_version)} belongs to a version")
    allowed = forced(request, force)
    await registry_change(request, _update_both, model_id, values, number, of_version, allowed)
    return await _model_view(request, model_id, number)


@routes.delete("/models/{model_id}", access=Role.ADMIN, status_code=204)
async def delete_model(request: Request, model_id: ModelId, force: Force = False) -> None:
    """Remove a model with its versions; their numbers are never used again."""
    await registry_change(request, releases.delete_model, model_id, force=forced(request, force))


@routes.get("/models/{model_id}/versions", access=Role.VIEWER)
async def list_versions(
    request: Request,
    model_id: ModelId,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[Literal["draft", "active", "deprecated", "retired"] | None, Query()] = None,
    include_deprecated: Flag = True,
) -> Page[wire.VersionOut]:
    """List the versions of a model, the newest by semantic precedence first."""
    after = place_of(cursor)
    if after is not None and not is_version(after):
        raise InvalidInput.at("cursor", "is not a cursor of this list")
    _entry(await parts_of(request).registry.current(), model_id)
    rows = await parts_of(request).database.read(
        store.find_versions,
        model_id,
        limit=limit + 1,
        after=after,
        status=Status(status) if status else None,
        include_deprecated=include_deprecated,
    )
    return page_of(rows, limit, wire.show_version, lambda version: version.version)


@routes.post("/models/{model_id}/versions", access=Role.MODERATOR, status_code=201)
async def create_version(request: Request, model_id: ModelId, body: wire.VersionIn) -> wire.VersionOut:
    """Add a version; what is left out is taken over from the newest, or from `based_on`."""
    values = given(body)
    check_admin_fields(caller_of(request), values)
    number, based_on, status = values.pop("version"), values.pop("based_on", None), values.pop("status", None)
    made = await registry_change(
        request,
        releases.create_version,
        model_id,
        number,
        values,
        based_on=based_on,
        status=Status(status) if status else None,
    )
    return wire.show_version(made)


@routes.get("/models/{model_id}/versions/{version}", access=Role.VIEWER)
async def get_version(request: Request, response: Response, model_id: ModelId, version: Number) -> wire.VersionOut:
    """Show a version. A deprecated one carries the headers Deprecation and Sunset."""
    snapshot = await parts_of(request).registry.current()
    found = _version(_entry(snapshot, model_id), version)
    response.headers.update(deprecation_headers(snapshot, found))
    return wire.show_version(found)


@routes.patch("/models/{model_id}/versions/{version}", access=Role.MODERATOR)
async def update_version(
    request: Request, model_id: ModelId, version: Number, body: wire.VersionChange
) -> wire.VersionOut:
    """Change a version. Of an immutable one, release notes, tags and results may be changed."""
    values = changed(body)
    check_admin_fields(caller_of(request), values)
    return wire.show_version(await registry_change(request, releases.update_version, model_id, version, values))


@routes.delete("/models/{model_id}/versions/{version}", access=Role.ADMIN, status_code=204)
async def delete_version(request: Request, model_id: ModelId, version: Number, force: Force = False) -> None:
    """Remove a version; its number is never used again."""
    await registry_change(request, releases.delete_version, model_id, version, force=forced(request, force))


@routes.patch("/models/{model_id}/versions/{version}/deprecate", access=Role.MODERATOR)
async def deprecate_version(
    request: Request, model_id: ModelId, version: Number, body: wire.DeprecateIn | None = None, force: Force = False
) -> wire.VersionOut:
    """Deprecate a version that no service uses; with force the services go on with it."""
    wanted = body or wire.DeprecateIn.model_validate({})
    made = await registry_change(
        request,
        releases.deprecate,
        model_id,
        version,
        reason=wanted.reason,
        sunset_at=wanted.sunset_at,
        force=forced(request, force),
    )
    return wire.show_version(made)


@routes.patch("/models/{model_id}/versions/{version}/activate", access=Role.MODERATOR)
async def activate_version(request: Request, model_id: ModelId, version: Number) -> wire.VersionOut:
    """Make a draft or a deprecated version active."""
    return wire.show_version(await registry_change(request, releases.activate, model_id, version))


@routes.patch("/models/{model_id}/versions/{version}/publish", access=Role.MODERATOR)
async def publish_version(request: Request, model_id: ModelId, version: Number) -> wire.VersionOut:
    """Publish a version; what it is cannot be changed afterwards."""
    return wire.show_version(await registry_change(request, releases.publish, model_id, version))


@routes.patch("/models/{model_id}/versions/{version}/unpublish", access=Role.MODERATOR)
async def unpublish_version(
    request: Request, model_id: ModelId, version: Number, force: Force = False
) -> wire.VersionOut:
    """Take a version back from publication; it stays immutable."""
    made = await registry_change(request, releases.unpublish, model_id, version, force=forced(request, force))
    return wire.show_version(made)


@routes.patch("/models/{model_id}/versions/{version}/retire", access=Role.MODERATOR)
async def retire_version(request: Request, model_id: ModelId, version: Number, force: Force = False) -> wire.VersionOut:
    """End a deprecated version: it answers no more."""
    made = await registry_change(request, releases.retire, model_id, version, force=forced(request, force))
    return wire.show_version(made)


@routes.get("/models/{model_id}/versions/{version}/diff/{other}", access=Role.VIEWER)
async def diff(request: Request, model_id: ModelId, version: Number, other: Number) -> wire.DiffOut:
    """Compare two versions: field by field, files by digest, results side by side, what would break."""
    entry = _entry(await parts_of(request).registry.current(), model_id)
    return diff_versions(_version(entry, version), _version(entry, other))


@routes.get("/models/{model_id}/versions/{version}/services", access=Role.VIEWER)
async def version_services(request: Request, model_id: ModelId, version: Number) -> wire.ImpactOut:
    """Tell who would be touched if this version went."""
    snapshot = await parts_of(request).registry.current()
    _version(_entry(snapshot, model_id), version)
    found = impact(snapshot, model_id, version)
    return wire.ImpactView(services=found.services, uses=found.uses, aliases=found.aliases)


@routes.get("/models/{model_id}/deprecated-version-services", access=Role.VIEWER)
async def deprecated_version_services(request: Request, model_id: ModelId) -> wire.DeprecatedUses:
    """Tell which deprecated versions are still in use, and by whom."""
    snapshot = await parts_of(request).registry.current()
    _entry(snapshot, model_id)
    found = deprecated_uses(snapshot, model_id)
    return tuple(wire.DeprecatedUse(version=version, uses=uses) for version, uses in found.items())


@routes.get("/models/{model_id}/aliases/{alias}", access=Role.VIEWER)
async def get_alias(
    request: Request, model_id: ModelId, alias: AliasName, at: Annotated[Moment | None, Query()] = None
) -> wire.AliasHistoryOut:
    """Show an alias and its moves; with `at`, the version that it named then."""
    snapshot = await parts_of(request).registry.current()
    entry = _entry(snapshot, model_id)
    events = tuple(await parts_of(request).database.read(store.alias_events, model_id, alias))
    if not events:
        raise AliasNotFound(f"The model {model_id} has no alias {alias!r}.")
    version = entry.aliases.get(alias) if at is None else alias_at(events, at)
    return wire.AliasHistory(version=version, events=events[::-1])


@routes.put("/models/{model_id}/aliases/{alias}", access=Role.MODERATOR)
async def put_alias(request: Request, model_id: ModelId, alias: AliasName, body: wire.AliasIn) -> wire.AliasOut:
    """Make or move an alias; with `expected_from` only if it still points there."""
    return await registry_change(
        request,
        releases.put_alias,
        model_id,
        alias,
        body.to,
        expected_from=body.expected_from,
        check="expected_from" in body.model_fields_set,
        reason=body.reason,
    )


@routes.delete("/models/{model_id}/aliases/{alias}", access=Role.MODERATOR, status_code=204)
async def delete_alias(request: Request, model_id: ModelId, alias: AliasName, force: Force = False) -> None:
    """Remove an alias that no service names."""
    await registry_change(request, releases.delete_alias, model_id, alias, force=forced(request, force))


def deprecation_headers(snapshot: RegistrySnapshot, version: Version) -> dict[str, str]:
    """Return Deprecation (RFC 9745) and Sunset (RFC 8594) for a deprecated version, if warnings are on."""
    if version.status is not Status.DEPRECATED or not snapshot.rules.warn_on_deprecated_version_usage:
        return {}
    since = version.deprecated_at or version.updated_at
    headers = {"deprecation": f"@{int(since.timestamp())}"}
    if version.sunset_at is not None:
        headers["sunset"] = _http_date(version.sunset_at)
    return headers


def _http_date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(UTC), usegmt=True)


async def _model_view(request: Request, model_id: str, selector: str | None = None) -> wire.ModelView:
    entry = _entry(await parts_of(request).registry.current(), model_id)
    selected = None if selector is None else _version(entry, entry.aliases.get(selector, selector))
    return wire.show_model(entry, include_deprecated=True, selected=selected)


def _update_both(
    change: Any, model_id: str, card: dict[str, Any], number: str | None, of_version: dict[str, Any], force: bool
) -> None:
    if card:
        releases.update_model(change, model_id, card, force=force)
    else:
        releases.entry_of(change, model_id)
    if number is not None:
        releases.update_version(change, model_id, number, of_version)


def _entry(snapshot: RegistrySnapshot, model_id: str) -> ModelEntry:
    entry = snapshot.models.get(model_id)
    if entry is None:
        raise ModelNotFound(f"There is no model {model_id!r}.")
    return entry


def _version(entry: ModelEntry, number: str) -> Version:
    candidate = entry.candidates.get(number)
    if candidate is None:
        raise VersionNotFound(f"The model {entry.model.id} has no version {number!r}.")
    return candidate.version
