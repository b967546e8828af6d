"""Named secrets of the server: set by an admin, sent to their origins only, shown to nobody."""

import re
from datetime import datetime
from typing import Annotated

from fastapi import Path
from pydantic import Field
from starlette.requests import Request

from serai.api.access import Routes, actor_of, parts_of
from serai.api.changes import change
from serai.api.wire import Cursor, Limit, Page, Wire, page_of, place_of
from serai.auth.policy import Role
from serai.auth.secrets import SecretInfo
from serai.errors import InvalidInput

routes = Routes("secrets")

_SENDABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
"""What a header can carry: visible ASCII, with blanks inside."""

SecretName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Origin = Annotated[str, Field(max_length=300, pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+$")]


class SecretOut(Wire):
    name: str
    origins: list[str]
    source: str = Field(description="`store`, or `environment` where the value is given from outside.")
    created_at: datetime
    updated_at: datetime
    updated_by: str


class SecretIn(Wire):
    value: Annotated[str, Field(min_length=1, max_length=16_384)] | None = Field(
        None, description="Left out: keep the value, or take it from SERAI_SECRET_<NAME>."
    )
    origins: list[Origin] = Field(
        min_length=1, max_length=20, description="Where the value may be sent: scheme://host."
    )


def show(info: SecretInfo) -> SecretOut:
    """Return the view of a secret, without its value."""
    return SecretOut(
        name=info.name,
        origins=list(info.origins),
        source=info.source,
        created_at=info.created_at,
        updated_at=info.updated_at,
        updated_by=info.updated_by,
    )


@routes.get("/secrets", access=Role.ADMIN)
async def list_secrets(request: Request, limit: Limit = 50, cursor: Cursor = None) -> Page[SecretOut]:
    """List the secrets, without their values."""
    parts = parts_of(request)
    rows = await parts.database.read(parts.secrets.list, limit=limit + 1, after=place_of(cursor))
    return page_of(rows, limit, show, lambda info: info.name)


@routes.put("/secrets/{name}", access=Role.ADMIN)
async def put_secret(request: Request, name: SecretName, body: SecretIn) -> SecretOut:
    """Set a secret and the origins to which it may be sent."""
    parts = parts_of(request)
    if body.value is not None and not _SENDABLE.fullmatch(body.value):
        raise InvalidInput.at(
            "value",
            "has characters that no header can carry",
            hint="Send the key as it was given: ASCII letters, digits and signs, no line break or blank at its ends.",
        )
    origins = sorted({origin.lower() for origin in body.origins})
    now, actor = parts.clock.now(), actor_of(request)
    return show(await change(request, parts.secrets.put, name, body.value, origins, actor, now))


@routes.delete("/secrets/{name}", access=Role.ADMIN, status_code=204)
async def delete_secret(request: Request, name: SecretName) -> None:
    """Remove a secret."""
    parts = parts_of(request)
    await change(request, parts.secrets.delete, name, actor_of(request), parts.clock.now())
