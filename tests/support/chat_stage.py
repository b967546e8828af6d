"""The chat routes of every dialect as a small application, over serving with fake engines in threads."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serai.api import dialects
from serai.api.changes import Rehearsed, on_rehearsed
from serai.api.chat_routes import ROUTES
from serai.api.guard import Guard
from serai.auth.limits import Defaults, Limiter
from serai.chat.chats import Chats
from serai.chat.embeddings import Embedder
from serai.chat.kept_responses import KeptResponses
from serai.chat.pictures import Pictures
from serai.chat.rendering.renderer import Renderer
from serai.chat.sessions import Sessions
from serai.clock import Clock, SystemClock
from serai.decode.decoder import Decoder
from serai.errors import SeraiError
from serai.ids import new_id
from serai.outbound import Outbound
from serai.serving.weights import LocalWeights
from serai.settings import Settings
from serai.storage.database import Database
from serai.telemetry.metrics import Metrics
from unit.serving.stage import Stage, staged

BASE = "http://127.0.0.1:8713"


@dataclass
class ChatStage:
    """A running application. `client` is an admin: who calls is not asked here."""

    app: FastAPI
    client: httpx.AsyncClient
    stage: Stage
    parts: Any

    def model(self, id_: str = "m", **values: Any) -> None:
        """Create a model of the fake engine with these options."""
        card = {name: values.pop(name) for name in ("capabilities", "parameters", "tags", "task") if name in values}
        self.stage.desk.model(id_, engine="fake", engine_options=values, **card)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)


@asynccontextmanager
async def chatting(
    database: Database, home: Path, *, clock: Clock | None = None, limiter: Limiter | None = None, **kwargs: Any
) -> AsyncIterator[ChatStage]:
    """Open everything, and close it in order."""
    clock = clock or SystemClock()
    settings = Settings(home=home / "home", auth="off")
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(staged(database, home, clock=clock, **kwargs))
        renderer = Renderer(clock=clock)
        stack.push_async_callback(renderer.aclose)
        outbound = Outbound(clock=clock, allow=("127.0.0.1",))
        stack.push_async_callback(outbound.aclose)
        decoder = Decoder()
        stack.push_async_callback(decoder.aclose)
        limits = Defaults(per_minute=10**6, per_hour=10**6, tokens_per_minute=10**6, address_per_minute=10**6)
        limiter = limiter or Limiter(limits, clock)
        weights = LocalWeights(package=home / "package", pulled=home / "models", roots={"lab": home / "lab"})
        parts = SimpleNamespace(
            settings=settings,
            clock=clock,
            new_id=new_id,
            metrics=Metrics(),
            database=database,
            limiter=limiter,
            registry=stage.desk.registry,
            serving=stage.serving,
            chats=Chats(
                serving=stage.serving,
                weights=weights,
                render=renderer.render,
                pictures=Pictures(outbound, decoder),
                limiter=limiter,
                clock=clock,
                new_id=new_id,
            ),
            embedder=Embedder(stage.serving, limiter),
            sessions=Sessions(database, clock, new_id),
            kept_responses=KeptResponses(clock),
        )
        app = application(settings, parts)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=BASE))
        yield ChatStage(app=app, client=client, stage=stage, parts=parts)


def application(settings: Settings, parts: Any) -> FastAPI:
    """Return the routes with the errors of their dialects."""
    guard = Middleware(Guard, settings=settings, metrics=parts.metrics, clock=parts.clock, new_id=new_id)
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[guard],
        exception_handlers={
            SeraiError: dialects.on_serai_error,
            HTTPException: dialects.on_http_exception,
            RequestValidationError: dialects.on_validation_error,
            Rehearsed: on_rehearsed,
        },
    )
    app.state.parts = parts
    for routes in ROUTES:
        routes.install(app)
    return app


def data_of(body: str) -> list[str]:
    """Return the data of the frames of a stream, comments left out."""
    frames = [frame for frame in body.split("\n\n") if frame and not frame.startswith(":")]
    return ["\n".join(line[6:] for line in frame.split("\n") if line.startswith("data: ")) for frame in frames]
