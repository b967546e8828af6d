"""What makes pictures: the runner of their jobs, what these compete for, and how long pictures are kept."""

from datetime import timedelta

from serai.api.parts import Parts
from serai.app.ground import Ground
from serai.app.models import Models
from serai.images import store
from serai.images.runner import RESOURCE, ImageParts, ImageRunner
from serai.jobs.runner import Resource
from serai.settings import Settings

_BATCH = 500


def open_images(ground: Ground, models: Models) -> ImageRunner:
    """Return the runner of the jobs that make pictures."""
    settings = ground.settings
    return ImageRunner(
        ImageParts(
            serving=models.serving,
            registry=ground.registry,
            database=ground.database,
            blobs=ground.blobs,
            decoder=ground.decoder,
            clock=ground.clock,
            embeds=settings.image_metadata == "on",
            quota_bytes=settings.disk_quota_bytes,
        )
    )


def image_resource(settings: Settings) -> Resource:
    """Return what jobs of pictures compete for."""
    return Resource(name=RESOURCE, concurrency=settings.image_concurrency, max_queued=settings.image_max_queued)


async def prune_pictures(parts: Parts) -> int:
    """Remove pictures that are older than `image_retention_days` and no favourites; return how many."""
    days, removed = parts.settings.image_retention_days, 0
    if days is None:
        return 0
    before = parts.clock.now() - timedelta(days=days)
    while gone := await parts.database.run(store.prune, before, _BATCH):
        removed += gone
    return removed
