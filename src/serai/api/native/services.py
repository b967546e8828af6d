"""Services: bindings, fallback chains, splits, switches, rollbacks, and why which version would answer."""

from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import AwareDatetime
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.native import registry_wire as wire
from serai.api.native.models import Force, deprecation_headers
from serai.api.native.registry_changes import forced, given, registry_change
from serai.api.wire import Cursor, Limit, Page, page_of, place_of
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.registry import bindings, store
from serai.registry.checks import parse_target
from serai.registry.plan import Request as Wanted
from serai.registry.policy import make_plan
from serai.registry.service import Revision, Service, binding_at
from serai.registry.snapshot import RegistrySnapshot

routes = Routes("services")

ServiceId = Annotated[str, Path(max_length=128)]
Flag = Annotated[bool, Query()]
Asked = Annotated[str | None, Query(max_length=300)]

_OF_REVISION = {"fallback", "limits", "config", "shadow"}
_OF_BINDING = {"model_id", "model_version", "alias", "split"}


@routes.get("/services", access=Role.VIEWER)
async def list_services(
    request: Request,
    limit: Limit = 50,
    cursor: Cursor = None,
    task: Asked = None,
) -> Page[wire.ServiceOut]:
    """List the services."""
    parts = parts_of(request)
    ids = await parts.database.read(store.find_services, limit=limit + 1, after=place_of(cursor), task=task)
    snapshot = await parts.registry.current()
    services = [snapshot.services[service_id] for service_id in ids if service_id in snapshot.services]
    return page_of(services, limit, lambda one: wire.show_service(snapshot, one), lambda one: one.id)


@routes.post("/services", access=Role.MODERATOR, status_code=201)
async def create_service(request: Request, body: wire.ServiceIn) -> wire.ServiceOut:
    """Create a service, bound to a version, an alias, a split, or (with none of these) to the policy's choice."""
    caller, now = caller_of(request), parts_of(request).clock.now()
    values = given(body)
    content = await _content(request, values)
    revision = Revision(service_id=body.id, n=1, **content, reason="created", created_at=now, created_by=caller.user_id)
    by: dict[str, Any] = {
        "created_at": now,
        "created_by": caller.user_id,
        "updated_at": now,
        "updated_by": caller.user_id,
    }
    service = Service(**{"name": body.id, **values}, revision=revision, **by)
    return await _show(request, await registry_change(request, bindings.create_service, service))


@routes.get("/services/{service_id}", access=Role.VIEWER)
async def get_service(request: Request, service_id: ServiceId) -> wire.ServiceOut:
    """Show a service with the versions to which it could be switched."""
    snapshot = await parts_of(request).registry.current()
    return wire.show_service(snapshot, snapshot.service(service_id))


@routes.patch("/services/{service_id}", access=Role.MODERATOR)
async def update_service(request: Request, service_id: ServiceId, body: wire.ServiceChange) -> wire.ServiceOut:
    """Change a service. Binding, chain, limits and configuration make a new revision."""
    values = given(body)
    reason = values.pop("reason", "")
    content = await _content(request, values)
    written = await registry_change(request, bindings.update_service, service_id, values, content, reason=reason)
    return await _show(request, written)


@routes.delete("/services/{service_id}", access=Role.ADMIN, status_code=204)
async def delete_service(request: Request, service_id: ServiceId, force: Force = False) -> None:
    """Remove a service; its history stays."""
    await registry_change(request, bindings.delete_service, service_id, force=forced(request, force))


@routes.patch("/services/{service_id}/version", access=Role.MODERATOR)
async def switch_version(request: Request, service_id: ServiceId, body: wire.SwitchIn) -> wire.ServiceOut:
    """Switch all traffic to another version of the bound model."""
    if (body.version is None) == (body.alias is None):
        raise InvalidInput.at("version", "or alias must be given, one of the two")
    written = await registry_change(
        request,
        bindings.switch_version,
        service_id,
        model=body.model_id,
        version=body.version,
        alias=body.alias,
        reason=body.reason,
    )
    return await _show(request, written)


@routes.post("/services/{service_id}/rollback", access=Role.MODERATOR)
async def rollback(request: Request, service_id: ServiceId, body: wire.RollbackIn | None = None) -> wire.ServiceOut:
    """Go back to the state before, or to a revision; dry_run=1 is the preview."""
    wanted = body or wire.RollbackIn.model_validate({})
    written = await registry_change(request, bindings.rollback, service_id, to=wanted.to, reason=wanted.reason)
    return await _show(request, written)


@routes.get("/services/{service_id}/history", access=Role.VIEWER)
async def history(
    request: Request, service_id: ServiceId, at: Annotated[AwareDatetime | None, Query()] = None
) -> wire.HistoryOut:
    """Tell with which versions the service answered, and when; with `at`, what answered then."""
    parts = parts_of(request)
    lines = await parts.database.read(store.bindings, service_id)
    if not lines:
        (await parts.registry.current()).service(service_id)
    if at is not None:
        line = binding_at(lines, at)
        lines = [line] if line else []
    numbers = {line.revision for line in lines}
    found = await parts.database.read(store.revisions, service_id)
    shown = found if at is None else [revision for revision in found if revision.n in numbers]
    return wire.ServiceHistory(answered=tuple(lines), revisions=tuple(shown))


@routes.post("/services/{service_id}/publish", access=Role.MODERATOR)
async def publish(request: Request, service_id: ServiceId) -> wire.ServiceOut:
    """Publish a service; the versions that it uses cannot be changed while it is."""
    return await _show(request, await registry_change(request, bindings.set_published, service_id, published=True))


@routes.post("/services/{service_id}/unpublish", access=Role.MODERATOR)
async def unpublish(request: Request, service_id: ServiceId) -> wire.ServiceOut:
    """Take a service back from publication."""
    return await _show(request, await registry_change(request, bindings.set_published, service_id, published=False))


@routes.get("/services/{service_id}/explain", access=Role.VIEWER)
async def explain(
    request: Request,
    response: Response,
    service_id: ServiceId,
    model: Asked = None,
    marketplace: Annotated[str | None, Query(max_length=200)] = None,
    require_fast: Flag = False,
    require_high_quality: Flag = False,
    complexity: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)] = None,
    client_key: Annotated[str, Query(max_length=300)] = "",
) -> wire.ExplanationOut:
    """Tell which version would answer such a call, why, and what stands behind it; nothing is run."""
    snapshot = await parts_of(request).registry.current()
    snapshot.service(service_id)
    wanted = Wanted(
        service=service_id,
        model=model,
        marketplace=marketplace,
        require_fast=require_fast,
        require_high_quality=require_high_quality,
        complexity=complexity,
        client_key=client_key or caller_of(request).limit_id,
    )
    plan = make_plan(snapshot, wanted)
    response.headers.update(deprecation_headers(snapshot, plan.candidate.version))
    decision = plan.decision
    return wire.Explanation(**wire.members(decision), candidates=tuple(step.name for step in plan.steps))


async def _content(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    """Take what belongs to the revision out of `values`, and return it."""
    content = {name: values.pop(name) for name in _OF_REVISION & set(values)}
    asked = {name: values.pop(name) for name in _OF_BINDING & set(values)}
    if asked:
        content["targets"] = _targets(await parts_of(request).registry.current(), asked)
    return content


def _targets(snapshot: RegistrySnapshot, asked: dict[str, Any]) -> Any:
    if "split" in asked:
        if len(asked) > 1:
            raise InvalidInput.at("split", "stands for itself: leave model_id, model_version and alias out")
        return asked["split"]
    model_id, number, alias = (asked.get(name) for name in ("model_id", "model_version", "alias"))
    if model_id is None:
        raise InvalidInput.at("model_id", "is missing")
    if number is not None and alias is not None:
        raise InvalidInput.at("alias", "or model_version, not both")
    selector = number or alias
    return (parse_target(snapshot, f"{model_id}@{selector}" if selector else model_id),)


async def _show(request: Request, written: bindings.Written) -> wire.ServiceView:
    snapshot = await parts_of(request).registry.current()
    return wire.show_service(snapshot, written.service, written.warnings)
