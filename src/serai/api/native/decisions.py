"""What was decided for a call, found by the id in its headers, its job or its picture."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path
from pydantic import Field
from starlette.requests import Request

from serai.api.access import Routes, caller_of, parts_of
from serai.api.wire import Wire
from serai.auth.policy import Role, owns
from serai.errors import NotFound
from serai.serving.store import find_decision

routes = Routes("services")

DecisionId = Annotated[str, Path(max_length=64)]


class DecisionNotFound(NotFound):
    code = "DECISION_NOT_FOUND"
    default_hint = "A decision is stored when its call has ended, and kept for decision_retention_days."


class StoredDecision(Wire):
    id: str
    at: datetime = Field(description="When the call ended.")
    service: str | None
    model: str
    version: str
    reason: str
    decision: dict[str, Any] = Field(description="The whole of it, with what became of the call.")


@routes.get("/decisions/{decision_id}", access=Role.VIEWER)
async def get_decision(request: Request, decision_id: DecisionId) -> StoredDecision:
    """Show who answered a call of yours, why, and what was tried before: the id is that of X-Serai-Decision."""
    row = await parts_of(request).database.read(find_decision, decision_id)
    if row is None or not owns(caller_of(request), row.owner_id):
        raise DecisionNotFound("There is no such decision.")
    return StoredDecision(
        id=row.id,
        at=row.at,
        service=row.service_id,
        model=row.model_id,
        version=row.version,
        reason=row.reason,
        decision=dict(row.document),
    )
