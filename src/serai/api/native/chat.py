"""POST /chat: an answer in one piece, or as server-sent events."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Annotated, Any

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serai.api import errors
from serai.api.access import Routes, caller_of, parts_of
from serai.api.answers import Live, begun, chats_of, json_response, unless_gone, whole
from serai.api.json_lines import encode
from serai.api.wire import Wire
from serai.auth.policy import Role
from serai.chat.chats import Ask, timeout_of
from serai.chat.keep_alive import KeepAlive, keep_alive_of
from serai.chat.messages import ToolCall, from_openai, openai_call, tools_of
from serai.chat.output import Thought
from serai.chat.prompts import template_options
from serai.chat.reply import Batch, Choice, Ending, Gathered, Reply
from serai.chat.sampling import checked
from serai.errors import DeadlineExceeded, InvalidInput, SeraiError
from serai.events import Loading, Queued, Text

routes = Routes("chat")

Number = int | float | None
NS = 1_000_000_000

Keep = Callable[[Gathered, Ending], Awaitable[None]]
"""What is done with a whole answer before its end is told."""


class SamplingIn(Wire):
    """How tokens are drawn. What is left out is the version's own, or the model's distribution as it is."""

    temperature: Number = Field(None, description="0 to 2; 0 takes the likeliest token.")
    top_p: Number = Field(None, description="Above 0, to 1.")
    top_k: int | None = Field(None, description="0: all.")
    min_p: Number = None
    repetition_penalty: Number = None
    presence_penalty: Number = Field(None, description="-2 to 2.")
    frequency_penalty: Number = Field(None, description="-2 to 2.")
    seed: int | None = None
    stop: str | list[str] | None = Field(None, description="Texts that end the answer.")
    max_tokens: int | None = None
    logit_bias: dict[str, int | float] | None = None

    def sampling(self) -> dict[str, Any]:
        """Return the checked fields that are given. Raises InvalidInput."""
        return checked({name: getattr(self, name) for name in SamplingIn.model_fields})


class AnswerIn(SamplingIn):
    """What can be said of one answer."""

    stream: bool = False
    progress: bool = Field(False, description="A stream tells queue positions and load progress, and opens at once.")
    tools: list[Any] | None = Field(None, description="In OpenAI's form.")
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = Field(None, description="In OpenAI's form: json_object or json_schema.")
    think: bool | None = Field(None, description="Whether a model that can think before it answers does.")
    template_options: dict[str, Any] | None = None
    timeout: Number = Field(None, description="Seconds for the whole answer, 1 to 600.")
    keep_alive: KeepAlive = Field(
        None, description="How long the model stays loaded afterwards: seconds, or as 10m or 1h30m; -1: for ever."
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = 0

    def ask(self, **values: Any) -> Ask:
        """Return what is asked. Raises InvalidInput."""
        if self.progress and not self.stream:
            raise InvalidInput.at("progress", "needs stream")
        return Ask(
            **{"given": self.sampling(), **values},
            response_format=self.response_format,
            tools=tools_of(self.tools, self.tool_choice),
            think=self.think,
            options=template_options(self.template_options, "template_options"),
            timeout_s=timeout_of(self.timeout),
            keep_alive=keep_alive_of(self.keep_alive),
            priority=self.priority,
            names={"grammar": "response_format", "chat_template_kwargs": "template_options"},
        )


class ChatIn(AnswerIn):
    model: Annotated[str, Field(min_length=1, max_length=300)] | None = Field(
        None, description="A model, model@version, alias, hub name, or service."
    )
    service: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    messages: Annotated[list[Any], Field(min_length=1)]


@routes.post("/chat", access=Role.USER, response_class=Response, rehearsable=False)
async def chat(request: Request, body: ChatIn) -> Response:
    """Answer a chat. With `stream`, as frames of `{"delta": {"content"}, "done": false}`; the last one is done."""
    if body.model is None and body.service is None:
        raise InvalidInput.at("model", "is missing: name a model or a service")
    ask = body.ask(model=body.model, service=body.service, messages=from_openai(body.messages))
    return await answered(request, ask, body)


async def answered(request: Request, ask: Ask, body: AnswerIn, keep: Keep | None = None) -> Response:
    """Return the answer to `ask`, whole or streamed; `keep` is called with one that came to its end."""
    chats, caller = chats_of(request), caller_of(request)
    reply = await unless_gone(request, chats.open(ask, caller, tells_waiting=body.progress))
    if body.stream:
        if not body.progress:
            await begun(request, reply)
        return Live(_frames(reply, keep), reply.headers(), reply=reply)
    gathered = Gathered()
    ending = await whole(request, reply, gathered)
    headers = reply.headers()
    if ending.error is not None:
        if isinstance(ending.error, DeadlineExceeded):
            return _timed_out(request, reply, gathered, ending, headers)
        raise ending.error
    if keep is not None:
        await keep(gathered, ending)
    return json_response(_whole(request, reply, gathered, ending), headers=headers)


def _timed_out(
    request: Request, reply: Reply, gathered: Gathered, ending: Ending, headers: Mapping[str, str]
) -> Response:
    error = ending.error or DeadlineExceeded("The answer was not finished in the time given.")
    partial = {"partial": msgspec.to_builtins(_whole(request, reply, gathered, ending))}
    told = DeadlineExceeded(error.message, hint=error.hint, details=partial)
    return errors.respond(told, headers)


def _whole(request: Request, reply: Reply, gathered: Gathered, ending: Ending) -> dict[str, Any]:
    return {
        "model": f"{reply.decision.model}@{reply.decision.version}",
        "created_at": parts_of(request).clock.now(),
        "message": message_of(gathered.choices[0]),
        "done": True,
        **_end_of(reply, ending),
    }


def message_of(choice: Choice) -> dict[str, Any]:
    """Return what the model said."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.content}
    if choice.reasoning:
        message["reasoning"] = choice.thought
    if choice.tool_calls:
        message["tool_calls"] = [openai_call(call) for call in choice.tool_calls]
    return message


def _end_of(reply: Reply, ending: Ending) -> dict[str, Any]:
    """Return how an answer ended: durations in nanoseconds, counts as far as they are known, who answered."""
    told: dict[str, Any] = {
        "done_reason": ending.finish_reasons[0],
        "total_duration": round(ending.total_s * NS),
        "load_duration": round(ending.load_s * NS),
        "eval_count": ending.completion_tokens,
        "eval_duration": round(ending.generation_s * NS),
        "decision": reply.decision.document(),
    }
    if ending.is_counted:
        told["prompt_eval_count"] = ending.prompt_tokens
        told["prompt_eval_duration"] = round(ending.prompt_s * NS)
        told["usage"] = {
            "prompt_tokens": ending.prompt_tokens,
            "completion_tokens": ending.completion_tokens,
            "total_tokens": ending.total_tokens,
            "cached_tokens": ending.cached_tokens,
        }
    return told


async def _frames(reply: Reply, keep: Keep | None) -> AsyncGenerator[bytes, None]:
    gathered = Gathered()
    try:
        async for items in reply:
            if keep is not None:
                for item in items:
                    gathered.add(item)
            yield _batch(items)
        ending = reply.ending
        if ending is None:
            return
        last: dict[str, Any] = {"delta": {}, "done": True, **_end_of(reply, ending)}
        if ending.error is None and keep is not None:
            try:
                await keep(gathered, ending)
            except SeraiError as error:
                last |= errors.envelope(error)
        elif ending.error is not None:
            last |= errors.envelope(ending.error)
        yield b"data: " + encode(last) + b"\n\n"
    finally:
        await reply.aclose()


def _batch(items: Batch) -> bytes:
    pieces = []
    for item in items:
        if type(item) is Text:
            pieces.append(b'data: {"delta":{"content":' + encode(item.delta) + b'},"done":false}\n\n')
        elif isinstance(item, Queued | Loading):
            pieces.append(b'data: {"delta":{},"done":false,"status":' + encode(item) + b"}\n\n")
        elif not isinstance(item, Text):
            pieces.append(b"data: " + encode({"delta": _delta(item.piece), "done": False}) + b"\n\n")
    return b"".join(pieces)


def _delta(piece: Any) -> dict[str, Any]:
    if isinstance(piece, ToolCall):
        return {"tool_calls": [openai_call(piece)]}
    return {"reasoning": piece.text} if isinstance(piece, Thought) else {"content": piece.text}
