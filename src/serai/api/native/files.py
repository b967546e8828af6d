"""Upload pictures, sound and video once, and name them by id afterwards. Content decides the type."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from msgspec import to_builtins
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serai.api.access import Routes, actor_of, caller_of, parts_of
from serai.api.changes import change
from serai.api.parts import Parts
from serai.api.wire import Cursor, Limit, Page, Wire, page_of, place_of
from serai.auth.policy import Caller, Role
from serai.decode.errors import MediaMalformed
from serai.decode.messages import MediaInfo
from serai.errors import InternalError, InvalidInput, TooLarge, UnsupportedMedia
from serai.files import store
from serai.storage import links

routes = Routes("files")

_PROOF_SIDE = 64

FileId = Annotated[str, Path(max_length=64)]
FileName = Annotated[str, Query(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$", description="For people; no path.")]


class FileOut(Wire):
    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    info: dict[str, Any]
    created_at: datetime
    content_url: str


def show(file: store.File) -> FileOut:
    """Return the view of a file."""
    return FileOut(
        id=file.id,
        name=file.name,
        media_type=file.media_type,
        size=file.size,
        sha256=file.digest,
        info=file.info,
        created_at=file.created_at,
        content_url=f"/files/{file.id}/content",
    )


@routes.post("/files", access=Role.USER, status_code=201, rehearsable=False)
async def upload(request: Request, name: FileName = "") -> FileOut:
    """Upload a picture, sound or video as the bare body. What cannot be opened safely is refused."""
    parts, caller = parts_of(request), caller_of(request)
    quota = caller.disk_quota_bytes if caller.disk_quota_bytes is not None else parts.settings.disk_quota_bytes
    left = quota - await parts.database.read(links.usage, caller.user_id)
    if left <= 0:
        raise store.over_quota(quota - left, quota, 1)
    most = min(parts.settings.max_body_bytes, left)
    try:
        blob = await parts.blobs.put(request.stream(), max_bytes=most)
    except TooLarge:
        if most == left:
            raise store.over_quota(quota - left, quota, left + 1) from None
        raise
    if blob.size == 0:
        raise InvalidInput.at("body", "is empty")
    info = await _probe(parts, blob.digest)
    file = store.File(
        id=parts.new_id("file"),
        owner_id=caller.user_id,
        digest=blob.digest,
        name=name,
        media_type=info.media_type,
        size=blob.size,
        info={name: value for name, value in to_builtins(info).items() if value is not None},
        created_at=parts.clock.now(),
    )
    return show(await parts.database.run(store.add, file, quota, actor_of(request)))


@routes.get("/files", access=Role.VIEWER)
async def list_files(request: Request, limit: Limit = 50, cursor: Cursor = None) -> Page[FileOut]:
    """List your files; an admin sees all."""
    read, owner = parts_of(request).database.read, _owner(caller_of(request))
    rows = await read(store.list_files, owner_id=owner, limit=limit + 1, after=place_of(cursor))
    return page_of(rows, limit, show, lambda file: file.id)


@routes.get("/files/{file_id}", access=Role.VIEWER)
async def get_file(request: Request, file_id: FileId) -> FileOut:
    """Show a file."""
    return show(await _file(request, file_id))


@routes.get("/files/{file_id}/content", access=Role.VIEWER, response_class=Response)
async def get_content(request: Request, file_id: FileId) -> Response:
    """Return a file's bytes, as an attachment that no browser runs."""
    file = await _file(request, file_id)
    if await parts_of(request).blobs.size(file.digest) is None:
        raise InternalError("The file's content is missing from the disk.", hint="Restore it from a backup.")
    headers = {
        "content-length": str(file.size),
        "content-disposition": f'attachment; filename="{file.id}"',
        "content-security-policy": "sandbox; default-src 'none'",
        "etag": f'"{file.digest}"',
    }
    return StreamingResponse(parts_of(request).blobs.read(file.digest), media_type=file.media_type, headers=headers)


@routes.delete("/files/{file_id}", access=Role.USER, status_code=204)
async def delete_file(request: Request, file_id: FileId) -> None:
    """Remove a file; its bytes go when nothing else holds them."""
    owner, now = _owner(caller_of(request)), parts_of(request).clock.now()
    await change(request, store.remove, file_id, owner, actor_of(request), now)


async def _probe(parts: Parts, digest: str) -> MediaInfo:
    """Say what the blob holds. Raises what the decoder raises, and then the blob is not kept."""
    with await parts.blobs.open(digest) as content:
        try:
            info = await parts.decoder.probe(content)
            if info.kind == "image":  # small enough to be opened whole, so that no damaged one is kept
                await parts.decoder.image(content, max_side=_PROOF_SIDE)
        except (MediaMalformed, UnsupportedMedia):
            # Content alone decided, so whoever sends the same bytes is refused too, and nobody is about to name
            # this blob. Not so where time or memory decided: those are left to the collector.
            if not await parts.database.read(links.recorded, [digest]):
                await parts.blobs.delete(digest)
            raise
    return info


async def _file(request: Request, file_id: str) -> store.File:
    return await parts_of(request).database.read(store.get, file_id, _owner(caller_of(request)))


def _owner(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
