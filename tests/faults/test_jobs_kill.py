"""SIGKILL at every named point, and at random: nothing is lost, nothing ends twice, no event is missing."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from serai.jobs import store
from serai.storage.database import Database
from serai.storage.tables.jobs import jobs
from support.job_faults import (
    ServerProgram,
    await_claim,
    check,
    kept_open,
    let_pauses_pass,
    put,
    status_counts,
    watch_ends,
    where_of,
)

pytestmark = pytest.mark.fault

WRITES = ("claim", "append_events", "finish", "fail", "claim_deliveries", "mark_delivered")
POINTS = [f"{name}:{when}" for name in WRITES for when in ("before", "inside", "after")]
POINTS = [point for point in POINTS if point not in ("mark_delivered:before", "mark_delivered:inside")]
POINTS += ["runner:begin", "runner:step", "runner:end", "renew:after", "recover:inside", "recover:after"]


@pytest.mark.parametrize("point", POINTS)
def test_a_server_that_dies_at_a_point_loses_nothing(point: str, database: Database, tmp_path: Path) -> None:
    """One server is killed at the point, the next one finishes everything, once."""
    watch_ends(database)
    made = [put(database, f"{n}", webhook_url="https://example.org/") for n in range(3)]
    if point.startswith("fail"):
        made.append(put(database, "late", fail_first=True))
    options = ["--alone", "--lease-s", "0.6", "--respawn", "--until-idle"]
    if point.startswith(("renew", "append_events")):  # runs must last until a beat, or a write of events
        options += ["--step-s", "0.3"]
    points = ["runner:end", point] if point.startswith("recover") else [point]  # there must be something to recover
    options += [f"--point={name}" for name in points]
    with ServerProgram(where_of(database), tmp_path / "a", *options) as server:
        for _ in points:
            server.ready()
        server.ready()  # it started anew: so the one before was killed at its point
        while server.process.poll() is None:
            let_pauses_pass(database)
            time.sleep(0.05)
        assert server.wait() == 0, server.errors.read_text()[-2000:]
    check(database, made, hooks=tmp_path / "a" / "hooks")


def test_a_hundred_kills_over_three_hundred_jobs(database: Database, tmp_path: Path) -> None:
    """A server that is killed at random moments, over and over, finishes every job exactly once."""
    watch_ends(database)
    rounds = 110 if database.dialect == "sqlite" else 40  # a start on PostgreSQL takes longer; the soak does more
    made = [put(database, f"job {n}") for n in range(300)]
    source = random.Random(20260301)
    options = ["--alone", "--respawn", "--until-idle", "--crash-limit", "1000", "--concurrency", "6"]
    seen: set[str] = set()
    with ServerProgram(where_of(database), tmp_path / "a", *options, "--step-s", "0.03") as server:
        with kept_open(database):
            for kill in range(rounds):
                pid = server.ready()
                if kill % 3:  # one in three hits the start, whatever it is doing
                    await_claim(database, seen)
                time.sleep(source.uniform(0.0, 0.1))  # the fault is random in time
                if status_counts(database)["queued"] < 100:
                    made += [put(database, f"more {len(made)} {n}") for n in range(40)]
                os.kill(pid, signal.SIGKILL)
            server.ready()
        assert server.wait(300) == 0, server.errors.read_text()[-2000:]
    assert len(made) >= 300
    check(database, made)
    crashed = database.read_sync(lambda c: c.execute(sa.select(sa.func.sum(jobs.c.crash_count))).scalar_one())
    assert crashed >= rounds // 2, "the kills must have hit running jobs"


@pytest.mark.postgres
def test_two_servers_killed_in_turn_share_the_work_by_leases(postgres_url: str, tmp_path: Path) -> None:
    """Without any lock of a folder, leases alone bring every job to one end."""
    from serai.storage.connect import open_postgresql

    database = open_postgresql(postgres_url, pool_size=2, listen=False)
    watch_ends(database)
    made = [put(database, f"job {n}") for n in range(60)]
    source = random.Random(7)
    options = ["--respawn", "--until-idle", "--crash-limit", "1000", "--lease-s", "1.0"]
    folders = (tmp_path / "a", tmp_path / "b")
    with (
        ServerProgram(postgres_url, folders[0], *options) as first,
        ServerProgram(postgres_url, folders[1], *options) as second,
    ):
        with kept_open(database):
            for _ in range(8):
                for server in (first, second):
                    pid = server.ready()
                    time.sleep(source.uniform(0.02, 0.12))
                    if status_counts(database)["queued"] < 40:
                        made += [put(database, f"more {len(made)} {n}") for n in range(20)]
                    os.kill(pid, signal.SIGKILL)
            first.ready(), second.ready()
        assert (first.wait(300), second.wait(300)) == (0, 0)
    check(database, made)
    database.close_sync()


def test_a_job_that_kills_its_server_is_ended_with_the_reason(database: Database, tmp_path: Path) -> None:
    """Poison is run three times, then failed; it takes nothing else with it for good."""
    watch_ends(database)
    poison = put(database, "poison")
    options = ["--alone", "--respawn", "--until-idle", *["--point=runner:step"] * 3, "--concurrency=1"]
    with ServerProgram(where_of(database), tmp_path / "a", *options) as server:
        assert server.wait() == 0
    job = database.read_sync(store.get, poison.id, owner_id=None)
    assert (job.status, job.crash_count, job.error and job.error["code"]) == ("failed", 3, "JOB_CRASHED")
    check(database, [poison], expected="failed")
