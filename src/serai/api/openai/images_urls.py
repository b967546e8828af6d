"""Addresses of pictures that need no key: signed, and gone after an hour, as OpenAI's are."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, parts_of
from serai.api.content import content
from serai.api.image_jobs import SCOPE
from serai.auth.policy import PUBLIC
from serai.errors import Gone, NotFound
from serai.images import store

routes = Routes(SCOPE)

LIFE_S = 3600
_PATH = "/v1/images/files/"

PictureId = Annotated[str, Path(max_length=64)]
Expires = Annotated[int, Query(ge=0, lt=2**40, description="When it ends, in seconds since 1970.")]
Signature = Annotated[str, Query(pattern=r"^[0-9a-f]{64}$")]


class AddressExpired(Gone):
    """The address of a picture has ended; the picture has not."""

    code = "ADDRESS_EXPIRED"
    default_hint = "GET /images/{id} gives the picture to those who have a key."


def sign(master: bytes, picture_id: str, expires: int) -> str:
    """Return the signature of an address; webhooks, which share the secret, sign what begins with other words."""
    return hmac.new(master, f"picture:{picture_id}:{expires}".encode(), hashlib.sha256).hexdigest()


def address_of(request: Request, picture_id: str) -> str:
    """Return the whole address under which anybody who has it reads the picture for an hour."""
    parts = parts_of(request)
    expires = int(parts.clock.now().timestamp()) + LIFE_S
    signature = sign(parts.webhook_master, picture_id, expires)
    base = parts.settings.public_url or str(request.base_url).rstrip("/")
    return f"{base}{_PATH}{picture_id}?expires={expires}&signature={signature}"


@routes.get(_PATH + "{picture_id}", access=PUBLIC, operation_id="openai_read_image", response_class=Response)
@routes.head(_PATH + "{picture_id}", access=PUBLIC, response_class=Response)
async def read_image(request: Request, picture_id: PictureId, expires: Expires, signature: Signature) -> Response:
    """Return a picture to whoever has its signed address: `url` of POST /v1/images/generations."""
    parts = parts_of(request)
    if not hmac.compare_digest(signature, sign(parts.webhook_master, picture_id, expires)):
        raise NotFound("There is no picture at this address.", hint="Use the address as it was given.")
    left = expires - int(parts.clock.now().timestamp())
    if left <= 0:
        raise AddressExpired("This address has ended.")
    picture = await parts.database.read(store.get, picture_id, None)
    headers = {"cache-control": f"private, max-age={left}", "cross-origin-resource-policy": "cross-origin"}
    media_type = f"image/{picture.format}"
    return await content(request, digest=picture.digest, size=picture.size, media_type=media_type, headers=headers)
