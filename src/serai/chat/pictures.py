"""Pictures in messages: fetched through the guarded way out, and looked at by the confined decoder."""

import asyncio
from collections.abc import Sequence

from serai.chat.messages import Link, Message, Part, Picture, with_pictures
from serai.decode.decoder import Decoder
from serai.errors import InvalidInput, UnsupportedMedia
from serai.outbound import Outbound

MAX_PICTURE_BYTES = 20 * 2**20
_OK = 200


class Pictures:
    """Turns links into pictures, and refuses what is none."""

    def __init__(self, outbound: Outbound, decoder: Decoder, *, timeout_s: float = 20.0) -> None:
        self._outbound = outbound
        self._decoder = decoder
        self._timeout_s = timeout_s

    async def look(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return the messages with every picture fetched and its type told by its content.

        Raises OutboundRefused, UpstreamFailed, DeadlineExceeded, UnsupportedMedia, MediaMalformed,
        MediaTooLarge, InvalidInput.
        """
        parts = list(dict.fromkeys(part for message in messages for part in message.pictures))
        found: list[Picture | BaseException] = await asyncio.gather(
            *(self._one(part) for part in parts), return_exceptions=True
        )
        seen: dict[Part, Picture] = {}
        for part, result in zip(parts, found, strict=True):
            if isinstance(result, BaseException):
                raise result
            seen[part] = result
        return with_pictures(messages, seen)

    async def _one(self, part: Link | Picture) -> Picture:
        picture = part if isinstance(part, Picture) else Picture(data=await self._fetch(part.url))
        info = await self._decoder.probe(picture.data)
        if info.kind != "image":
            raise UnsupportedMedia("A part of a message that should be a picture is something else.")
        return Picture(data=picture.data, media_type=info.media_type)

    async def _fetch(self, url: str) -> bytes:
        reply = await self._outbound.request("GET", url, timeout_s=self._timeout_s, max_bytes=MAX_PICTURE_BYTES)
        if reply.status != _OK:
            raise InvalidInput.at("image_url", f"could not be fetched: its server answered {reply.status}")
        return reply.body
