"""Pictures by other servers, through a real server: from the request to the gallery."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.image_upstream import ImageUpstream, image_event, png
from support.model_server import ModelServer, model_server, said
from support.upstream import END, STREAM_HEAD, Asked, event, framed, reply
from support.waiting import eventually

pytestmark = pytest.mark.anyio

ENDS = {"succeeded", "failed", "cancelled"}
SIDES = {"width": 64, "height": 32}


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[ModelServer]:
    async with model_server(tmp_path / "home", outbound_allow="127.0.0.1") as started:
        yield started


@pytest.fixture
async def upstream() -> AsyncIterator[ImageUpstream]:
    async with ImageUpstream() as started:
        yield started


async def painter(server: ModelServer, id_: str, upstream: ImageUpstream, **options: Any) -> None:
    source = {"kind": "remote", "endpoint": upstream.endpoint, "model": "fal-ai/flux/dev"}
    body = {
        "id": id_,
        "task": "image-generation",
        "licence": "MIT",
        "version": "1.0.0",
        "source": source,
        "engine_options": options,
    }
    await said(server.admin.post("/models", json=body), 201)


async def draw(server: ModelServer, **body: Any) -> str:
    accepted = await said(server.admin.post("/images/generations", json={"prompt": "a cat", **body}), 202)
    return str(accepted["job_id"])


async def ended(server: ModelServer, job_id: str) -> dict[str, Any]:
    """Return a job when it is over."""
    found: dict[str, Any] = {}

    async def is_over() -> bool:
        found.update(await said(server.admin.get(f"/jobs/{job_id}")))
        return found["status"] in ENDS

    await eventually(is_over, seconds=100)
    return found


async def test_a_service_draws_elsewhere_and_elsewhere_again(server: ModelServer, upstream: ImageUpstream) -> None:
    """Where one server fails, the next draws; the pictures are kept here, and the decision says who drew."""
    async with ImageUpstream() as broken:
        broken.always("generations", reply(500, {}))
        await painter(server, "far", broken)
        await painter(server, "near", upstream)
        await server.service("s", "far@1.0.0", "near@1.0.0", task="image-generation")
        job = await ended(server, await draw(server, service="s", settings={**SIDES, "num_images": 2, "seed": 5}))
    assert job["status"] == "succeeded", job["error"]
    assert [link["outcome"] for link in job["decision"]["chain"]] == ["failed", "served"]
    assert [one["seed"] for one in job["result"]["images"]] == [5, 6]
    for one in job["result"]["images"]:
        answer = await server.admin.get(one["url"])
        assert Image.open(io.BytesIO(answer.content)).size == (64, 32)
    assert job["result"]["usage"]["total_tokens"] == 107
    assert job["result"]["reproducible"] is False
    assert job["result"]["unused"] == ["seed", "num_inference_steps", "guidance_scale"]
    assert await server.ps() == []


async def test_a_cancelled_job_cancels_the_request(server: ModelServer, upstream: ImageUpstream) -> None:
    """The queue of the other server is told."""
    upstream.always("status", reply(202, {"status": "IN_QUEUE", "queue_position": 3}))
    await painter(server, "far", upstream, images="fal")
    job_id = await draw(server, model="far", settings=SIDES)

    async def is_queued_there() -> bool:
        return bool(upstream.asked("/status"))

    await eventually(is_queued_there, seconds=100)
    await server.admin.post(f"/jobs/{job_id}/cancel")
    async with asyncio.timeout(100):
        await upstream.was_cancelled.wait()
    assert (await ended(server, job_id))["status"] == "cancelled"
    assert upstream.cancelled == ["r1"]


async def test_the_place_in_the_queue_of_another_server_is_told(server: ModelServer, upstream: ImageUpstream) -> None:
    """As places in queues are: with the job's other events, and not as steps of a picture. Nonsense is not."""
    places = (3, 10**30, -7, 0)
    upstream.looks = tuple({"status": "IN_QUEUE", "queue_position": place} for place in places)
    await painter(server, "far", upstream, images="fal")
    job = await ended(server, await draw(server, model="far", settings=SIDES))
    assert job["status"] == "succeeded", job["error"]
    text = (await server.admin.get(f"/jobs/{job['id']}/events")).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["position"] for event in events if event["type"] == "queued"][-2:] == [4, 1]
    assert all("queue_position" not in (event.get("detail") or {}) for event in events)


async def test_previews_of_another_server_are_made_anew(server: ModelServer, upstream: ImageUpstream) -> None:
    """Clients see the small WebP that ours are; what cannot be opened is left out, and the picture still comes."""
    large = png((10, 200, 30), (1600, 800))
    sent = (large, b"<script>", png()[:24] + b"\xff" * 400)
    frames = [image_event("image_generation.partial_image", data) for data in sent]
    last = image_event("image_generation.completed", png((1, 2, 3), (64, 32)))
    body = b"".join(framed(event(one)) for one in [*frames, last])

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + body + END)

    upstream.next_time("generations", behave)
    await painter(server, "far", upstream, partial_images=3)
    asked = {"model": "far", "prompt": "a cat", "size": "64x32", "stream": True, "partial_images": 3}
    answer = await server.admin.post("/v1/images/generations", json=asked, timeout=100)
    assert answer.status_code == 200, answer.text
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [one["type"].rpartition(".")[2] for one in told] == ["partial_image", "completed"]
    shown = Image.open(io.BytesIO(base64.b64decode(told[0]["b64_json"])))
    assert (shown.format, shown.size, told[0]["output_format"]) == ("WEBP", (128, 64), "webp")
    assert max(abs(a - b) for a, b in zip(shown.convert("RGB").getpixel((60, 30)), (10, 200, 30), strict=True)) < 12


async def test_what_only_begins_like_a_picture_is_no_picture(server: ModelServer, upstream: ImageUpstream) -> None:
    """It is opened by the decoder alone; the job fails, and the server goes on."""
    fake = base64.b64encode(png()[:24] + b"\xff" * 400).decode()
    upstream.next_time("generations", reply(200, {"data": [{"b64_json": fake}]}))
    await painter(server, "far", upstream)
    failed = await ended(server, await draw(server, model="far", settings=SIDES))
    assert failed["status"] == "failed"
    assert "cannot be opened" in failed["error"]["message"]
    assert (await ended(server, await draw(server, model="far", settings=SIDES)))["status"] == "succeeded"
