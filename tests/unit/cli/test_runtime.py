"""`serai ps` on a narrow terminal."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from serai.cli.output import table
from serai.cli.runtime import COLUMNS, line

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LONG = "qwen3-0.6b-instruct-2507-persian@12.10.3-rc.1"


def loaded(**values: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "versions": ["m@1.0.0"],
        "engine": "openvino-genai",
        "device": "cuda:0",
        "state": "ready",
        "bytes": 3 * 2**30,
        "in_flight": 0,
        "pinned": False,
        "expires_at": None,
    }
    return known | values


def test_only_names_are_folded_on_eighty_columns() -> None:
    """However long they are: what stands beside them stays on one line, and nothing is wider than the terminal."""
    rows = [line(loaded(versions=[LONG, "other@1.0.0"], state="unloading", pinned=True), NOW)]
    rows.append(line(loaded(in_flight=12, bytes=1023 * 2**20), NOW))
    printed = io.StringIO()
    Console(file=printed, width=80).print(table(rows, COLUMNS, "versions"))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for cell in (*COLUMNS, "openvino-genai", "cuda:0", "3.0 GiB", "1023 MiB", "unloading", "12 in use", "pinned"):
        assert any(cell in one for one in lines), cell
    assert LONG in "".join(one.strip().split(" ")[0] for one in lines)


@pytest.mark.parametrize(
    ("values", "state", "expires"),
    [
        ({"expires_at": NOW + timedelta(seconds=99)}, "ready", "in 99 s"),
        ({"expires_at": NOW + timedelta(minutes=5)}, "ready", "in 5 min"),
        ({"expires_at": NOW + timedelta(hours=3)}, "ready", "in 3 h"),
        ({"expires_at": NOW + timedelta(days=9)}, "ready", "in 9 d"),
        ({"expires_at": NOW - timedelta(seconds=9)}, "ready", "in 0 s"),
        ({"pinned": True, "expires_at": None}, "ready", "pinned"),
        ({}, "ready", "never"),
        ({"in_flight": 2}, "2 in use", "-"),
        ({"state": "loading"}, "loading", "-"),
        ({"state": "draining", "in_flight": 1}, "draining", "-"),
    ],
)
def test_the_end_of_its_stay_is_told_from_now_on(values: dict[str, Any], state: str, expires: str) -> None:
    """In a unit that fits; what is used, comes or goes has none."""
    if values.get("expires_at") is not None:
        values = {**values, "expires_at": values["expires_at"].isoformat().replace("+00:00", "Z")}
    told = line(loaded(**values), NOW)
    assert (told["state"], told["expires"]) == (state, expires)
