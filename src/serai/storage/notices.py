"""What one transaction tells everybody: handlers here and, with PostgreSQL, on the other servers.

A store function calls `announce(connection, topic, payload)`. When its transaction has committed
(never when it has not), every subscriber of the topic is called: on this server at once, on others
through NOTIFY within milliseconds. A server that lost its listening connection cannot know what it
missed, so its subscribers are then called with the payload None: take anything as changed.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

CHANNEL = "serai"
_KEY = "serai_announced"

Handler = Callable[[str | None], None]
"""Called with the payload, or None for a gap, on any thread: be quick, do not raise, do not block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    topic: str
    payload: str


def announce(connection: Connection, topic: str, payload: str) -> None:
    """Tell the subscribers of `topic` when this transaction commits. `payload`: an id, ≤ 1000 characters."""
    notice = Notice(topic=topic, payload=payload)
    connection.info.setdefault(_KEY, []).append(notice)
    if connection.dialect.name == "postgresql":
        origin = connection.engine.get_execution_options().get("origin", "")
        body = json.dumps([origin, topic, payload])
        connection.execute(sa.text("SELECT pg_notify(:channel, :body)"), {"channel": CHANNEL, "body": body})


def take_announced(connection: Connection) -> list[Notice]:
    """Return what was announced on this connection, and forget all that its transaction noted."""
    announced: list[Notice] = connection.info.pop(_KEY, [])
    connection.info.clear()
    return announced


class Notices:
    """The subscribers of this server, and the thread that listens to the other servers."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Handler]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def subscribe(self, topic: str, handler: Handler) -> Callable[[], None]:
        """Call `handler` for each notice of `topic` from now on; returns what ends that."""
        with self._lock:
            self._handlers.setdefault(topic, []).append(handler)

        def unsubscribe() -> None:
            with self._lock:
                self._handlers[topic].remove(handler)

        return unsubscribe

    def dispatch(self, notice: Notice) -> None:
        """Call the subscribers of the notice's topic."""
        for handler in self._subscribers(notice.topic):
            handler(notice.payload)

    def dispatch_gap(self) -> None:
        """Tell every subscriber that notices may have been missed."""
        with self._lock:
            handlers = [handler for of_topic in self._handlers.values() for handler in of_topic]
        for handler in handlers:
            handler(None)

    def listen(self, connect: Callable[[], Any], origin: str) -> None:
        """Start the thread that listens through `connect()` (a psycopg connection), ignoring `origin` itself."""
        self._thread = threading.Thread(target=self._listen, args=(connect, origin), name="notices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the listening thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _subscribers(self, topic: str) -> list[Handler]:
        with self._lock:
            return list(self._handlers.get(topic, ()))

    def _listen(self, connect: Callable[[], Any], origin: str) -> None:
        import psycopg

        delay = 0.1
        while not self._stop.is_set():
            try:
                with connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    delay = 0.1
                    self.dispatch_gap()
                    self._receive(connection, origin)
            except psycopg.Error:
                self._stop.wait(delay)
                delay = min(delay * 2, 2.0)

    def _receive(self, connection: Any, origin: str) -> None:
        while not self._stop.is_set():
            for received in connection.notifies(timeout=0.5):
                sender, topic, payload = json.loads(received.payload)
                if sender != origin:
                    self.dispatch(Notice(topic=topic, payload=payload))
