"""Vectors of texts. Clients that name no format ask for base64."""

import base64
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of
from serai.api.answers import embedder_of, json_response, unless_gone
from serai.api.openai.wire import Model, Number
from serai.api.wire import Wire
from serai.auth.policy import Role
from serai.chat.chats import MAX_TIMEOUT_S, timeout_of
from serai.chat.keep_alive import KeepAlive, keep_alive_of
from serai.errors import InvalidInput

routes = Routes("chat")


class EmbeddingsIn(Wire):
    model: Model
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = None
    user: str | None = None
    timeout: Number = None
    keep_alive: KeepAlive = None

    def texts(self) -> tuple[str, ...]:
        """Return the texts. Raises InvalidInput."""
        given = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        if not all(isinstance(text, str) for text in given):
            raise InvalidInput.at(
                "input",
                "must be texts: tokens of another tokenizer mean nothing to this model",
                hint="With LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False).",
            )
        return tuple(str(text) for text in given)


@routes.post(
    "/v1/embeddings", access=Role.USER, operation_id="openai_embeddings", response_class=Response, rehearsable=False
)
async def embeddings(request: Request, body: EmbeddingsIn) -> Response:
    """Return a vector for each text."""
    work = embedder_of(request).embed(
        body.model,
        body.texts(),
        caller_of(request),
        timeout_s=timeout_of(body.timeout) or MAX_TIMEOUT_S,
        dimensions=body.dimensions,
        keep_alive=keep_alive_of(body.keep_alive),
    )
    found = await unless_gone(request, work)

    def shown(index: int) -> Any:
        if body.encoding_format == "float":
            return found.numbers(index)
        return base64.b64encode(found.vectors[index]).decode()

    data = [{"object": "embedding", "index": n, "embedding": shown(n)} for n in range(len(found.vectors))]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    answer = {"object": "list", "data": data, "model": body.model, "usage": usage}
    return json_response(answer, headers=found.headers)
