"""SIGKILL to a real server while it fetches or converts, and to a worker that answers; then everything goes on."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.hub_server import HubServer, safetensors
from support.model_server import DIALECTS, PATIENT, ModelServer, all_gone, descendants, is_alive
from support.pulling_server import LLAMA, LONG_S, WEIGHTS, PullingServer, endless, pulling_server, tiny_repos
from support.servers import LOOPBACK
from support.waiting import eventually, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.timeout(900)]

REPO = "acme/tiny"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FILES = {
    "config.json": b"{}",
    FIRST: safetensors(300_000, seed=1),
    SECOND: safetensors(900_000, seed=2),
}
HELD_AT = 2**20
CONVERSION = b"serai.pulls.conversion"


def kill(server: PullingServer) -> None:
    server.process.process.send_signal(signal.SIGKILL)
    server.process.wait()


def sizes(home: Path) -> list[int]:
    """Return the sizes of the parts and finished files of downloads."""
    models = home / "models"
    found = [*(models / "partial").glob("*"), *(models / "blobs").glob("[!.]*")]
    return sorted(path.stat().st_size for path in found if path.suffix != ".etag")


def conversions(server: PullingServer) -> list[int]:
    """Return the processes below the server that convert."""
    found = []
    for pid in descendants(server.process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if CONVERSION in command:
            found.append(pid)
    return found


def test_a_pull_outlives_its_server(tmp_path: Path) -> None:
    """Killed in mid-file, the next server of the same home ends the job and asks for what is missing alone."""
    home = tmp_path / "home"
    with HubServer({REPO: FILES}) as hub:
        held = hub.hold(SECOND, at=HELD_AT)
        with pulling_server(home, hub) as first:
            job = first.pull(REPO, quantize="no")
            assert held.reached.wait(60)
            wait_until(lambda: len(FILES[FIRST]) in sizes(home), 60)
            wait_until(lambda: max(sizes(home)) > len(FILES[FIRST]) + 2**17, 60)
            kill(first)
        held.release.set()
        part = max(sizes(home))
        assert part <= HELD_AT
        asked = len(hub.requests)
        with pulling_server(home, hub) as second:
            events = list(second.events(job))
            told = second.job(job)
            version = second.http.get("/models/tiny/versions/1.0.0").json()
            numbers = [one["version"] for one in second.http.get("/models/tiny/versions").json()["items"]]
            again = second.pulled(REPO, quantize="no")
        later = [(path, headers.get("range")) for _, path, headers in hub.requests[asked:] if "/cdn/" in path]
        assert later == [(f"/cdn/{REPO}/{hub.commit(REPO)}/{SECOND}", f"bytes={part}-")]
        assert hub.served[FIRST] == len(FILES[FIRST])
    assert (told["status"], told["attempts"]) == ("succeeded", 2), told["error"]
    assert [event["type"] for event in events].count("done") == 1
    assert told["result"]["fetched_bytes"] <= len(FILES[SECOND]) - part + len(FILES["config.json"])
    assert numbers == ["1.0.0"]
    assert {file["path"]: file["size"] for file in version["files"]} == {
        path: len(data) for path, data in FILES.items()
    }
    folder = home / "models" / "versions" / "tiny" / "1.0.0"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert again["already"]


@pytest.mark.parametrize("stops", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_who_is_told_twice_to_stop_does_not_drain(tmp_path: Path, stops: tuple[signal.Signals, ...]) -> None:
    """However long the grace: an answer ends, its worker too, nothing stays, and the next server ends the job."""
    home = tmp_path / "home"
    with HubServer({REPO: FILES}) as hub:
        held = hub.hold(SECOND, at=HELD_AT // 2)
        with pulling_server(home, hub, shutdown_grace_s=10_000) as first:
            card = {"id": "long", "task": "chat", "version": "1.0.0", "engine": "fake", "licence": "MIT"}
            options = {"tokens": 1_000_000, "step_s": 0.01}
            source = {"kind": "package", "name": "long"}
            made = first.http.post("/models", json={**card, "source": source, "engine_options": options})
            assert made.status_code == 201, made.text
            job = first.pull(REPO, quantize="no")
            assert held.reached.wait(60)
            asked = {"model": "long", "messages": [{"role": "user", "content": "hello"}], "stream": True}
            with first.http.stream("POST", "/chat", json=asked) as answer:
                lines = answer.iter_lines()
                assert next(lines).startswith("data: ")
                below = descendants(first.process.pid)
                process = first.process.process
                process.send_signal(stops[0])
                wait_until(lambda: not listens(first.process.port), 60)
                assert next(line for line in lines if line), "it drains: the answer goes on"
                process.send_signal(stops[1])
                assert process.wait(60) == -stops[1]
                with pytest.raises(httpx.TransportError):
                    list(lines)
        assert below
        wait_until(lambda: not any(is_alive(pid) for pid in below), 60)
        assert not (home / "server.url").exists()
        held.release.set()
        with pulling_server(home, hub) as second:
            assert second.ended(job)["type"] == "done"
            told = second.job(job)
            assert (told["status"], told["attempts"]) == ("succeeded", 2)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


@dataclass
class Reborn:
    """A server whose forerunner was killed while it converted, and what was seen of that."""

    server: PullingServer
    job: str
    converting: list[int]
    left: list[Path]
    """What lay in the folder of conversions when its server had been killed."""
    served: dict[str, int]
    events: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def reborn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reborn]:
    files = endless(tiny_repos(tmp_path_factory, ["llama"])[LLAMA])
    home = tmp_path_factory.mktemp("kills") / "home"
    with HubServer({LLAMA: files}) as hub:
        with pulling_server(home, hub) as first:
            job = first.pull(LLAMA)
            wait_until(lambda: bool(conversions(first)), LONG_S)
            converting = conversions(first)
            kill(first)
        seen = Reborn(first, job, converting, list((home / "conversions").iterdir()), dict(hub.served))
        with pulling_server(home, hub) as seen.server:
            seen.events = list(seen.server.events(job))
            yield seen


@pytest.fixture
async def asking(reborn: Reborn) -> AsyncIterator[ModelServer]:
    """The server as the helpers of fault tests see it."""
    process = reborn.server.process
    headers = {"authorization": f"Bearer {process.admin_key}"}
    async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=PATIENT, trust_env=False) as admin:
        yield ModelServer(process, admin)


def test_a_conversion_dies_with_its_server_and_is_done_by_the_next(reborn: Reborn) -> None:
    """No process stays; the weights are not fetched again; one version is registered, and it is whole."""
    server = reborn.server
    assert reborn.converting
    wait_until(lambda: not any(is_alive(pid) for pid in reborn.converting), 60)
    assert reborn.events[-1]["type"] == "done", reborn.events[-1]
    told = server.job(reborn.job)
    assert (told["status"], told["attempts"]) == ("succeeded", 2)
    assert server.hub.served[WEIGHTS] == reborn.served[WEIGHTS]
    assert [one["version"] for one in server.http.get("/models/llama/versions").json()["items"]] == ["1.0.0"]
    assert told["result"]["quantization"] == "int8"
    assert conversions(server) == []
    assert len(reborn.left) == 1
    assert list((server.process.home / "conversions").iterdir()) == []
    models = server.process.home / "models"
    left = [path for path in models.iterdir() if path.name not in ("versions", "blobs") and any(path.iterdir())]
    assert left == [], "what the killed conversion had written is removed"


async def test_a_worker_that_is_killed_ends_its_streams_with_a_word(reborn: Reborn, asking: ModelServer) -> None:
    """In the form of each dialect; then 429 with Retry-After, and after the clearing a new worker answers."""
    begun = {dialect: asyncio.Event() for dialect in DIALECTS}

    async def watch(dialect: str) -> list[Any]:
        async with asking.stream("llama", dialect) as stream:
            await stream.first_text()
            begun[dialect].set()
            return (await stream.rest())[1]

    async with asyncio.timeout(LONG_S), asyncio.TaskGroup() as group:
        watching = {dialect: group.create_task(watch(dialect)) for dialect in DIALECTS}
        for event in begun.values():
            await event.wait()
        pid = await asking.pid("llama")
        running = [dialect for dialect, task in watching.items() if not task.done()]
        os.kill(pid, signal.SIGKILL)
    await all_gone([pid])
    assert len(running) >= len(DIALECTS) // 2  # on a slow machine the first have come to their end
    for dialect in running:
        (error,) = watching[dialect].result() or (None,)
        if error is None:  # it ended between the look and the kill
            continue
        said = error if isinstance(error, str) else error["message"]
        assert isinstance(error, str) == dialect.startswith("ollama"), dialect
        assert "llama" in said or "worker" in said.lower(), (dialect, said)

    async def is_gone() -> bool:
        return await asking.loaded("llama") is None

    await eventually(is_gone, seconds=60)
    for dialect, form in DIALECTS.items():
        refused = await asking.admin.post(form.path, json=form.body("llama"))
        assert refused.status_code == 429, (dialect, refused.text)
        assert int(refused.headers["retry-after"]) > 0, dialect
        assert "cooldown/clear" in refused.text, dialect
    assert (await asking.admin.get("/health")).json()["status"] == "healthy"
    assert (await asking.admin.post("/models/llama/cooldown/clear")).status_code == 204
    answer = await asking.chat("llama", max_tokens=3)
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 3), answer.text
    assert await asking.pid("llama") != pid
