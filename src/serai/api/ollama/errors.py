"""Errors in Ollama's form: `{"error": "text"}`."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from serai.api.answers import json_response
from serai.api.errors import headers_of, status_of
from serai.errors import SeraiError

_BAD_REQUEST = 400
_AS_BAD_REQUEST = frozenset({413, 415, 422})


def text_of(error: SeraiError) -> str:
    """Return what is said: message and hint."""
    return error.message if error.hint is None else f"{error.message.rstrip('.')}. {error.hint}"


def respond(error: SeraiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that tells `error` in this dialect."""
    status = status_of(error)
    return json_response(
        {"error": text_of(error)}, _BAD_REQUEST if status in _AS_BAD_REQUEST else status, headers_of(error, headers)
    )


def line(error: SeraiError) -> bytes:
    """Return the line that ends a stream with an error."""
    return msgspec.json.encode({"error": text_of(error)}) + b"\n"
