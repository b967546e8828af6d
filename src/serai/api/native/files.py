"""Upload pictures, sound and video once, and name them by id afterwards. Content decides the type."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serai.api.access import Routes, actor_of, caller_of, parts_of
from serai.api.changes import change
from serai.api.uploads import BINARY, proven, put_within_quota, quota_of
from serai.api.wire import Cursor, Limit, Page, Wire, page_of, place_of
from serai.auth.policy import Caller, Role
from serai.errors import InternalError
from serai.files import store

routes = Routes("files")

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


@routes.post(
    "/files",
    access=Role.USER,
    status_code=201,
    rehearsable=False,
    request_body={"required": True, "content": {"application/octet-stream": {"schema": {**BINARY, "minLength": 1}}}},
)
async def upload(request: Request, name: FileName = "") -> FileOut:
    """Upload a picture, sound or video as the bare body. What cannot be opened safely is refused."""
    parts = parts_of(request)
    sent = await proven(request, await put_within_quota(request, request.stream()))
    file = store.File(
        id=parts.new_id("file"),
        owner_id=caller_of(request).user_id,
        digest=sent.blob.digest,
        name=name,
        media_type=sent.info.media_type,
        size=sent.blob.size,
        info=sent.told,
        created_at=parts.clock.now(),
    )
    return show(await parts.database.run(store.add, file, quota_of(request), actor_of(request)))


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
@routes.head("/files/{file_id}/content", access=Role.VIEWER, response_class=Response)
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
    if request.method == "HEAD":
        return Response(headers=headers, media_type=file.media_type)
    return StreamingResponse(parts_of(request).blobs.read(file.digest), media_type=file.media_type, headers=headers)


@routes.delete("/files/{file_id}", access=Role.USER, status_code=204)
async def delete_file(request: Request, file_id: FileId) -> None:
    """Remove a file; its bytes go when nothing else holds them."""
    owner, now = _owner(caller_of(request)), parts_of(request).clock.now()
    await change(request, store.remove, file_id, owner, actor_of(request), now)


async def _file(request: Request, file_id: str) -> store.File:
    return await parts_of(request).database.read(store.get, file_id, _owner(caller_of(request)))


def _owner(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
