"""The invariant check: silent while the books agree, loud and idle-handed when a test corrupts them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from serai.runtime.model import UnitState
from serai.runtime.runtime import Runtime
from support.runtime_stage import HELLO, A, claim, staged

pytestmark = pytest.mark.anyio


def _forget_worker(runtime: Runtime) -> Any:
    return runtime._keepers.pop(A.unit.id)


def _forget_resident(runtime: Runtime) -> Any:
    return runtime._scheduler._ledger.residents.pop(A.unit.id)


def _change(runtime: Runtime, **changes: Any) -> None:
    residents = runtime._scheduler._ledger.residents
    residents[A.unit.id] = replace(residents[A.unit.id], **changes)


def _forget_grant(runtime: Runtime) -> Any:
    return runtime._scheduler._grants.popitem()


def _invent_waiting(runtime: Runtime) -> None:
    runtime._waiters._waiters["nobody"] = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("corrupt", "words"),
    [
        (_forget_worker, "without a worker"),
        (_forget_resident, "without a place"),
        (lambda runtime: _change(runtime, leases=5), "5 leases in the ledger"),
        (lambda runtime: _change(runtime, state=UnitState.LOADING), "the ledger says loading"),
        (lambda runtime: _change(runtime, device="cuda:7"), "in the ledger on cuda:7"),
        (_forget_grant, "a lease without a grant"),
        (lambda runtime: runtime._leases.clear(), "a grant without a lease"),
        (_invent_waiting, "callers wait"),
    ],
)
async def test_a_contradiction_is_found_and_logged_once(corrupt: Callable[[Runtime], Any], words: str) -> None:
    """It is named, told to the log when it is new, and nothing is repaired."""
    async with staged() as stage:
        await stage.loaded(A)
        (await stage.ask(A).got()).run(HELLO)
        runtime = stage.runtime
        assert runtime.check_integrity() == ()
        saved = _saved(runtime)
        with capture_logs() as logs:
            corrupt(runtime)
            found = runtime.check_integrity()
            assert runtime.check_integrity() == found
        assert any(words in problem for problem in found), found
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["runtime_integrity"]
        _restore(runtime, saved)


def _saved(runtime: Runtime) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    scheduler = runtime._scheduler
    books: list[dict[Any, Any]] = [
        runtime._keepers, runtime._leases, runtime._waiters._waiters, scheduler._ledger.residents, scheduler._grants
    ]  # fmt: skip
    return [(book, dict(book)) for book in books]


def _restore(runtime: Runtime, saved: list[tuple[dict[Any, Any], dict[Any, Any]]]) -> None:
    for book, entries in saved:
        book.clear()
        book.update(entries)


async def test_it_runs_by_itself_when_nothing_is_to_be_done() -> None:
    """The end of the last lease finds what is wrong."""
    async with staged() as stage:
        small = claim("s", 40)
        await stage.loaded(A, small)
        asked = stage.ask(A)
        await asked.got()
        residents = stage.runtime._scheduler._ledger.residents
        right = residents[small.unit.id]
        residents[small.unit.id] = replace(right, leases=1)
        with capture_logs() as logs:
            await asked.done()
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["runtime_integrity"]
        residents[small.unit.id] = right
