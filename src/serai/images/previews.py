"""Previews that another server sent: whatever they are, clients get the small WebP that previews of ours are."""

import asyncio
from typing import Final

import structlog
from anyio.to_thread import run_sync

from serai.decode.decoder import DecodedImage, Decoder
from serai.errors import SeraiError
from serai.events import Media

MAX_SIDE: Final = 128
"""As long as the longer side of a preview of ours is at most."""
PATIENCE_S: Final = 10.0
"""How long one is worked on: what is shown in passing must not hold the picture up."""

log = structlog.get_logger(__name__)


async def shrunk(preview: Media, decoder: Decoder) -> Media | None:
    """Return the preview in small, opened by the decoder alone and written anew; None for what cannot be opened."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            pixels = await decoder.image(preview.data, max_side=MAX_SIDE)
            data = await run_sync(_webp_of, pixels)
    except (SeraiError, TimeoutError) as error:
        log.info("preview_dropped", code=getattr(error, "code", "TIMEOUT"))
        return None
    return Media(name=preview.name, media_type="image/webp", data=data, index=preview.index)


def _webp_of(pixels: DecodedImage) -> bytes:
    from serai.images.pixels import thumb_of  # the server starts without Pillow

    return thumb_of(pixels)
