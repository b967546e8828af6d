"""JSON that is one line to every reader of streams."""

from typing import Any

import msgspec

from serai.events import one_line

_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Return the value as JSON without any line break."""
    return one_line(_encoder.encode(value))
