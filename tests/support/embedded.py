"""What files of pictures tell, as a reader finds it that knows where each format keeps it."""

import io
import json
import re
from typing import Any
from xml.sax.saxutils import unescape

from PIL import Image

_DOCUMENT = re.compile(rb"<serai:document>(.*?)</serai:document>", re.DOTALL)


def opened(data: bytes) -> Image.Image:
    """Return a picture with all that is told of it."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def read_embedded(data: bytes) -> dict[str, Any] | None:
    """Return the document in a PNG, JPEG or WebP, or None where there is none."""
    info = opened(data).info
    found = _DOCUMENT.search(info.get("xmp") or b"")
    told = info.get("serai") or (None if found is None else unescape(found[1].decode()))
    document = json.loads(told or "null")
    assert document is None or isinstance(document, dict)
    return document
