"""The same workload on DBOS, Huey and Procrastinate; imported by jobs.py, run by their own environment.

    jobs_peers.py PEER (work | put | turns) WHERE FOLDER COUNT SECONDS

Each job notes its start and its end in a file, so what is measured and what is lost does not depend
on what a queue says of itself. `put` enqueues COUNT jobs that last SECONDS; `turns` enqueues one at a
time to an idle worker and prints the milliseconds until each one started.
"""

import contextlib
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CACHE = Path("~/.cache/serai-benchmarks/peers").expanduser()
PEERS = {"huey": "sqlite", "dbos (SQLite)": "sqlite", "procrastinate": "postgresql", "dbos (PostgreSQL)": "postgresql"}
KILLS = 8
CONCURRENCY = 8


def note(folder: str, word: str, number: int) -> None:
    handle = os.open(Path(folder) / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, f"{word} {number} {time.time()}\n".encode())
    os.close(handle)


def work(folder: str, number: int, seconds: float) -> str:
    note(folder, "start", number)
    time.sleep(seconds)
    digest = hashlib.sha256(f"text {number}".encode()).hexdigest()
    note(folder, "end", number)
    return digest


def notes(folder: Path, word: str) -> dict[int, float]:
    """Return the time of the first note of each job."""
    found: dict[int, float] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "notes").read_text().splitlines():
            kind, number, moment = line.split()
            if kind == word:
                found.setdefault(int(number), float(moment))
    return found


Enqueue = Callable[[int, float], object]


def huey_peer(where: str, folder: str) -> tuple[Enqueue, Callable[[], object]]:
    from huey import SqliteHuey

    queue = SqliteHuey("jobs", filename=where, fsync=True)
    task = queue.task(retries=3)(work)

    def serve() -> None:
        queue.create_consumer(workers=CONCURRENCY).run()

    return (lambda number, seconds: task(folder, number, seconds)), serve


def procrastinate_peer(where: str, folder: str) -> tuple[Enqueue, Callable[[], object]]:
    from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

    client = App(connector=SyncPsycopgConnector(conninfo=where))
    client.open()
    with contextlib.suppress(Exception):  # there already
        client.schema_manager.apply_schema()
    server = App(connector=PsycopgConnector(conninfo=where))
    for app in (client, server):
        app.task(name="work", retry=3)(work)
    put = client.configure_task("work")

    def serve() -> None:
        server.run_worker(concurrency=CONCURRENCY)

    return (lambda number, seconds: put.defer(folder=folder, number=number, seconds=seconds)), serve


def dbos_peer(where: str, folder: str) -> tuple[Enqueue, Callable[[], object]]:
    from dbos import DBOS, DBOSClient, Queue

    url = where if "://" in where else f"sqlite:///{where}"

    def launch() -> None:
        DBOS(config={"name": "bench", "system_database_url": url, "application_version": "1", "log_level": "ERROR"})
        Queue("jobs", worker_concurrency=CONCURRENCY)
        DBOS.workflow(name="work")(work)
        DBOS.launch()

    def serve() -> None:
        launch()
        signal.pause()

    client: list[Any] = []

    def put(number: int, seconds: float) -> None:
        if not client:
            launch()  # makes the tables
            DBOS.destroy()
            client.append(DBOSClient(system_database_url=url))
        client[0].enqueue({"queue_name": "jobs", "workflow_name": "work", "app_version": "1"}, folder, number, seconds)

    return put, serve


def run(peer: str, action: str, where: str, folder: str, count: int, seconds: float) -> None:
    make = {"huey": huey_peer, "procrastinate": procrastinate_peer, "dbos": dbos_peer}[peer]
    enqueue, serve = make(where, folder)
    if action == "work":
        serve()
    elif action == "put":
        for number in range(count):
            enqueue(number, seconds)
    else:
        waits = []
        for number in range(10_000, 10_000 + count):
            begun = time.time()
            enqueue(number, seconds)
            while number not in (started := notes(Path(folder), "start")):
                time.sleep(0.001)
            waits.append(1000 * (started[number] - begun))
        print("waits", *waits)


@contextlib.contextmanager
def worker(command: Callable[..., list[str]]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command("work"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(folder: Path, count: int, patience_s: float = 30) -> int:
    """Return how many jobs have ended when all have, or when nothing has happened for `patience_s`."""
    seen, since = 0, time.monotonic()
    while seen < count and time.monotonic() - since < patience_s:
        if (now := len(notes(folder, "end"))) > seen:
            seen, since = now, time.monotonic()
        time.sleep(0.05)
    return seen


def measure_peer(peer: str, where: Callable[[str], str], folder: Path, count: int) -> dict[str, Any]:
    def commands(name: str) -> tuple[Callable[..., list[str]], Path]:
        place = folder / f"{peer} {name}".replace(" ", "_").replace("(", "").replace(")", "")
        place.mkdir()
        start = [str(CACHE / "bin/python"), __file__, peer.split(maxsplit=1)[0]]
        target = where(place.name.lower())

        def command(action: str, number: int = 0, seconds: float = 0) -> list[str]:
            return [*start, action, target, str(place), str(number), str(seconds)]

        return command, place

    command, place = commands("speed")
    subprocess.run(command("put", count), check=True, capture_output=True)
    with worker(command):
        wait_for(place, count)
        ended = notes(place, "end")
        span = max(ended.values()) - min(notes(place, "start").values())
        turns = subprocess.run(command("turns", 20), check=True, capture_output=True, text=True, timeout=120).stdout
    waits = [float(word) for word in turns.split("waits")[1].split()]
    command, place = commands("kill")
    subprocess.run(command("put", 150, 0.05), check=True, capture_output=True)
    for _ in range(KILLS):
        with worker(command):
            before = len(notes(place, "end"))
            deadline = time.monotonic() + 10
            while len(notes(place, "end")) < min(150, before + 6) and time.monotonic() < deadline:
                time.sleep(0.01)
    with worker(command):
        left = wait_for(place, 150)
    return {
        "finished_per_s": round(len(ended) / span),
        "start_p50_ms": round(statistics.median(waits), 1),
        "lost_in_kills": 150 - left,
    }


def measure_peers(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Return the figures of every peer; make their environment if it is not there."""
    from support.servers import PostgresServer

    if not CACHE.exists():
        venv.create(CACHE, with_pip=True)
    packages = ["dbos", "huey", "procrastinate", "psycopg[binary]"]
    subprocess.run([str(CACHE / "bin/pip"), "install", "--quiet", *packages], check=True)
    server = PostgresServer(folder / "peers", options=("max_connections=60",))
    server.start()
    found: dict[str, dict[str, Any]] = {}
    try:
        for peer, kind in PEERS.items():
            place = server.create if kind == "postgresql" else (lambda name: str(folder / f"{name}.db"))
            try:
                found[peer] = measure_peer(peer, place, folder, count)
            except (subprocess.SubprocessError, ValueError, IndexError) as error:
                found[peer] = {"problem": type(error).__name__}
                print(f"{peer}: {error} {getattr(error, 'stderr', '')!r:.800}", file=sys.stderr)
    finally:
        server.stop()
    return found


if __name__ == "__main__":
    run(*sys.argv[1:5], int(sys.argv[5]), float(sys.argv[6]))  # type: ignore[call-arg, misc]
