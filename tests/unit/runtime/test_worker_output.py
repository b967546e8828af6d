"""What workers print is logged within bounds; what they report about themselves is not lost in it."""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from serai.clock import ManualClock
from serai.runtime.backends.output import MAX_LINES, MAX_REPORTS, WINDOW_S, Output
from serai.runtime.worker.reports import Report, trace_of
from support.workers import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with capture_logs() as lines:
        yield lines
    structlog.configure(**before)


@pytest.fixture
async def pipe(clock: ManualClock, anyio_backend: str) -> AsyncIterator[int]:
    """The writing end of a pipe whose other end is read; the test closes it."""
    reading, writing = os.pipe()
    output = Output(reading, clock=clock, model="a@1")
    yield writing
    output.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reading)


def report(text: str) -> bytes:
    return msgspec.json.encode(Report(serai=text)) + b"\n"


async def lines(logged: list[Any], count: int) -> list[Any]:
    await until(lambda: len(logged) >= count)
    return logged


async def test_lines_come_whole(pipe: int, logged: list[Any]) -> None:
    """However they are cut in writing; what is no text is shown as far as it is; the last needs no line break."""
    for part in (b"one\ntw", b"o\n", "مدل\n".encode(), b"\xff\xfe\n", b"last"):
        os.write(pipe, part)
        await anyio.lowlevel.checkpoint()
    os.close(pipe)
    found = await lines(logged, 5)
    assert [line["line"] for line in found] == ["one", "two", "مدل", "\ufffd\ufffd", "last"]
    assert {line["model"] for line in found} == {"a@1"}


async def test_a_report_is_an_error_with_its_trace(pipe: int, logged: list[Any]) -> None:
    """It is told from what libraries print; something that only looks like one is a line."""
    try:
        raise ValueError("why")
    except ValueError as error:
        os.write(pipe, msgspec.json.encode(Report(serai="it failed", trace=trace_of(error))) + b"\n")
    os.write(pipe, b'{"serai": 5}\n{"serai":"x","more":1}\n')
    os.close(pipe)
    first, *others = await lines(logged, 3)
    assert (first["event"], first["log_level"], first["problem"]) == ("worker_failed", "error", "it failed")
    assert first["trace"].endswith("ValueError: why\n")
    assert [line["event"] for line in others] == ["worker_output"] * 2


async def test_a_flood_is_counted_and_reports_come_through(pipe: int, logged: list[Any], clock: ManualClock) -> None:
    """So many lines in a window, and reports apart from them; the next window begins with what was dropped."""
    os.write(pipe, b"x\n" * (MAX_LINES + 7))
    os.write(pipe, report("late") * (MAX_REPORTS + 2))
    await lines(logged, MAX_LINES + MAX_REPORTS)
    clock.advance(WINDOW_S)
    os.write(pipe, b"again\n")
    os.close(pipe)
    found = await lines(logged, MAX_LINES + MAX_REPORTS + 2)
    kinds = [line["event"] for line in found]
    assert kinds.count("worker_output") == MAX_LINES + 1
    assert kinds.count("worker_failed") == MAX_REPORTS
    assert found[-2] == {"event": "worker_output_dropped", "model": "a@1", "lines": 9, "log_level": "warning"}
    assert found[-1]["line"] == "again"


async def test_a_line_without_end_costs_no_memory(pipe: int, logged: list[Any]) -> None:
    """Its beginning is kept; the line after it is whole."""
    for _ in range(200):
        os.write(pipe, b"x" * 50_000)
        await anyio.sleep(0.001)
    os.write(pipe, b"\nnext\n")
    os.close(pipe)
    first, second = await lines(logged, 2)
    assert set(first["line"]) == {"x"}
    assert len(first["line"]) == 4000
    assert second["line"] == "next"


def test_a_long_trace_is_cut_at_its_beginning() -> None:
    """The error's own line stays, lines are whole, and the report fits into one piece of a pipe."""

    def dig(depth: int) -> None:
        if not depth:
            raise KeyError("here")
        if depth % 2:  # two kinds of line: equal ones would be folded
            dig(depth - 1)
        else:
            dig(depth - 1)

    with pytest.raises(KeyError) as raised:
        dig(200)
    trace = trace_of(raised.value)
    assert trace.endswith("KeyError: 'here'\n")
    assert trace.splitlines()[0].startswith("  ")
    assert len(msgspec.json.encode(Report(serai="it failed", trace=trace))) < 4096
