"""What is loaded, and loading and unloading by hand: over HTTP, with real workers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.api import Running, running

pytestmark = pytest.mark.anyio

TOY = {
    "id": "toy",
    "task": "chat",
    "version": "1.0.0",
    "engine": "fake",
    "source": {"kind": "package", "name": "toy"},
}


@pytest.fixture
async def app(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    async with running(tmp_path / "home", rate_limits="off") as started:
        assert (await started.admin.post("/models", json=TOY)).status_code == 201
        yield started


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_what_is_loaded_is_told_and_goes_when_it_is_told_to(app: Running) -> None:
    """Load, look, unload, look: engine, device, process, bytes; and afterwards no process."""
    admin = app.admin
    await admin.post("/services", json={"id": "talk", "task": "chat", "model_id": "toy", "model_version": "1.0.0"})
    assert (await admin.get("/ps")).json() == {"items": [], "next_cursor": None}
    loaded = (await admin.post("/models/talk/load", json={"keep_alive": -1})).json()
    assert (await admin.get("/ps")).json()["items"][0]["pid"] == loaded["pid"]
    assert runs(loaded["pid"])
    told = {name: loaded[name] for name in ("model", "versions", "services", "engine", "device", "state", "in_flight")}
    assert told == {
        "model": "toy",
        "versions": ["toy@1.0.0"],
        "services": ["talk"],
        "engine": "fake",
        "device": "cpu",
        "state": "ready",
        "in_flight": 0,
    }
    assert loaded["bytes"] > 0
    assert loaded["expires_at"] is None
    gone = await admin.post("/models/toy@1.0.0/unload", json={"force": True})
    assert gone.json() == {"unloaded": ["toy@1.0.0"]}
    assert (await admin.get("/ps")).json()["items"] == []
    assert not runs(loaded["pid"])
    actions = [entry["action"] for entry in (await admin.get("/audit")).json()["items"]]
    assert {"models.load", "models.unload"} <= set(actions)


async def test_a_rehearsal_loads_nothing(app: Running) -> None:
    """`dry_run=1` says what would be done, and what does not exist is refused all the same."""
    for path in ("load", "unload", "cooldown/clear"):
        told = await app.admin.post(f"/models/toy/{path}?dry_run=1")
        assert told.json()["changes"][0]["object_id"] == "toy@1.0.0", path
        missing = await app.admin.post(f"/models/nobody/{path}?dry_run=1")
        assert missing.status_code == 404, path
    assert (await app.admin.get("/ps")).json()["items"] == []


async def test_a_load_that_fails_is_told_and_left_alone_until_it_is_cleared(app: Running) -> None:
    """The error names what happened; the next load is 429 with Retry-After, until an operator clears it."""
    bad = {**TOY, "id": "bad", "engine_options": {"fail": "load"}}
    assert (await app.admin.post("/models", json=bad)).status_code == 201
    first = await app.admin.post("/models/bad/load")
    assert first.status_code == 503, first.text
    again = await app.admin.post("/models/bad/load")
    assert again.status_code == 429, again.text
    assert 0 < int(again.headers["retry-after"]) <= 300
    assert (await app.admin.post("/models/bad/cooldown/clear")).status_code == 204
    assert (await app.admin.post("/models/bad/load")).status_code == 503
    assert (await app.admin.post("/models/toy/load")).status_code == 200


async def test_weights_that_are_not_here_are_a_remedy(app: Running) -> None:
    """A model of the hub that was not pulled is 404, and the hint is the call that fetches it."""
    answer = await app.admin.post("/models/qwen3-0.6b/load")
    assert answer.status_code == 404, answer.text
    assert "pull" in answer.json()["error"]["hint"].lower()
