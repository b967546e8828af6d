"""How fast the registry decides and lists with 10,000 models of 5 versions, and how its REST compares with MLflow's.

    python benchmarks/registry.py [--models 10000] [--rounds 200] [--peers] [--json out/registry.json]

`--peers` asks MLflow's model registry the same, call by call in turn with Serai, each over one kept
connection to its own server on its own SQLite file. MLflow has no users there and writes no audit log;
it comes from a virtual environment that this script makes under ~/.cache/serai-benchmarks. Both keep
their durable defaults; what one fsync of the disk takes is printed too, for every change waits for one.
"""

import argparse
import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import structlog

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from serai.app import create_app  # noqa: E402 - needs the path above
from serai.audit import SYSTEM  # noqa: E402 - keeps the imports together
from serai.registry import releases, store  # noqa: E402 - keeps the imports together
from serai.registry.model import TASKS, Model  # noqa: E402 - keeps the imports together
from serai.registry.parameters import Parameter  # noqa: E402 - keeps the imports together
from serai.registry.plan import Request  # noqa: E402 - keeps the imports together
from serai.registry.policy import decide  # noqa: E402 - keeps the imports together
from serai.registry.registry import Registry  # noqa: E402 - keeps the imports together
from serai.registry.source import PackageSource  # noqa: E402 - keeps the imports together
from serai.registry.version import Status, Version, seal  # noqa: E402 - keeps the imports together
from serai.settings import Settings  # noqa: E402 - keeps the imports together
from serai.storage.connect import open_sqlite  # noqa: E402 - keeps the imports together
from serai.storage.database import Connection, Database  # noqa: E402 - keeps the imports together
from serai.storage.schema import upgrade  # noqa: E402 - keeps the imports together
from support.process import serving  # noqa: E402 - needs the path
from support.servers import free_port  # noqa: E402 - needs the path

AT = datetime(2026, 1, 1, tzinfo=UTC)
STAMPS: dict[str, Any] = {"created_at": AT, "created_by": "bench", "updated_at": AT, "updated_by": "bench"}
NUMBERS = ("1.0.0", "1.1.0", "1.9.0", "1.10.0", "2.0.0")
BATCH = 500
CACHE = Path("~/.cache/serai-benchmarks/mlflow").expanduser()
MLFLOW = "mlflow==3.17.2"
LISTS = {
    "by task": {"task": "chat"},
    "by tag and task": {"task": "chat", "tag": "tag-7"},
    "by two words": {"search": "maker-3 model"},
    "by status": {"version_status": "deprecated"},
    "nothing found": {"search": "no-such-word"},
}
Figures = dict[str, dict[str, float]]


def model(number: int) -> Model:
    return Model(
        id=f"model-{number:05d}",
        name=f"Model {number}",
        task=TASKS[number % len(TASKS)],
        publisher=f"maker-{number % 50}",
        licence="MIT",
        lookup_names=(f"maker-{number % 50}/Model-{number:05d}",),
        tags=(f"tag-{number % 20}",),
        priority=number % 100,
        **STAMPS,
    )


def version(number: int, seq: int) -> Version:
    status = Status.DEPRECATED if seq == 1 and number % 3 == 0 else Status.ACTIVE
    made = Version(
        model_id=f"model-{number:05d}",
        version=NUMBERS[seq - 1],
        seq=seq,
        status=status,
        source=PackageSource(name=f"weights-{number}-{seq}"),
        engine="fake",
        parameters={"num_inference_steps": Parameter(default=10 * seq, min=1, max=100)},
        memory_class=("low", "medium", "high")[number % 3],
        licence="MIT",
        **STAMPS,
    )
    return seal(made)


def load(database: Database, count: int) -> None:
    """Write the models through the store, a batch in each transaction."""

    def batch(connection: Connection, numbers: Iterable[int]) -> None:
        for number in numbers:
            store.put_model(connection, model(number))
            for seq in range(1, len(NUMBERS) + 1):
                store.put_version(connection, version(number, seq))

    for start in range(0, count, BATCH):
        database.run_sync(batch, range(start, min(start + BATCH, count)))


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 4),
        "p95_ms": round(1000 * ordered[len(ordered) * 95 // 100], 4),
    }


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


async def in_process(home: Path, count: int, rounds: int) -> Figures:
    """Return what decisions and lists take inside the server's process."""
    app = create_app(Settings(home=home, min_free_disk_bytes=0, rate_limits="off"))
    begun = time.perf_counter()
    async with app.router.lifespan_context(app):
        figures: Figures = {"start of the server": {"p50_ms": round(1000 * (time.perf_counter() - begun), 1)}}
        parts = app.state.parts
        snapshot = await parts.registry.current()
        requests = [
            Request(model=f"{name}{selector}")
            for number in range(0, count, max(1, count // 500))
            for name in (f"model-{number:05d}", f"maker-{number % 50}/Model-{number:05d}")
            for selector in ("", "@1.10.0")
        ]
        figures["decision, named"] = quantiles([timed(partial(decide, snapshot, one)) for one in requests])
        automatic = [Request(task="image-generation", require_fast=fast) for fast in (True, False)] * 500
        figures["decision, automatic"] = quantiles([timed(partial(decide, snapshot, one)) for one in automatic])
        figures |= await cold(parts, rounds)
        key = (home / "admin.key").read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            for name, filters in LISTS.items():
                seconds = []
                for _ in range(rounds // 4):
                    begun = time.perf_counter()
                    answer = await client.get("/models", params=filters)
                    seconds.append(time.perf_counter() - begun)
                    assert answer.status_code == 200, answer.text
                figures[f"list in process, {name}"] = quantiles(seconds)
    return figures


async def cold(parts: Any, rounds: int) -> Figures:
    """Return what a change takes, and the first decision after it, on the server that made it and on another."""
    changes, firsts, others = [], [], []
    other = Registry(parts.database, parts.registry.rules)  # hears of the change, and has to read it
    await other.current()
    for number in range(rounds):
        name, notes = f"model-{number:05d}", {"release_notes": f"round {number}"}
        write, now = parts.registry.write, parts.clock.now()
        begun = time.perf_counter()
        await parts.database.run(write, releases.update_version, SYSTEM, now, name, "2.0.0", notes)
        changed = time.perf_counter()
        decide(await parts.registry.current(), Request(model=name))
        decided = time.perf_counter()
        decide(await other.current(), Request(model=name))
        others.append(time.perf_counter() - decided)
        changes.append(changed - begun)
        firsts.append(decided - changed)
        assert (await other.current()).models[name].candidates["2.0.0"].version.release_notes == f"round {number}"
    other.close()
    return {
        "change, with its fsync": quantiles(changes),
        "first decision after it": quantiles(firsts),
        "first decision on another server": quantiles(others),
    }


def over_http(home: Path, rounds: int) -> Figures:
    """Return what the lists take from a server of its own."""
    figures: Figures = {}
    with serving(home, rate_limits="off") as server, server.client() as client:
        for name, filters in LISTS.items():
            answer = client.get("/models", params=filters)
            assert answer.status_code == 200, answer.text
            seconds = [timed(partial(client.get, "/models", params=filters)) for _ in range(rounds)]
            figures[f"list over HTTP, {name}"] = quantiles(seconds)
    return figures


def fsync(folder: Path) -> dict[str, float]:
    handle = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY, 0o600)

    def append() -> None:
        os.write(handle, b"x" * 4096)
        os.fdatasync(handle)

    found = quantiles([timed(append) for _ in range(100)])
    os.close(handle)
    return found


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """Run MLflow's server, with one worker, until the block ends; yields its URL."""
    if not (CACHE / "bin/mlflow").exists():
        venv.create(CACHE, with_pip=True)
        subprocess.run([str(CACHE / "bin/pip"), "install", "--quiet", MLFLOW], check=True)
    port = free_port()
    command = [str(CACHE / "bin/mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    # Its job runner is another program beside the server; without it the server has the machine to itself.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen([*command, *places], stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("MLflow's server did not start; its log is in the benchmark's folder")


Call = tuple[str, str, dict[str, Any] | None]


def serai_calls(number: int) -> dict[str, Call]:
    path = f"/models/bench-{number}"
    return {
        "create model": ("POST", "/models", {"id": f"bench-{number}", "task": "chat", "version": "1.0.0"}),
        "get model": ("GET", path, None),
        "list a page of 50": ("GET", "/models?limit=50", None),
        "create version": ("POST", f"{path}/versions", {"version": "1.1.0"}),
        "move alias": ("PUT", f"{path}/aliases/live", {"to": "1.1.0"}),
    }


def mlflow_calls(number: int) -> dict[str, Call]:
    """The same; MLflow's model is made without a version, so its first one is the one that is created."""
    name, api = f"bench-{number}", "/api/2.0/mlflow"
    return {
        "create model": ("POST", f"{api}/registered-models/create", {"name": name}),
        "get model": ("GET", f"{api}/registered-models/get?name={name}", None),
        "list a page of 50": ("GET", f"{api}/registered-models/search?max_results=50", None),
        "create version": ("POST", f"{api}/model-versions/create", {"name": name, "source": f"s3://weights/{name}"}),
        "move alias": ("POST", f"{api}/registered-models/alias", {"name": name, "alias": "live", "version": "1"}),
    }


class Kept:
    """One kept connection with as little of a client around it as there is, so that the servers are compared."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self._headers = {"content-type": "application/json", **headers}

    def send(self, call: Call) -> None:
        method, path, body = call
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        told = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path} answered {answer.status}: {told[:300]!r}")


def side_by_side(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of both for each call, and how many times longer MLflow takes."""
    seconds: dict[str, tuple[list[float], list[float]]] = {}
    with serving(folder / "serai", rate_limits="off") as server, mlflow(folder) as url:
        ours, theirs = Kept(server.url, {"authorization": f"Bearer {server.admin_key}"}), Kept(url, {})
        sides = ((0, ours, serai_calls), (1, theirs, mlflow_calls))
        for number in range(rounds):
            for side, client, calls in sides[:: 1 if number % 2 else -1]:
                for name, call in calls(number).items():
                    seconds.setdefault(name, ([], []))[side].append(timed(partial(client.send, call)))
    found = {name: compared(mine, other) for name, (mine, other) in seconds.items()}
    calls_for_one = zip(seconds["create model"][1], seconds["create version"][1], strict=True)
    made = [model + version for model, version in calls_for_one]
    found["create model with a version"] = compared(seconds["create model"][0], made)
    return found


def compared(mine: list[float], other: list[float]) -> dict[str, float]:
    ours, theirs = quantiles(mine)["p50_ms"], quantiles(other)["p50_ms"]
    return {"serai_p50_ms": ours, "mlflow_p50_ms": theirs, "ratio": round(theirs / ours, 1)}


def show(title: str, figures: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))
    print(f"\n{title}")
    print(" | ".join(["".ljust(36), *(name.rjust(13) for name in columns)]))
    for name, row in figures.items():
        print(" | ".join([name.ljust(36), *(str(row.get(column, "–")).rjust(13) for column in columns)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--peers", action="store_true", help="MLflow beside it")
    parser.add_argument("--folder", type=Path, help="where the databases lie; a temporary folder if left out")
    parser.add_argument("--json", type=Path, default=ROOT / "out/registry.json")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="serai-bench-", dir=options.folder) as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir(mode=0o700)
        database = open_sqlite(home / "serai.db")
        upgrade(database)
        loading = timed(partial(load, database, options.models))
        database.close_sync()
        figures: Figures = {
            "one fsync of this disk": fsync(folder),
            f"loading {options.models} models": {"p50_ms": round(1000 * loading)},
        }
        figures |= asyncio.run(in_process(home, options.models, options.rounds))
        figures |= over_http(home, options.rounds // 4)
        show(f"{options.models} models of {len(NUMBERS)} versions on SQLite", figures)
        beside = side_by_side(folder, options.rounds) if options.peers else {}
        if beside:
            show("REST, one call at a time", beside)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"registry": figures, "mlflow": beside}, indent=2) + "\n")


if __name__ == "__main__":
    main()
