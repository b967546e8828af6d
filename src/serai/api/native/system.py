"""Is it alive, is it ready, how is it, and what is it: the server about itself."""

import asyncio
import platform
import shutil
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as release_of
from importlib.util import find_spec
from typing import Any, Literal

import structlog
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serai import __version__
from serai.api.access import Routes, caller_or_none, parts_of
from serai.api.parts import Parts
from serai.api.wire import Wire
from serai.auth.policy import PUBLIC, Role
from serai.engines.base import EngineInfo
from serai.engines.catalogue import CATALOGUE
from serai.errors import SeraiError
from serai.pulls.runner import KIND as PULL
from serai.runtime.observer import Figures

log = structlog.get_logger(__name__)
routes = Routes("system")

CHECK_TIMEOUT_S = 2.0

EXTRAS = {
    "postgres": ("psycopg", "PostgreSQL as the database"),
    "redis": ("redis", "a shared cache and shared rate limits"),
    "torch": ("torch", "safetensors models, image pipelines and conversion"),
    "vllm": ("vllm", "chat on CUDA at full speed"),
    "cluster": ("ray", "workers on several machines"),
}


class Check(Wire):
    status: Literal["ok", "failed"]
    problem: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)


class Memory(Wire):
    """What the models take of a device, and what they may take."""

    used_bytes: int
    budget_bytes: int


class Queues(Wire):
    """What waits and what goes on."""

    requests_waiting: int
    requests_running: int
    jobs_queued: int
    jobs_running: int
    pulls_queued: int
    pulls_running: int


class EngineState(Wire):
    available: bool
    versions: dict[str, str] = Field(description="The releases of its packages.")
    missing: list[str]
    install: str | None
    gives: str
    capabilities: list[str] = Field(description="What not every engine can do.")


class Health(Wire):
    """What a caller with a key sees; without one, only `status`."""

    status: Literal["healthy", "degraded", "unhealthy"]
    version: str
    uptime_seconds: float
    checks: dict[str, Check]
    models_loaded: list[str]
    memory: dict[str, Memory] = Field(description="By device: cpu, cuda:0.")
    queues: Queues = Field(description="Those of jobs are up to ten seconds old.")
    engines: dict[str, EngineState]


class Extra(Wire):
    installed: bool
    gives: str
    install: str | None


class Status(Wire):
    version: str
    profile: str
    auth: str
    database: str
    cache: str
    extras: dict[str, Extra]
    engines: dict[str, EngineState]


@routes.get("/live", access=PUBLIC)
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@routes.get("/ready", access=PUBLIC)
async def ready(request: Request) -> Response:
    """Say whether requests can be served: 200 with the database reachable, else 503."""
    check = await _run_check(parts_of(request), "database")
    word, status = ("ready", 200) if check.status == "ok" else ("not ready", 503)
    return JSONResponse({"status": word}, status)


@routes.get("/health", access=PUBLIC)
async def health(request: Request) -> Response:
    """Ask every part and say how it is: 200 for healthy and degraded, 503 for unhealthy."""
    parts = parts_of(request)
    names = list(parts.checks)
    results = await asyncio.gather(*(_run_check(parts, name) for name in names))
    checks = dict(zip(names, results, strict=True))
    failed = [name for name, check in checks.items() if check.status == "failed"]
    word: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    if failed:
        word = "unhealthy" if "database" in failed else "degraded"
    code = 503 if word == "unhealthy" else 200
    if caller_or_none(request) is None:
        return JSONResponse({"status": word}, code)
    uptime = round(parts.clock.monotonic() - parts.started, 3)
    figures = parts.runtime.figures()
    told = Health(
        status=word,
        version=__version__,
        uptime_seconds=uptime,
        checks=checks,
        models_loaded=[name for one in parts.runtime.loaded() for name in one.names],
        memory={
            device: Memory(used_bytes=figures.bytes.get(device, 0), budget_bytes=budget)
            for device, budget in figures.budgets.items()
        },
        queues=_queues(parts, figures),
        engines=await asyncio.to_thread(_engines),
    )
    return JSONResponse(told.model_dump(mode="json"), code)


@routes.get("/status", access=Role.VIEWER)
async def status(request: Request) -> Status:
    """Say what runs here, and what an extra that is not installed would add."""
    parts = parts_of(request)
    return Status(
        version=__version__,
        profile=parts.settings.profile,
        auth=parts.settings.auth,
        database=parts.database.dialect,
        cache="redis" if parts.settings.redis_url else "memory",
        extras=await asyncio.to_thread(_extras),
        engines=await asyncio.to_thread(_engines),
    )


@routes.get("/diag", access=Role.ADMIN)
async def diag(request: Request) -> dict[str, Any]:
    """Collect what a person who helps would ask for; holds no secret."""
    parts = parts_of(request)
    disk = await asyncio.to_thread(shutil.disk_usage, parts.settings.home)
    return {
        "version": __version__,
        "python": sys.version.split()[0],
        "platform": await asyncio.to_thread(platform.platform),  # may run a program
        "cpus": len(_cpus()),
        "disk": {"total_bytes": disk.total, "free_bytes": disk.free},
        "tasks": len(asyncio.all_tasks()),
        "settings": parts.settings.public(),
    }


@routes.get("/settings", access=Role.ADMIN)
async def settings(request: Request) -> dict[str, Any]:
    """Show the settings in force, secrets as stars."""
    return parts_of(request).settings.public()


@routes.get("/metrics", access=Role.VIEWER, include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus."""
    render = parts_of(request).metrics.render  # reads /proc
    body, content_type = await asyncio.to_thread(render, request.headers.get("accept"))
    return Response(body, headers={"content-type": content_type})


async def _run_check(parts: Parts, name: str) -> Check:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return Check(status="ok", detail=await parts.checks[name]())
    except TimeoutError:
        return Check(status="failed", problem=f"no answer within {CHECK_TIMEOUT_S:g} s")
    except SeraiError as error:
        return Check(status="failed", problem=error.message)
    except Exception:
        log.exception("a check of health failed", check=name)
        return Check(status="failed", problem="it failed in a way that the log describes")


def _queues(parts: Parts, figures: Figures) -> Queues:
    jobs = parts.job_metrics.figures
    pulls = [one for one in jobs if one.kind == PULL]
    return Queues(
        requests_waiting=figures.waiting,
        requests_running=figures.leases,
        jobs_queued=sum(one.queued for one in jobs),
        jobs_running=sum(one.running for one in jobs),
        pulls_queued=sum(one.queued for one in pulls),
        pulls_running=sum(one.running for one in pulls),
    )


@cache
def _engines() -> dict[str, EngineState]:
    """Say what each engine needs and has. Read once: packages do not come and go under a running server."""
    return {name: _engine(info) for name, info in CATALOGUE.items() if info.tasks}


def _engine(info: EngineInfo) -> EngineState:
    missing = list(info.missing)
    releases: dict[str, str] = {}
    for package in info.packages:
        with suppress(PackageNotFoundError):
            releases[package] = release_of(package.replace("_", "-"))
    return EngineState(
        available=not missing,
        versions=releases,
        missing=missing,
        install=info.remedy if missing else None,
        gives=info.summary,
        capabilities=sorted(info.capabilities),
    )


def _extras() -> dict[str, Extra]:
    return {name: _extra(name, module, gives) for name, (module, gives) in EXTRAS.items()}


def _extra(name: str, module: str, gives: str) -> Extra:
    installed = find_spec(module) is not None
    return Extra(installed=installed, gives=gives, install=None if installed else f"pip install 'serai[{name}]'")


def _cpus() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
