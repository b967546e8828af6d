"""Jobs of pictures on a running application: making models of the fake engine, asking, following, looking."""

import io
import json
import wave
from collections.abc import Mapping
from typing import Any

import httpx
from PIL import Image

from support.waiting import eventually

MIB = 2**20
SMALL = {"width": 64, "height": 48, "num_inference_steps": 4}


async def paints(client: httpx.AsyncClient, id_: str, **options: Any) -> None:
    """Create a model of the fake engine that draws, with these options."""
    card = {name: options.pop(name) for name in ("capabilities", "parameters", "task", "adapters") if name in options}
    body = {
        "id": id_,
        "task": "image-generation",
        "licence": "MIT",
        "version": "1.0.0",
        "engine": "fake",
        "engine_options": options,
        "source": {"kind": "package", "name": id_},
        "footprint": [{"device": "cpu", "bytes": MIB}],
        "capabilities": ["image_to_image", "inpaint"],
        **card,
    }
    answer = await client.post("/models", json=body)
    assert answer.status_code == 201, answer.text


async def ask(client: httpx.AsyncClient, model: str, *, prompt: str = "a fox", **fields: Any) -> str:
    """Enqueue a job of small pictures and return its id; `settings` add to those of a small one."""
    settings = {**SMALL, **fields.pop("settings", {})}
    job = {name: fields.pop(name) for name in ("priority", "idempotency_key") if name in fields}
    payload = {"prompt": prompt, "model": model, "settings": settings, **fields}
    answer = await client.post("/jobs", json={"kind": "images", "payload": payload, **job})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def job_of(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.get(f"/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """Return the job when it has ended."""
    found: dict[str, Any] = {}

    async def is_over() -> bool:
        found.update(await job_of(client, job_id))
        return found["status"] in ("succeeded", "failed", "cancelled")

    await eventually(is_over, seconds=120)
    return found


async def drawn(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """Return the result of a job that must succeed."""
    job = await ended(client, job_id)
    assert job["status"] == "succeeded", job
    return dict(job["result"])


async def generating(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """Return the job when its model has told a step."""
    found: dict[str, Any] = {}

    async def draws() -> bool:
        found.update(await job_of(client, job_id))
        assert found["status"] not in ("failed", "cancelled"), found
        return (found["progress"] or {}).get("stage") == "generating"

    await eventually(draws, seconds=120)
    return found


async def events_of(client: httpx.AsyncClient, job_id: str) -> list[Mapping[str, Any]]:
    """Return the stored events of a job that has ended."""
    text = (await client.get(f"/jobs/{job_id}/events")).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def a_png(size: tuple[int, int] = (40, 20), colour: tuple[int, ...] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def a_wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    return file.getvalue()


async def upload(client: httpx.AsyncClient, data: bytes) -> str:
    answer = await client.post("/files", content=data)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
