"""Ollama's forms: durations, options, pulls told in its words, errors as one text."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serai.api.ollama.errors import respond
from serai.api.ollama.pull import _lines
from serai.api.ollama.wire import format_of, sampling_of
from serai.chat.keep_alive import keep_alive_of
from serai.errors import DeadlineExceeded, InvalidInput, NotFound, RateLimited, Unavailable
from serai.events import Done, Event, Failed, Progress, Queued


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (0, 0), (30, 30), (-1, -1), ("0", 0), ("300", 300), ("10m", 600), ("1h30m", 5400), ("-1m", -1),
     ("-1", -1), ("1.5s", 1.5), ("500ms", 0.5), ("24h", 86400)],
)  # fmt: skip
def test_a_keep_alive_is_seconds_or_a_duration(given: Any, seconds: float | None) -> None:
    """As Go writes durations; negative means for ever."""
    assert keep_alive_of(given) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("given", ["soon", "10 m", "m", "", "1d", "10m5", "9" * 400, "99999h", "1e5"])
def test_a_keep_alive_that_is_none_is_refused(given: str) -> None:
    """By name."""
    with pytest.raises(InvalidInput, match="keep_alive"):
        keep_alive_of(given)


def test_options_become_sampling() -> None:
    """Under our names; what means 'as usual' and what only concerns the machine goes nowhere."""
    options = {"num_predict": 5, "repeat_penalty": 1.1, "seed": 7, "stop": ["x"], "num_ctx": 1, "mirostat": 0}
    assert sampling_of(options) == {"max_tokens": 5, "repetition_penalty": 1.1, "seed": 7, "stop": ("x",)}
    assert sampling_of({"num_predict": -1, "seed": -1, "temperature": None}) == {}
    assert sampling_of(None) == {}
    for wrong in ({"num_predict": 0}, {"num_predict": -3}, {"mirostat": 2}, {"unknown": 1}, {"top_k": 1.5}):
        with pytest.raises(InvalidInput, match=f"options.{next(iter(wrong))}"):
            sampling_of(wrong)


def test_a_format_is_json_or_a_schema() -> None:
    """In the form that the rest of the server knows."""
    assert format_of("") is None
    assert format_of("json") == {"type": "json_object"}
    assert format_of({"type": "object"}) == {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


async def lines(*events: Event) -> list[Any]:
    async def follow() -> AsyncGenerator[Event, None]:
        for event in events:
            yield event

    text = b"".join([line async for line in _lines(follow())]).decode()
    assert "\n\n" not in text
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.anyio
async def test_a_pull_is_told_in_ollamas_words() -> None:
    """Manifest, bytes, verification, success; a step that says nothing new is no line."""
    step = {"stage": "download", "unit": "bytes", "total": 10}
    told = await lines(
        Queued(position=1),
        Progress(stage="resolve"),
        Progress(**step, done=5),
        Progress(**step, done=5),
        Progress(**step, done=10),
        Progress(stage="verify"),
        Done(result={"model_id": "m", "version": "1.0.0"}),
    )
    assert [line["status"] for line in told] == [
        "pulling manifest",
        "pulling weights",
        "pulling weights",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert [(line["completed"], line["total"]) for line in told[1:3]] == [(5, 10), (10, 10)]


@pytest.mark.anyio
async def test_a_pull_never_goes_back() -> None:
    """Stored events repeat live ones, and an attempt begins anew: neither is a line. The bytes come to their end."""
    step = {"stage": "download", "unit": "bytes", "total": 10}
    told = await lines(
        Progress(stage="resolve", fraction=0.0),
        Progress(**step, done=0, fraction=0.0),
        Progress(stage="started", detail={"attempt": 1}),
        Progress(**step, done=8, fraction=0.48),
        Progress(stage="resolve", fraction=0.0),
        Progress(**step, done=3, fraction=0.18),
        Progress(stage="convert", fraction=0.65, done=10, total=10),
        Progress(**step, done=10, fraction=0.6),
        Progress(stage="register", fraction=0.95, done=10, total=10),
        Done(result={}),
    )
    assert [line["completed"] for line in told if "completed" in line] == [0, 8, 10]
    statuses = [line["status"] for line in told if "completed" not in line]
    assert statuses == ["pulling manifest", "converting weights", "writing manifest", "success"]


@pytest.mark.anyio
async def test_a_pull_that_fails_ends_with_its_error() -> None:
    """As a line with the remedy."""
    told = await lines(Failed.of(NotFound("There is no such repository.", hint="Look at its name.")))
    assert told[-1] == {"error": "There is no such repository. Look at its name."}


@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidInput("x"), 400), (NotFound("x"), 404), (RateLimited("x", retry_after=3), 429), (Unavailable("x"), 503)],
)
def test_an_error_is_one_text_with_its_status(error: Any, status: int) -> None:
    """And says when to come back, where that is known."""
    answer = respond(error)
    assert answer.status_code == status
    assert json.loads(bytes(answer.body))["error"].startswith("x")
    assert answer.headers.get("retry-after") == ("3" if status == 429 else None)


def test_what_took_its_whole_time_is_not_to_be_tried_again() -> None:
    """The header that clients read says so."""
    assert respond(DeadlineExceeded("Late.")).headers["x-should-retry"] == "false"
