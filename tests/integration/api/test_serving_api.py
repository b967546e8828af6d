"""Which version answers a service: switches and rollbacks under load, and what `explain` tells, with real workers."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.model_server import DIALECTS, ENDLESS, ModelServer, Stream, model_server, said
from support.registry_api import refused
from support.waiting import eventually

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
PER_SECOND = 60
AT_ONCE = 24
OLD_WORDS, NEW_WORDS = 3, 5
"""So long are the answers of the versions: what is said and what the header tells must agree."""


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[ModelServer]:
    async with model_server(tmp_path / "home") as started:
        yield started


# Switching


@dataclass(frozen=True)
class Served:
    """One answer under load: between which two events it was asked, and who gave it."""

    asked_in: str
    answered_in: str
    status: int
    model: str
    words: int
    has_error: bool


@dataclass
class Load:
    """Requests at a steady pace, every second one a stream. `phase` is what the test is doing now."""

    server: ModelServer
    service: str
    phase: str = "before"
    served: list[Served] = field(default_factory=list)

    def of(self, phase: str) -> list[Served]:
        """Return the answers that were asked for and given in one phase."""
        return [one for one in self.served if one.asked_in == one.answered_in == phase]

    async def enough(self, phase: str, count: int = 60) -> None:
        """Begin a phase, and return when so many answers were asked for and given in it."""
        self.phase = phase

        async def are_served() -> bool:
            return len(self.of(phase)) >= count

        await eventually(are_served, seconds=120)

    async def run(self, client: httpx.AsyncClient) -> None:
        """Ask until cancelled; what is under way then ends first."""
        places = asyncio.Semaphore(AT_ONCE)
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            try:
                for number in itertools.count():
                    await places.acquire()
                    group.create_task(self._ask(client, number % 2 == 1, places))
                    due = max(due + 1 / PER_SECOND, loop.time())
                    await asyncio.sleep(due - loop.time())
            except asyncio.CancelledError:
                return

    async def _ask(self, client: httpx.AsyncClient, streamed: bool, places: asyncio.Semaphore) -> None:
        try:
            await (self._stream if streamed else self._whole)(client, self.phase)
        finally:
            places.release()

    async def _whole(self, client: httpx.AsyncClient, phase: str) -> None:
        body = DIALECTS["openai"].body(self.service) | {"stream": False}
        answer = await client.post(PATH, json=body)
        told = answer.json()
        text = told["choices"][0]["message"]["content"] if answer.status_code == 200 else answer.text
        self._note(phase, answer, text, has_error=answer.status_code != 200)

    async def _stream(self, client: httpx.AsyncClient, phase: str) -> None:
        async with client.stream("POST", PATH, json=DIALECTS["openai"].body(self.service)) as answer:
            stream = Stream(DIALECTS["openai"], answer)
            text, errors = await stream.rest()
        self._note(phase, answer, text, has_error=bool(errors) or not stream.ended_with_done)

    def _note(self, phase: str, answer: httpx.Response, text: str, *, has_error: bool) -> None:
        model = answer.headers.get("x-serai-model", "")
        self.served.append(Served(phase, self.phase, answer.status_code, model, len(text.split()), has_error))

    def check_all(self) -> None:
        """No request failed, and each answer was of the version that its header names."""
        words = {"toy@1.0.0": OLD_WORDS, "toy@2.0.0": NEW_WORDS}
        wrong = [one for one in self.served if one.status != 200 or one.has_error or words.get(one.model) != one.words]
        assert not wrong, f"{len(wrong)} of {len(self.served)}: {wrong[:3]}"


@asynccontextmanager
async def under_load(server: ModelServer, service: str) -> AsyncIterator[Load]:
    """Ask a service at a steady pace as long as the block goes on; then look at every answer."""
    load = Load(server, service)
    client = await server.user("caller")
    running = asyncio.create_task(load.run(client))
    try:
        yield load
    finally:
        running.cancel()
        await running
    load.check_all()


async def two_versions(server: ModelServer, **options: Any) -> None:
    """Create the model toy, whose 2.0.0 has these options, and the service talk, bound to 1.0.0."""
    await server.model("toy", tokens=OLD_WORDS)
    await server.version("toy", "2.0.0", tokens=NEW_WORDS, **options)
    await server.service("talk", "toy@1.0.0")


async def is_loaded(server: ModelServer, name: str) -> bool:
    return any(name in one["versions"] for one in await server.ps())


async def await_gone(server: ModelServer, name: str) -> None:
    async def is_gone() -> bool:
        return not await is_loaded(server, name)

    await eventually(is_gone, seconds=60)


@pytest.mark.timeout(300)
async def test_a_switch_and_its_rollback_under_load_drop_no_request(server: ModelServer, tmp_path: Path) -> None:
    """The old version answers until the new one is loaded, the new one from then on; the old one leaves memory."""
    gate = tmp_path / "gate"
    await two_versions(server, load_gate=str(gate))
    async with under_load(server, "talk") as load:
        await load.enough("before")
        switching = asyncio.ensure_future(
            server.admin.patch("/services/talk/version", json={"version": "2.0.0"}),
        )
        await load.enough("loading")
        assert not switching.done()
        load.phase = "switching"
        gate.touch()
        assert (await switching).status_code == 200
        await load.enough("new")
        await await_gone(server, "toy@1.0.0")
        assert await is_loaded(server, "toy@2.0.0")
        load.phase = "rolling back"
        await said(server.admin.post("/services/talk/rollback"))
        await load.enough("old again")
        await await_gone(server, "toy@2.0.0")
    for phase, name in {"before": "1.0.0", "loading": "1.0.0", "new": "2.0.0", "old again": "1.0.0"}.items():
        assert {one.model for one in load.of(phase)} == {f"toy@{name}"}, phase
    begun_after = [one.model for one in load.served if one.asked_in == "new"]
    assert set(begun_after) == {"toy@2.0.0"}
    assert [one["versions"] for one in await server.ps()] == [["toy@1.0.0"]]


async def test_a_stream_that_began_before_a_switch_ends_as_it_began(server: ModelServer) -> None:
    """It goes on with the old version, which leaves memory when it is over."""
    await server.model("toy", tokens=ENDLESS, step_s=0.005)
    await server.version("toy", "2.0.0", tokens=NEW_WORDS)
    await server.service("talk", "toy@1.0.0")
    async with server.stream("talk", "openai", max_tokens=400) as stream:
        await stream.first_text()
        await said(server.admin.patch("/services/talk/version", json={"version": "2.0.0"}))
        assert (await server.chat("talk")).headers["x-serai-model"] == "toy@2.0.0"
        assert await is_loaded(server, "toy@1.0.0")
        text, errors = await stream.rest()
    assert (len(text.split()), errors) == (399, [])
    await await_gone(server, "toy@1.0.0")


async def test_a_version_that_another_service_uses_stays_after_a_switch(server: ModelServer) -> None:
    """Both are in memory then, each for its service."""
    await two_versions(server)
    await server.service("other", "toy@1.0.0")
    assert (await server.chat("talk")).status_code == 200
    pid = (await server.ps())[0]["pid"]
    await said(server.admin.patch("/services/talk/version", json={"version": "2.0.0"}))
    await server.chat("talk")
    loaded = {one["versions"][0]: one for one in await server.ps()}
    assert {name: one["services"] for name, one in loaded.items()} == {"toy@1.0.0": ["other"], "toy@2.0.0": ["talk"]}
    assert loaded["toy@1.0.0"]["pid"] == pid
    await said(server.admin.patch("/services/other/version", json={"version": "2.0.0"}))
    await await_gone(server, "toy@1.0.0")


@pytest.mark.timeout(300)
async def test_a_switch_to_what_cannot_be_loaded_changes_nothing(server: ModelServer) -> None:
    """The answer says why; traffic goes on as before, and so does what a rehearsal and an unknown version tell."""
    await two_versions(server, fail="load")
    async with under_load(server, "talk") as load:
        await load.enough("before")
        before = await said(server.admin.get("/services/talk"))
        error = await refused(
            server.admin.patch("/services/talk/version", json={"version": "2.0.0"}), 409, "PRELOAD_FAILED"
        )
        assert error["details"] == {"code": "LOAD_FAILED", "candidate": "toy@2.0.0"}
        assert "toy@1.0.0" in error["message"]
        again = server.admin.patch("/services/talk/version", json={"version": "2.0.0"})
        assert (await refused(again, 409, "PRELOAD_FAILED"))["details"]["code"] == "MODEL_IN_COOLDOWN"
        await refused(server.admin.patch("/services/talk/version", json={"version": "3.0.0"}), 404, "VERSION_NOT_FOUND")
        assert await said(server.admin.get("/services/talk")) == before
        await load.enough("after")
    assert {one.model for one in load.served} == {"toy@1.0.0"}
    assert not await is_loaded(server, "toy@2.0.0")


async def test_a_switch_without_preload_lets_the_next_request_load(server: ModelServer) -> None:
    """And a rehearsal loads nothing, whatever it is told."""
    await two_versions(server)
    rehearsed = await said(
        server.admin.patch("/services/talk/version?dry_run=1", json={"version": "2.0.0", "preload": True})
    )
    assert rehearsed["changes"]
    assert await server.ps() == []
    await said(server.admin.patch("/services/talk/version", json={"version": "2.0.0", "preload": False}))
    assert await server.ps() == []
    assert (await server.chat("talk")).headers["x-serai-model"] == "toy@2.0.0"
    await said(server.admin.post("/services/talk/rollback", json={"preload": True}))
    assert await is_loaded(server, "toy@1.0.0")
    await await_gone(server, "toy@2.0.0")


# Explaining


async def explained(client: httpx.AsyncClient, service: str, **asked: Any) -> Any:
    return await said(client.get(f"/services/{service}/explain", params=asked))


async def check_explained(server: ModelServer, service: str, client: httpx.AsyncClient | None = None) -> str:
    """Ask what would answer, then ask; both must name the same version for the same reason. Return it."""
    client = client or server.admin
    told = await explained(client, service)
    answer = await server.chat(service, client=client)
    assert answer.status_code == 200, answer.text
    name = f"{told['model']}@{told['version']}"
    assert answer.headers["x-serai-model"] == name, told["explanation"]
    assert answer.headers["x-serai-reason"] == told["reason"]
    decision = answer.json()["decision"]
    assert [link["model"] for link in decision["chain"]] == [link["model"] for link in told["chain"]]
    row = await server.decision(answer.headers["x-serai-decision"])
    assert row["id"] == answer.headers["x-serai-decision"]
    assert f"{row['model_id']}@{row['version']}" == name
    assert row["document"]["explanation"] == decision["explanation"]
    return name


async def test_explain_agrees_with_who_answers(server: ModelServer) -> None:
    """For a binding, and after a switch and a rollback."""
    await two_versions(server)
    assert await check_explained(server, "talk") == "toy@1.0.0"
    await said(server.admin.patch("/services/talk/version", json={"version": "2.0.0"}))
    assert await check_explained(server, "talk") == "toy@2.0.0"
    await said(server.admin.post("/services/talk/rollback"))
    assert await check_explained(server, "talk") == "toy@1.0.0"


async def test_explain_knows_who_is_left_alone(server: ModelServer) -> None:
    """Where the first link failed to load, the next one would answer, until an operator clears the cooldown."""
    await server.model("toy")
    await server.model("bad", fail="load")
    await server.service("frail", "bad@1.0.0", "toy@1.0.0")
    assert (await explained(server.admin, "frail"))["candidates"] == ["bad@1.0.0", "toy@1.0.0"]
    assert (await server.chat("frail")).headers["x-serai-reason"] == "fallback_error"
    assert await check_explained(server, "frail") == "toy@1.0.0"
    await said(server.admin.post("/models/bad/cooldown/clear"), 204)
    assert (await explained(server.admin, "frail"))["model"] == "bad"


async def test_explain_agrees_with_a_split_for_each_caller(server: ModelServer) -> None:
    """Each user stays on one side, and `explain` knows which."""
    await two_versions(server)
    split = [{"model": "toy", "version": "1.0.0", "weight": 50}, {"model": "toy", "version": "2.0.0", "weight": 50}]
    body = {"id": "halves", "task": "chat", "split": split}
    await said(server.admin.post("/services", json=body), 201)
    clients = [await server.user(f"u{number}") for number in range(12)]
    names = [await check_explained(server, "halves", client) for client in clients]
    assert set(names) == {"toy@1.0.0", "toy@2.0.0"}
    assert [await check_explained(server, "halves", client) for client in clients] == names


async def test_streams_and_refusals_are_decisions_too(server: ModelServer) -> None:
    """The id in the header is that of the row, in every dialect; what nobody could answer is stored as failed."""
    await server.model("m")
    for dialect in DIALECTS:
        async with server.stream("m", dialect) as stream:
            await stream.rest()
        row = await server.decision(stream.headers["x-serai-decision"])
        assert (row["model_id"], row["version"], row["reason"]) == ("m", "1.0.0", "default")
        assert row["document"]["outcome"] == "served"
        assert row["document"]["request_id"] == stream.headers["x-request-id"]
    assert len(server.rows("SELECT id FROM decisions")) == len(DIALECTS)


async def test_a_service_takes_as_many_calls_as_its_limits_say(server: ModelServer, tmp_path: Path) -> None:
    """One at a time and one waiting: the third is 503 with Retry-After, and the others are answered."""
    gate = tmp_path / "gate"
    await server.model("m", step_gate=str(gate))
    await server.service("narrow", "m@1.0.0", limits={"concurrency": 1, "queue_length": 1})
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(server.chat("narrow")) for _ in range(2)]
        await server.await_calls(2)
        full = await server.chat("narrow")
        assert full.status_code == 503, full.text
        assert full.json()["error"]["code"] == "SERVICE_QUEUE_FULL"
        assert int(full.headers["retry-after"]) >= 1
        gate.touch()
    assert [task.result().status_code for task in tasks] == [200, 200]


async def test_a_stream_that_asks_for_it_is_told_how_far_its_model_is(server: ModelServer, tmp_path: Path) -> None:
    """It opens at once; positions and load progress come as frames, and its last frame says who answered and why."""
    gate = tmp_path / "gate"
    await server.model("bad", fail="start")
    await server.model("slow", load_gate=str(gate))
    await server.service("s", "bad@1.0.0", "slow@1.0.0")
    async with server.stream("s", progress=True) as stream:
        frames = []
        async for frame in stream.frames():
            frames.append(frame)
            if frame.get("status", {}).get("model") == "slow":
                gate.touch()
    loading = [frame["status"] for frame in frames if frame.get("status", {}).get("type") == "loading"]
    assert {one["model"] for one in loading} == {"bad", "slow"}
    assert "".join(frame["delta"].get("content", "") for frame in frames) == "User: one two Assistant:"
    decision = frames[-1]["decision"]
    assert (decision["model"], decision["reason"]) == ("slow", "fallback_error")
