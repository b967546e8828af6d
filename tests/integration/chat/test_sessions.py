"""Sessions: their history is kept, for their owner, for as long as they are used, one message at a time."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serai.auth.callers import NOBODY_ASKED
from serai.chat.errors import SessionNotFound
from serai.clock import ManualClock
from serai.registry.source import HubSource
from serai.registry.version import Status
from serai.storage.database import Database
from support.chat_stage import ChatStage, chatting, data_of
from support.waiting import eventually

pytestmark = pytest.mark.anyio


async def session(chats: ChatStage, **body: Any) -> str:
    made = await chats.post("/sessions", **{"model": "m", **body})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def say(chats: ChatStage, id_: str, content: str, **body: Any) -> str:
    answer = await chats.post(f"/sessions/{id_}/messages", content=content, **body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return str(answer.json()["message"]["content"])
    frames = [json.loads(frame) for frame in data_of(answer.text)]
    return "".join(frame["delta"].get("content", "") for frame in frames)


async def history(chats: ChatStage, id_: str) -> list[str]:
    body = (await chats.client.get(f"/sessions/{id_}")).json()
    return [f"{message['role']}: {message['content']}" for message in body["messages"]]


async def test_each_message_knows_the_ones_before(chats: ChatStage) -> None:
    """Whole and streamed answers are kept alike, in order, behind the system's word."""
    chats.model("m")
    id_ = await session(chats, system="Kind.")
    assert await say(chats, id_, "a") == "Kind. User: a Assistant:"
    second = await say(chats, id_, "b", stream=True)
    assert second == "Kind. User: a Assistant: Kind. User: a Assistant: User: b Assistant:"
    assert await history(chats, id_) == [
        "system: Kind.",
        "user: a",
        "assistant: Kind. User: a Assistant:",
        "user: b",
        f"assistant: {second}",
    ]


@pytest.mark.parametrize("query", ["", "?dry_run=1"])
async def test_a_session_that_nobody_could_answer_is_not_begun(chats: ChatStage, query: str) -> None:
    """Refused exactly as POST /chat is: no such model or service, another task, not pulled; nothing is loaded."""
    chats.model("m", fail="load")
    chats.model("vectors", task="embedding")
    hub = HubSource(repo="o/n", revision="main")
    chats.stage.desk.model("far", status=Status.DRAFT, source=hub)
    chats.stage.desk.model("lips", task="lip-sync", status=Status.DRAFT, source=hub)
    for who, status in (
        ({"model": "nope"}, 404),
        ({"service": "nope"}, 404),
        ({"model": "vectors"}, 422),
        ({"model": "lips"}, 422),
        ({"model": "far"}, 404),
    ):
        made = await chats.post(f"/sessions{query}", **who)
        asked = await chats.post("/chat", messages=[{"role": "user", "content": "x"}], **who)
        assert made.status_code == asked.status_code == status, (who, made.text)
        assert made.json()["error"]["code"] == asked.json()["error"]["code"]
    assert (await chats.post(f"/sessions{query}")).status_code == 422
    assert (await chats.post(f"/sessions{query}", model="m")).is_success
    assert not await chats.parts.serving.loaded()


async def test_the_model_is_told_the_last_messages(chats: ChatStage) -> None:
    """No more than `max_history`, and always the system's word; all of them are kept."""
    chats.model("m", tokens=1)
    id_ = await session(chats, system="Kind.", max_history=2)
    for text in "abcd":
        await say(chats, id_, text)
    told = await say(chats, id_, "e", max_tokens=100)
    assert told.split()[0] == "Kind."
    assert len(await history(chats, id_)) == 11


async def test_what_holds_for_the_session_holds_for_each_message(chats: ChatStage) -> None:
    """Until a message says something else."""
    chats.model("m")
    id_ = await session(chats, max_tokens=1, stop=["x"], logit_bias={})
    assert await say(chats, id_, "a b c") == "User:"
    assert await say(chats, id_, "a b c", max_tokens=2) == "User: a"


async def test_one_message_is_answered_at_a_time(chats: ChatStage, tmp_path: Path) -> None:
    """The second one gets 409 and is not kept; when the first is answered the session is free again."""
    gate = tmp_path / "gate"
    chats.model("m", step_gate=str(gate))
    id_ = await session(chats)
    first = asyncio.create_task(say(chats, id_, "a"))

    async def goes_on() -> bool:
        return bool(chats.stage.serving.answers)

    await eventually(goes_on)
    second = await chats.post(f"/sessions/{id_}/messages", content="b")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "SESSION_BUSY")
    assert second.headers["retry-after"] == "1"
    gate.touch()
    assert await first == "User: a Assistant:"
    assert len(await history(chats, id_)) == 2
    await say(chats, id_, "c")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_fails_leaves_nothing_behind(chats: ChatStage, stream: bool) -> None:
    """Neither the message nor half an answer, and the session is free."""
    chats.model("m", fail="run", fail_after=1)
    id_ = await session(chats)
    for _ in range(2):
        answer = await chats.post(f"/sessions/{id_}/messages", content="a", stream=stream)
        assert answer.status_code == (200 if stream else 503), answer.text
    assert await history(chats, id_) == []


async def test_a_turn_that_takes_too_long_leaves_nothing_behind(chats: ChatStage) -> None:
    """408, and the session is free for the same message again."""
    chats.model("m", tokens=10_000, step_s=0.01)
    id_ = await session(chats)
    answer = await chats.post(f"/sessions/{id_}/messages", content="a", timeout=2)
    assert answer.status_code == 408, answer.text
    assert await history(chats, id_) == []
    assert await say(chats, id_, "a", max_tokens=1) == "User:"


async def test_a_refused_message_does_not_hold_the_session(chats: ChatStage) -> None:
    """What is wrong with it is said, and the next one is answered."""
    chats.model("m")
    id_ = await session(chats)
    for wrong in ({"content": 5}, {"content": "a", "temperature": 9}, {"content": "a", "think": True}):
        refused = await chats.client.post(f"/sessions/{id_}/messages", json=wrong)
        assert refused.status_code == 422, refused.text
    assert await say(chats, id_, "a") == "User: a Assistant:"


async def test_a_session_is_its_owners_alone(chats: ChatStage) -> None:
    """For anybody else it is not there, not even for reading."""
    chats.model("m")
    id_ = await session(chats)
    with pytest.raises(SessionNotFound):
        await chats.parts.sessions.get(id_, owner_id="user_other", last=1)
    with pytest.raises(SessionNotFound):
        await chats.parts.sessions.begin(id_, owner_id="user_other", timeout_s=1)
    with pytest.raises(SessionNotFound):
        await chats.parts.sessions.delete(id_, owner_id="user_other")
    assert (await chats.client.get(f"/sessions/{id_}")).status_code == 200


async def test_a_session_can_be_removed_and_rehearsed(chats: ChatStage) -> None:
    """With `dry_run=1` nothing happens."""
    chats.model("m")
    rehearsed = await chats.client.post("/sessions?dry_run=1", json={"model": "m"})
    assert rehearsed.json()["changes"][0]["action"] == "sessions.create"
    id_ = await session(chats)
    assert (await chats.client.delete(f"/sessions/{id_}?dry_run=1")).json()["dry_run"] is True
    assert (await chats.client.delete(f"/sessions/{id_}")).status_code == 204
    assert (await chats.client.delete(f"/sessions/{id_}")).status_code == 404
    assert (await chats.post("/sessions", model="m", service="s")).status_code == 422


@pytest.fixture
async def timed(database: Database, tmp_path: Path, anyio_backend: str) -> AsyncIterator[SimpleNamespace]:
    """Sessions on each database, with a clock that stands still."""
    clock = ManualClock()
    async with chatting(database, tmp_path, clock=clock) as opened:
        yield SimpleNamespace(sessions=opened.parts.sessions, clock=clock, chats=opened)


OWNER = NOBODY_ASKED.user_id


async def make(timed: SimpleNamespace, **values: Any) -> str:
    made = await timed.sessions.create(owner_id=OWNER, model="m", service=None, options={}, **values)
    return str(made.id)


async def test_a_session_ends_when_it_was_not_used(timed: SimpleNamespace) -> None:
    """An hour after its last message it is not there any more, and then its rows go."""
    id_ = await make(timed)
    timed.clock.advance(3599)
    turn = await timed.sessions.begin(id_, owner_id=OWNER, timeout_s=10)
    assert await timed.sessions.finish(turn, [])
    timed.clock.advance(3599)
    assert (await timed.sessions.get(id_, owner_id=OWNER, last=1))[0].id == id_
    assert await timed.sessions.prune(timed.clock.now()) == 0
    timed.clock.advance(2)
    with pytest.raises(SessionNotFound):
        await timed.sessions.get(id_, owner_id=OWNER, last=1)
    assert await timed.sessions.prune(timed.clock.now()) == 1


async def test_what_a_dead_server_held_is_free_after_a_while(timed: SimpleNamespace) -> None:
    """And what it still wanted to keep is not kept: another one may have answered since."""
    id_ = await make(timed)
    lost = await timed.sessions.begin(id_, owner_id=OWNER, timeout_s=10)
    timed.clock.advance(41)
    again = await timed.sessions.begin(id_, owner_id=OWNER, timeout_s=10)
    assert not await timed.sessions.finish(lost, [])
    assert await timed.sessions.finish(again, [])


async def test_turns_at_the_same_time_are_one(timed: SimpleNamespace) -> None:
    """Of many that begin at once one gets the session."""
    id_ = await make(timed)
    begun = await asyncio.gather(
        *(timed.sessions.begin(id_, owner_id=OWNER, timeout_s=10) for _ in range(10)), return_exceptions=True
    )
    assert sum(not isinstance(one, BaseException) for one in begun) == 1
