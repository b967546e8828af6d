"""Chats and texts, streamed as lines unless the client says otherwise; and loading a model by asking nothing."""

import math
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.answers import Live, begun, chats_of, embedder_of, json_response, serving_of, unless_gone, whole
from serai.api.image_jobs import ImagesAccepted, ImagesIn, Key, accept
from serai.api.ollama import encoding, errors, images
from serai.api.ollama.encoding import Kind, Lines, moment
from serai.api.ollama.wire import EmbeddingIn, EmbedIn, GenerateBody, OllamaChatIn
from serai.api.streams import NDJSON_TYPE
from serai.auth.policy import Role, check_access
from serai.chat.chats import MAX_TIMEOUT_S, Ask
from serai.chat.embeddings import Embeddings
from serai.chat.keep_alive import keep_alive_of
from serai.chat.reply import Gathered
from serai.serving.errors import NotInMemory

routes = Routes("chat")
LOAD_TIMEOUT_S = 600.0


@routes.post("/api/chat", access=Role.USER, operation_id="ollama_chat", response_class=Response, rehearsable=False)
async def chat(request: Request, body: OllamaChatIn) -> Response:
    """Answer a chat. Without messages: load the model, or with keep_alive 0 unload it (for moderators)."""
    if not body.messages:
        return await _residence(request, "chat", body.model, keep_alive_of(body.keep_alive), stream=body.stream)
    return await _answered(request, "chat", body.ask(), body.model, stream=body.stream)


@routes.post(
    "/api/generate",
    access=Role.USER,
    operation_id="ollama_generate",
    response_class=Response,
    rehearsable=False,
    responses={202: {"description": "With model_id.", "model": ImagesAccepted}},
)
async def generate(request: Request, body: GenerateBody, idempotency_key: Key = None) -> Response:
    """Answer a prompt: by a text, by a picture, or, with `model_id`, by a job that makes pictures.

    Without a prompt: load the model, or with keep_alive 0 unload it (for moderators).
    """
    if isinstance(body, ImagesIn):
        return json_response((await accept(request, body, idempotency_key)).model_dump(mode="json"), 202)
    if not body.prompt and not body.images:
        return await _residence(request, "generate", body.model, keep_alive_of(body.keep_alive), stream=body.stream)
    if images.draws(await parts_of(request).registry.current(), body.model):
        return await images.answered(request, body)
    return await _answered(request, "generate", body.ask(), body.model, stream=body.stream)


@routes.post("/api/embed", access=Role.USER, operation_id="ollama_embed", response_class=Response, rehearsable=False)
async def embed(request: Request, body: EmbedIn) -> Response:
    """Return a vector for each text, of length 1."""
    clock = parts_of(request).clock
    texts = (body.input,) if isinstance(body.input, str) else tuple(body.input)
    started = clock.monotonic()
    found = await _embedded(
        request,
        body.model,
        texts,
        keep_alive_of(body.keep_alive),
        dimensions=body.dimensions,
        truncate=body.truncate is not False,
    )
    vectors = [_normalised(found.numbers(number)) for number in range(len(texts))]
    told = {"model": body.model, "embeddings": vectors, "prompt_eval_count": found.prompt_tokens}
    took = round((clock.monotonic() - started) * encoding.NS)
    loaded = round(found.load_s * encoding.NS)
    return json_response({**told, "total_duration": took, "load_duration": loaded}, headers=found.headers)


@routes.post(
    "/api/embeddings", access=Role.USER, operation_id="ollama_embeddings", response_class=Response, rehearsable=False
)
async def embeddings(request: Request, body: EmbeddingIn) -> Response:
    """Return the vector of one text, as older clients ask for it."""
    found = await _embedded(request, body.model, (body.prompt,), keep_alive_of(body.keep_alive))
    return json_response({"embedding": found.numbers(0)}, headers=found.headers)


async def _answered(request: Request, kind: Kind, ask: Ask, model: str, *, stream: bool | None) -> Response:
    clock = parts_of(request).clock
    reply = await unless_gone(request, chats_of(request).open(ask, caller_of(request)))
    if stream is False:
        gathered = Gathered()
        ending = await whole(request, reply, gathered)
        if ending.error is not None:
            raise ending.error
        return json_response(encoding.whole(kind, model, clock.now(), gathered, ending), headers=reply.headers())
    await begun(request, reply)
    headers = reply.headers()
    lines = Lines(kind, model)

    async def told() -> AsyncGenerator[bytes, None]:
        try:
            async for items in reply:
                yield lines.batch(items, clock.now())
            ending = reply.ending
            if ending is not None and ending.error is not None:
                yield errors.line(ending.error)
            elif ending is not None:
                late = {name: value for name, value in reply.headers().items() if headers.get(name) != value}
                yield lines.closing(ending, clock.now(), late)
        finally:
            await reply.aclose()

    return Live(told(), headers, reply=reply, media_type=NDJSON_TYPE, heartbeat=None)


async def _residence(
    request: Request, kind: Kind, model: str, keep_alive: float | None, *, stream: bool | None
) -> Response:
    """Load a model or, with a keep_alive of 0, unload it, and say so in the form of an empty answer."""
    check_access(caller_of(request), Role.MODERATOR, "chat")
    serving = serving_of(request)
    reason = "unload" if keep_alive == 0 else "load"
    try:
        if keep_alive == 0:
            await unless_gone(request, serving.unload(model))
        else:
            await unless_gone(request, serving.preload(model, keep_alive=keep_alive, timeout_s=LOAD_TIMEOUT_S))
    except NotInMemory:
        pass  # it runs on another server, where it is ready at any time
    said: dict[str, Any] = {"response": ""} if kind == "generate" else {"message": {"role": "assistant", "content": ""}}
    at = moment(parts_of(request).clock.now())
    told = {"model": model, "created_at": at, **said, "done": True, "done_reason": reason}
    if stream is False:
        return json_response(told)
    return Response(encoding.line(told), media_type=NDJSON_TYPE)


async def _embedded(
    request: Request,
    model: str,
    texts: tuple[str, ...],
    keep_alive: float | None,
    *,
    dimensions: int | None = None,
    truncate: bool = True,
) -> Embeddings:
    work = embedder_of(request).embed(
        model,
        texts,
        caller_of(request),
        timeout_s=MAX_TIMEOUT_S,
        dimensions=dimensions,
        truncate=truncate,
        keep_alive=keep_alive,
    )
    return await unless_gone(request, work)


def _normalised(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector] if length else vector
