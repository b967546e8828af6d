"""What the server and the process that renders templates say to each other.

Every message is msgpack behind its length (four bytes, big-endian) on a stream socket; one request,
one reply. A template is named by its digest; its source goes along only when the child asks for it.
"""

from typing import Any, Literal

import msgspec

READY = b"ready"
"""What the child sends, once, when it has loaded everything and given up the rest."""

MAX_SOURCE_CHARACTERS = 512 * 1024
MAX_OUTPUT_CHARACTERS = 8 * 2**20
HEADER_BYTES = 4


class Render(msgspec.Struct, frozen=True, kw_only=True):
    """Render the template on `context`; `now` is the local time (ISO 8601) for `strftime_now`."""

    template: str
    source: str | None
    context: dict[str, Any]
    now: str


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    text: str


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """The child does not have this template: send it again with its source."""


class Refused(msgspec.Struct, frozen=True, tag="refused", kw_only=True):
    """There is no text. `message` is the template's own word, bounded."""

    reason: Literal["raised", "broken", "forbidden", "too_long", "memory"]
    message: str = ""


Reply = Rendered | Unknown | Refused

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Render).decode
decode_reply: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def framed(message: Render | Reply) -> bytes:
    """Return the bytes of a message with its length before it."""
    data = encode(message)
    return len(data).to_bytes(HEADER_BYTES, "big") + data
