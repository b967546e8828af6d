"""The paths of the service that this one replaces: other names for calls of `jobs`, `images` and `image_queue`.

Each does exactly what the call behind it does, for the same roles and scopes. The path that makes pictures,
POST /api/generate, is also one of Ollama's, and stands there.
"""

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes
from serai.api.image_jobs import SCOPE
from serai.api.native import image_queue, images, jobs
from serai.auth.policy import Role

_jobs, _images = Routes("jobs"), Routes(SCOPE)
routes = (_jobs, _images)


@_jobs.get("/api/status/{job_id}", access=Role.VIEWER)
async def get_status(request: Request, job_id: jobs.JobId) -> jobs.JobOut:
    """The same as GET /jobs/{job_id}."""
    return await jobs.get_job(request, job_id)


@_images.get("/api/image/{image_id}", access=Role.VIEWER, response_class=Response, responses=images.FILE_ANSWERS)
@_images.head("/api/image/{image_id}", access=Role.VIEWER, response_class=Response)
async def get_image(request: Request, image_id: images.ImageId, size: images.Size = "full") -> Response:
    """The same as GET /images/{image_id}."""
    return await images.get_image(request, image_id, size)


@_images.get("/api/image/{image_id}/metadata", access=Role.VIEWER)
async def get_metadata(request: Request, image_id: images.ImageId) -> images.PictureMetadata:
    """The same as GET /images/{image_id}/metadata."""
    return await images.get_metadata(request, image_id)


@_images.get("/api/queue", access=Role.VIEWER)
async def show_queue(request: Request, detailed: image_queue.Detailed = False) -> image_queue.QueueOut:
    """The same as GET /queue."""
    return await image_queue.show_queue(request, detailed)
