"""The SQL of pictures: plain synchronous functions for `Database.run` and `Database.read`."""

from serai.images.store.gallery import (
    MAX_PAGE,
    MAX_TAG_LENGTH,
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
from serai.images.store.sources import Sources, sources_of

__all__ = [
    "MAX_PAGE",
    "MAX_TAG_LENGTH",
    "PictureNotFound",
    "Place",
    "Sources",
    "add",
    "change",
    "get",
    "of_job",
    "prune",
    "remove",
    "search",
    "sources_of",
]
