"""POST /chat: the answer in one piece with durations and counts, or as frames; and what is told while it waits."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from support.chat_stage import ChatStage, data_of
from support.waiting import eventually

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "one two"}]
TEXT = "User: one two Assistant:"


async def frames(chats: ChatStage, **body: Any) -> list[Any]:
    answer = await chats.post("/chat", **{"model": "m", "stream": True, "messages": HI, **body})
    assert answer.status_code == 200, answer.text
    return [json.loads(frame) for frame in data_of(answer.text)]


async def test_an_answer_in_one_piece(chats: ChatStage) -> None:
    """Message, reason, durations in nanoseconds, counts, and the decision."""
    chats.model("m")
    body = (await chats.post("/chat", model="m", messages=HI)).json()
    assert (body["model"], body["done"], body["done_reason"]) == ("m@1.0.0", True, "stop")
    assert body["message"] == {"role": "assistant", "content": TEXT}
    assert (body["prompt_eval_count"], body["eval_count"]) == (4, 4)
    assert body["total_duration"] >= body["load_duration"] >= 0
    assert body["usage"]["total_tokens"] == 8
    assert body["decision"]["reason"] == "default"


async def test_an_answer_as_frames(chats: ChatStage) -> None:
    """Deltas that are not done, then an empty one that is, with the usage."""
    chats.model("m")
    *said, last = await frames(chats)
    assert said[0] == {"delta": {"content": "User:"}, "done": False}
    assert "".join(frame["delta"]["content"] for frame in said) == TEXT
    assert (last["delta"], last["done"], last["usage"]["completion_tokens"]) == ({}, True, 4)


async def test_a_service_answers_by_its_name(chats: ChatStage) -> None:
    """As `service`, or as `model`."""
    chats.model("m")
    chats.stage.service("m")
    for body in ({"service": "s"}, {"model": "s"}):
        answer = await chats.post("/chat", messages=HI, **body)
        assert answer.json()["decision"]["service"] == "s"


@pytest.mark.parametrize("keep_alive", [60, 0.5, "10m", "1h30m", "60", -1, 0])
async def test_how_long_a_model_stays_is_said_in_seconds_or_as_a_duration(chats: ChatStage, keep_alive: Any) -> None:
    """In the same forms as Ollama's clients have, at every call."""
    chats.model("m")
    for path in ("/chat", "/v1/chat/completions"):
        assert (await chats.post(path, model="m", messages=HI, keep_alive=keep_alive)).status_code == 200
    assert (await chats.post("/v1/responses", model="m", input="x", keep_alive=keep_alive)).status_code == 200


@pytest.mark.parametrize("keep_alive", ["10 minutes", "", True, [], 10**9, "x"])
async def test_another_word_for_how_long_is_refused(chats: ChatStage, keep_alive: Any) -> None:
    """422 with the field and nothing behind it."""
    chats.model("m")
    answer = await chats.post("/chat", model="m", messages=HI, keep_alive=keep_alive)
    assert (answer.status_code, answer.json()["error"]["details"][0]["field"]) == (422, "keep_alive")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"timeout": "x"}, "timeout"),
        ({"stop": 5}, "stop"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ],
)
async def test_a_wrong_field_is_named_as_it_was_sent(chats: ChatStage, given: dict[str, Any], field: str) -> None:
    """Without the types that it might have had."""
    chats.model("m")
    answer = await chats.post("/chat", **{"model": "m", "messages": HI, **given})
    (entry,) = answer.json()["error"]["details"]
    assert (answer.status_code, entry["field"]) == (422, field)


async def test_what_an_engine_finds_wrong_keeps_its_details(chats: ChatStage) -> None:
    """From the worker to the caller: the field, in both dialects."""
    chats.model("m", fail="invalid")
    native = await chats.post("/chat", model="m", messages=HI)
    assert (native.status_code, native.json()["error"]["details"][0]["field"]) == (422, "task")
    openai = await chats.post("/v1/chat/completions", model="m", messages=HI)
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "task")


@pytest.mark.parametrize("seconds", [0, 0.5, 601, -1])
async def test_a_timeout_out_of_bounds_is_an_error(chats: ChatStage, seconds: float) -> None:
    """Not a default: 422 that names the field and its bounds."""
    chats.model("m")
    answer = await chats.post("/chat", model="m", messages=HI, timeout=seconds)
    assert (answer.status_code, "1 to 600" in answer.json()["error"]["message"]) == (422, True)


async def test_a_timeout_tells_what_was_generated(chats: ChatStage) -> None:
    """408, not to be tried again; in a stream the last frame says so."""
    chats.model("m", tokens=10_000, step_s=0.01)
    await chats.post("/chat", model="m", messages=HI, max_tokens=1)  # loads it
    answer = await chats.post("/chat", model="m", messages=HI, timeout=2)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (408, "false"), answer.text
    error = answer.json()["error"]
    partial = error["details"]["partial"]
    assert (error["code"], partial["done_reason"]) == ("DEADLINE_EXCEEDED", "timeout")
    assert partial["message"]["content"].startswith("User: one")
    assert partial["eval_count"] > 0
    assert {"usage", "prompt_eval_count", "prompt_eval_duration"}.isdisjoint(partial)  # nobody told them
    *_, last = await frames(chats, timeout=2)
    assert (last["done"], last["done_reason"], last["error"]["code"]) == (True, "timeout", "DEADLINE_EXCEEDED")
    assert "usage" not in last


async def test_a_failure_in_a_stream_is_its_last_frame(chats: ChatStage) -> None:
    """With the envelope that every error has."""
    chats.model("m", fail="run", fail_after=1)
    first, last = await frames(chats)
    assert first["delta"] == {"content": "User:"}
    assert (last["done"], last["done_reason"], last["error"]["code"]) == (True, "error", "ENGINE_FAILED")


async def test_waiting_is_told_to_who_asks_for_it(chats: ChatStage, tmp_path: Path) -> None:
    """The stream opens at once, and tells the load before the first word."""
    gate = tmp_path / "gate"
    chats.model("m", load_gate=str(gate))
    asked = asyncio.create_task(frames(chats, progress=True))

    async def is_loading() -> bool:
        return bool(await chats.stage.serving.loaded())

    await eventually(is_loading)
    gate.touch()
    told = await asked
    statuses = [frame["status"]["type"] for frame in told if "status" in frame]
    assert "loading" in statuses
    assert told[-1]["done"]


async def test_tokens_are_counted_against_the_key(chats: ChatStage) -> None:
    """What an answer used is spent; who has used up the minute's tokens is refused before anything runs."""
    chats.model("m")
    chats.parts.limiter._defaults = chats.parts.limiter._defaults.__class__(
        per_minute=10**6, per_hour=10**6, tokens_per_minute=8, address_per_minute=10**6
    )
    assert (await chats.post("/chat", model="m", messages=HI)).status_code == 200
    refused = await chats.post("/chat", model="m", messages=HI)
    assert (refused.status_code, "tokens" in refused.json()["error"]["message"]) == (429, True), refused.text
