"""OpenAI's calls for pictures. Each waits for a job of its own, which ends when its client leaves."""

from collections.abc import Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes
from serai.api.image_jobs import SCOPE, enqueue_images
from serai.api.openai.images_answers import Drawing, answer
from serai.api.openai.images_forms import described, form_of
from serai.api.openai.images_uploads import store_mask, store_picture
from serai.api.openai.images_wire import EditIn, GenerationIn, VariationIn, Wish, in_our_words
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.images.model import ImageRequest
from serai.jobs.model import Job
from serai.registry.errors import NoCandidate
from serai.storage.blobs import Blob

routes = Routes(SCOPE)

Body = TypeVar("Body", bound=VariationIn)

_IMAGE = (
    "What to start from, or to edit: PNG, JPEG, WebP or another kind that is opened here. More than one is refused."
)
_MASK = "Of the same size: clear (alpha 0) where the picture is painted anew; without it all of the picture is."
_EDIT_FORM = described(EditIn, {"image": _IMAGE, "mask": _MASK})
_VARIATION_FORM = described(VariationIn, {"image": _IMAGE})


@routes.post(
    "/v1/images/generations",
    access=Role.USER,
    operation_id="openai_generate_images",
    response_class=Response,
    rehearsable=False,
)
async def generate_images(request: Request, body: GenerationIn) -> Response:
    """Make pictures from a text: as base64, as addresses for an hour, or as events with partial pictures."""
    return await _drawn(request, body.asked(), body.wish())


@routes.post(
    "/v1/images/edits",
    access=Role.USER,
    operation_id="openai_edit_images",
    response_class=Response,
    rehearsable=False,
    request_body=_EDIT_FORM,
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
    request_body=_VARIATION_FORM,
)
async def vary_images(request: Request) -> Response:
    """Make pictures like one that is given."""
    return await _from_form(request, VariationIn, frozenset({"image"}))


async def _from_form(request: Request, kind: type[Body], names: frozenset[str]) -> Response:
    """Answer a form whose files may be `names`."""
    async with form_of(request, names) as form:
        body = form.as_a(kind)
        body.asked()  # what is wrong with the fields is said before a file is opened
        wish, picture, mask = body.wish(), form.picture("image"), form.files.get("mask")
        sent = await store_picture(request, "image", picture)
        blobs = [sent.blob] if mask is None else [sent.blob, await store_mask(request, "mask", mask, sent)]
    asked = body.asked(image=blobs[0].digest, mask=None if mask is None else blobs[1].digest)
    return await _drawn(request, asked, wish, blobs)


async def _drawn(request: Request, asked: ImageRequest, wish: Wish, blobs: Sequence[Blob] = ()) -> Response:
    """Enqueue the job, which holds what came with the call, and answer from it."""
    return await answer(Drawing(request, await _enqueued(request, asked, wish, blobs), wish))


async def _enqueued(request: Request, asked: ImageRequest, wish: Wish, blobs: Sequence[Blob]) -> Job:
    try:
        return await enqueue_images(request, asked, priority=wish.priority, uploads=blobs)
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
