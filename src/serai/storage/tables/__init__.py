"""All tables, one module per subject. Rows become frozen dataclasses in the `store.py` of a package.

Times are integer microseconds since the epoch (`Instant`), so that both databases store, compare
and index them alike and no naive time can slip in. JSON columns hold only what JSON can say.
"""

from serai.storage.tables import access, blobs, chat, images, jobs, log, registry, runtime
from serai.storage.tables.base import metadata

__all__ = ["access", "blobs", "chat", "images", "jobs", "log", "metadata", "registry", "runtime"]
