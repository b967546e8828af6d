"""`serai doctor`: check this machine and the configuration; every finding has its remedy."""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serai.cli.output import REFUSED, show

if TYPE_CHECKING:
    from serai.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    check: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str | None = None


def doctor(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Check this machine and the configuration; exit 1 if something would not work."""
    from serai import settings as settings_module
    from serai.errors import SeraiError

    findings = [_python()]
    try:
        settings = settings_module.load(file=config, overrides={"home": home})
    except SeraiError as error:
        findings.append(Finding(check="settings", status="failed", found=error.message, remedy=error.hint))
    else:
        findings.append(Finding(check="settings", status="ok", found=f"profile {settings.profile}"))
        findings.extend(_checks(settings))
    show(context, [asdict(finding) for finding in findings], ("check", "status", "found", "remedy"))
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(REFUSED)


def _checks(settings: "Settings") -> Iterator[Finding]:
    checks: dict[str, Callable[[Settings], Finding]] = {
        "home": _home,
        "disk": _disk,
        "port": _port,
        "database": _database,
        "redis": _redis,
    }
    for name, check in checks.items():
        try:
            yield check(settings)
        except Exception as error:  # noqa: BLE001 - whatever a check meets is its finding
            hint = getattr(error, "hint", None)
            yield Finding(check=name, status="failed", found=getattr(error, "message", str(error)), remedy=hint)
    yield from _extras()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if sys.platform == "win32":
        return Finding(check="machine", status="failed", found="Windows", remedy="Run Serai inside WSL 2.")
    return Finding(check="machine", status="ok", found=f"Python {version}, {cpus} CPUs, {sys.platform}")


def _home(settings: "Settings") -> Finding:
    from serai.storage.connect import refuse_network_file_system
    from serai.storage.home import Home

    if not settings.home.exists():
        return Finding(check="home", status="ok", found=f"{settings.home} will be made by the first start")
    if not os.access(settings.home, os.W_OK):
        return Finding(check="home", status="failed", found="cannot be written", remedy="Choose another `home`.")
    Home.open(settings.home)
    if settings.database_url is None:
        refuse_network_file_system(settings.home)
    return Finding(check="home", status="ok", found=str(settings.home))


def _disk(settings: "Settings") -> Finding:
    existing = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free"
    if free < settings.min_free_disk_bytes:
        return Finding(check="disk", status="failed", found=found, remedy="Free some space: uploads are refused.")
    return Finding(check="disk", status="ok", found=found)


def _port(settings: "Settings") -> Finding:
    try:
        socket.create_connection((settings.host, settings.port), timeout=1).close()
    except OSError:
        return Finding(check="port", status="ok", found=f"{settings.port} is free")
    found, remedy = f"{settings.port} is in use", "A server may be running already; else choose another port."
    return Finding(check="port", status="warning", found=found, remedy=remedy)


def _database(settings: "Settings") -> Finding:
    from serai.app import open_database
    from serai.storage import schema

    if settings.database_url is None and not settings.sqlite_path.exists():
        return Finding(check="database", status="ok", found="SQLite, made by the first start")
    database = open_database(settings)
    try:
        revision = database.read_sync(schema.current)
    finally:
        database.close_sync()
    found = f"{database.dialect}, schema {revision}"
    if revision != schema.HEAD:
        remedy = f"'serai db upgrade' or the next start brings it to {schema.HEAD}."
        return Finding(check="database", status="warning", found=found, remedy=remedy)
    return Finding(check="database", status="ok", found=found)


def _redis(settings: "Settings") -> Finding:
    if settings.redis_url is None:
        return Finding(check="redis", status="ok", found="not configured; cache and limits are in memory")
    import redis

    with redis.Redis.from_url(settings.redis_url, socket_connect_timeout=2, socket_timeout=2) as client:
        client.ping()
    return Finding(check="redis", status="ok", found="answers")


def _extras() -> Iterator[Finding]:
    from importlib.util import find_spec

    from serai.api.native.system import EXTRAS

    for name, (module, gives) in EXTRAS.items():
        if find_spec(module) is not None:
            yield Finding(check=f"extra {name}", status="ok", found=f"installed: {gives}")
        else:
            remedy = f"pip install 'serai[{name}]'"
            yield Finding(check=f"extra {name}", status="warning", found=f"missing: {gives}", remedy=remedy)
