"""The SQL of pictures: plain synchronous functions for `Database.run` and `Database.read`."""

from serai.images.store.gallery import (
    MAX_PAGE,
    PictureNotFound,
    Place,
    add,
    change,
    get,
    of_job,
    prune,
    remove,
    search,
)

__all__ = ["MAX_PAGE", "PictureNotFound", "Place", "add", "change", "get", "of_job", "prune", "remove", "search"]
