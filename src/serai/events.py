"""What work tells while it goes on: typed events that end with exactly one `Done` or `Failed`.

The same values travel from a worker to the server (msgpack), to a client (JSON in SSE, NDJSON or
WebSocket frames) and into the database (JSON): the struct is the one definition, the encodings are
made from it. A non-streaming answer is `fold` of the stream.
"""

from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Any

import msgspec

from serai.errors import InternalError, SeraiError


class Queued(msgspec.Struct, frozen=True, tag="queued", kw_only=True):
    """The work waits; `position` 1 is next."""

    position: int
    eta_s: float | None = None


class Loading(msgspec.Struct, frozen=True, tag="loading", kw_only=True):
    """A model is being brought into memory; `fraction` runs from 0 to 1 where it is known."""

    model: str
    version: str
    fraction: float | None = None


class Progress(msgspec.Struct, frozen=True, tag="progress", kw_only=True):
    """A step was made. `done` of `total` in `unit` (bytes, steps, frames), as far as they are known."""

    stage: str
    fraction: float | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    detail: dict[str, Any] | None = None


class Text(msgspec.Struct, frozen=True, tag="text", kw_only=True):
    """More text of the answer number `index`."""

    delta: str
    index: int = 0
    logprobs: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    """For each token in `delta`: token, logprob, and `top` (a list of the same); absent if not asked for."""


class Media(msgspec.Struct, frozen=True, tag="media", kw_only=True):
    """A picture, a piece of sound or video: `data` of type `media_type` (base64 in JSON)."""

    name: str
    """What it is: preview, picture, sound."""
    media_type: str
    data: bytes
    index: int = 0
    detail: dict[str, Any] | None = None


class Done(msgspec.Struct, frozen=True, tag="done", kw_only=True):
    """The last event of work that succeeded, with its result."""

    result: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag="failed", kw_only=True):
    """The last event of work that did not succeed; the fields are those of the error."""

    code: str
    message: str
    hint: str | None = None
    details: dict[str, Any] | list[Any] | msgspec.UnsetType = msgspec.UNSET
    """For programs: which field is wrong, for example; absent where there are none."""

    @classmethod
    def of(cls, error: BaseException) -> "Failed":
        """Return the event for an error; what is not a `SeraiError` is a defect and tells nothing of itself."""
        known = error if isinstance(error, SeraiError) else InternalError("The work failed through a defect.")
        return cls(code=known.code, message=known.message, hint=known.hint, details=_plain(known.details))


def _plain(details: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Any] | list[Any] | msgspec.UnsetType:
    if details is None:
        return msgspec.UNSET
    return dict(details) if isinstance(details, Mapping) else list(details)


Event = Queued | Loading | Progress | Text | Media | Done | Failed
Final = Done | Failed
PREVIEW = "preview"
"""The name of a picture that shows how far the work is, and is no part of the answer."""

_BREAKS = tuple((character.encode(), b"\\u%04x" % ord(character)) for character in "\u0085\u2028\u2029")
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_packer = msgspec.msgpack.Encoder()
_unpacker: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def is_output(event: Event) -> bool:
    """Return whether this is of the answer: after the first such event nothing else may answer instead."""
    return isinstance(event, Text | Done) or (isinstance(event, Media) and event.name != PREVIEW)


def to_json(event: Event) -> bytes:
    """Return the event as one line of JSON without a line break; its kind is the member `type`."""
    return one_line(_encoder.encode(event))


def one_line(told: bytes) -> bytes:
    """Return JSON that is one line to every reader.

    Many clients (those over httpx among them) split lines wherever Unicode breaks one. JSON escapes such
    characters below U+0020 by itself, and leaves three above.
    """
    if told.isascii():
        return told
    for character, escaped in _BREAKS:
        told = told.replace(character, escaped)
    return told


def from_json(data: bytes | str) -> Event:
    """Return the event that `to_json` wrote. Raises msgspec.ValidationError."""
    return _decoder.decode(data)


def to_msgpack(event: Event) -> bytes:
    """Return the event as msgpack, for messages between processes."""
    return _packer.encode(event)


def from_msgpack(data: bytes) -> Event:
    """Return the event that `to_msgpack` wrote. Raises msgspec.ValidationError."""
    return _unpacker.decode(data)


async def fold(events: AsyncIterable[Event]) -> Final:
    """Return the last event of a stream. Raises InternalError for a stream that breaks the rule above."""
    final: Final | None = None
    async for event in events:
        if final is not None:
            raise InternalError("A stream went on after its last event.")
        if isinstance(event, Done | Failed):
            final = event
    if final is None:
        raise InternalError("A stream ended without its last event.")
    return final
