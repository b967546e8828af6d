"""What the fault tests of the jobs share: starting servers, enqueueing as a client, and the oracle."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from serai.clock import SystemClock
from serai.errors import Unavailable
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.model import Job, NewJob
from serai.storage.database import Database
from serai.storage.tables.jobs import job_events, job_webhooks, jobs

CLOCK = SystemClock()
TESTS = Path(__file__).parents[1]


class ServerProgram:
    """One `support.job_server` process; `pid` is the server's own, also behind `--respawn`."""

    def __init__(self, where: str, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = folder / "errors"
        command = [sys.executable, "-m", "support.job_server", "--database", where, "--folder", str(folder), *options]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "default"}
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True, start_new_session=True
            )

    def ready(self) -> int:
        """Wait until a server has started; return its pid. Raises EOFError when the program has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                return int(line.split()[1])
        raise EOFError(f"status {self.process.wait(30)}: {self.errors.read_text()[-2000:]}")

    def wait(self, seconds: float = 60) -> int:
        """Wait for the end; return the exit status (negative: the signal)."""
        self.process.communicate(timeout=seconds)
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole session: a respawned server has its own pid
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()


def where_of(database: Database) -> str:
    """Return what `--database` takes."""
    url = database.engine.url
    if database.dialect == "sqlite":
        return str(url.database)
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


_SQLITE_TRIGGER = """
CREATE TRIGGER test_end AFTER UPDATE OF status ON jobs WHEN NEW.status IN ('succeeded', 'failed', 'cancelled')
BEGIN INSERT INTO test_ends VALUES (NEW.id, NEW.status, OLD.claim); END
"""
_POSTGRESQL_FUNCTION = """
CREATE FUNCTION test_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF NEW.status IN ('succeeded', 'failed', 'cancelled') THEN
INSERT INTO test_ends VALUES (NEW.id, NEW.status, OLD.claim); END IF; RETURN NEW; END $$
"""
_POSTGRESQL_TRIGGER = "CREATE TRIGGER test_end AFTER UPDATE OF status ON jobs FOR EACH ROW EXECUTE FUNCTION test_end()"


def watch_ends(database: Database) -> None:
    """Have the database itself note every end of a job, apart from the code under test."""
    statements = ["CREATE TABLE test_ends (job_id TEXT, status TEXT, claim TEXT)"]
    if database.dialect == "sqlite":
        statements += [_SQLITE_TRIGGER]
    else:
        statements += [_POSTGRESQL_FUNCTION, _POSTGRESQL_TRIGGER]
    for statement in statements:
        database.run_sync(lambda c, statement=statement: c.exec_driver_sql(statement))


def put(database: Database, text: str, **payload: Any) -> Job:
    """Enqueue as a client does: again with the same key, until there is an answer."""
    hook = payload.pop("webhook_url", None)
    new = NewJob(
        id=new_id("job"),
        kind="chew",
        version=1,
        payload={"text": text, "steps": 2, **payload},
        owner_id=f"owner {len(text) % 3}",
        resource="cpu",
        idempotency_key=text,
        webhook_url=hook,
    )
    while True:
        try:
            return database.run_sync(store.enqueue, CLOCK, new)
        except Unavailable:
            time.sleep(0.05)


@contextlib.contextmanager
def kept_open(database: Database) -> Iterator[None]:
    """Have one job wait that nobody can run, so that servers which stop when all is done go on, however fast."""
    new = NewJob(id=new_id("job"), kind="unknown", version=1, payload={}, owner_id="nobody", resource="cpu")
    database.run_sync(store.enqueue, CLOCK, new)
    yield
    database.run_sync(lambda c: c.execute(sa.delete(jobs).where(jobs.c.id == new.id)))


def status_counts(database: Database) -> Counter[str]:
    """Return how many jobs are in each status."""
    return Counter(database.read_sync(lambda c: c.execute(sa.select(jobs.c.status)).scalars().all()))


def check(database: Database, made: list[Job], *, expected: str = "succeeded", hooks: Path | None = None) -> None:
    """Assert that nothing was lost, nothing ended twice, every event log is whole and every result right."""
    rows = {row.id: row for row in database.read_sync(lambda c: c.execute(sa.select(jobs)).all())}
    ends = database.read_sync(lambda c: c.exec_driver_sql("SELECT job_id, status, claim FROM test_ends").all())
    assert rows.keys() == {job.id for job in made}, "a job was lost, or was made twice"
    assert Counter(row.status for row in rows.values()) == {expected: len(made)}
    assert Counter(end.job_id for end in ends) == dict.fromkeys(rows, 1), "a job ended twice"
    if expected == "succeeded":
        claims = {end.job_id: end.claim for end in ends}
        for job in made:
            wanted = hashlib.sha256(str(job.payload["text"]).encode()).hexdigest()
            assert rows[job.id].result["sha256"] == wanted
            assert rows[job.id].result["claim"] == claims[job.id], "the result is not of the claim that ended it"
    check_events(database, rows)
    if hooks is not None:
        told = set(hooks.read_text().split())
        asked = {job.id.replace("job_", "whk_") for job in made if job.webhook_url}
        assert asked <= told, "a webhook was lost"


def check_events(database: Database, rows: dict[str, Any]) -> None:
    """Assert that every log is 1 … n and that its one end is its last event."""
    logs: dict[str, list[Any]] = {}
    for event in database.read_sync(lambda c: c.execute(sa.select(job_events).order_by(job_events.c.seq)).all()):
        logs.setdefault(event.job_id, []).append(event)
    for job_id, row in rows.items():
        log = logs[job_id]
        assert [event.seq for event in log] == list(range(1, row.last_seq + 1)), "the events have a gap"
        finals = [event.seq for event in log if event.event["type"] in ("done", "failed")]
        assert finals == [row.last_seq], "the end is not the last event, or there are two"


def let_pauses_pass(database: Database) -> None:
    """Make what waits for a pause or a dead sender's claim due now."""
    when = job_webhooks.c.next_at.is_not(None)
    database.run_sync(
        lambda c: c.execute(sa.update(job_webhooks).where(when).values(next_at=job_webhooks.c.created_at))
    )
    database.run_sync(lambda c: c.execute(sa.update(jobs).values(run_at=None)))


def await_claim(database: Database, seen: set[str]) -> None:
    """Wait until a server whose id is not among `seen` runs a job; add it."""
    holders = sa.select(jobs.c.holder).where(jobs.c.status == "running").distinct()
    while True:
        found = set(database.read_sync(lambda c: c.execute(holders).scalars().all())) - seen
        if found:
            seen |= found
            return
        time.sleep(0.005)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
