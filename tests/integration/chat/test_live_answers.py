"""Who leaves stops the work: before the first word and after it, streamed or not. And silence is filled."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from serai.api.answers import Live
from serai.auth.callers import NOBODY_ASKED
from serai.chat.chats import Ask
from serai.chat.messages import Message
from support.chat_stage import ChatStage
from support.waiting import eventually

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "one two"}]
CALLS = {
    "/chat": {"messages": HI},
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "one two"},
    "/v1/responses": {"input": "one two"},
    "/api/chat": {"messages": HI},
    "/api/generate": {"prompt": "one two"},
}


class Client:
    """A connection to the application; `leave` is what a client does that closes it."""

    def __init__(self, chats: ChatStage, path: str, **body: Any) -> None:
        self._body = json.dumps(body).encode()
        self._gone = asyncio.Event()
        self._has_asked = False
        self.sent: list[Any] = []
        self.arrived = asyncio.Event()
        headers = [(b"host", b"127.0.0.1:8713"), (b"content-type", b"application/json")]
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http"}
        scope |= {"client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8713), "root_path": ""}
        self.over = asyncio.create_task(chats.app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.arrived.set()

    def leave(self) -> None:
        self._gone.set()


async def in_flight(chats: ChatStage) -> int:
    """Return how many runs the loaded models have."""
    return sum(one.loaded.in_flight for one in await chats.stage.serving.loaded())


async def is_idle(chats: ChatStage) -> bool:
    return await in_flight(chats) == 0


async def goes_on(chats: ChatStage) -> bool:
    """Say whether a call goes on."""
    return bool(chats.stage.serving.answers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", CALLS)
async def test_leaving_before_the_first_word_stops_the_work(
    chats: ChatStage, tmp_path: Path, path: str, stream: bool
) -> None:
    """Nothing was sent, nothing goes on, and the model is free for the next."""
    chats.model("m", step_gate=str(tmp_path / "never"))
    client = Client(chats, path, model="m", stream=stream, **CALLS[path])
    await eventually(lambda: in_flight(chats))
    client.leave()
    await client.over
    assert chats.stage.serving.answers == ()
    assert [message for message in client.sent if message.get("body")] == []
    await eventually(lambda: is_idle(chats))


@pytest.mark.parametrize("path", CALLS)
async def test_leaving_in_the_middle_of_a_stream_stops_the_work(chats: ChatStage, path: str) -> None:
    """The answer would have gone on for hours."""
    chats.model("m", tokens=10_000, step_s=0.01)
    client = Client(chats, path, model="m", stream=True, **{**CALLS[path], **_long(path)})
    await client.arrived.wait()
    client.leave()
    await client.over
    assert chats.stage.serving.answers == ()


def _long(path: str) -> dict[str, Any]:
    return {"max_tokens": 10**6} if path == "/v1/completions" else {}


async def test_leaving_while_the_model_loads_leaves_the_queue(chats: ChatStage, tmp_path: Path) -> None:
    """Also where nothing is streamed."""
    chats.model("m", load_gate=str(tmp_path / "gate"))
    client = Client(chats, "/chat", model="m", messages=HI)
    await eventually(lambda: goes_on(chats))
    client.leave()
    await client.over
    assert chats.stage.serving.answers == ()
    (tmp_path / "gate").touch()


async def never() -> AsyncGenerator[bytes, None]:
    """Say one thing, then nothing."""
    yield b"data: 1\n\n"
    await asyncio.Event().wait()


async def test_silence_is_filled_with_comments() -> None:
    """Between frames, never within one, and none after the end."""
    sent: list[bytes] = []
    beats = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b": still here\n\n") == 3:
            beats.set()

    async def receive() -> Any:
        await beats.wait()
        return {"type": "http.disconnect"}

    await Live(never(), {}, every_s=0.01)({"type": "http"}, receive, send)
    assert sent[:2] == [b"", b"data: 1\n\n"]
    assert set(sent[2:]) == {b": still here\n\n"}


async def test_lines_get_no_heartbeat() -> None:
    """A blank line would break every client that reads JSON line by line."""
    sent: list[bytes] = []
    said = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if message.get("body"):
            said.set()

    async def receive() -> Any:
        await said.wait()
        for _ in range(20):
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    await Live(never(), {}, heartbeat=None, every_s=0.005)({"type": "http"}, receive, send)
    assert sent == [b"", b"data: 1\n\n"]


async def test_what_breaks_in_a_stream_is_raised() -> None:
    """A defect is not taken for the end of an answer."""

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise ZeroDivisionError

    async def send(message: Any) -> None:
        pass

    async def receive() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(ZeroDivisionError):
        await Live(broken(), {})({"type": "http"}, receive, send)


async def test_a_reply_that_nobody_began_to_read_is_closed(chats: ChatStage) -> None:
    """The client left between the headers and the first frame."""
    chats.model("m", tokens=10_000, step_s=0.01)
    ask = Ask(model="m", messages=(Message(role="user", parts=("x",)),))
    reply = await chats.parts.chats.open(ask, NOBODY_ASKED)
    stuck = asyncio.Event()

    async def send(message: Any) -> None:
        await stuck.wait()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await Live(never(), {}, reply=reply)({"type": "http"}, receive, send)
    assert chats.stage.serving.answers == ()
