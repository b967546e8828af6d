"""A long soak of the jobs: two servers on PostgreSQL, killed, stopped and cut off at random, for as long as asked.

    python tests/faults/soak_jobs.py --minutes 30 [--seed 1]

Ends with status 0 when nothing was lost, nothing ended twice and no event is missing.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serai.jobs.model import Job
from serai.storage.connect import open_postgresql
from serai.storage.database import Database
from serai.storage.schema import upgrade
from support.job_faults import ServerProgram, check, kept_open, put, status_counts, watch_ends
from support.servers import PostgresServer

FAULTS = ("kill", "kill", "kill", "stop", "restart", "crash")


def harm(how: str, pid: int, server: PostgresServer, source: random.Random) -> None:
    """Do one harm; everything but a kill heals by itself."""
    if how in ("restart", "crash"):
        server.stop(signal.SIGINT if how == "restart" else signal.SIGQUIT)
        time.sleep(source.uniform(0, 2))
        server.start()
    elif how == "stop":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(source.uniform(0.5, 4))
        os.kill(pid, signal.SIGCONT)
    else:
        os.kill(pid, signal.SIGKILL)


def soak(database: Database, server: PostgresServer, folder: Path, minutes: float, source: random.Random) -> list[Job]:
    """Harm and enqueue until the time is over; return every job that was accepted, all of them ended."""
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    options = ["--respawn", "--until-idle", "--crash-limit", "100000", "--lease-s", "1.5", "--step-s", "0.05"]
    deadline = time.monotonic() + minutes * 60
    made = [put(database, f"job {n}") for n in range(200)]
    harms = 0
    with ServerProgram(url, folder / "a", *options) as first, ServerProgram(url, folder / "b", *options) as second:
        with kept_open(database):
            pids = {first: first.ready(), second: second.ready()}
            while time.monotonic() < deadline:
                if status_counts(database)["queued"] < 150:
                    made += [put(database, f"more {len(made)} {n}", fail_first=n == 0) for n in range(50)]
                program, how = source.choice((first, second)), source.choice(FAULTS)
                harm(how, pids[program], server, source)
                if how == "kill":
                    pids[program] = program.ready()
                harms += 1
                time.sleep(source.uniform(0, 0.5))
        print(f"{harms} harms, {len(made)} jobs; waiting for the rest")
        if first.wait(300) or second.wait(300):
            raise SystemExit(first.errors.read_text()[-4000:] + second.errors.read_text()[-4000:])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serai-soak-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        server = PostgresServer(folder / "postgres", options=("max_connections=60",))
        server.start()
        database = open_postgresql(server.create("jobs"), pool_size=2, timeout_s=5, listen=False)
        try:
            upgrade(database)
            watch_ends(database)
            made = soak(database, server, folder, options.minutes, random.Random(options.seed))
            check(database, made)
        finally:
            database.close_sync()
            server.stop()
    print(f"{len(made)} jobs: none lost, none ended twice, every event there")


if __name__ == "__main__":
    main()
