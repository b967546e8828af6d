"""OpenAI's calls for pictures. Each waits for a job of its own, which ends when its client leaves."""

from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes
from serai.api.image_jobs import SCOPE, enqueue_images
from serai.api.openai.images_answers import Drawing, answer
from serai.api.openai.images_forms import form_of
from serai.api.openai.images_uploads import Uploads
from serai.api.openai.images_wire import EditIn, GenerationIn, VariationIn, Wish, in_our_words
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.images.model import ImageRequest
from serai.jobs.model import Job
from serai.registry.errors import NoCandidate

routes = Routes(SCOPE)

Body = TypeVar("Body", bound=VariationIn)

_EDIT_FORM = """A form (multipart/form-data) with the file `image`, and the fields of POST /v1/images/generations.

The file `mask`, of the same size, is clear (alpha 0) where the picture is painted anew; without it all of the
picture is. `strength` says how much of it is forgotten. `adapters` is JSON. More than one picture is refused.
"""
_VARIATION_FORM = """A form (multipart/form-data) with the file `image`, and `model`, `n`, `size`, `response_format`.

Ours besides: `seed`, `negative_prompt`, `steps`, `guidance_scale`, `strength`, `adapters`, `priority`, `timeout`.
"""


@routes.post(
    "/v1/images/generations",
    access=Role.USER,
    operation_id="openai_generate_images",
    response_class=Response,
    rehearsable=False,
)
async def generate_images(request: Request, body: GenerationIn) -> Response:
    """Make pictures from a text: as base64, as addresses for an hour, or as events with partial pictures."""
    return await _drawn(request, body.asked(), body.wish(), Uploads(request))


@routes.post(
    "/v1/images/edits",
    access=Role.USER,
    operation_id="openai_edit_images",
    response_class=Response,
    rehearsable=False,
    description=_EDIT_FORM,
)
async def edit_images(request: Request) -> Response:
    """Paint a picture anew, whole or where a mask is clear."""
    return await _from_form(request, EditIn, frozenset({"image", "mask"}))


@routes.post(
    "/v1/images/variations",
    access=Role.USER,
    operation_id="openai_vary_images",
    response_class=Response,
    rehearsable=False,
    description=_VARIATION_FORM,
)
async def vary_images(request: Request) -> Response:
    """Make pictures like one that is given."""
    return await _from_form(request, VariationIn, frozenset({"image"}))


async def _from_form(request: Request, kind: type[Body], names: frozenset[str]) -> Response:
    """Answer a form whose files may be `names`."""
    uploads = Uploads(request)
    try:
        async with form_of(request, names) as form:
            body = form.as_a(kind)
            body.asked()  # what is wrong with the fields is said before a file is opened
            wish, picture, mask = body.wish(), form.picture("image"), form.files.get("mask")
            image_id, seen = await uploads.keep("image", picture)
            mask_id = None if mask is None else await uploads.keep_mask("mask", mask, seen)
            asked = body.asked(image=image_id, mask=mask_id)
    except BaseException:
        await uploads.aclose()
        raise
    return await _drawn(request, asked, wish, uploads)


async def _drawn(request: Request, asked: ImageRequest, wish: Wish, uploads: Uploads) -> Response:
    """Enqueue the job and answer from it; the uploads are removed when it is over, however that comes."""
    try:
        job = await _enqueued(request, asked, wish)
    except BaseException:
        await uploads.aclose()
        raise
    return await answer(Drawing(request, job, uploads, wish))


async def _enqueued(request: Request, asked: ImageRequest, wish: Wish) -> Job:
    try:
        return await enqueue_images(request, asked, priority=wish.priority)
    except InvalidInput as error:
        raise in_our_words(error) from None
    except NoCandidate as error:
        if asked.model is not None:
            raise
        raise InvalidInput.at(
            "model",
            "is missing, and none of the models here can draw this now",
            hint="GET /models?task=image-generation lists those that draw; POST /pull fetches one.",
        ) from error
