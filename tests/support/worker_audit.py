"""Sets the hook of `worker_engine` in whatever process imports it: a fork server, and so all its workers."""

from support.worker_engine import listen

listen()
