"""The way in: render a chat template within bounds of time and size, or say in one clear error why not."""

import asyncio
import contextlib
import hashlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from serai.chat.errors import RendererUnavailable, TemplateFailed
from serai.chat.rendering.messages import (
    HEADER_BYTES,
    MAX_OUTPUT_CHARACTERS,
    MAX_SOURCE_CHARACTERS,
    READY,
    Refused,
    Render,
    Rendered,
    Reply,
    Unknown,
    decode_reply,
    framed,
)
from serai.clock import Clock

START_SECONDS = 60.0
QUARANTINE_SECONDS = 60.0
"""How long a template that had to be killed is refused at once, so that it does not hold up the others again."""
_MAX_REPLY = 4 * MAX_OUTPUT_CHARACTERS + 1024
_TEXTS = {
    "raised": "The model's chat template refuses these messages",
    "broken": "The model's chat template is broken",
    "forbidden": "The model's chat template reaches for what a template may not touch",
    "too_long": "The model's chat template makes a prompt that is too long",
    "memory": "The model's chat template takes more memory than is allowed",
}


class _Child:
    """A running child with its socket."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process = process
        self.connection = connection

    @classmethod
    def start(cls) -> "_Child":
        """Return a child that is ready. Blocks; raises RendererUnavailable.

        It dies with the thread that calls this, not only with the process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "serai.chat.rendering.child"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )
        child = cls(process, ours)
        ours.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):
            if ours.recv(len(READY), socket.MSG_WAITALL) == READY:
                ours.setblocking(False)
                return child
        child.stop()
        raise RendererUnavailable("The process that renders chat templates did not start.")

    def stop(self) -> None:
        """Kill it and return when it is gone. Blocks for a moment."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class _Gone(Exception):
    """The child ended without an answer."""


class Renderer:
    """Renders templates one after the other in one child; a template that takes too long costs the child its life.

    The child starts with the first template. Templates are kept there compiled.
    """

    def __init__(self, *, clock: Clock, timeout_s: float = 2.0) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        # One thread for as long as there may be a child: the child dies with the thread that started it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="renderer")
        self._turn = asyncio.Lock()
        self._child: _Child | None = None
        self._quarantine: dict[str, float] = {}
        self._tasks: set[asyncio.Task[str]] = set()
        self._closed = False

    async def render(self, source: str, context: Mapping[str, Any]) -> str:
        """Return the text that the template makes of `context` (JSON values).

        Raises TemplateFailed where the template is to blame, RendererUnavailable where we are. A caller
        that is cancelled stops waiting; the template still has its time.
        """
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateFailed(f"A chat template has at most {MAX_SOURCE_CHARACTERS} characters.")
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        now = self._clock.now().astimezone().replace(tzinfo=None).isoformat()
        request = Render(template=digest, source=None, context=dict(context), now=now)
        task = asyncio.create_task(self._in_turn(request, source))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """End the child; further calls raise."""
        self._closed = True
        async with self._turn:
            await self._stop()
        self._thread.shutdown(wait=False)

    @property
    def pid(self) -> int | None:
        """The child's process, None where there is none."""
        return None if self._child is None else self._child.process.pid

    def _forget(self, task: "asyncio.Task[str]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; where nobody did any more, nobody misses it

    async def _in_turn(self, request: Render, source: str) -> str:
        async with self._turn:
            self._check_quarantine(request.template)
            try:
                async with asyncio.timeout(self._timeout_s) as limit:
                    reply = await self._exchange(request, source, limit)
            except TimeoutError:
                await self._stop()
                self._quarantine[request.template] = self._clock.monotonic() + QUARANTINE_SECONDS
                raise TemplateFailed("The model's chat template takes longer than is allowed.") from None
            except (_Gone, msgspec.MsgspecError):
                await self._stop()
                raise TemplateFailed("The model's chat template made its renderer fail.") from None
        if isinstance(reply, Refused):
            said = f": {reply.message}" if reply.message else ""
            raise TemplateFailed(f"{_TEXTS[reply.reason]}{said}".rstrip(".") + ".")
        return reply.text

    async def _exchange(self, request: Render, source: str, limit: asyncio.Timeout) -> Rendered | Refused:
        """Have the child answer; one that had ended before it was asked is replaced, without blame."""
        for attempt in range(2):
            if self._child is None:
                limit.reschedule(None)
                self._child = await self._start()
                limit.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
            try:
                reply = await self._ask(self._child.connection, request)
                if isinstance(reply, Unknown):
                    with_source = msgspec.structs.replace(request, source=source)
                    reply = await self._ask(self._child.connection, with_source)
                if isinstance(reply, Unknown):
                    raise _Gone
            except _Gone:
                if attempt or not await self._left_by_itself():
                    raise
                await self._stop()
            else:
                return reply
        raise AssertionError("the second attempt returns or raises")

    async def _ask(self, connection: socket.socket, request: Render) -> Reply:
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(connection, framed(request))
            size = int.from_bytes(await self._receive(connection, HEADER_BYTES), "big")
            if size > _MAX_REPLY:
                raise _Gone
            return decode_reply.decode(await self._receive(connection, size))
        except OSError:
            raise _Gone from None

    async def _receive(self, connection: socket.socket, count: int) -> bytes:
        loop = asyncio.get_running_loop()
        pieces, missing = [], count
        while missing:
            piece = await loop.sock_recv(connection, min(missing, 2**20))
            if not piece:
                raise _Gone
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    async def _start(self) -> _Child:
        if self._closed:
            raise RendererUnavailable("The server is stopping.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, _Child.start)

    async def _left_by_itself(self) -> bool:
        """Say whether the child ended in good order (it retires now and then), or was killed while it was idle."""
        child = self._child
        assert child is not None, "it was asked a moment ago"
        status = await asyncio.get_running_loop().run_in_executor(self._thread, child.process.wait)
        return status in (0, -9)

    async def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, child.stop)

    def _check_quarantine(self, digest: str) -> None:
        until = self._quarantine.get(digest)
        if until is None:
            return
        if self._clock.monotonic() < until:
            raise TemplateFailed("The model's chat template took longer than is allowed a moment ago.")
        del self._quarantine[digest]
