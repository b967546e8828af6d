"""Asking a running application for pictures of the fake engine: the model, the jobs, the answers."""

import json
from pathlib import Path
from typing import Any

import httpx

PAINTER: dict[str, Any] = {
    "id": "painter",
    "task": "image-generation",
    "version": "1.0.0",
    "engine": "fake",
    "source": {"kind": "package", "name": "fake"},
    "licence": "MIT",
    "capabilities": ["text_to_image", "image_to_image", "inpaint"],
    "parameters": {
        "width": {"default": 64, "min": 32, "max": 128},
        "height": {"default": 64, "min": 32, "max": 128},
        "num_inference_steps": {"default": 4, "min": 1, "max": 8},
        "guidance_scale": {"default": 0.0, "fixed": True},
    },
}
"""A model that draws gradients which depend on all that was asked."""


async def add_painter(admin: httpx.AsyncClient, id_: str = "painter", **fields: Any) -> None:
    """Register a model that draws; `gate`: the file without which its steps stand still."""
    gate: Path | None = fields.pop("gate", None)
    options = {} if gate is None else {"engine_options": {"step_gate": str(gate)}}
    made = await admin.post("/models", json={**PAINTER, "id": id_, **options, **fields})
    assert made.status_code == 201, made.text


async def submitted(client: httpx.AsyncClient, **body: Any) -> str:
    """Enqueue pictures and return the job's id."""
    answer = await client.post("/images/generations", json={"model": "painter", "prompt": "a red fox", **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """Follow a job to its end, then return it."""
    followed = await client.get(f"/jobs/{job_id}/events", timeout=120)
    assert followed.status_code == 200, followed.text
    return dict((await client.get(f"/jobs/{job_id}")).json())


async def drawn(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """Make pictures and return them as the job's result tells them."""
    job = await ended(client, await submitted(client, **body))
    assert job["status"] == "succeeded", job["error"]
    return list(job["result"]["images"])


def events_of(stream: str, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a stream of server-sent events."""
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    return [event for event in map(json.loads, data) if event["type"] == kind]
