"""Pictures while workers and servers are shot: no job is lost, none ends twice, and the picture is the same."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.images import ask, drawn, ended, generating, job_of, paints
from support.model_server import ModelServer, model_server
from support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

SETTINGS = {"num_inference_steps": 20, "seed": 11}


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[ModelServer]:
    async with model_server(tmp_path / "home") as started:
        yield started


def digests(result: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in result["images"]]


async def shoot(server: ModelServer, model: str) -> None:
    os.kill(await server.pid(model), signal.SIGKILL)


def rows(server: ModelServer, job_id: str) -> list[dict[str, Any]]:
    return server.rows("SELECT * FROM pictures WHERE job_id = ? ORDER BY position", job_id)


async def test_jobs_whose_worker_is_shot_draw_the_same_picture_later(server: ModelServer, tmp_path: Path) -> None:
    """Two share a worker that is killed in the middle: each runs again, and ends once, as if nothing had been."""
    gate = tmp_path / "gate"
    await paints(server.admin, "plain")
    await paints(server.admin, "gated", step_gate=str(gate))
    seeded = await ask(server.admin, "gated", settings=SETTINGS)
    drawing_lots = await ask(server.admin, "gated", settings={"num_images": 2})
    for job_id in (seeded, drawing_lots):

        async def runs(job_id: str = job_id) -> bool:
            return bool((await job_of(server.admin, job_id))["status"] == "running")

        await eventually(runs)
    await server.await_runs("gated", 2)
    await shoot(server, "gated")
    gate.touch()
    for job_id in (seeded, drawing_lots):
        job = await ended(server.admin, job_id)
        assert (job["status"], job["attempts"]) == ("succeeded", 2), job
        assert digests(job["result"]) == [row["digest"] for row in rows(server, job_id)]
        again = await drawn(server.admin, await ask(server.admin, "gated", settings=job["result"]["settings"]))
        assert digests(again) == digests(job["result"])


async def test_a_job_that_takes_its_worker_down_fails_with_the_reason(server: ModelServer) -> None:
    """After the third time; what waits behind it, of its own model and of another, goes on."""
    await paints(server.admin, "poison", fail="crash", fail_after=3)
    await paints(server.admin, "plain")
    bad = await ask(server.admin, "poison", settings=SETTINGS)
    await drawn(server.admin, await ask(server.admin, "plain"))
    job = await ended(server.admin, bad)
    assert (job["status"], job["attempts"], job["error"]["code"]) == ("failed", 3, "IMAGE_WORKER_LOST")
    assert job["error"]["message"]
    assert job["error"]["hint"]
    assert rows(server, bad) == []
    after = await ended(
        server.admin, await ask(server.admin, "poison", settings={"num_inference_steps": 1}, previews=0)
    )
    assert after["status"] == "succeeded", "a short job draws before the model crashes, when it may be tried again"


async def test_a_server_that_is_killed_finishes_its_jobs_when_it_is_back(tmp_path: Path) -> None:
    """Once each: the one that drew and the one that waited, with and without a seed of their own."""
    gate, home = tmp_path / "gate", tmp_path / "home"
    async with model_server(home, image_concurrency=1) as server:
        await paints(server.admin, "gated", step_gate=str(gate), step_s=0.05)
        gate.touch()
        expected = digests(await drawn(server.admin, await ask(server.admin, "gated", settings=SETTINGS)))
        seeded = await ask(server.admin, "gated", settings=SETTINGS)
        lots = await ask(server.admin, "gated", settings={"num_images": 3})
        await generating(server.admin, seeded)
        gate.unlink()
        server.process.process.kill()
        server.process.process.wait(30)
    gate.touch()
    async with model_server(home) as server:
        found = await drawn(server.admin, seeded)
        assert digests(found) == expected
        drawn_by_lot = await drawn(server.admin, lots)
        for job_id, result in ((seeded, found), (lots, drawn_by_lot)):
            assert [(row["id"], row["digest"]) for row in rows(server, job_id)] == [
                (image["id"], image["sha256"]) for image in result["images"]
            ]
        again = await drawn(server.admin, await ask(server.admin, "gated", settings=drawn_by_lot["settings"]))
        assert digests(again) == digests(drawn_by_lot)
