"""JSON that is one line to every reader of streams.

Many clients (those over httpx among them: ollama-python) split lines wherever Unicode breaks one. JSON
escapes such characters below U+0020 by itself, and leaves three above.
"""

from typing import Any, Final

import msgspec

_BREAKS: Final = (("\u0085", b"\\u0085"), ("\u2028", b"\\u2028"), ("\u2029", b"\\u2029"))
_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Return the value as JSON without any line break."""
    told = _encoder.encode(value)
    if not told.isascii():
        for character, escaped in _BREAKS:
            told = told.replace(character.encode(), escaped)
    return told
