"""Pictures: asked for as jobs, kept in a gallery, read as files."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, actor_of, caller_of, parts_of
from serai.api.answers import Live
from serai.api.changes import change
from serai.api.content import FOR_EVER, content
from serai.api.image_jobs import SCOPE, ImagesAccepted, ImagesIn, Key, accept
from serai.api.wire import Cursor, Limit, Moment, Page, Wire, number_of, token_of
from serai.auth.policy import Caller, Role
from serai.errors import InvalidInput
from serai.images import store
from serai.images.archive import archive
from serai.images.metadata import of_picture
from serai.images.model import Picture
from serai.images.plan import EDIT
from serai.storage.database import Connection, Database

routes = Routes(SCOPE)

MAX_IDS = 1000

FILE_ANSWERS: dict[int | str, Any] = {
    206: {"description": "The range that was asked for."},
    304: {"description": "As you have it."},
}

ImageId = Annotated[str, Path(max_length=64)]
Id = Annotated[str, Field(min_length=1, max_length=64)]
Size = Annotated[Literal["full", "thumb"], Query(description="thumb: WebP, no side over 256.")]
BodyMoment = Annotated[Moment, Field(strict=False)]
Tag = Annotated[str, Field(min_length=1, max_length=store.MAX_TAG_LENGTH, pattern=r"^[^\x00-\x1f\x7f]+$")]
Words = Annotated[str, Field(max_length=200)]
ModelNamed = Annotated[str, Field(max_length=300)]
Told = tuple[Picture, Mapping[str, str]]
"""A picture, and the digests of what it began with."""
Found = tuple[list[Told], store.Place | None]


class PictureOut(Wire):
    id: str
    job_id: str
    position: int = Field(description="Its place among the pictures of its job, from 0.")
    model: str
    version: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    format: Literal["png", "jpeg", "webp"]
    bytes: int
    sha256: str
    tags: list[str]
    favourite: bool
    created_at: datetime
    url: str
    thumb_url: str


class PictureMetadata(PictureOut):
    settings: dict[str, Any] = Field(description="Every one that makes this picture, what was not asked for included.")
    image_sha256: str | None = Field(None, description="What it began with, as long as that is there.")
    mask_sha256: str | None = Field(None, description="Likewise.")
    decision: dict[str, Any] = Field(description="Who made it, and why that one.")
    generation_ms: int
    request: dict[str, Any] | None = Field(
        description="Sent to POST /images/generations, it makes the same picture again; null where it began with "
        "a picture that is not there any more or is not yours."
    )


class PictureChange(Wire):
    """What is left out stays."""

    tags: Annotated[list[Tag], Field(max_length=32)] | None = None
    favourite: bool | None = None


class PictureFilter(Wire):
    """The same as the parameters of GET /images."""

    search: Words | None = None
    model: ModelNamed | None = None
    tag: Tag | None = None
    favourite: bool | None = None
    since: BodyMoment | None = Field(None, alias="from")
    until: BodyMoment | None = Field(None, alias="to")


class ArchiveIn(Wire):
    """Which pictures: those with these ids, or all that a filter finds."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_IDS)] | None = None
    filter: PictureFilter | None = None


def show(picture: Picture) -> PictureOut:
    """Return a picture as the gallery lists it."""
    return PictureOut(**_shown(picture))


@routes.post("/images/generations", access=Role.USER, status_code=202)
async def generate(request: Request, body: ImagesIn, idempotency_key: Key = None) -> ImagesAccepted:
    """Make pictures from a text: a job, whose events tell place, load, steps and previews."""
    return await accept(request, body, idempotency_key)


@routes.get("/images", access=Role.VIEWER)
async def list_images(
    request: Request,
    limit: Limit = 50,
    cursor: Cursor = None,
    search: Annotated[Words | None, Query(description="Words of the prompt.")] = None,
    model: Annotated[ModelNamed | None, Query()] = None,
    tag: Annotated[Tag | None, Query()] = None,
    favourite: Annotated[bool | None, Query()] = None,
    since: Annotated[Moment | None, Query(alias="from", description="Made at or after.")] = None,
    until: Annotated[Moment | None, Query(alias="to", description="Made before.")] = None,
) -> Page[PictureOut]:
    """List your pictures, the newest first; an admin sees all."""
    asked = _asked(search=search, model=model, tag=tag, favourite=favourite, since=since, until=until)
    owner, place = _owner(caller_of(request)), number_of(cursor)
    found, place = await parts_of(request).database.read(
        store.search, owner_id=owner, cursor=place, limit=limit, **asked
    )
    return Page(items=[show(one) for one in found], next_cursor=None if place is None else token_of(str(place)))


@routes.get(
    "/images/{image_id}",
    access=Role.VIEWER,
    response_class=Response,
    responses=FILE_ANSWERS,
)
@routes.head("/images/{image_id}", access=Role.VIEWER, response_class=Response)
async def get_image(request: Request, image_id: ImageId, size: Size = "full") -> Response:
    """Return a picture as a file, for ever the same: with an ETag, in ranges, to be shown in a page and never run."""
    return await picture_response(request, await _picture(request, image_id), size)


@routes.get("/images/{image_id}/metadata", access=Role.VIEWER)
async def get_metadata(request: Request, image_id: ImageId) -> PictureMetadata:
    """Show what made a picture, and the request that makes it again."""
    parts, caller = parts_of(request), caller_of(request)

    def look(connection: Connection) -> tuple[Picture, store.Sources | None]:
        picture = store.get(connection, image_id, _owner(caller))
        return picture, store.sources_of(connection, picture)

    picture, sources = await parts.database.read(look)
    entry = (await parts.registry.current()).models.get(picture.model)
    if sources is not None and not sources.named and entry is not None and entry.model.task == EDIT:
        sources = None  # it began with a picture, as all of this model do, and the job that named it is gone
    document = of_picture(picture, {} if sources is None else sources.digests)
    return PictureMetadata(
        **{**_shown(picture), **document},
        decision=dict(picture.decision),
        generation_ms=picture.generation_ms,
        request=_again(document, sources, is_own=picture.owner_id == caller.user_id),
    )


@routes.patch("/images/{image_id}", access=Role.USER)
async def change_image(request: Request, image_id: ImageId, body: PictureChange) -> PictureOut:
    """Set tags, or whether it is a favourite: those are kept however old they grow."""
    owner, now = _owner(caller_of(request)), parts_of(request).clock.now()
    actor = actor_of(request)
    changed = await change(
        request, store.change, image_id, owner, tags=body.tags, is_favourite=body.favourite, actor=actor, at=now
    )
    return show(changed)


@routes.delete("/images/{image_id}", access=Role.USER, status_code=204)
async def delete_image(request: Request, image_id: ImageId) -> None:
    """Remove a picture; its bytes go when nothing else holds them."""
    owner, now = _owner(caller_of(request)), parts_of(request).clock.now()
    await change(request, store.remove, image_id, owner, actor_of(request), now)


@routes.post("/images/archive", access=Role.VIEWER, response_class=Response, rehearsable=False)
async def archive_images(request: Request, body: ArchiveIn) -> Response:
    """Send many pictures as one zip, each with a JSON that says what made it."""
    if (body.ids is None) == (body.filter is None):
        raise InvalidInput.at("ids", "or filter must be given, and not both")
    parts, owner = parts_of(request), _owner(caller_of(request))
    if body.filter is not None:
        look = partial(_page_of, owner_id=owner, **_asked(**dict(body.filter)))
    else:
        look = partial(_all_of, ids=body.ids or [], owner=owner)
    # What is wrong with the question is found before the answer begins.
    pictures = _each(parts.database, look, await parts.database.read(look))
    headers = {"content-disposition": 'attachment; filename="pictures.zip"'}
    return Live(archive(pictures, parts.blobs), headers, media_type="application/zip", heartbeat=None)


def _asked(*, search: str | None, model: str | None, **others: Any) -> dict[str, Any]:
    """Return the arguments of `store.search` for what the filter of a list or an archive says. Raises InvalidInput."""
    if model is not None and "@" in model:  # the pictures of a model are found together, whatever its version
        name = model.partition("@")[0]
        raise InvalidInput.at("model", "must be a model without a version", hint=f"Send model={name} alone.")
    return {"text": search, "model": model, **others}


def _told(connection: Connection, pictures: Iterable[Picture]) -> list[Told]:
    found = ((picture, store.sources_of(connection, picture)) for picture in pictures)
    return [(picture, {} if sources is None else sources.digests) for picture, sources in found]


def _all_of(connection: Connection, *, ids: list[str], owner: str | None) -> Found:
    if len(set(ids)) != len(ids):
        raise InvalidInput.at("ids", "name a picture twice")
    return _told(connection, (store.get(connection, one, owner) for one in ids)), None


def _page_of(connection: Connection, **asked: Any) -> Found:
    page, place = store.search(connection, limit=store.MAX_PAGE, **asked)
    return _told(connection, page), place


async def _each(database: Database, look: Callable[..., Found], first: Found) -> AsyncGenerator[Told, None]:
    """Yield what is on a page and on those behind it: what is made meanwhile is not among it."""
    page, place = first
    while True:
        for one in page:
            yield one
        if place is None:
            return
        page, place = await database.read(look, cursor=place)


async def picture_response(request: Request, picture: Picture, size: str) -> Response:
    """Return a picture's file, or its thumbnail."""
    is_thumb = size == "thumb"
    kind = "webp" if is_thumb else picture.format
    headers = {
        **FOR_EVER,
        "content-disposition": f'inline; filename="{picture.id}.{kind}"',
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
    }
    return await content(
        request,
        digest=picture.thumb_digest if is_thumb else picture.digest,
        size=picture.thumb_size if is_thumb else picture.size,
        media_type=f"image/{kind}",
        headers=headers,
    )


async def _picture(request: Request, image_id: str) -> Picture:
    return await parts_of(request).database.read(store.get, image_id, _owner(caller_of(request)))


def _shown(picture: Picture) -> dict[str, Any]:
    url = f"/images/{picture.id}"
    return {
        **{name: getattr(picture, name) for name in _SAME},
        "bytes": picture.size,
        "sha256": picture.digest,
        "tags": list(picture.tags),
        "favourite": picture.is_favourite,
        "url": url,
        "thumb_url": f"{url}?size=thumb",
    }


_SAME = (
    *("id", "job_id", "position", "model", "version", "prompt", "negative_prompt", "seed", "width", "height"),
    *("format", "created_at"),
)


def _again(document: Mapping[str, Any], sources: store.Sources | None, *, is_own: bool) -> dict[str, Any] | None:
    """Return the body that makes this one picture again; None where it would be refused."""
    if sources is None or (sources.named and not is_own):
        return None
    told: dict[str, Any] = {"model": f"{document['model']}@{document['version']}", "prompt": document["prompt"]}
    if document["negative_prompt"]:
        told["negative_prompt"] = document["negative_prompt"]
    return {**told, "settings": document["settings"], **sources.named}


def _owner(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
