"""Prompts for pictures, written out by a language model."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.answers import chats_of, serving_of, unless_gone
from serai.api.wire import Wire
from serai.auth.policy import Role
from serai.chat.enrich import MAX_PROMPT, Enriched, Style, enrich

routes = Routes("chat")


class EnrichIn(Wire):
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=r"\S")]
    style: Style
    model: Annotated[str, Field(min_length=1, max_length=300)] | None = Field(
        None, description="Who writes: a chat model or service; none: a chat service, or a chat model in memory."
    )


class EnrichedOut(Wire):
    prompt: str
    style: Style
    model: str
    version: str


@routes.post("/prompts/enrich", access=Role.USER, rehearsable=False)
async def enrich_prompt(request: Request, response: Response, body: EnrichIn) -> EnrichedOut:
    """Write a prompt for a picture out in a style. Says so where no chat service can, and no chat model is loaded."""
    snapshot = await parts_of(request).registry.current()
    work = enrich(
        chats_of(request),
        serving_of(request),
        snapshot,
        prompt=body.prompt,
        style=body.style,
        caller=caller_of(request),
        model=body.model,
    )
    written: Enriched = await unless_gone(request, work)
    headers: Mapping[str, str] = written.headers
    response.headers.update(headers)
    return EnrichedOut.model_validate(written)
