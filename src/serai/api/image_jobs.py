"""Pictures asked for in any dialect: checked whole, then enqueued as one job."""

from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from fastapi import Header
from pydantic import Field
from starlette.requests import Request

from serai.api.access import caller_of, parts_of
from serai.api.enqueue import enqueue, one_key, prepare
from serai.api.values import AS_JSON
from serai.api.wire import Wire
from serai.errors import InvalidInput
from serai.files import store as files_store
from serai.images import plan
from serai.images import store as images_store
from serai.images.inputs import hold_inputs, is_digest
from serai.images.model import KIND, MAX_PROMPT, PICTURE_PREFIX, ImageRequest, ImageSettings
from serai.jobs import store
from serai.jobs.model import DEFAULT_PRIORITY, Job
from serai.storage import links
from serai.storage.blobs import Blob

SCOPE = "images"

Key = Annotated[str | None, Header(max_length=255)]
"""The header Idempotency-Key."""

Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Named = Annotated[str, Field(min_length=1, max_length=600)]
FileNamed = Annotated[str, Field(min_length=1, max_length=64)]


class ImagesIn(Wire):
    """What pictures are wanted, and how the job is to be run."""

    prompt: Prompt
    model: Named | None = Field(None, description="A model, model@version, alias, or service; none: the best choice.")
    model_id: Named | None = Field(None, description="The same as `model`.")
    service: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    negative_prompt: Prompt = ""
    settings: Annotated[ImageSettings, AS_JSON] = Field(
        default_factory=ImageSettings, description="What is left out is as the version says."
    )
    image: FileNamed | None = Field(
        None,
        description="What to start from, or to edit: the id of a file or of a picture of yours, or its SHA-256.",
    )
    mask: FileNamed | None = Field(None, description="Named likewise: white is painted anew.")
    previews: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="How many, evenly spread over the steps; none given: one every few steps."
    )
    priority: Annotated[int, Field(ge=0, le=9)] = Field(DEFAULT_PRIORITY, description="0 is the most urgent.")
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="The same as the header Idempotency-Key: the same call again gives the same job."
    )
    webhook_url: Annotated[str, Field(max_length=2048)] | None = None

    def asked(self) -> ImageRequest:
        """Return the job's payload. Raises InvalidInput."""
        if self.model is not None and self.model_id not in (None, self.model):
            raise InvalidInput.at("model_id", "and model differ; they mean the same, so give one")
        return ImageRequest(
            prompt=self.prompt,
            model=self.model or self.model_id,
            service=self.service,
            negative_prompt=self.negative_prompt,
            settings=self.settings,
            image=self.image,
            mask=self.mask,
            previews=self.previews,
        )


class ImagesAccepted(Wire):
    job_id: str
    status: str
    position: int | None = Field(description="Place in the queue; 1 is next.")
    status_url: str
    events_url: str


async def accept(request: Request, body: ImagesIn, key: str | None) -> ImagesAccepted:
    """Enqueue what a body asks for; `key` is the header Idempotency-Key. Raises what `enqueue_images` raises."""
    job = await enqueue_images(
        request,
        body.asked(),
        priority=body.priority,
        idempotency_key=one_key(body.idempotency_key, key),
        webhook_url=body.webhook_url,
    )
    position = await parts_of(request).database.read(store.position, job)
    url = f"/jobs/{job.id}"
    return ImagesAccepted(
        job_id=job.id, status=job.status, position=position, status_url=url, events_url=f"{url}/events"
    )


async def enqueue_images(
    request: Request,
    asked: ImageRequest,
    *,
    priority: int = DEFAULT_PRIORITY,
    idempotency_key: str | None = None,
    webhook_url: str | None = None,
    uploads: Collection[Blob] = (),
) -> Job:
    """Enqueue pictures for the caller, or return the job that an idempotency key has made before.

    `uploads`: blobs that came with the call, which the job holds as long as it is there. Raises what
    `plan.accepts` raises for settings that the version does not take, FileNotFound for a file that is not the
    caller's, PictureNotFound and BlobNotFound likewise, InvalidInput for one that is no picture, QuotaExceeded, and
    what `enqueue` raises.
    """
    asked = await _by_digest(request, asked)
    payload: dict[str, Any] = msgspec.to_builtins(asked)
    new = prepare(request, KIND, payload, priority=priority, idempotency_key=idempotency_key, webhook_url=webhook_url)
    parts = parts_of(request)
    if await parts.database.read(store.find_same, new) is None:
        await _check_inputs(request, asked, {blob.digest for blob in uploads})
        plan.accepts(await parts.registry.current(), parts.serving.situation(), asked)
    if not any(named is not None and is_digest(named) for named in (asked.image, asked.mask)):
        return await enqueue(request, new)
    usual, now = parts.settings.disk_quota_bytes, parts.clock.now()
    return await enqueue(request, new, lambda connection, job: hold_inputs(connection, job, usual, now, uploads))


async def _by_digest(request: Request, asked: ImageRequest) -> ImageRequest:
    """Return the request with pictures of the gallery named by their digests: those the job holds by itself."""
    named = {"image": asked.image, "mask": asked.mask}
    parts, owner = parts_of(request), caller_of(request).user_id
    found = {
        field: (await parts.database.read(images_store.get, one, owner)).digest
        for field, one in named.items()
        if one is not None and one.startswith(PICTURE_PREFIX)
    }
    return msgspec.structs.replace(asked, **found) if found else asked


async def _check_inputs(request: Request, asked: ImageRequest, uploaded: Collection[str]) -> None:
    """Raise unless all that is named is there, the caller's own, and a picture; what came with the call is."""
    if asked.mask is not None and asked.image is None:
        raise InvalidInput.at("mask", "needs an image to lie on")
    for field, named in (("image", asked.image), ("mask", asked.mask)):
        if named is None or named in uploaded:
            continue
        kind, media_type = await _seen(request, named)
        if kind != "image":
            raise InvalidInput.at(field, f"names a file of type {media_type}, which is no picture")


async def _seen(request: Request, named: str) -> tuple[str | None, str]:
    """Return the kind and the type of a file, or of a blob that the caller holds."""
    parts, owner = parts_of(request), caller_of(request).user_id
    if not is_digest(named):
        file = await parts.database.read(files_store.get, named, owner)
        return file.info.get("kind"), file.media_type
    await parts.database.read(links.check_held, owner, named)
    with await parts.blobs.open(named) as content:
        info = await parts.decoder.probe(content)
    return info.kind, info.media_type
