"""A stand-in for another server that speaks OpenAI's API, on loopback: it answers properly unless told otherwise.

Left alone it repeats the last message or the prompt word by word. `behave` puts something else in a path's
place: an answer byte for byte, or a coroutine that writes what it likes, when it likes.

    python tests/support/upstream.py PORT [WORDS]     prints its endpoint, serves until it is ended

WORDS is the length of every answer.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

LOOPBACK = "127.0.0.1"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


Behaviour = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def reply(status: int, body: bytes | dict[str, Any], **headers: str) -> bytes:
    """Return a whole answer; `headers` with underscores for dashes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Told\r\n{head}\r\n".encode("latin-1") + content


def chunk(content: str | None = None, *, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """Return a chunk of a chat; `more` goes into its delta."""
    delta = ({} if content is None else {"content": content}) | more
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """Return the chunk that tells the usage."""
    told = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [], "usage": told}


def event(value: dict[str, Any] | str) -> bytes:
    """Return one server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def framed(data: bytes) -> bytes:
    """Return one chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def streams(*values: dict[str, Any] | str | bytes, done: bool = True, cut: bool = False, step: int = 0) -> Behaviour:
    """Return a behaviour that streams these events; bytes go as they are.

    `cut` closes the connection behind the last of them; `step` sends so many bytes at a time.
    """
    events = [value if isinstance(value, bytes) else event(value) for value in values]
    if done and not cut:
        events.append(event("[DONE]"))
    if step:
        joined = b"".join(events)
        events = [joined[at : at + step] for at in range(0, len(joined), step)]

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for one in events:
            writer.write(framed(one))
            await writer.drain()
        if cut:
            writer.transport.abort()
        else:
            writer.write(END)

    return behave


@dataclass
class Upstream:
    """The server. `async with Upstream() as upstream: … upstream.endpoint …`."""

    port: int = 0
    words: int = 0
    """Words of each answer; 0: as many as the prompt has."""
    requests: list[Asked] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client went away before its answer was over."""
    _behaviours: dict[str, Behaviour] = field(default_factory=dict)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port, limit=64 * 1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def behave(self, path: str, behaviour: Behaviour | bytes) -> None:
        """Answer `path` ('/chat/completions') so from now on."""

        async def told(asked: Asked, writer: asyncio.StreamWriter) -> None:
            assert isinstance(behaviour, bytes)
            writer.write(behaviour)

        self._behaviours[f"/v1{path}"] = told if isinstance(behaviour, bytes) else behaviour

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                asked = await _read(reader)
                self.requests.append(asked)
                await self._answer(asked, reader, writer)
        writer.close()

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = asked.path.partition("?")[0]
        behaviour = self._behaviours.get(path) or {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
            "/v1/embeddings": self._embed,
        }.get(path)
        if behaviour is None:
            writer.write(reply(404, {"error": {"message": "no such path", "type": "invalid_request_error"}}))
            return
        answering = asyncio.ensure_future(behaviour(asked, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() or isinstance(answering.exception(), ConnectionError):
                self.gone.set()
                writer.close()
                return
            await answering
            await writer.drain()
        finally:
            for future in (answering, leaving):
                future.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _chat(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        last = asked.body["messages"][-1]["content"]
        text = last if isinstance(last, str) else " ".join(part.get("text", "") for part in last)
        await self._repeat(asked.body, text.split(), writer, chunk)

    async def _complete(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        def piece(content: str | None = None, *, finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "text": content or "", "logprobs": None, "finish_reason": finish}
            return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}

        await self._repeat(asked.body, asked.body["prompt"].split(), writer, piece)

    async def _repeat(
        self, body: dict[str, Any], words: Sequence[str], writer: asyncio.StreamWriter, piece: Callable[..., Any]
    ) -> None:
        answer = [words[at % len(words)] for at in range(self.words)] if self.words else list(words)
        told = answer[: body.get("max_tokens") or body.get("max_completion_tokens")]
        finish = "stop" if len(told) == len(answer) else "length"
        if not body.get("stream"):
            whole = piece(" ".join(told), finish=finish)
            choice = whole["choices"][0]
            choice["message"] = {"role": "assistant", **choice.pop("delta", {})}
            writer.write(reply(200, whole | {"usage": usage(len(words), len(told))["usage"]}))
            return
        writer.write(STREAM_HEAD)
        for number, word in enumerate(told):
            writer.write(framed(event(piece(word if number == 0 else f" {word}"))))
            await writer.drain()
        ends = [piece(finish=finish)]
        if body.get("stream_options", {}).get("include_usage"):
            ends.append(usage(len(words), len(told)))
        writer.write(b"".join(framed(event(end)) for end in (*ends, "[DONE]")) + END)

    async def _embed(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        given = asked.body["input"]
        texts = [given] if isinstance(given, str) else given
        rows = [
            {"object": "embedding", "index": at, "embedding": [float(len(text)), 1.0, 0.5]}
            for at, text in enumerate(texts)
        ]
        tokens = sum(len(text.split()) for text in texts)
        told = {"prompt_tokens": tokens, "total_tokens": tokens}
        writer.write(reply(200, {"object": "list", "data": rows, "model": "m", "usage": told}))


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (entry.partition(": ") for entry in fields)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(path=line.split()[1], headers=headers, content=content)


async def _main(port: int, words: int) -> None:
    async with Upstream(port=port, words=words) as upstream:
        sys.stdout.write(f"{upstream.endpoint}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
