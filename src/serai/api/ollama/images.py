"""Pictures in Ollama's form: `/api/generate` on a model that draws tells its steps, and last the picture in base64."""

import base64
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import parts_of
from serai.api.answers import Live, json_response, unless_gone
from serai.api.enqueue import Awaited
from serai.api.image_jobs import enqueue_images
from serai.api.ollama import errors
from serai.api.ollama.encoding import NS, line, moment
from serai.api.ollama.wire import GenerateIn, sampling_of
from serai.api.parts import Parts
from serai.api.streams import NDJSON_TYPE
from serai.errors import InvalidInput, SeraiError
from serai.events import Done, Failed, Progress
from serai.images import store
from serai.images.model import ImageRequest
from serai.images.plan import EDIT, GENERATION
from serai.jobs.model import Job
from serai.registry.reference import parse_reference
from serai.registry.snapshot import RegistrySnapshot
from serai.serving.errors import error_of

_OF_TEXTS = (
    *("images", "suffix", "system", "template", "context", "raw", "format", "think", "logprobs", "top_logprobs"),
    *("truncate", "shift"),
)
_NAMES = {
    "settings.width": "width",
    "settings.height": "height",
    "settings.num_inference_steps": "steps",
    "settings.seed": "options.seed",
}
"""What this dialect calls our settings."""


def draws(snapshot: RegistrySnapshot, name: str) -> bool:
    """Say whether a name means a model or a service that makes pictures; what nobody knows does not."""
    service = snapshot.services.get(name)
    if service is not None:
        return service.task in (GENERATION, EDIT)
    try:
        return snapshot.resolve(parse_reference(name)).model.task in (GENERATION, EDIT)
    except SeraiError:
        return False


async def answered(request: Request, body: GenerateIn) -> Response:
    """Return the answer to a prompt for a picture, whole or as lines; the job is cancelled when the client leaves."""
    parts = parts_of(request)
    started = parts.clock.monotonic()
    with _in_its_words():
        job = await enqueue_images(request, asked_of(body))
    awaited = Awaited(parts, job)
    model = body.model

    async def lines() -> AsyncGenerator[bytes, None]:
        steps = 0
        async with aclosing(awaited.events()) as events:
            async for event in events:
                if isinstance(event, Progress) and event.stage == "generating" and (event.done or 0) > steps:
                    steps = event.done or 0
                    at = moment(parts.clock.now())
                    said = {"model": model, "created_at": at, "completed": steps, "total": event.total}
                    yield line({**said, "done": False})
                elif isinstance(event, Failed):
                    yield errors.line(error_of(event))
                elif isinstance(event, Done):
                    yield line(await _told(parts, job, model, event, started))

    if body.stream is not False:
        return Live(lines(), {}, reply=awaited, media_type=NDJSON_TYPE, heartbeat=None)
    last = await unless_gone(request, awaited.last())
    if isinstance(last, Failed):
        raise error_of(last)
    return json_response(await _told(parts, job, model, last, started))


def asked_of(body: GenerateIn) -> ImageRequest:
    """Return what a prompt for a picture asks. Raises InvalidInput that names the field."""
    for name in _OF_TEXTS:
        if getattr(body, name):
            raise InvalidInput.at(name, "is nothing that a picture is made with")
    given = sampling_of(body.options)
    others = sorted(set(given) - {"seed"})
    if others:
        raise InvalidInput.at(f"options.{others[0]}", "is nothing that a picture is made with")
    asked = {"width": body.width, "height": body.height, "num_inference_steps": body.steps, **given}
    settings = {name: value for name, value in asked.items() if value is not None}
    return ImageRequest.of({"model": body.model, "prompt": body.prompt, "settings": settings})


@contextmanager
def _in_its_words() -> Iterator[None]:
    """Let an error name the field as this dialect does."""
    try:
        yield
    except InvalidInput as error:
        entry = error.details[0] if isinstance(error.details, list) and error.details else {}
        name = _NAMES.get(str(entry.get("field")))
        if name is None:
            raise
        raise InvalidInput.at(name, str(entry["problem"]), hint=error.hint) from None


async def _told(parts: Parts, job: Job, model: str, done: Done, started: float) -> dict[str, Any]:
    """Return the last line."""
    picture, *_ = await parts.database.read(store.of_job, job.id, job.owner_id)
    data = b"".join([piece async for piece in parts.blobs.read(picture.digest)])
    timings = done.result.get("timings") or {}
    return {
        "model": model,
        "created_at": moment(parts.clock.now()),
        "response": "",
        "image": base64.b64encode(data).decode(),
        "done": True,
        "done_reason": "stop",
        "total_duration": round((parts.clock.monotonic() - started) * NS),
        "load_duration": round(float(timings.get("loading_s") or 0.0) * NS),
    }
