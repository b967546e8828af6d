"""Measured footprints: known at once, kept in the database, planned with by the next start."""

from dataclasses import replace
from typing import Any

import pytest

from serai.clock import ManualClock
from serai.errors import DatabaseUnavailable
from serai.runtime import store
from serai.runtime.footprints import DatabaseFootprints, Footprints, MemoryFootprints
from serai.runtime.model import DeviceKind
from serai.storage.database import Database
from support.runtime_stage import A, B, staged
from support.scripted_backend import turns

pytestmark = pytest.mark.anyio


def keeps_the_largest(footprints: Footprints) -> None:
    unit = A.unit.id
    others = [
        replace(unit, weights="other"),
        replace(unit, engine="other"),
        replace(unit, quantization="int8"),
        replace(unit, device_kind=DeviceKind.CUDA),
    ]
    for size in (70, 90, 80):
        footprints.put(unit, size)
    assert footprints.get(unit) == 90
    assert [footprints.get(other) for other in others] == [None] * 4


async def test_the_largest_measure_is_known_at_once(database: Database) -> None:
    """By weights, engine, quantization and kind of device; nothing is known of what was never measured."""
    keeps_the_largest(MemoryFootprints())
    kept = DatabaseFootprints(database, ManualClock())
    keeps_the_largest(kept)
    await kept.close()
    assert await database.read(store.footprints) == {A.unit.id: 90}


async def test_the_next_start_plans_with_what_was_measured(database: Database) -> None:
    """A model that took more than estimated gets its room before its first load after a restart."""
    first = DatabaseFootprints(database, ManualClock())
    await first.open()
    async with staged(footprints=first) as stage:
        asked = stage.ask(A)
        await turns()
        stage.backend.workers[0].ready(130)
        await asked.got()
    await first.close()
    second = DatabaseFootprints(database, ManualClock())
    await second.open()
    async with staged(footprints=second) as stage:
        stage.ask(A)
        await turns()
        assert stage.backend.workers[0].spec.memory_bytes == 130


async def test_a_smaller_measure_takes_nothing_back() -> None:
    """An engine may fill what it was given, so the estimate stays reserved; growth never makes a model unfit."""
    footprints = MemoryFootprints({A.unit.id: 60, B.unit.id: 10_000})
    for claim, reserved in ((A, 100), (B, 150)):
        async with staged(footprints=footprints) as stage:
            asked = stage.ask(claim)
            await turns()
            assert stage.backend.workers[0].spec.memory_bytes == reserved
            stage.backend.workers[0].ready(50)
            await asked.got()
            assert stage.runtime.figures().bytes == {"cpu": reserved}


async def test_what_could_not_be_written_is_written_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away delays nobody, and nothing is lost when it is back."""
    footprints = DatabaseFootprints(database, ManualClock())
    run = database.run

    async def away(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable("It is away.")

    monkeypatch.setattr(database, "run", away)
    footprints.put(A.unit.id, 5)
    await footprints.close()
    assert footprints.get(A.unit.id) == 5
    monkeypatch.setattr(database, "run", run)
    footprints.put(B.unit.id, 6)
    await footprints.close()
    assert await database.read(store.footprints) == {A.unit.id: 5, B.unit.id: 6}


async def test_two_servers_keep_the_larger_measure(database: Database) -> None:
    """What another server has entered is not lowered."""
    clock = ManualClock()
    await database.run(store.put_footprints, clock, {A.unit.id: 9})
    await database.run(store.put_footprints, clock, {A.unit.id: 7, B.unit.id: 3})
    assert await database.read(store.footprints) == {A.unit.id: 9, B.unit.id: 3}
