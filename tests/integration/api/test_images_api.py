"""Pictures over HTTP: the job that makes them, what is refused before it, the same picture again."""

import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.api import Running, running
from support.picture_api import PAINTER, add_painter, drawn, ended, events_of, submitted
from support.registry_api import refused, said
from support.waiting import eventually

pytestmark = pytest.mark.anyio

GENERATIONS = "/images/generations"


@pytest.fixture
async def studio(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """An application with a model that draws."""
    async with running(tmp_path / "home", rate_limits="off") as started:
        await add_painter(started.admin)
        yield started


def a_png(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 255).save(out, "PNG")
    return out.getvalue()


async def test_a_job_makes_pictures(server_on_both: Running) -> None:
    """202 with the place; events tell load, steps and previews; the result names pictures that are there."""
    admin = server_on_both.admin
    await add_painter(admin)
    settings = {"num_images": 2, "seed": 7, "width": 96, "format": "webp"}
    body = {"model": "painter", "prompt": "a red fox", "settings": settings, "previews": 2}
    answer = await admin.post(GENERATIONS, json=body)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert set(told) == {"job_id", "status", "position", "status_url", "events_url"}
    assert told["status_url"] == f"/jobs/{told['job_id']}"
    stream = (await admin.get(told["events_url"], timeout=120)).text
    steps = [event["detail"] for event in events_of(stream, "progress") if event["stage"] == "generating"]
    assert steps[-1] == {"image": 1, "images": 2, "step": 4, "steps": 4, "eta_s": steps[-1]["eta_s"]}
    job = await said(admin.get(told["status_url"]))
    assert job["status"] == "succeeded", job["error"]
    assert job["decision"]["model"] == "painter"
    assert [picture["seed"] for picture in job["result"]["images"]] == [7, 8]
    for picture in job["result"]["images"]:
        file = await admin.get(picture["url"])
        assert hashlib.sha256(file.content).hexdigest() == picture["sha256"]
        with Image.open(io.BytesIO(file.content)) as image:
            assert (image.size, image.format) == ((96, 64), "WEBP")


async def test_the_paths_of_before_do_the_same(studio: Running) -> None:
    """`model_id` at /api/generate makes a job; status, picture, metadata and queue answer as the native calls do."""
    admin = studio.admin
    answer = await admin.post(
        "/api/generate", json={"model_id": "painter", "prompt": "a red fox", "settings": {"seed": 3}}
    )
    assert answer.status_code == 202, answer.text
    await ended(admin, answer.json()["job_id"])
    job = await said(admin.get(f"/api/status/{answer.json()['job_id']}"))
    assert job == await said(admin.get(f"/jobs/{job['id']}"))
    (picture,) = job["result"]["images"]
    for tail in ("", "?size=thumb"):
        old, new = await admin.get(f"/api/image/{picture['id']}{tail}"), await admin.get(f"{picture['url']}{tail}")
        assert (old.status_code, old.content, old.headers["etag"]) == (200, new.content, new.headers["etag"])
    metadata = await said(admin.get(f"/api/image/{picture['id']}/metadata"))
    assert metadata == await said(admin.get(f"/images/{picture['id']}/metadata"))
    assert await said(admin.get("/api/queue")) == await said(admin.get("/queue"))
    asked = {"model_id": "painter", "prompt": "x"}
    same = await admin.post("/api/generate", json={**asked, "idempotency_key": "k"})
    again = await admin.post("/api/generate", json=asked, headers={"idempotency-key": "k"})
    assert same.json()["job_id"] == again.json()["job_id"]
    wrong = await admin.post("/api/generate", json={"model_id": "painter", "prompt": "x", "stream": False})
    assert wrong.status_code == 400
    assert wrong.json()["error"].startswith("stream:")


@pytest.mark.parametrize("metadata", ["on", "off"])
async def test_the_metadata_holds_the_request_that_makes_the_same_bytes(
    tmp_path: Path, anyio_backend: str, metadata: str
) -> None:
    """Of a picture that nobody gave a seed, the second of its job: sent as it is, one call draws it again."""
    async with running(tmp_path / "home", image_metadata=metadata) as server:
        await add_painter(server.admin)
        pictures = await drawn(server.admin, negative_prompt="blur", settings={"num_images": 2, "height": 32})
        shown = await said(server.admin.get(f"/images/{pictures[1]['id']}/metadata"))
        assert (shown["model"], shown["version"], shown["prompt"]) == ("painter", "1.0.0", "a red fox")
        assert shown["settings"]["num_inference_steps"] == 4
        assert shown["decision"]["reason"] == "default"
        assert shown["request"]["settings"]["seed"] == pictures[1]["seed"] == pictures[0]["seed"] + 1
        answer = await said(server.admin.post(GENERATIONS, json=shown["request"]), 202)
        job = await ended(server.admin, answer["job_id"])
        assert [one["sha256"] for one in job["result"]["images"]] == [pictures[1]["sha256"]]
        again = await said(server.admin.get(f"/images/{job['result']['images'][0]['id']}/metadata"))
        assert again["request"] == shown["request"]


REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    *(({"settings": {"width": width}}, 422, "INVALID_INPUT", "settings.width") for width in (0, -8, 7, 2**40, 64.5)),
    *(({"settings": {"height": height}}, 422, "INVALID_INPUT", "settings.height") for height in (True, "64", 8200)),
    ({"settings": {"width": 72, "height": 136}}, 422, "INVALID_INPUT", "settings.height"),
    ({"settings": {"width": 36}}, 422, "INVALID_INPUT", "settings.width"),
    ({"settings": {"num_images": 9}}, 422, "INVALID_INPUT", "settings.num_images"),
    ({"settings": {"num_inference_steps": 9}}, 422, "INVALID_INPUT", "settings.num_inference_steps"),
    ({"settings": {"guidance_scale": 2}}, 422, "INVALID_INPUT", "settings.guidance_scale"),
    ({"settings": {"seed": -1}}, 422, "INVALID_INPUT", "settings.seed"),
    ({"settings": {"format": "gif"}}, 422, "INVALID_INPUT", "settings.format"),
    ({"settings": {"colour": 1}}, 422, "INVALID_INPUT", "settings.colour"),
    ({"settings": {"strength": 0.5}}, 422, "INVALID_INPUT", "settings.strength"),
    ({"settings": {"adapters": [{"id": "none"}]}}, 422, "INVALID_INPUT", "settings.adapters[0].id"),
    ({"settings": {"adapters": [{"id": "a", "scale": 9}]}}, 422, "INVALID_INPUT", "settings.adapters[0].scale"),
    ({"settings": None}, 422, "INVALID_INPUT", "settings"),
    ({"prompt": "x" * 100_000}, 422, "INVALID_INPUT", "prompt"),
    *(({"prompt": prompt}, 422, "INVALID_INPUT", "prompt") for prompt in ("", "  ", "\n\t")),
    ({"prompt": 5}, 422, "INVALID_INPUT", "prompt"),
    ({"negative_prompt": "x" * 4001}, 422, "INVALID_INPUT", "negative_prompt"),
    ({"model": "nobody"}, 404, "MODEL_NOT_FOUND", None),
    ({"model": "painter@9.9.9"}, 404, "VERSION_NOT_FOUND", None),
    ({"service": "nobody", "model": None}, 404, "SERVICE_NOT_FOUND", None),
    ({"model": "talker"}, 422, "INVALID_INPUT", "model"),
    ({"model": "lips"}, 422, "INVALID_INPUT", "model"),
    ({"model_id": "other"}, 422, "INVALID_INPUT", "model_id"),
    ({"image": "file_00000000000000000000000000"}, 404, "FILE_NOT_FOUND", None),
    ({"mask": "file_00000000000000000000000000"}, 422, "INVALID_INPUT", "mask"),
    ({"previews": 101}, 422, "INVALID_INPUT", "previews"),
    ({"priority": 10}, 422, "INVALID_INPUT", "priority"),
    ({"webhook_url": "ftp://example.org"}, 422, "INVALID_INPUT", "webhook_url"),
    ({"idempotency_key": ""}, 422, "INVALID_INPUT", "idempotency_key"),
    ({"steps": 5}, 422, "INVALID_INPUT", "steps"),
]


async def test_what_is_wrong_is_refused_before_anything_is_queued(studio: Running) -> None:
    """4xx that names the field, by both paths; the message of a bound holds it and the number."""
    admin = studio.admin
    await said(admin.post("/models", json={**PAINTER, "id": "talker", "task": "chat", "parameters": {}}), 201)
    unpulled = {"task": "lip-sync", "source": {"kind": "hub", "repo": "o/lips"}, "licence": "MIT"}
    await said(admin.post("/models", json={"id": "lips", "version": "1.0.0", **unpulled}), 201)
    for change, status, code, field in REFUSED:
        body = {"model": "painter", "prompt": "a red fox", **change}
        error = await refused(admin.post(GENERATIONS, json=body), status, code, field)
        assert "x" * 100 not in json.dumps(error)
        old = {**body, "model_id": body.get("model_id") or body.pop("model")}
        answer = await admin.post("/api/generate", json=old)
        assert answer.status_code == (400 if status == 422 else status), (change, answer.text)
    for width, bound in ((136, "128"), (24, "32"), (0, "32"), (-8, "32"), (8200, "128")):
        error = await refused(
            admin.post(GENERATIONS, json={"prompt": "x", "settings": {"width": width}}), 422, "INVALID_INPUT"
        )
        assert bound in error["message"]
        assert str(width) in error["message"]
        assert "GET /models/painter" in error["hint"]
    told = await refused(
        admin.post(GENERATIONS, json={"prompt": "x", "settings": {"format": "gif"}}), 422, "INVALID_INPUT"
    )
    assert "jpeg, png, webp" in told["message"]
    for content, kind, status in (
        (b'{"prompt": NaN}', "application/json", 400),
        (b"prompt=x", "application/json", 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b"prompt=x", "application/x-www-form-urlencoded", 415),
    ):
        answer = await admin.post(GENERATIONS, content=content, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
    assert (await said(admin.get("/jobs")))["items"] == []


async def test_a_picture_is_made_from_one_that_was_uploaded(studio: Running) -> None:
    """By the ids of the caller's own files, which are pictures; another's do not exist, and sound is refused."""
    ada, bob = await studio.make_user("ada", "user"), await studio.make_user("bob", "user")
    image = (await said(ada.post("/files", content=a_png()), 201))["id"]
    mask = (await said(ada.post("/files", content=a_png("L")), 201))["id"]
    (picture,) = await drawn(ada, image=image, mask=mask, settings={"seed": 1, "strength": 0.5})
    shown = await said(ada.get(f"/images/{picture['id']}/metadata"))
    assert (shown["request"]["image"], shown["request"]["mask"]) == (image, mask)
    (again,) = await drawn(ada, **shown["request"])
    assert again["sha256"] == picture["sha256"]
    for client in (bob, studio.admin):
        body = {"model": "painter", "prompt": "x", "image": image}
        await refused(client.post(GENERATIONS, json=body), 404, "FILE_NOT_FOUND")
    seen = await said(studio.admin.get(f"/images/{picture['id']}/metadata"))
    assert seen["request"] is None, "an admin, whose the file is not, cannot send it"
    assert seen["image_sha256"] == shown["image_sha256"]
    job = shown["job_id"]
    assert (await ada.delete(f"/jobs/{job}")).status_code == 204
    assert (await said(ada.get(f"/images/{picture['id']}/metadata")))["request"] is None
    assert (await ada.delete(f"/files/{mask}")).status_code == 204
    gone = await said(ada.get(f"/images/{again['id']}/metadata"))
    assert (gone["request"], gone["image_sha256"], gone["mask_sha256"]) == (None, None, None)


async def test_what_an_editing_model_made_is_not_told_as_made_from_words(studio: Running) -> None:
    """When its job is gone nobody knows what it began with, and without that it cannot be made again."""
    admin = studio.admin
    await add_painter(admin, "editor", task="image-edit", capabilities=["edit"])
    image = (await said(admin.post("/files", content=a_png()), 201))["id"]
    (picture,) = await drawn(admin, model="editor", image=image)
    shown = await said(admin.get(f"/images/{picture['id']}/metadata"))
    assert shown["request"]["image"] == image
    (again,) = await drawn(admin, **shown["request"])
    assert again["sha256"] == picture["sha256"]
    assert (await admin.delete(f"/jobs/{shown['job_id']}")).status_code == 204
    assert (await said(admin.get(f"/images/{picture['id']}/metadata")))["request"] is None


async def test_a_key_gives_the_same_job_whatever_became_of_the_model(studio: Running) -> None:
    """Header and field mean the same; another request under it is refused; the model may be gone by then."""
    admin = studio.admin
    body = {"model": "painter", "prompt": "a red fox"}
    first = await said(admin.post(GENERATIONS, json={**body, "idempotency_key": "k"}), 202)
    await ended(admin, first["job_id"])
    await said(admin.delete("/models/painter?force=1"), 204)
    again = await said(admin.post(GENERATIONS, json=body, headers={"idempotency-key": "k"}), 202)
    assert (again["job_id"], again["status"], again["position"]) == (first["job_id"], "succeeded", None)
    other = admin.post(GENERATIONS, json={**body, "prompt": "another"}, headers={"idempotency-key": "k"})
    await refused(other, 422, "IDEMPOTENCY_MISMATCH")
    both = admin.post(GENERATIONS, json={**body, "idempotency_key": "a"}, headers={"idempotency-key": "b"})
    await refused(both, 422, "INVALID_INPUT", "idempotency_key")
    await refused(admin.post(GENERATIONS, json=body), 404, "MODEL_NOT_FOUND")


async def test_a_full_queue_is_503_and_a_waiting_job_can_be_cancelled(tmp_path: Path, anyio_backend: str) -> None:
    """With Retry-After; the queue tells who waits where; a cancelled one makes room."""
    gate = tmp_path / "gate"
    async with running(tmp_path / "home", image_concurrency=1, image_max_queued=2) as server:
        admin, ada = server.admin, await server.make_user("ada", "user")
        await add_painter(admin, gate=gate)
        running_job = await submitted(admin)

        async def is_running() -> bool:
            return bool((await said(admin.get("/queue")))["running"])

        await eventually(is_running)
        mine, hers = await submitted(admin), await submitted(ada)
        answer = await ada.post(GENERATIONS, json={"model": "painter", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "QUEUE_FULL")
        assert int(answer.headers["retry-after"]) >= 1
        queue = await said(ada.get("/queue?detailed=1"))
        assert (queue["queued"], queue["running"], queue["max_queued"], queue["concurrency"]) == (2, 1, 2, 1)
        assert [place["job_id"] for place in queue["own"]] == [hers]
        assert queue["models"]["painter"]["queued"] == 2
        positions = {(await said(admin.get(f"/jobs/{job}")))["position"] for job in (mine, hers)}
        assert positions == {1, 2}
        assert (await said(admin.post(f"/jobs/{mine}/cancel")))["status"] == "cancelled"
        await said(ada.post(GENERATIONS, json={"model": "painter", "prompt": "x"}), 202)
        gate.touch()
        assert (await ended(admin, running_job))["status"] == "succeeded"
        assert (await ended(ada, hers))["status"] == "succeeded"
        queue = await said(admin.get("/queue"))
        assert queue["models"] is None
        assert queue["failure_rate"] == 0.0
        assert queue["mean_s"] > 0


async def test_a_picture_of_the_gallery_is_started_from(studio: Running) -> None:
    """By its id; the job holds it, whether it is in the gallery then or not. Another's is not there."""
    (first,) = await drawn(studio.admin, settings={"seed": 3})
    (second,) = await drawn(studio.admin, image=first["id"], settings={"seed": 3, "strength": 0.5})
    assert second["sha256"] != first["sha256"]
    assert (await studio.admin.delete(first["url"])).status_code == 204
    told = await said(studio.admin.get(f"{second['url']}/metadata"))
    assert told["image_sha256"] == first["sha256"]
    (again,) = await drawn(studio.admin, **{key: told["request"][key] for key in ("image", "settings")})
    assert again["sha256"] == second["sha256"]
    (varied,) = await drawn(studio.admin, prompt="", image=second["id"], settings={"seed": 4})
    request = (await said(studio.admin.get(f"{varied['url']}/metadata")))["request"]
    (again,) = await drawn(studio.admin, **{"negative_prompt": "", **request})
    assert again["sha256"] == varied["sha256"]
    ann = await studio.make_user("ann", "user")
    body = {"model": "painter", "prompt": "x", "image": second["id"]}
    await refused(ann.post(GENERATIONS, json=body), 404, "PICTURE_NOT_FOUND")


async def test_a_key_of_other_scopes_makes_no_pictures(studio: Running) -> None:
    """Whichever path leads there: /api/generate with a model that draws for `chat`, or POST /jobs for `jobs`."""
    for scopes, status in ((["chat"], 403), (["images", "chat"], 202)):
        key = (await said(studio.admin.post("/keys", json={"name": "n", "scopes": scopes}), 201))["key"]
        async with studio.client(key) as client:
            answer = await client.post("/api/generate", json={"model_id": "painter", "prompt": "x"})
            assert answer.status_code == status
            lines = await client.post("/api/generate", json={"model": "painter", "prompt": "x", "stream": False})
            assert lines.status_code == (403 if status == 403 else 200)
    made = await ended(
        studio.admin,
        (await said(studio.admin.post(GENERATIONS, json={"model": "painter", "prompt": "x"}), 202))["job_id"],
    )
    for scopes, status in ((["jobs"], 403), (["images", "jobs"], 202)):
        key = (await said(studio.admin.post("/keys", json={"name": "n", "scopes": scopes}), 201))["key"]
        async with studio.client(key) as client:
            answer = await client.post("/jobs", json={"kind": "images", "payload": {"model": "painter", "prompt": "x"}})
            assert answer.status_code == status
            assert (await client.post("/jobs", json={"kind": "pull", "payload": {"model": "a/b"}})).status_code == 403
            if status == 403:
                assert "scope images" in answer.json()["error"]["hint"]
                await refused(client.post(f"/jobs/{made['id']}/retry"), 403, "FORBIDDEN")


async def test_it_can_be_rehearsed(studio: Running) -> None:
    """`dry_run=1` says what would be done, refuses what is wrong, and queues nothing."""
    told = await said(studio.admin.post(f"{GENERATIONS}?dry_run=1", json={"model": "painter", "prompt": "x"}))
    assert [change["action"] for change in told["changes"]] == ["jobs.enqueue"]
    await refused(
        studio.admin.post(f"{GENERATIONS}?dry_run=1", json={"model": "nobody", "prompt": "x"}), 404, "MODEL_NOT_FOUND"
    )
    assert (await said(studio.admin.get("/jobs")))["items"] == []
