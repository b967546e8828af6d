"""Many pictures as one zip file, made while it is sent: one entry at a time, in bounded memory."""

import io
import json
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from anyio.to_thread import run_sync

from serai.errors import SeraiError
from serai.images.metadata import of_picture
from serai.images.model import Picture
from serai.storage.blobs import Blobs

ERRORS = "errors.json"
_EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_PIECE = 2**18
_FIRST_YEAR = 1980
"""Zip knows no earlier one."""


class _Sink(io.RawIOBase):
    """Where the zip is written to: it cannot go back, and what it holds is taken away."""

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        taken = bytes(self._held)
        self._held.clear()
        return taken


async def archive(pictures: AsyncIterable[tuple[Picture, Mapping[str, str]]], blobs: Blobs) -> AsyncGenerator[bytes]:
    """Yield the bytes of a zip with `YYYY-MM-DD/ID.png` (or jpg, webp) and `ID.json` for each picture.

    The JSON is the document of its file, and what the gallery knows besides. `pictures`: each with the digests
    of what it began with, as `metadata.document_of` takes them.

    Not compressed: pictures are already. A picture whose file cannot be read is named in the entry
    `errors.json`, which is there if one is; the zip is whole all the same.
    """
    sink, problems = _Sink(), []
    with ZipFile(sink, "w", ZIP_STORED, allowZip64=True) as zipped:
        async for picture, sources in pictures:
            try:
                async with aclosing(_file(zipped, sink, picture, blobs)) as pieces:
                    async for piece in pieces:
                        yield piece
            except (SeraiError, OSError) as error:
                reason = error.message if isinstance(error, SeraiError) else "The file could not be read."
                problems.append({"id": picture.id, "problem": reason})
            else:
                zipped.writestr(_entry(picture, "json"), _json(_told(picture, sources)))
            yield sink.take()
        if problems:
            zipped.writestr(ZipInfo(ERRORS), _json(problems))
    yield sink.take()


async def _file(zipped: ZipFile, sink: _Sink, picture: Picture, blobs: Blobs) -> AsyncGenerator[bytes]:
    """Write the picture's entry; nothing is begun where the first bytes cannot be read."""
    file = await blobs.open(picture.digest)
    try:
        piece, written = await run_sync(file.read, _PIECE), 0
        info = _entry(picture, _EXTENSIONS[picture.format])
        info.file_size = picture.size  # only tells whether the entry needs the long form
        with zipped.open(info, "w") as entry:
            while piece:
                written += entry.write(piece)
                yield sink.take()
                piece = await run_sync(file.read, _PIECE)
    finally:
        file.close()
    if written != picture.size:
        raise OSError("the blob is cut short")


def _told(picture: Picture, sources: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": picture.id,
        **of_picture(picture, sources),
        "created_at": picture.created_at.isoformat(),
        "tags": picture.tags,
        "is_favourite": picture.is_favourite,
    }


def _entry(picture: Picture, extension: str) -> ZipInfo:
    at = picture.created_at
    moment = (max(at.year, _FIRST_YEAR), at.month, at.day, at.hour, at.minute, at.second)
    return ZipInfo(f"{at:%Y-%m-%d}/{picture.id}.{extension}", moment)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
