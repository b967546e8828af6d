"""A running server whose models are fake engines in real workers: making and asking them, looking behind the scenes."""

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.process import ServerProcess, serving
from support.waiting import eventually

MIB = 2**20
ENDLESS = 100_000
PATIENT = httpx.Timeout(120)
_FOOTPRINT = [{"device": "cpu", "bytes": MIB}]


@dataclass(frozen=True)
class Dialect:
    """How one API is asked for a stream, and how its frames are read."""

    path: str
    body: Callable[[str], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]
    error: Callable[[dict[str, Any]], Any]
    """What a frame tells of an error; None if it tells of none."""


def _messages(text: str = "one two") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _first_choice(frame: dict[str, Any]) -> dict[str, Any]:
    choices = frame.get("choices") or [{}]
    return dict(choices[0])


DIALECTS = {
    "native": Dialect(
        "/chat",
        lambda model: {"model": model, "messages": _messages(), "stream": True},
        lambda frame: frame.get("delta", {}).get("content") or "",
        lambda frame: frame.get("error"),
    ),
    "openai": Dialect(
        "/v1/chat/completions",
        lambda model: {"model": model, "messages": _messages(), "stream": True},
        lambda frame: _first_choice(frame).get("delta", {}).get("content") or "",
        lambda frame: frame.get("error"),
    ),
    "completions": Dialect(
        "/v1/completions",
        lambda model: {"model": model, "prompt": "one two", "stream": True, "max_tokens": 100_000},  # else 16
        lambda frame: _first_choice(frame).get("text") or "",
        lambda frame: frame.get("error"),
    ),
    "responses": Dialect(
        "/v1/responses",
        lambda model: {"model": model, "input": "one two", "stream": True},
        lambda frame: frame["delta"] if frame["type"] == "response.output_text.delta" else "",
        lambda frame: frame["response"]["error"] if frame["type"] == "response.failed" else None,
    ),
    "ollama chat": Dialect(
        "/api/chat",
        lambda model: {"model": model, "messages": _messages()},
        lambda frame: frame.get("message", {}).get("content") or "",
        lambda frame: frame.get("error"),
    ),
    "ollama generate": Dialect(
        "/api/generate",
        lambda model: {"model": model, "prompt": "one two"},
        lambda frame: frame.get("response") or "",
        lambda frame: frame.get("error"),
    ),
}


class Stream:
    """The frames of one streamed answer, whatever the dialect."""

    def __init__(self, dialect: Dialect, response: httpx.Response) -> None:
        self.response = response
        self.ended_with_done = False
        """Whether the last data was `[DONE]`."""
        self._dialect = dialect
        self._lines = response.aiter_lines()

    @property
    def headers(self) -> httpx.Headers:
        return self.response.headers

    async def frames(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the frames to the end of the stream."""
        async for line in self._lines:
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                self.ended_with_done = True
            elif data.startswith("{"):
                assert not self.ended_with_done, "nothing follows [DONE]"
                yield json.loads(data)

    async def first_text(self) -> str:
        """Return the first text; fail where there is an error before, or none at all."""
        async for text in self.texts():
            return text
        raise AssertionError("the stream ended without text")

    async def texts(self) -> AsyncIterator[str]:
        """Yield each text as it comes; fail at an error."""
        async for frame in self.frames():
            assert self._dialect.error(frame) is None, frame
            if text := self._dialect.text(frame):
                yield text

    async def rest(self) -> tuple[str, list[Any]]:
        """Return the text from here to the end, and the errors that were told."""
        said, errors = "", []
        async for frame in self.frames():
            said += self._dialect.text(frame)
            if (error := self._dialect.error(frame)) is not None:
                errors.append(error)
        return said, errors


@dataclass
class ModelServer:
    """The server. `admin` is its first admin's client."""

    process: ServerProcess
    admin: httpx.AsyncClient
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    # Making

    async def model(self, id_: str, *numbers: str, engine: str = "fake", **options: Any) -> None:
        """Create a model of the fake engine with these options, the first version if several are named."""
        card = {name: options.pop(name) for name in ("source", "parameters") if name in options}
        body = {
            "id": id_,
            "task": "chat",
            "licence": "MIT",
            "version": (numbers or ("1.0.0",))[0],
            "engine": engine,
            "engine_options": options,
            "source": {"kind": "package", "name": id_},
            "footprint": _FOOTPRINT,
            **card,
        }
        await said(self.admin.post("/models", json=body), 201)
        for number in numbers[1:]:
            await self.version(id_, number, **options)

    async def version(self, id_: str, number: str, **options: Any) -> None:
        """Add a version with weights of its own."""
        body = {
            "version": number,
            "source": {"kind": "package", "name": f"{id_}-{number}"},
            "engine": "fake",
            "engine_options": options,
            "footprint": _FOOTPRINT,
        }
        await said(self.admin.post(f"/models/{id_}/versions", json=body), 201)

    async def remote(self, id_: str, endpoint: str) -> None:
        """Create a model behind another server."""
        source = {"kind": "remote", "endpoint": endpoint, "model": "there"}
        body = {"id": id_, "task": "chat", "licence": "MIT", "version": "1.0.0", "source": source}
        await said(self.admin.post("/models", json=body), 201)

    async def service(self, id_: str, *names: str, **fields: Any) -> Any:
        """Create a service bound to the first 'model@version', with the others as its chain."""
        model, _, version = names[0].partition("@")
        chain = [dict(zip(("model", "version"), name.split("@"), strict=False)) for name in names[1:]]
        body = {"id": id_, "task": "chat", "model_id": model, "model_version": version or None, "fallback": chain}
        return await said(self.admin.post("/services", json={**body, **fields}), 201)

    async def user(self, name: str, role: str = "user") -> httpx.AsyncClient:
        """Create a user with a key, and return its client."""
        made = await said(self.admin.post("/users", json={"name": name, "role": role}), 201)
        key = await said(self.admin.post("/keys", json={"name": name, "user_id": made["id"]}), 201)
        return await self.stack.enter_async_context(_client(self.process, key["key"]))

    # Asking

    async def chat(self, model: str, text: str = "one two", **values: Any) -> httpx.Response:
        """Ask once, in the native form, for a whole answer."""
        client: httpx.AsyncClient = values.pop("client", self.admin)
        return await client.post("/chat", json={"model": model, "messages": _messages(text), **values})

    @asynccontextmanager
    async def stream(
        self, model: str, dialect: str = "native", *, client: httpx.AsyncClient | None = None, **values: Any
    ) -> AsyncIterator[Stream]:
        """Open a stream, which must begin with 200; the client leaves at the end of the block."""
        form = DIALECTS[dialect]
        body = {**form.body(model), **values}
        async with (client or self.admin).stream("POST", form.path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise AssertionError(f"{response.status_code} {response.text}")
            yield Stream(form, response)

    # Looking

    async def ps(self) -> list[dict[str, Any]]:
        return list((await said(self.admin.get("/ps")))["items"])

    async def loaded(self, model: str) -> dict[str, Any] | None:
        """Return what /ps tells of a model, or None."""
        return next((one for one in await self.ps() if one["model"] == model), None)

    async def pid(self, model: str) -> int:
        one = await self.loaded(model)
        assert one is not None, f"{model} is not in memory"
        return int(one["pid"])

    async def in_flight(self, model: str) -> int:
        one = await self.loaded(model)
        return 0 if one is None else int(one["in_flight"])

    async def await_idle(self, model: str) -> None:
        """Return when nothing runs on the model any more."""

        async def is_idle() -> bool:
            return await self.in_flight(model) == 0

        await eventually(is_idle, seconds=60)

    async def await_runs(self, model: str, count: int) -> None:
        """Return when so many answers of the model go on."""

        async def are_running() -> bool:
            return await self.in_flight(model) == count

        await eventually(are_running, seconds=60)

    async def await_calls(self, count: int) -> None:
        """Return when so many calls go on, waiting ones included."""

        async def so_many() -> bool:
            return (await self.figures())["serai_calls_in_flight{}"] == count

        await eventually(so_many, seconds=60)

    async def figures(self) -> dict[str, float]:
        """Return every sample of /metrics as 'name{label=value}'."""
        text = (await self.admin.get("/metrics")).text
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    async def decision(self, id_: str) -> dict[str, Any]:
        """Return the stored row of a decision, when it is written."""
        found: list[dict[str, Any]] = []

        async def is_stored() -> bool:
            found[:] = self.rows("SELECT * FROM decisions WHERE id = ?", id_)
            return bool(found)

        await eventually(is_stored)
        return {**found[0], "document": json.loads(found[0]["document"])}

    async def await_rows(self, outcome: str, count: int) -> list[dict[str, Any]]:
        """Return the documents of the decisions with this outcome, when so many are stored."""
        found: list[dict[str, Any]] = []

        async def are_stored() -> bool:
            documents = [json.loads(row["document"]) for row in self.rows("SELECT document FROM decisions")]
            found[:] = [document for document in documents if document["outcome"] == outcome]
            return len(found) == count

        await eventually(are_stored)
        return found

    def events(self, name: str, **values: Any) -> list[dict[str, Any]]:
        """Return the log lines of an event that have these values."""
        lines = [json.loads(line) for line in self.process.lines if line.startswith("{")]
        return [line for line in lines if line.get("event") == name and values.items() <= line.items()]

    def workers(self) -> list[int]:
        """Return every process below the server."""
        return descendants(self.process.pid)

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return rows of the server's database."""
        connection = sqlite3.connect(f"file:{self.process.home / 'serai.db'}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query, values)]
        finally:
            connection.close()


@asynccontextmanager
async def model_server(home: Path, **settings: Any) -> AsyncIterator[ModelServer]:
    """Run a server in `home` until the block ends."""
    given = {"rate_limits": "off", "worker_threads": 1, "log_format": "json", **settings}
    with serving(home, **given) as process:
        async with AsyncExitStack() as stack:
            admin = await stack.enter_async_context(_client(process, process.admin_key))
            yield ModelServer(process, admin, stack)


async def said(call: Awaitable[httpx.Response], status: int = 200) -> Any:
    """Return the JSON of an answer that must have this status."""
    answer = await call
    assert answer.status_code == status, f"{answer.request.method} {answer.request.url}: {answer.text}"
    return answer.json() if answer.content else None


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid` that are not zombies."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    found, frontier = [], {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found += frontier
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def all_gone(pids: list[int]) -> None:
    """Return when none of the processes is there any more."""

    async def they_are_gone() -> bool:
        return not any(is_alive(pid) for pid in pids)

    await eventually(they_are_gone)


def _client(process: ServerProcess, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=process.url,
        headers={"authorization": f"Bearer {key}"},
        timeout=PATIENT,
        trust_env=False,
        limits=httpx.Limits(max_connections=200),
    )
