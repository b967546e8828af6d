"""Where things are kept: the database, the blobs, the cache, and the folder they live in."""
