"""The same workload on DBOS, Huey and Procrastinate; imported by jobs.py, run by their own environment.

    jobs_peers.py PEER (work | put | turns) WHERE FOLDER COUNT SECONDS

Each job notes its start and its end in a file, so what is measured and what is lost does not depend
on what a queue says of itself. `put` enqueues COUNT jobs that last SECONDS, one after the other, and
prints when it began and ended; `turns` enqueues one at a time to an idle worker and prints the
milliseconds from the call until each one started.

Everything is at its defaults but the number of workers, and: Huey with fsync, as the others have it;
its tasks and Procrastinate's with three retries; Procrastinate with the periodic task that its
documentation gives for stalled jobs, every minute, the shortest time of its example's form.
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
from collections.abc import Callable, Iterator, Sequence
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

    async def retry_stalled_jobs(context: Any, timestamp: int) -> None:
        for job in await server.job_manager.get_stalled_jobs():
            await server.job_manager.retry_job(job)

    task = server.task(name="stalled", queueing_lock="retry_stalled_jobs", pass_context=True)(retry_stalled_jobs)
    server.periodic(cron="* * * * *")(task)
    put = client.configure_task("work")

    def serve() -> None:
        server.run_worker(concurrency=CONCURRENCY)

    return (lambda number, seconds: put.defer(folder=folder, number=number, seconds=seconds)), serve


def dbos_peer(where: str, folder: str) -> tuple[Enqueue, Callable[[], object]]:
    from dbos import DBOS, DBOSClient

    url = where if "://" in where else f"sqlite:///{where}"

    def launch() -> None:
        DBOS(config={"name": "bench", "system_database_url": url, "application_version": "1", "log_level": "ERROR"})
        DBOS.workflow(name="work")(work)
        DBOS.launch()
        DBOS.register_queue("jobs", worker_concurrency=CONCURRENCY)

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
        begun = 0.0
        for number in range(-1, count):  # the first one connects; its time is not counted
            if number == 0:
                begun = time.time()
            enqueue(number, seconds)
        print("put", begun, time.time())
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


class Place:
    """One queue of a peer: a folder, a database, and the commands that work on it."""

    def __init__(self, peer: str, name: str, where: Callable[[str], str], folder: Path) -> None:
        self.folder = folder / f"{peer} {name}".replace(" ", "_").replace("(", "").replace(")", "")
        self.folder.mkdir()
        self._start = [str(CACHE / "bin/python"), __file__, peer.split(maxsplit=1)[0]]
        self._where = where(self.folder.name.lower())

    def command(self, action: str, number: int = 0, seconds: float = 0) -> list[str]:
        return [*self._start, action, self._where, str(self.folder), str(number), str(seconds)]

    def tell(self, action: str, number: int, seconds: float = 0) -> list[float]:
        """Run an action to its end; return the numbers that it prints."""
        command = self.command(action, number, seconds)
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        return [float(word) for word in done.stdout.rsplit(action if action == "put" else "waits", 1)[1].split()]

    def span(self, count: int, since: float | None = None) -> float:
        """Return the seconds from `since`, or the first start, to the last end."""
        if wait_for(self.folder, count) < count:
            raise ValueError("not every job ended")
        first = min(notes(self.folder, "start").values())
        return max(notes(self.folder, "end").values()) - (first if since is None else since)


def measure_peer(peer: str, where: Callable[[str], str], folder: Path, count: int, kills: bool) -> dict[str, Any]:
    place = Place(peer, "drain", where, folder)
    begun, ended = place.tell("put", count)
    with worker(place.command):
        drained = place.span(count + 1)
    live = Place(peer, "live", where, folder)
    live.tell("put", 0)
    with worker(live.command):
        wait_for(live.folder, 1)
        (live.folder / "notes").unlink()
        since, _ = live.tell("put", count)
        through = live.span(count + 1, since)
        waits = live.tell("turns", 40)
    found = {
        "enqueued_per_s": round(count / (ended - begun)),
        "drained_per_s": round(count / drained),
        "through_per_s": round(count / through),
        **latencies(waits),
    }
    if kills:
        place = Place(peer, "kill", where, folder)
        found["lost_in_kills"] = lost_in_kills(place, 120 if peer == "procrastinate" else 30)
    return found


def latencies(waits: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {
        "start_p50_ms": round(statistics.median(waits), 1),
        "start_p95_ms": round(statistics.quantiles(waits, n=20)[18], 1),
    }


def lost_in_kills(place: Place, patience_s: float) -> int:
    """Return how many of 150 jobs of 50 ms have not ended after their worker was killed KILLS times."""
    place.tell("put", 149, 0.05)
    for _ in range(KILLS):
        with worker(place.command):
            before = len(notes(place.folder, "end"))
            deadline = time.monotonic() + 10
            while len(notes(place.folder, "end")) < min(150, before + 6) and time.monotonic() < deadline:
                time.sleep(0.01)
    with worker(place.command):
        return 150 - wait_for(place.folder, 150, patience_s)


def measure_peers(peers: Sequence[str], folder: Path, count: int, *, kills: bool) -> dict[str, dict[str, Any]]:
    """Return the figures of the peers; make their environment if it is not there."""
    from support.servers import PostgresServer

    if not CACHE.exists():
        venv.create(CACHE, with_pip=True)
    packages = ["dbos", "huey", "procrastinate", "psycopg[binary]"]
    subprocess.run([str(CACHE / "bin/pip"), "install", "--quiet", *packages], check=True)
    server = PostgresServer(folder / "peers", options=("max_connections=60",))
    server.start()
    found: dict[str, dict[str, Any]] = {}
    try:
        for peer in peers:
            place = server.create if PEERS[peer] == "postgresql" else (lambda name: str(folder / f"{name}.db"))
            try:
                found[peer] = measure_peer(peer, place, folder, count, kills)
            except (subprocess.SubprocessError, ValueError, IndexError) as error:
                found[peer] = {"problem": type(error).__name__}
                print(f"{peer}: {error} {getattr(error, 'stderr', '')!r:.800}", file=sys.stderr)
    finally:
        server.stop()
    return found


if __name__ == "__main__":
    run(*sys.argv[1:5], int(sys.argv[5]), float(sys.argv[6]))  # type: ignore[call-arg, misc]
