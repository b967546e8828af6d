"""Chat completions and plain completions."""

from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.answers import Live, answered, begun, chats_of, json_response, unless_gone
from serai.api.openai import errors
from serai.api.openai.encoding import (
    DONE,
    ChatChunks,
    TextChunks,
    chat_completion,
    chat_message,
    comments,
    data,
    openai_id,
    text_completion,
)
from serai.api.openai.wire import ChatCompletionIn, CompletionIn
from serai.auth.policy import Role
from serai.chat.reply import Reply
from serai.errors import DeadlineExceeded

routes = Routes("chat")


@routes.post(
    "/v1/chat/completions",
    access=Role.USER,
    operation_id="openai_chat_completions",
    response_class=Response,
    rehearsable=False,
)
async def chat_completions(request: Request, body: ChatCompletionIn) -> Response:
    """Answer a chat, whole or as a stream of chunks, as OpenAI's API does."""
    ask, parts = body.ask(), parts_of(request)
    id_, created = openai_id(parts.new_id("chatcmpl")), parts.clock.now()
    opening = chats_of(request).open(ask, caller_of(request))
    if body.stream:
        reply, n = await unless_gone(request, opening), ask.given.get("n", 1)
        chunks = ChatChunks(id_, created, body.model, usage=body.tells_usage)
        return await _streamed(request, reply, chunks, n, chunks.opening(n))
    reply, gathered, ending = await answered(request, opening)
    headers = reply.headers()
    if ending.error is not None:
        if not isinstance(ending.error, DeadlineExceeded):
            raise ending.error
        partial = [chat_message(choice) for choice in gathered.choices]
        return errors.respond(ending.error, headers, partial=partial)
    logprobs = "logprobs" in ask.given
    return json_response(
        chat_completion(id_, created, body.model, gathered, ending, logprobs=logprobs), headers=headers
    )


@routes.post(
    "/v1/completions", access=Role.USER, operation_id="openai_completions", response_class=Response, rehearsable=False
)
async def completions(request: Request, body: CompletionIn) -> Response:
    """Go on from a text, without a chat template."""
    ask, parts = body.ask(), parts_of(request)
    id_, created = openai_id(parts.new_id("cmpl")), parts.clock.now()
    opening = chats_of(request).open(ask, caller_of(request))
    echo = (ask.prompt or "") if body.echo else ""
    if body.stream:
        reply, n = await unless_gone(request, opening), ask.given.get("n", 1)
        chunks = TextChunks(id_, created, body.model, usage=body.tells_usage)
        echoed = b"".join(chunks.text(index, echo) for index in range(n)) if echo else b""
        return await _streamed(request, reply, chunks, n, echoed)
    reply, gathered, ending = await answered(request, opening)
    headers = reply.headers()
    if ending.error is not None:
        if not isinstance(ending.error, DeadlineExceeded):
            raise ending.error
        return errors.respond(ending.error, headers, partial=[choice.content for choice in gathered.choices])
    completion = text_completion(
        id_, created, body.model, gathered, ending, logprobs="logprobs" in ask.given, echo=echo
    )
    return json_response(completion, headers=headers)


async def _streamed(
    request: Request, reply: Reply, chunks: ChatChunks | TextChunks, n: int, opening: bytes
) -> Response:
    await begun(request, reply)
    headers = reply.headers()

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            if opening:
                yield opening
            async for items in reply:
                yield chunks.batch(items)
            ending = reply.ending
            late = {name: value for name, value in reply.headers().items() if headers.get(name) != value}
            if ending is not None and ending.error is not None:
                yield comments(late) + data(errors.openai_error(ending.error)[1]) + DONE
            elif ending is not None:
                yield chunks.closing(ending, n) + comments(late) + DONE
        finally:
            await reply.aclose()

    return Live(frames(), headers, reply=reply)
