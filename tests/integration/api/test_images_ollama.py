"""Pictures in Ollama's form, with its own client too; and prompts that a language model writes out."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from serai.api.enqueue import Awaited
from serai.jobs import store
from support.api import Running, running
from support.picture_api import PAINTER, add_painter, submitted
from support.process import ServerProcess
from support.registry_api import refused, said
from support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def studio(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """An application with a model that draws, and one that writes."""
    async with running(tmp_path / "home", rate_limits="off") as started:
        await add_painter(started.admin)
        await said(
            started.admin.post("/models", json={**PAINTER, "id": "talker", "task": "chat", "parameters": {}}), 201
        )
        yield started


async def test_a_picture_is_told_in_steps_and_last_whole(studio: Running) -> None:
    """`completed` of `total` in each line, then `image` in base64, the same as the gallery keeps; or all in one."""
    body = {"model": "painter", "prompt": "a red fox", "width": 96, "height": 32, "steps": 3, "options": {"seed": 5}}
    answer = await studio.admin.post(
        "/api/generate", json={**body, "options": {"seed": 5, "num_ctx": 1}, "keep_alive": "5m"}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    *steps, last = [json.loads(line) for line in answer.text.splitlines()]
    assert [(step["completed"], step["total"], step["done"]) for step in steps][-1] == (3, 3, False)
    assert [step["completed"] for step in steps] == sorted({step["completed"] for step in steps})
    assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", "painter")
    assert last["total_duration"] > 0
    whole = await said(studio.admin.post("/api/generate", json={**body, "stream": False}))
    assert whole["image"] == last["image"]
    (first, second) = (await said(studio.admin.get("/images")))["items"]
    assert (first["width"], first["height"], first["seed"], first["sha256"]) == (96, 32, 5, second["sha256"])
    assert (await studio.admin.get(first["url"])).content == base64.b64decode(last["image"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"width": 0}, "width"),
    ({"width": 7}, "width"),
    ({"height": 4096}, "height"),
    ({"steps": 99}, "steps"),
    ({"options": {"seed": -2}}, "options.seed"),
    ({"options": {"temperature": 0.5}}, "options.temperature"),
    ({"prompt": "x" * 5000}, "prompt"),
    ({"images": ["eA=="]}, "images"),
    ({"system": "be kind"}, "system"),
    ({"format": "json"}, "format"),
    ({"negative_prompt": "x"}, "negative_prompt"),
]


async def test_what_a_picture_is_not_made_with_is_refused(studio: Running) -> None:
    """400 with the name that this dialect has for it, and nothing is queued."""
    for change, field in REFUSED:
        answer = await studio.admin.post("/api/generate", json={"model": "painter", "prompt": "x", **change})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith(f"{field}:")
    assert (await said(studio.admin.get("/jobs")))["items"] == []


async def test_a_text_model_answers_a_text_as_before(studio: Running) -> None:
    """Who is named decides; sizes are refused there."""
    told = await said(studio.admin.post("/api/generate", json={"model": "talker", "prompt": "one", "stream": False}))
    assert told["response"]
    wrong = await studio.admin.post("/api/generate", json={"model": "talker", "prompt": "one", "width": 64})
    assert (wrong.status_code, wrong.json()["error"]) == (400, "width: is not supported here")
    missing = await studio.admin.post("/api/generate", json={"model": "nobody", "prompt": "one"})
    assert missing.status_code == 404


async def test_what_fails_is_told_in_the_last_line_or_as_the_status(studio: Running) -> None:
    """A model that breaks: `error` and nothing after it."""
    await add_painter(studio.admin, "broken", engine_options={"fail": "run"})
    body = {"model": "broken", "prompt": "x"}
    *_, last = [json.loads(line) for line in (await studio.admin.post("/api/generate", json=body)).text.splitlines()]
    assert set(last) == {"error"}
    whole = await studio.admin.post("/api/generate", json={**body, "stream": False})
    assert (whole.status_code, whole.json()["error"]) == (503, last["error"])


async def test_a_job_that_nobody_waits_for_any_more_is_cancelled(tmp_path: Path, anyio_backend: str) -> None:
    """When what follows it is closed before its end; one that has ended stays as it is."""
    gate = tmp_path / "gate"
    async with running(tmp_path / "home") as server:
        await add_painter(server.admin, gate=gate)
        parts = server.app.state.parts
        job = await parts.database.read(store.get, await submitted(server.admin), owner_id=None)
        awaited = Awaited(parts, job)
        await awaited.aclose()

        async def is_cancelled() -> bool:
            return bool((await said(server.admin.get(f"/jobs/{job.id}")))["status"] == "cancelled")

        await eventually(is_cancelled)
        gate.touch()
        job = await parts.database.read(store.get, await submitted(server.admin), owner_id=None)
        awaited = Awaited(parts, job)
        assert (await awaited.last()).result["images"]  # type: ignore[union-attr]
        await awaited.aclose()
        assert (await said(server.admin.get(f"/jobs/{job.id}")))["status"] == "succeeded"


def test_ollamas_own_client_gets_a_picture(spawned: ServerProcess) -> None:
    """With the parameters that it has for models that draw."""
    with spawned.client() as admin:
        assert admin.post("/models", json={**PAINTER, "id": "for-ollama"}).status_code == 201
        key = admin.headers["authorization"]
    asked: dict[str, Any] = {"model": "for-ollama", "prompt": "a fox", "width": 64, "height": 32, "steps": 2}
    with ollama.Client(host=spawned.url, headers={"authorization": key}, trust_env=False) as client:
        *steps, last = client.generate(**asked, stream=True)
        whole = client.generate(**asked)
    assert [(step.completed, step.total) for step in steps][-1] == (2, 2)
    assert base64.b64decode(last.image or "").startswith(b"\x89PNG")
    assert whole.done
    assert whole.image


async def test_a_prompt_is_written_out_by_a_chat_model(studio: Running) -> None:
    """By the one that is named, or by a chat service; the fake one repeats what it was told."""
    admin = studio.admin
    asked = {"prompt": "a red fox", "style": "cyberpunk"}
    told = await refused(admin.post("/prompts/enrich", json=asked), 503, "NO_PROMPT_WRITER")
    assert "chat" in told["hint"]
    answer = await admin.post("/prompts/enrich", json={**asked, "model": "talker"})
    written = await said(admin.post("/prompts/enrich", json={**asked, "model": "talker"}))
    assert (written["style"], written["model"], written["version"]) == ("cyberpunk", "talker", "1.0.0")
    assert "a red fox" in written["prompt"]
    assert answer.headers["x-serai-model"] == "talker@1.0.0"
    bound = {"id": "writing", "task": "chat", "model_id": "talker", "model_version": "1.0.0"}
    await said(admin.post("/services", json=bound), 201)
    assert (await said(admin.post("/prompts/enrich", json=asked)))["model"] == "talker"
    for change, field in (
        ({"style": "baroque"}, "style"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"model": ""}, "model"),
        ({"colour": 1}, "colour"),
    ):
        await refused(admin.post("/prompts/enrich", json={**asked, **change}), 422, "INVALID_INPUT", field)
    await refused(admin.post("/prompts/enrich", json={**asked, "model": "nobody"}), 404, "MODEL_NOT_FOUND")
