"""The core of OpenAI's Responses API. Kept answers are in memory, for an hour, for their owner."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

from fastapi import Path
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.answers import Live, begun, chats_of, json_response, unless_gone, whole
from serai.api.openai import errors
from serai.api.openai.response_events import ResponseEvents, items_of, response_body, status_of
from serai.api.openai.response_wire import ResponseIn, messages_of
from serai.auth.policy import Role
from serai.chat.kept_responses import KeptResponse, KeptResponses
from serai.chat.messages import Message
from serai.chat.reply import Ending, Gathered, Reply
from serai.errors import DeadlineExceeded

routes = Routes("chat")

ResponseId = Annotated[str, Path(max_length=64)]


@routes.post(
    "/v1/responses", access=Role.USER, operation_id="openai_create_response", response_class=Response, rehearsable=False
)
async def create_response(request: Request, body: ResponseIn) -> Response:
    """Answer, whole or as numbered events; with `previous_response_id` it goes on from an earlier answer."""
    parts, caller = parts_of(request), caller_of(request)
    history: tuple[Message, ...] = ()
    if body.previous_response_id is not None:
        history = _kept(request).get(body.previous_response_id, owner_id=caller.user_id).messages
    ask = body.ask(history)
    made = _Made(request, body, parts.new_id("resp"), parts.clock.now(), history)
    reply = await unless_gone(request, chats_of(request).open(ask, caller))
    if body.stream:
        await begun(request, reply)
        return Live(_events(made, reply), reply.headers(), reply=reply)
    gathered = Gathered()
    ending = await whole(request, reply, gathered)
    if ending.error is not None:
        if not isinstance(ending.error, DeadlineExceeded):
            raise ending.error
        return errors.respond(ending.error, reply.headers(), partial=items_of(gathered.choices[0], parts.new_id))
    told = made.end(items_of(gathered.choices[0], parts.new_id), ending)
    return json_response(told, headers=reply.headers())


@routes.get(
    "/v1/responses/{response_id}", access=Role.USER, operation_id="openai_get_response", response_class=Response
)
async def get_response(request: Request, response_id: ResponseId) -> Response:
    """Show a response of yours that is still kept."""
    return json_response(_kept(request).get(response_id, owner_id=caller_of(request).user_id).body)


@routes.get(
    "/v1/responses/{response_id}/input_items",
    access=Role.USER,
    operation_id="openai_input_items",
    response_class=Response,
)
async def input_items(request: Request, response_id: ResponseId) -> Response:
    """List what a response of yours was made from."""
    kept = _kept(request).get(response_id, owner_id=caller_of(request).user_id)
    return json_response({"object": "list", "data": kept.input_items, "has_more": False})


@routes.delete(
    "/v1/responses/{response_id}",
    access=Role.USER,
    operation_id="openai_delete_response",
    response_class=Response,
    rehearsable=False,
)
async def delete_response(request: Request, response_id: ResponseId) -> Response:
    """Forget a response of yours."""
    _kept(request).delete(response_id, owner_id=caller_of(request).user_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


class _Made:
    """A response that is being made."""

    def __init__(
        self, request: Request, body: ResponseIn, id_: str, created: datetime, history: tuple[Message, ...]
    ) -> None:
        self.request = request
        self.body = body
        self.id = id_
        self.created = created
        self.history = history

    def shown(self, output: list[dict[str, Any]], ending: Ending | None, status: str) -> dict[str, Any]:
        """Return the response as it stands."""
        return response_body(self.body, self.id, self.created, output, ending, status)

    def end(self, output: list[dict[str, Any]], ending: Ending) -> dict[str, Any]:
        """Return the whole response, and keep it unless the client said otherwise."""
        told = self.shown(output, ending, status_of(ending))
        if self.body.store is not False:
            items = self.body.items()
            _kept(self.request).put(
                KeptResponse(
                    id=self.id,
                    owner_id=caller_of(self.request).user_id,
                    body=told,
                    input_items=tuple(items),
                    messages=(*self.history, *messages_of(items), *messages_of(output)),
                )
            )
        return told


async def _events(made: _Made, reply: Reply) -> AsyncGenerator[bytes, None]:
    events = ResponseEvents(parts_of(made.request).new_id)
    try:
        begun_ = made.shown([], None, "in_progress")
        yield events.event("response.created", response=begun_) + events.event("response.in_progress", response=begun_)
        async for items in reply:
            yield events.batch(items)
        ending = reply.ending
        if ending is None:
            return
        if ending.error is not None:
            yield b"".join(events.close()) + _failed(made, events, ending)
            return
        closing = b"".join(events.ensure_message())
        told = made.end(events.output, ending)
        yield closing + events.event(f"response.{told['status']}", response=told)
    finally:
        await reply.aclose()


def _failed(made: _Made, events: ResponseEvents, ending: Ending) -> bytes:
    error = errors.openai_error(ending.error)[1]["error"] if ending.error is not None else {}
    failed = made.shown(events.output, ending, "failed")
    failed["error"] = {"code": "server_error", "message": error.get("message", "")}
    return events.event("response.failed", response=failed)


def _kept(request: Request) -> KeptResponses:
    kept: KeptResponses = request.app.state.parts.kept_responses
    return kept
