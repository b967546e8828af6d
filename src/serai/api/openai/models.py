"""The models that can be asked, as OpenAI's API lists them."""

from typing import Annotated, Any

from fastapi import Path
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, parts_of
from serai.api.answers import json_response
from serai.auth.policy import Role
from serai.registry.policy import own_steps
from serai.registry.reference import parse_reference
from serai.registry.snapshot import ModelEntry, RegistrySnapshot

routes = Routes("chat")


@routes.get("/v1/models", access=Role.VIEWER, operation_id="openai_list_models", response_class=Response)
async def list_models(request: Request) -> Response:
    """List services and models that can answer, services first; what must be pulled first is not among them."""
    snapshot = await parts_of(request).registry.current()
    listed = [_service(snapshot, id_) for id_ in sorted(snapshot.services) if _answers(snapshot, id_)]
    listed += [
        _model(entry, entry.model.id)
        for _, entry in sorted(snapshot.models.items())
        if entry.default is not None and entry.default.missing is None
    ]
    first, last = (listed[0]["id"], listed[-1]["id"]) if listed else (None, None)
    return json_response({"object": "list", "data": listed, "has_more": False, "first_id": first, "last_id": last})


@routes.get("/v1/models/{model_id:path}", access=Role.VIEWER, operation_id="openai_get_model", response_class=Response)
async def get_model(request: Request, model_id: Annotated[str, Path(max_length=300)]) -> Response:
    """Show one model or service under any of its names."""
    snapshot = await parts_of(request).registry.current()
    if model_id in snapshot.services:
        return json_response(_service(snapshot, model_id))
    candidate = snapshot.resolve(parse_reference(model_id))
    entry = snapshot.models[candidate.model.id]
    return json_response(_model(entry, model_id))


def _answers(snapshot: RegistrySnapshot, service_id: str) -> bool:
    """Say whether some link of a service's order has its weights here, and may answer."""
    candidates = (step.candidate for step in own_steps(snapshot, snapshot.services[service_id]))
    return any(one is not None and one.obstacle is None and one.missing is None for one in candidates)


def _service(snapshot: RegistrySnapshot, id_: str) -> dict[str, Any]:
    created = int(snapshot.services[id_].created_at.timestamp())
    return {"id": id_, "object": "model", "created": created, "owned_by": "serai"}


def _model(entry: ModelEntry, shown: str) -> dict[str, Any]:
    model = entry.model
    created = int(model.created_at.timestamp())
    return {"id": shown, "object": "model", "created": created, "owned_by": model.publisher or "serai"}
