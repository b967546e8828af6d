"""Fetching a model's weights."""

from typing import Annotated, Literal

from fastapi import Header
from pydantic import Field
from starlette.requests import Request

from serai.api.access import Routes
from serai.api.native.jobs import Accepted, JobIn, accept
from serai.api.wire import Wire
from serai.auth.policy import Role

routes = Routes("models")

KIND = "pull"


class PullIn(Wire):
    model: Annotated[str, Field(min_length=1, max_length=600)] = Field(
        description="'owner/name' of the hub, an id of the registry, 'folder:ROOT/path', or 'https://…#sha256=…'."
    )
    revision: Annotated[str, Field(max_length=200)] | None = Field(default=None, description="Branch, tag or commit.")
    quantize: Literal["auto", "q4", "q8", "fp16", "fp32", "no"] = Field(
        default="auto", description="auto: 4 bits for what is large or would not fit, 8 bits on a CPU."
    )
    init: bool = Field(default=False, description="Load it when it is here.")
    name: Annotated[str, Field(max_length=128)] | None = Field(default=None, description="Its id in the registry.")


@routes.post("/pull", access=Role.MODERATOR, status_code=202)
async def pull(
    request: Request, body: PullIn, idempotency_key: Annotated[str | None, Header(max_length=255)] = None
) -> Accepted:
    """Fetch a model in the background: a job that resumes after restarts, and ends with a registered version."""
    payload = body.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return await accept(
        request, JobIn.model_validate({"kind": KIND, "payload": payload}), idempotency_key=idempotency_key
    )
