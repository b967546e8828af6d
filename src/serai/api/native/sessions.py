"""Chats whose history the server keeps."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, is_rehearsal
from serai.api.answers import serving_of
from serai.api.changes import Rehearsed
from serai.api.native.chat import AnswerIn, SamplingIn, answered
from serai.api.wire import Wire
from serai.auth.policy import Role
from serai.chat.chats import MAX_TIMEOUT_S
from serai.chat.messages import from_openai
from serai.chat.reply import Ending, Gathered
from serai.chat.sessions import (
    DEFAULT_HISTORY,
    DEFAULT_TTL_S,
    MAX_HISTORY,
    MAX_TTL_S,
    Sessions,
    Turn,
    answer_message,
    one_of,
)
from serai.chat.store import Session

routes = Routes("chat")

SessionId = Annotated[str, Path(max_length=64)]


class SessionIn(SamplingIn):
    """A new session; the fields of sampling hold for each of its messages that says nothing else."""

    model: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    service: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    system: Annotated[str, Field(max_length=100_000)] | None = Field(None, description="What the model is told first.")
    messages: Annotated[list[Any], Field(max_length=1000)] = Field([], description="An earlier history.")
    max_history: Annotated[int, Field(ge=1, le=MAX_HISTORY)] = Field(
        DEFAULT_HISTORY, description="How many of the last messages the model is told; the system's are always."
    )
    ttl_s: Annotated[float, Field(ge=1, le=MAX_TTL_S)] = Field(
        DEFAULT_TTL_S, description="How long it is kept after its last message."
    )


class SessionOut(Wire):
    id: str
    model: str | None
    service: str | None
    options: dict[str, Any]
    max_history: int
    ttl_s: float
    message_count: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    messages: list[dict[str, Any]] = Field(description="The last ones, the oldest of them first.")


class MessageIn(AnswerIn):
    content: str | list[Any] | None = Field(None, description="The user's message: a text, or parts in OpenAI's form.")
    messages: list[Any] | None = Field(None, description="In its place, several: the results of tools, for example.")


@routes.post("/sessions", access=Role.USER, status_code=201)
async def create_session(request: Request, body: SessionIn) -> SessionOut:
    """Begin a chat whose history is kept here. Refused where POST /chat with the same model or service is."""
    caller = caller_of(request)
    await serving_of(request).check(one_of(body.model, body.service))
    first = from_openai([*([{"role": "system", "content": body.system}] if body.system else []), *body.messages])
    options = body.sampling()
    if is_rehearsal(request):
        raise Rehearsed.of("sessions.create", "session", "", after={"model": body.model, "service": body.service})
    session = await _sessions(request).create(
        owner_id=caller.user_id,
        model=body.model,
        service=body.service,
        options=options,
        first=first,
        max_history=body.max_history,
        ttl_s=body.ttl_s,
    )
    return await _shown(request, session.id)


@routes.get("/sessions/{session_id}", access=Role.USER)
async def get_session(
    request: Request, session_id: SessionId, last: Annotated[int, Query(ge=0, le=MAX_HISTORY)] = 200
) -> SessionOut:
    """Show a session of yours with its last messages."""
    return await _shown(request, session_id, last)


@routes.delete("/sessions/{session_id}", access=Role.USER, status_code=204)
async def delete_session(request: Request, session_id: SessionId) -> None:
    """Remove a session of yours with its messages."""
    sessions, owner = _sessions(request), caller_of(request).user_id
    if is_rehearsal(request):
        await sessions.get(session_id, owner_id=owner, last=0)
        raise Rehearsed.of("sessions.delete", "session", session_id, after=None)
    await sessions.delete(session_id, owner_id=owner)


@routes.post("/sessions/{session_id}/messages", access=Role.USER, response_class=Response, rehearsable=False)
async def post_message(request: Request, session_id: SessionId, body: MessageIn) -> Response:
    """Send a message and get its answer; both are kept when the answer is whole. 409 while another is answered."""
    given = body.messages if body.messages is not None else [{"role": "user", "content": body.content}]
    new = from_openai(given, "messages" if body.messages is not None else "content")
    sessions, caller = _sessions(request), caller_of(request)
    plain = body.ask()
    turn = await sessions.begin(session_id, owner_id=caller.user_id, timeout_s=plain.timeout_s or MAX_TIMEOUT_S)
    session = turn.session
    kept = _Turning(sessions, turn)

    async def keep(gathered: Gathered, ending: Ending) -> None:
        choice = gathered.choices[0]
        await kept.finish([*new, answer_message(choice.content, choice.thought, choice.tool_calls)])

    try:
        ask = body.ask(
            model=session.model,
            service=session.service,
            messages=(*turn.history, *new),
            given={**_options(session.options), **plain.given},
        )
        response = await answered(request, ask, body, keep)
    except BaseException:
        await kept.abandon()
        raise
    if body.stream:
        return kept.until_sent(response)
    await kept.abandon()  # of an answer that timed out nothing is kept
    return response


class _Turning:
    """A turn that ends once, whoever is first."""

    def __init__(self, sessions: Sessions, turn: Turn) -> None:
        self._sessions = sessions
        self._turn = turn
        self._is_over = False

    async def finish(self, messages: list[Any]) -> None:
        self._is_over = True
        await self._sessions.finish(self._turn, messages)

    async def abandon(self) -> None:
        if not self._is_over:
            self._is_over = True
            await self._sessions.abandon(self._turn)

    def until_sent(self, response: Response) -> Response:
        """Return the response, whose end, however it comes, ends the turn."""
        return _Ending(response, self)


class _Ending(Response):
    def __init__(self, response: Response, turning: _Turning) -> None:
        self.background = None
        self._response = response
        self._turning = turning

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            await self._turning.abandon()


def _options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored fields of sampling with the types that they had: JSON knows no tuples and no numbers as names."""
    found = dict(stored)
    if "stop" in found:
        found["stop"] = tuple(found["stop"])
    if "logit_bias" in found:
        found["logit_bias"] = {int(token): bias for token, bias in found["logit_bias"].items()}
    return found


async def _shown(request: Request, session_id: str, last: int = 200) -> SessionOut:
    session, messages = await _sessions(request).get(session_id, owner_id=caller_of(request).user_id, last=last)
    return _out(session, messages)


def _out(session: Session, messages: list[Mapping[str, Any]]) -> SessionOut:
    return SessionOut(
        id=session.id,
        model=session.model,
        service=session.service,
        options=dict(session.options),
        max_history=session.max_history,
        ttl_s=session.ttl_s,
        message_count=session.last_seq,
        created_at=session.created_at,
        updated_at=session.updated_at,
        expires_at=session.expires_at,
        messages=[dict(message) for message in messages],
    )


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.parts.sessions
    return sessions
