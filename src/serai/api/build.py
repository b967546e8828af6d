"""The ASGI application: routes, error envelopes and the guard around them."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from serai import __version__
from serai.api import chat_routes, dialects, errors
from serai.api.access import CSRF_HEADER, Routes, unclassified
from serai.api.changes import Rehearsed, on_rehearsed
from serai.api.guard import Guard
from serai.api.native import (
    admin,
    audit,
    decisions,
    docs,
    files,
    image_paths,
    image_queue,
    images,
    jobs,
    keys,
    models,
    prompts,
    pulls,
    runtime,
    secrets,
    services,
    system,
    users,
)
from serai.api.wire import ErrorOut
from serai.clock import Clock
from serai.errors import Forbidden, SeraiError
from serai.ids import NewId
from serai.settings import Settings
from serai.telemetry.metrics import Metrics

ALL: tuple[Routes, ...] = (
    *chat_routes.ROUTES,  # looked at first: they are called most
    *(module.routes for module in (system, docs, users, keys, files, jobs, models, runtime)),
    *(module.routes for module in (images, image_queue, prompts)),
    *image_paths.routes,
    *admin.routes,  # before the services, whose ids stand in the same place
    *(module.routes for module in (services, decisions, pulls, audit, secrets)),
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Cors(CORSMiddleware):
    """Starlette's, whose refusals get the form of every other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        return errors.respond(
            Forbidden("A page of that origin may not make this call.", hint="Add it to the setting cors_origins.")
        )


def build(settings: Settings, metrics: Metrics, clock: Clock, new_id: NewId, lifespan: Lifespan) -> FastAPI:
    """Return the application. `lifespan` puts the `Parts` on `app.state.parts` before the first request."""
    app = FastAPI(
        title="Serai",
        version=__version__,
        summary="One server for every generative model of a product.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # ours is `telemetry`
        responses={
            "4XX": {"model": ErrorOut, "description": "Refused, for a reason that the caller can do something about."},
            "5XX": {"model": ErrorOut, "description": "Not possible now, or a defect of the server."},
        },
        middleware=_middleware(settings, metrics, clock, new_id),
        exception_handlers={
            SeraiError: dialects.on_serai_error,
            HTTPException: dialects.on_http_exception,
            RequestValidationError: dialects.on_validation_error,
            Rehearsed: on_rehearsed,
        },
    )
    for routes in ALL:
        routes.install(app)
    left_over = unclassified(app.routes)
    if left_over:
        raise RuntimeError(f"routes without an access: {', '.join(left_over)}")
    return app


def _middleware(settings: Settings, metrics: Metrics, clock: Clock, new_id: NewId) -> list[Middleware]:
    layers = [Middleware(Guard, settings=settings, metrics=metrics, clock=clock, new_id=new_id)]
    if settings.trusted_proxies:
        layers.insert(0, Middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies)))
    if settings.cors_origins:
        layers.append(
            Middleware(
                Cors,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=["authorization", "content-type", "idempotency-key", "last-event-id", CSRF_HEADER],
                expose_headers=["x-request-id", "retry-after", "x-ratelimit-remaining", "x-ratelimit-reset"],
                max_age=600,
            )
        )
    return layers
