"""Decisions reach the database in the background: none holds an answer up, none is lost in silence."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from serai.clock import ManualClock
from serai.errors import DatabaseUnavailable
from serai.ids import new_id
from serai.serving.recorder import BATCH, DecisionRecorder
from serai.serving.store import DecisionRow, add_decisions, find_decision, list_decisions, prune_decisions
from serai.storage.database import Connection, Database
from unit.serving.stage import Stage, done

pytestmark = pytest.mark.anyio
CLOCK = ManualClock()


def row(number: int = 0, **values: Any) -> DecisionRow:
    defaults = {
        "id": new_id("dec"),
        "at": CLOCK.now() + timedelta(seconds=number),
        "service_id": "s",
        "model_id": "m",
        "version": "1.0.0",
        "reason": "bound",
        "owner_id": "user_1",
        "document": {"explanation": "نمونه", "chain": [{"model": "m", "ms": 1.5}]},
    }
    return DecisionRow(**(defaults | values))


async def test_every_decision_is_stored_with_the_id_that_the_client_has(stage: Stage) -> None:
    """Served, fallen back and failed ones, with the chain, the engine and what ended them."""
    stage.fake("bad", fail="load")
    stage.fake("good")
    stage.service("bad@1.0.0", "good@1.0.0")
    answers = [(await stage.ask())[0], (await stage.ask(None, "good"))[0]]
    await stage.serving.clear_cooldown("bad")
    answers.append((await stage.ask(None, "bad"))[0])
    rows = {one.id: one for one in await stage.rows()}
    assert set(rows) == {answer.id for answer in answers}
    fell, plain, failed = (rows[answer.id] for answer in answers)
    assert (fell.service_id, fell.model_id, fell.reason, fell.owner_id) == ("s", "good", "fallback_error", "user_1")
    assert [link["outcome"] for link in fell.document["chain"]] == ["failed", "served"]
    assert (fell.document["engine"], fell.document["outcome"], fell.document["failure"]) == (
        "fake",
        "served",
        "load_error",
    )
    assert (plain.service_id, plain.reason, plain.document["failure"]) == (None, "default", None)
    assert (failed.document["outcome"], failed.document["error"]) == ("failed", "LOAD_FAILED")
    assert find_in(stage.desk.database, fell.id) == fell


def find_in(database: Database, id_: str) -> DecisionRow | None:
    return database.read_sync(find_decision, id_)


async def test_a_database_that_hangs_delays_no_answer(stage: Stage) -> None:
    """While a transaction holds the writer, answers come; afterwards the rows do."""
    stage.fake("m")
    _, events = await stage.ask(None, "m")
    release, held = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(connection: Connection) -> None:
        loop.call_soon_threadsafe(held.set)
        release.wait(60)

    holding = asyncio.create_task(stage.desk.database.run(hold))
    await held.wait()
    for _ in range(20):
        _, events = await stage.ask(None, "m")
        assert done(events)
    release.set()
    await holding
    assert len(await stage.rows()) == 21


async def test_rows_share_transactions(database: Database) -> None:
    """What arrives while one batch is written goes with the next; nothing is written twice, or missing."""
    batches: list[str] = []
    database.observe = lambda mode, seconds: batches.append(mode)
    recorder = DecisionRecorder(database, on_dropped=lambda count: pytest.fail("nothing is dropped"))
    rows = [row(number) for number in range(2 * BATCH + 10)]
    for one in rows:
        recorder.add(one)
    await recorder.close()
    assert batches == ["write"] * 3
    assert [one.id for one in database.read_sync(list_decisions, limit=10_000)][::-1] == [one.id for one in rows]


async def test_what_does_not_fit_is_counted(database: Database) -> None:
    """Over the bound rows are dropped, the newest ones, and the count says how many."""
    dropped: list[int] = []
    recorder = DecisionRecorder(database, on_dropped=dropped.append, bound=5)
    for number in range(8):
        recorder.add(row(number))
    await recorder.close()
    assert sum(dropped) == 3
    assert len(database.read_sync(list_decisions)) == 5


async def test_a_database_that_is_away_gets_them_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that fails for now is repeated; in the end everything is there once."""
    refused, really = asyncio.Event(), database.run

    async def run(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise DatabaseUnavailable("It is away.")
        return await really(function, *args, **kwargs)

    monkeypatch.setattr(database, "run", run)
    recorder = DecisionRecorder(database, on_dropped=lambda count: pytest.fail("nothing is dropped"))
    recorder.add(row())
    await refused.wait()
    await recorder.close()
    assert len(database.read_sync(list_decisions)) == 1


async def test_what_the_database_never_takes_is_counted_at_the_close(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close does not wait for ever, and does not forget."""

    async def run(*_: Any) -> None:
        raise DatabaseUnavailable("It is away.")

    monkeypatch.setattr(database, "run", run)
    dropped: list[int] = []
    recorder = DecisionRecorder(database, on_dropped=dropped.append)
    for number in range(3):
        recorder.add(row(number))
    async with asyncio.timeout(60):
        await recorder.close()
    assert sum(dropped) == 3


async def test_a_row_that_cannot_be_stored_does_not_stop_the_others(database: Database) -> None:
    """A batch with a broken row is dropped and counted; the next ones are stored."""
    dropped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    recorder = DecisionRecorder(database, on_dropped=dropped.set_result)
    broken = row()
    recorder.add(broken)
    recorder.add(broken)  # the same key twice
    assert await dropped == 2
    recorder.add(row(1))
    await recorder.close()
    assert len(database.read_sync(list_decisions)) == 1


async def test_decisions_are_listed_and_pruned(database: Database) -> None:
    """By service and model, the latest first; what is older than asked for goes."""
    rows = [row(0), row(1, service_id="t"), row(2, model_id="n", service_id=None)]
    database.run_sync(add_decisions, rows)
    assert database.read_sync(list_decisions) == rows[::-1]
    assert database.read_sync(list_decisions, service_id="t") == [rows[1]]
    assert database.read_sync(list_decisions, model_id="n") == [rows[2]]
    assert database.run_sync(prune_decisions, rows[2].at) == 2
    assert database.read_sync(list_decisions) == [rows[2]]
    assert database.read_sync(find_decision, rows[0].id) is None


def test_a_row_says_nothing_but_its_columns(database: Database) -> None:
    """The columns are what the table has."""
    columns = {column["name"] for column in sa.inspect(database.engine).get_columns("decisions")}
    assert columns == set(DecisionRow.__slots__)
