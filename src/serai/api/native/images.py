"""Pictures: asked for as jobs, kept in a gallery, read as files."""

from collections.abc import AsyncGenerator
from datetime import datetime
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
from serai.images.model import Picture
from serai.jobs import store as jobs_store
from serai.jobs.model import Job, JobNotFound
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
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]


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
    settings: dict[str, Any] = Field(description="Every one as it was used, what was not asked for included.")
    decision: dict[str, Any] = Field(description="Who made it, and why that one.")
    generation_ms: int
    request: dict[str, Any] | None = Field(
        description="Sent to POST /images/generations, it makes the same picture again; null where it began with "
        "a picture that is not known any more."
    )


class PictureChange(Wire):
    """What is left out stays."""

    tags: Annotated[list[Tag], Field(max_length=32)] | None = None
    favourite: bool | None = None


class PictureFilter(Wire):
    """The same as the parameters of GET /images."""

    search: Annotated[str, Field(max_length=200)] | None = None
    model: Annotated[str, Field(max_length=300)] | None = None
    tag: Annotated[str, Field(max_length=32)] | None = None
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
    search: Annotated[str | None, Query(max_length=200, description="Words of the prompt.")] = None,
    model: Annotated[str | None, Query(max_length=300)] = None,
    tag: Annotated[str | None, Query(max_length=64)] = None,
    favourite: Annotated[bool | None, Query()] = None,
    since: Annotated[Moment | None, Query(alias="from", description="Made at or after.")] = None,
    until: Annotated[Moment | None, Query(alias="to", description="Made before.")] = None,
) -> Page[PictureOut]:
    """List your pictures, the newest first; an admin sees all."""
    _check_model(model)
    found, place = await parts_of(request).database.read(
        store.search,
        owner_id=_owner(caller_of(request)),
        text=search,
        model=model,
        tag=tag,
        favourite=favourite,
        since=since,
        until=until,
        cursor=number_of(cursor),
        limit=limit,
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
    owner = _owner(caller_of(request))

    def look(connection: Connection) -> tuple[Picture, Job | None]:
        picture = store.get(connection, image_id, owner)
        try:
            return picture, jobs_store.get(connection, picture.job_id, owner_id=picture.owner_id)
        except JobNotFound:  # its time was over before the picture's
            return picture, None

    picture, job = await parts_of(request).database.read(look)
    return PictureMetadata(
        **_shown(picture),
        settings=dict(picture.settings),
        decision=dict(picture.decision),
        generation_ms=picture.generation_ms,
        request=_again(picture, job),
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
        _check_model(body.filter.model)
        pictures = _found(parts.database, body.filter, owner)
    else:
        pictures = _each(await parts.database.read(_all_of, body.ids or [], owner))
    headers = {"content-disposition": 'attachment; filename="pictures.zip"'}
    return Live(archive(pictures, parts.blobs), headers, media_type="application/zip", heartbeat=None)


def _check_model(model: str | None) -> None:
    """Refuse what would find nothing: the pictures of a model are found together, whatever its version."""
    if model is not None and "@" in model:
        name = model.partition("@")[0]
        raise InvalidInput.at("model", "must be a model without a version", hint=f"Send model={name} alone.")


def _all_of(connection: Connection, ids: list[str], owner: str | None) -> list[Picture]:
    if len(set(ids)) != len(ids):
        raise InvalidInput.at("ids", "name a picture twice")
    return [store.get(connection, one, owner) for one in ids]


async def _each(pictures: list[Picture]) -> AsyncGenerator[Picture, None]:
    for picture in pictures:
        yield picture


async def _found(database: Database, asked: PictureFilter, owner: str | None) -> AsyncGenerator[Picture, None]:
    """Yield what a filter finds, a page at a time: what is made meanwhile is not among it."""
    place: int | None = None
    while True:
        page, place = await database.read(
            store.search,
            owner_id=owner,
            text=asked.search,
            model=asked.model,
            tag=asked.tag,
            favourite=asked.favourite,
            since=asked.since,
            until=asked.until,
            cursor=place,
            limit=store.MAX_PAGE,
        )
        for picture in page:
            yield picture
        if place is None:
            return


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


def _again(picture: Picture, job: Job | None) -> dict[str, Any] | None:
    """Return the body that makes this one picture again; None where it began with one that is not known any more."""
    if job is None and "strength" in picture.settings:
        return None
    told: dict[str, Any] = {"model": f"{picture.model}@{picture.version}", "prompt": picture.prompt}
    if picture.negative_prompt:
        told["negative_prompt"] = picture.negative_prompt
    told["settings"] = {**picture.settings, "seed": picture.seed, "num_images": 1}
    sources = {} if job is None else {name: job.payload[name] for name in ("image", "mask") if name in job.payload}
    return told | sources


def _owner(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
