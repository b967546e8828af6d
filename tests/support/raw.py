"""Requests to the application in this process, byte for byte: no client corrects what is sent."""

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI

from support.scrub import check_error

HOST = (b"host", b"127.0.0.1:8713")


@dataclass(frozen=True)
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    app: FastAPI, method: str, target: str, *headers: tuple[str, str], body: bytes = b"", host: bool = True
) -> RawAnswer:
    """Call the application as the server does for `method target` (path and query as on the wire, in ASCII)."""
    path, mark, query = target.partition("?")
    given = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8713),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "root_path": "",
        "headers": [*([HOST] if host else []), *given],
        "state": {},
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii") if mark else b"",
    }
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        await answered.wait()  # it stays on the line until it has its answer
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    await app(scope, receive, send)
    start = sent[0]
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    answer = RawAnswer(start["status"], fields, b"".join(message.get("body", b"") for message in sent[1:]))
    if answer.status >= 400:
        said = " ".join((target, body.decode("utf-8", "replace"), *(value for _, value in headers)))
        check_error(answer.status, fields.get("content-type", ""), answer.body, path=path, said=said)
    return answer
