"""The built-in kind `digest`: the SHA-256 of a text or of a blob, for the demo and for trying things out."""

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from serai.errors import InvalidInput
from serai.events import Done, Event, Progress
from serai.jobs.runner import JobContext

ReadBlob = Callable[[str, str], AsyncIterator[bytes]]
"""`read(owner_id, digest)` gives the bytes of a blob in pieces. Raises NotFound unless the owner holds it."""

_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")


class DigestRunner:
    """Payload `{"text": …}` or `{"blob": digest}`; result `{"sha256": 64 hexadecimal digits}`."""

    kind = "digest"
    version = 1
    stall_s = 60.0
    cap_s = 3600.0

    def __init__(self, read_blob: ReadBlob, *, resource: str) -> None:
        self._read_blob = read_blob
        self.resource = resource

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput unless there is exactly one of `text` and `blob`."""
        if set(payload) not in ({"text"}, {"blob"}):
            raise InvalidInput.at("payload", "must have exactly one member: 'text' or 'blob'")
        ((name, value),) = payload.items()
        if not isinstance(value, str):
            raise InvalidInput.at(f"payload.{name}", "must be a string")
        if name == "blob" and not _DIGEST.fullmatch(value):
            raise InvalidInput.at("payload.blob", "must be the digest of a blob")

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        """Hash the pieces as they come."""
        digest, done = hashlib.sha256(), 0
        async for piece in self._pieces(context):
            digest.update(piece)
            done += len(piece)
            yield Progress(stage="hash", done=done, unit="bytes")
        yield Done(result={"sha256": digest.hexdigest()})

    async def _pieces(self, context: JobContext) -> AsyncIterator[bytes]:
        text = context.payload.get("text")
        if text is not None:
            yield text.encode()
            return
        async for piece in self._read_blob(context.job.owner_id, context.payload["blob"]):
            yield piece
