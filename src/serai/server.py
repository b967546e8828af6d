"""Running the application: the home folder locked, logs set up, one socket, a bounded drain at the end."""

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from serai.api.parts import Parts
from serai.api.protocol import BoundedProtocol
from serai.app import create_app
from serai.auth.first_start import ADMIN_KEY_FILE
from serai.errors import ConfigurationError, SeraiError
from serai.jobs.runner import Runner
from serai.settings import URL_FILE, Settings
from serai.storage.home import Home
from serai.telemetry import logs

log = structlog.get_logger(__name__)
_BACKLOG = 2048
_LAST_WORDS_S = 2.0
"""After the grace, how long answers have to say that the server stops."""
_GC_THRESHOLDS = (10_000, 20, 20)
"""With Python's own (700, 10, 10) each call would be looked at several times while it goes on."""


class Server(uvicorn.Server):
    """uvicorn, that says when it is ready, and ends at once when it is told to stop a second time."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: str, url_file: Path) -> None:
        super().__init__(config)
        self._app = app
        self._ready = ready
        self._url_file = url_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.collect()
            gc.freeze()  # what lives as long as the server is not looked at again: a call costs a fifth less
            gc.set_threshold(*_GC_THRESHOLDS)
            print(self._ready, file=sys.stderr, flush=True)  # noqa: T201 - said to whoever started it, logs or not

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain after the first signal; die of the second, as if it had been killed.

        Every worker dies with this process, and the next start takes up its jobs: nothing is lost but time.
        """
        if self.should_exit:
            os.write(2, b"Told to stop once more: stopping at once.\n")
            self._url_file.unlink(missing_ok=True)
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the open streams to end, then drain; answers that take too long end with a word, not a cut."""
        parts: Parts = self._app.state.parts
        parts.stopping.set()
        ending = asyncio.create_task(_end_answers(parts), name="end of answers")
        await super().shutdown(sockets)
        ending.cancel()


async def _end_answers(parts: Parts) -> None:
    await asyncio.sleep(parts.settings.shutdown_grace_s)
    await parts.serving.close()


def run(settings: Settings, *, runners: Sequence[Runner] = ()) -> None:
    """Serve until a signal; `runners` are further kinds of job.

    Raises ConfigurationError where it cannot start as it is configured.
    """
    home = Home.open(settings.home)
    home.lock()
    listener = _listen(settings)
    logs.configure(
        level=settings.log_level,
        style=_style(settings),
        folder=home.folder("logs"),
        max_bytes=settings.log_max_bytes,
        backups=settings.log_backups,
    )
    app = create_app(settings, home=home, runners=runners)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s + _LAST_WORDS_S),
        timeout_keep_alive=30,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    home.write_private(URL_FILE, url.encode())  # for the command line, whatever port was taken
    key_file = settings.home / ADMIN_KEY_FILE
    ready = f"Serai is ready at {url} (admin key: {key_file})" if settings.auth == "on" else f"Serai is ready at {url}"
    # uvicorn raises the signal again when it is done; without this it would end the process before its last log lines.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        Server(config, app, ready, settings.home / URL_FILE).run(sockets=[listener])
    except SystemExit:
        refusal: SeraiError | None = getattr(app.state, "refusal", None)
        if refusal is not None:  # in words for whoever started it, not in a trace alone
            raise refusal from None
        raise
    finally:
        logs.reset()
        (settings.home / URL_FILE).unlink(missing_ok=True)
        home.unlock()


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
            hint="Is another server running there? Choose another --port.",
        ) from None
    return listener


def _style(settings: Settings) -> Any:
    if settings.log_format != "auto":
        return settings.log_format
    return "console" if settings.profile == "development" and sys.stderr.isatty() else "json"
