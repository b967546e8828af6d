"""Pictures asked for in any dialect: checked whole, then enqueued as one job."""

from typing import Annotated, Any

import msgspec
from fastapi import Header
from pydantic import Field
from starlette.requests import Request

from serai.api.access import caller_of, parts_of
from serai.api.enqueue import enqueue, one_key, prepare
from serai.api.values import AS_JSON
from serai.api.wire import Wire
from serai.auth.policy import Role, check_access
from serai.errors import InvalidInput
from serai.files import store as files_store
from serai.images import plan
from serai.images.model import KIND, MAX_PROMPT, ImageRequest, ImageSettings
from serai.jobs import store
from serai.jobs.model import DEFAULT_PRIORITY, Job

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
    image: FileNamed | None = Field(None, description="The id of a file of yours to start from, or to edit.")
    mask: FileNamed | None = Field(None, description="The id of a file of yours: white is painted anew.")
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
) -> Job:
    """Enqueue pictures for the caller, or return the job that an idempotency key has made before.

    Raises what `plan.accepts` raises for settings that the version does not take, FileNotFound for a file
    that is not the caller's, InvalidInput for one that is no picture, and what `enqueue` raises.
    """
    check_access(caller_of(request), Role.USER, SCOPE)
    payload: dict[str, Any] = msgspec.to_builtins(asked)
    new = prepare(request, KIND, payload, priority=priority, idempotency_key=idempotency_key, webhook_url=webhook_url)
    parts = parts_of(request)
    if await parts.database.read(store.find_same, new) is None:
        await _check_files(request, asked)
        plan.accepts(await parts.registry.current(), parts.serving.situation(), asked)
    return await enqueue(request, new)


async def _check_files(request: Request, asked: ImageRequest) -> None:
    """Raise unless every file that is named is there, the caller's own, and a picture."""
    if asked.mask is not None and asked.image is None:
        raise InvalidInput.at("mask", "needs an image to lie on")
    owner = caller_of(request).user_id
    for field, file_id in (("image", asked.image), ("mask", asked.mask)):
        if file_id is None:
            continue
        file = await parts_of(request).database.read(files_store.get, file_id, owner)
        if file.info.get("kind") != "image":
            raise InvalidInput.at(field, f"names a file of type {file.media_type}, which is no picture")
