"""OpenAI's calls for pictures: what they make, what they refuse, and that nothing is left of what a call sent."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image

from corpus.images import IMAGES
from corpus.specimen import Specimen
from serai.api.openai.images_urls import sign
from serai.storage import links
from serai.storage.tables.blobs import blob_links
from support.api import Running, running
from support.waiting import eventually

pytestmark = pytest.mark.anyio

SMALL = {"size": "64x48", "steps": 4}
PATIENT = httpx.Timeout(120)


@pytest.fixture
async def app(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application with `painter`, which draws, starts from pictures and minds masks."""
    async with running(tmp_path / "home", worker_threads=1, rate_limits="off") as started:
        await painter(started, "painter")
        started.admin.timeout = PATIENT
        yield started


async def painter(server: Running, id_: str, task: str = "image-generation", **options: Any) -> None:
    card = {"id": id_, "task": task, "version": "1.0.0", "engine": "fake", "licence": "MIT"}
    source = {"kind": "package", "name": id_}
    body = {**card, "source": source, "engine_options": options, "capabilities": ["image_to_image", "inpaint"]}
    made = await server.admin.post("/models", json={**body, "footprint": [{"device": "cpu", "bytes": 2**20}]})
    assert made.status_code == 201, made.text


async def draw(server: Running, **fields: Any) -> httpx.Response:
    body = {"model": "painter", "prompt": "a hill", **SMALL, **fields}
    return await server.admin.post("/v1/images/generations", json=body)


async def edit(
    client: httpx.AsyncClient, image: bytes, mask: bytes | None = None, path: str = "edits", **fields: str
) -> httpx.Response:
    files = {"image": ("a.png", image, "image/png")} | ({} if mask is None else {"mask": ("m.png", mask, "image/png")})
    prompt = {"prompt": "a hill"} if path == "edits" else {}
    data = {"model": "painter", "steps": "4", **prompt, **fields}
    return await client.post(f"/v1/images/{path}", data=data, files=files)


def png(
    colour: tuple[int, ...], size: tuple[int, int] = (64, 48), clear: tuple[int, int, int, int] | None = None
) -> bytes:
    """Return a picture of one colour; of RGBA with a box that is clear."""
    image = Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour)
    if clear is not None:
        image.paste((0, 0, 0, 0), clear)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def opened(entry: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))
    image.load()
    return image


def events_of(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the body of each event; comments are left out."""
    found = []
    for frame in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def refusal(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def jobs(server: Running) -> list[dict[str, Any]]:
    answer = await server.admin.get("/jobs", params={"kind": "images"})
    return list(answer.json()["items"])


async def nothing_is_left(server: Running, client: httpx.AsyncClient | None = None) -> None:
    """Fail if a call left a file, or bytes that count against anybody's quota."""
    assert await used(server) == 0
    assert (await (client or server.admin).get("/files")).json()["items"] == []


async def used(server: Running) -> int:
    """Return the bytes that count against quotas."""

    def held(connection: Any) -> int:
        owners = connection.execute(sa.select(blob_links.c.owner_id).distinct()).scalars()
        return sum(links.usage(connection, owner) for owner in owners)

    return int(await server.app.state.parts.database.read(held))


# Generations


async def test_pictures_come_whole(app: Running) -> None:
    """In base64, with their seeds and size; who drew them is in the headers, and the gallery has the same bytes."""
    answer = await draw(app, n=2, seed=5)
    told = answer.json()
    assert answer.status_code == 200, answer.text
    assert (told["size"], told["output_format"], told["background"], told["quality"]) == (
        "64x48",
        "png",
        "opaque",
        "auto",
    )
    assert [entry["seed"] for entry in told["data"]] == [5, 6]
    assert [opened(entry).size for entry in told["data"]] == [(64, 48)] * 2
    assert told["usage"]["total_tokens"] == 0
    assert answer.headers["x-serai-model"] == "painter@1.0.0"
    (job,) = await jobs(app)
    assert answer.headers["x-serai-job"] == job["id"]
    assert answer.headers["x-serai-decision"] == job["decision"]["id"]
    kept = await app.admin.get(f"/images/{told['data'][0]['id']}")
    assert kept.content == base64.b64decode(told["data"][0]["b64_json"])
    again = (await draw(app, n=2, seed=5)).json()
    assert [entry["b64_json"] for entry in again["data"]] == [entry["b64_json"] for entry in told["data"]]


async def test_what_changes_nothing_is_said(app: Running) -> None:
    """Quality and style are taken, and named in a header; formats are obeyed."""
    answer = await draw(app, quality="hd", style="vivid", output_format="jpeg", output_compression=40)
    assert answer.headers["x-serai-ignored"] == "quality, style"
    assert opened(answer.json()["data"][0]).format == "JPEG"
    assert "x-serai-ignored" not in (await draw(app, quality="auto")).headers


async def test_without_a_model_the_best_choice_draws(app: Running, tmp_path: Path) -> None:
    """Where there is one; else the error says how to find one."""
    gone = await app.admin.delete("/models/starter-image?force=1")
    assert gone.status_code == 204, gone.text
    answer = await draw(app, model=None)
    assert answer.headers["x-serai-model"] == "painter@1.0.0"
    async with running(tmp_path / "other") as bare:
        assert (await bare.admin.delete("/models/starter-image?force=1")).status_code == 204
        error = refusal(await draw(bare, model=None))
        assert error["param"] == "model"
        assert "GET /models?task=image-generation" in error["message"]


async def test_an_address_needs_no_key_and_ends(app: Running) -> None:
    """Anybody who has it reads the picture; changed it names nothing, late it is gone, and so is a removed picture."""
    told = (await draw(app, response_format="url", seed=1)).json()["data"][0]
    assert "b64_json" not in told
    kept = await app.admin.get(f"/images/{told['id']}")
    read = await app.anonymous.get(told["url"])
    assert (read.status_code, read.content) == (200, kept.content)
    assert read.headers["content-type"] == "image/png"
    path, _, query = told["url"].partition("?")
    expires, signature = (part.partition("=")[2] for part in query.split("&"))
    for wrong in (
        f"{path}?expires={int(expires) + 1}&signature={signature}",
        f"{path}?expires={expires}&signature={'0' * 64}",
        f"{path}x?expires={expires}&signature={signature}",
    ):
        refusal(await app.anonymous.get(wrong), 404)
    refusal(await app.anonymous.get(path), 400)
    past = sign(app.app.state.parts.webhook_master, told["id"], 1000)
    assert refusal(await app.anonymous.get(f"{path}?expires=1000&signature={past}"), 410)["code"] == "address_expired"
    await app.admin.delete(f"/images/{told['id']}")
    refusal(await app.anonymous.get(told["url"]), 404)


async def test_what_is_wrong_is_refused_before_anything_is_queued(app: Running) -> None:
    """In the words of this API: the parameter, and the status that its clients know."""
    await painter(app, "talker", task="chat")
    for fields, param in (
        ({"size": "65x48"}, "size"),
        ({"model": "starter-image", "size": "136x128"}, "size"),
        ({"size": "huge"}, "size"),
        ({"n": 9}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"steps": 900}, "steps"),
        ({"adapters": [{"id": "nothing"}]}, "adapters[0].id"),
        ({"model": "talker"}, "model"),
        ({"background": "transparent"}, "background"),
        ({"background": "red"}, "background"),
        ({"quality": "best"}, "quality"),
        ({"moderation": "none"}, "moderation"),
        ({"style": "dull"}, "style"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "bmp"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"output_compression": 50}, "output_compression"),
        ({"response_format": "png"}, "response_format"),
        ({"response_format": "url", "stream": True}, "response_format"),
        ({"partial_images": 1}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"stream": "yes"}, "stream"),
        ({"svg": {}}, "svg"),
        ({"frame_count": 2}, "frame_count"),
        ({"input_fidelity": "high"}, "input_fidelity"),
        ({"timeout": 0}, "timeout"),
        ({"unknown": 1}, "unknown"),
        ({"n": "2"}, "n"),
        ({"stream": True, "n": 2}, "n"),
    ):
        assert refusal(await draw(app, **fields))["param"] == param
    assert refusal(await draw(app, model="nobody"), 404)["code"] == "model_not_found"
    assert await jobs(app) == []


async def test_a_job_that_fails_is_told_once(app: Running) -> None:
    """With the status of its cause, and without an invitation to try again: the job has."""
    await painter(app, "broken", fail="run")
    answer = await draw(app, model="broken")
    assert refusal(answer, 503)["code"] == "model_failed"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-serai-decision"] == (await jobs(app))[0]["decision"]["id"]
    streamed = await draw(app, model="broken", stream=True)
    refusal(streamed, 503)


async def test_a_call_that_takes_too_long_ends_with_its_job(app: Running, tmp_path: Path) -> None:
    """408, and the job is cancelled."""
    await painter(app, "stuck", step_gate=str(tmp_path / "never"))
    answer = await draw(app, model="stuck", timeout=1)
    assert refusal(answer, 408)["code"] == "timeout"
    assert answer.headers["x-should-retry"] == "false"
    await job_is(app, "cancelled")


async def job_is(server: Running, status: str) -> None:
    """Return when the newest job has this status."""

    async def has_it() -> bool:
        found = await jobs(server)
        return bool(found) and found[0]["status"] == status

    await eventually(has_it, seconds=60)


async def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    """503 with Retry-After, in both spellings that its clients read."""
    async with running(tmp_path / "home", image_concurrency=1, image_max_queued=1, worker_threads=1) as server:
        gate = tmp_path / "gate"
        await painter(server, "painter", step_gate=str(gate))
        server.admin.timeout = PATIENT
        running_ = asyncio.create_task(draw(server))
        await job_is(server, "running")
        waiting = asyncio.create_task(draw(server))
        await job_is(server, "queued")
        answer = await draw(server)
        assert refusal(answer, 503)["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        gate.touch()
        assert [(await one).status_code for one in (running_, waiting)] == [200, 200]


# Streams


async def test_a_stream_shows_partial_pictures(app: Running) -> None:
    """As many as were asked for, in order, then the picture; the gallery has the same."""
    answer = await draw(app, stream=True, partial_images=2, seed=3)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer)
    assert [kind for kind, _ in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert all(body["type"] == kind for kind, body in events)
    assert [body["partial_image_index"] for _, body in events[:-1]] == [0, 1]
    assert {(opened(body).format, body["output_format"]) for _, body in events[:-1]} == {("WEBP", "webp")}
    last = events[-1][1]
    assert (opened(last).size, last["size"], last["usage"]["total_tokens"]) == ((64, 48), "64x48", 0)
    assert last["b64_json"] == (await draw(app, seed=3)).json()["data"][0]["b64_json"]
    bare = await draw(app, stream=True)
    assert [kind for kind, _ in events_of(bare)] == ["image_generation.completed"]
    decision_id = (await jobs(app))[0]["decision"]["id"]
    assert bare.headers.get("x-serai-decision", decision_id) == decision_id
    assert "x-serai-decision" in bare.headers or f": X-Serai-Decision: {decision_id}" in bare.text


async def test_a_stream_tells_at_its_end_who_drew_the_picture(app: Running) -> None:
    """Headers can at most name whose preview was shown first; where that one breaks down, comments name who went on."""
    await painter(app, "breaks", fail="run", fail_after=5)
    chain = {"id": "draw", "task": "image-generation", "model_id": "breaks", "fallback": [{"model": "painter"}]}
    assert (await app.admin.post("/services", json=chain)).status_code == 201
    answer = await draw(app, model="draw", stream=True, partial_images=2, steps=6)
    kinds = [kind for kind, _ in events_of(answer)]
    assert kinds == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    assert answer.headers.get("x-serai-model", "breaks@1.0.0") == "breaks@1.0.0"
    told = dict(line[2:].split(": ", 1) for line in answer.text.splitlines() if line.startswith(": x-serai-"))
    assert (told["x-serai-model"], told["x-serai-reason"]) == ("painter@1.0.0", "fallback_error")
    assert answer.text.index(": x-serai-model: painter") > answer.text.rindex("event: image_generation.partial_image")
    (job,) = await jobs(app)
    assert (job["decision"]["model"], job["result"]["model"]) == ("painter", "painter")


async def test_an_error_in_a_stream_is_its_last_event(app: Running) -> None:
    """What was shown stays shown; the error is in the form of this API."""
    await painter(app, "breaks", fail="run", fail_after=5)
    answer = await draw(app, model="breaks", stream=True, partial_images=2)
    events = events_of(answer)
    assert [kind for kind, _ in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "error",
    ] or [kind for kind, _ in events] == ["image_generation.partial_image", "error"]
    assert events[-1][1]["error"]["code"] == "model_failed"
    assert "x-serai-model" in answer.headers or ": x-serai-model: breaks@1.0.0" in answer.text


# Edits and variations


async def test_an_edit_paints_where_the_mask_is_clear(app: Running) -> None:
    """All else stays as it was; what was sent is held by the job, and goes with it."""
    red, box = (200, 0, 0), (0, 0, 32, 48)
    mask = png((0, 0, 0, 255), clear=box)
    answer = await edit(app.admin, png(red), mask, size="64x48", strength="1", seed="1")
    assert answer.status_code == 200, answer.text
    drawn = opened(answer.json()["data"][0])
    assert drawn.crop((36, 0, 64, 48)).getcolors() == [(28 * 48, red)]
    assert red not in {colour for _, colour in drawn.crop((0, 0, 28, 48)).getcolors(10_000) or ()}
    assert await used(app) > len(png(red)) + len(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    await all_is_removed(app)
    await nothing_is_left(app)


async def all_is_removed(server: Running) -> None:
    """Remove the jobs and their pictures."""
    for path, items in (("jobs", await jobs(server)), ("images", (await server.admin.get("/images")).json()["items"])):
        for one in items:
            removed = await server.admin.delete(f"/{path}/{one['id']}")
            assert removed.status_code == 204, removed.text


async def test_an_edit_that_failed_is_tried_again(app: Running, tmp_path: Path) -> None:
    """With what was sent with the call, which the jobs hold: also when the first of them is gone."""
    gate, box = tmp_path / "gate", (0, 0, 32, 48)
    await painter(app, "stuck", step_gate=str(gate))
    mask = png((0, 0, 0, 255), clear=box)
    fields = {"model": "stuck", "size": "64x48", "strength": "1", "seed": "1"}
    refusal(await edit(app.admin, png((200, 0, 0)), mask, **fields, timeout="1"), 408)
    await job_is(app, "cancelled")
    (first,) = await jobs(app)
    again = await app.admin.post(f"/jobs/{first['id']}/retry")
    assert again.status_code == 202, again.text
    assert (await app.admin.delete(f"/jobs/{first['id']}")).status_code == 204
    await app.app.state.parts.database.run(links.forget_unreferenced, app.app.state.parts.clock.now())
    gate.touch()
    await job_is(app, "succeeded")
    (job,) = await jobs(app)
    picture = Image.open(io.BytesIO((await app.admin.get(job["result"]["images"][0]["url"])).content))
    assert picture.crop((36, 0, 64, 48)).getcolors() == [(28 * 48, (200, 0, 0))]
    told = (await app.admin.get(f"/images/{job['result']['images'][0]['id']}/metadata")).json()["request"]
    same = await app.admin.post("/images/generations", json=told)
    assert same.status_code == 202, same.text
    await job_is(app, "succeeded")
    assert len({one["result"]["images"][0]["sha256"] for one in await jobs(app)}) == 1
    other = await app.make_user("ann", "user")
    stolen = await other.post("/images/generations", json=told)
    assert stolen.status_code == 404, stolen.text


async def test_without_a_mask_the_whole_picture_is_painted(app: Running) -> None:
    """And it has the proportions of what it was made from."""
    for path in ("edits", "variations"):
        answer = await edit(app.admin, png((0, 200, 0), (96, 48)), path=path, seed="1")
        assert answer.status_code == 200, answer.text
        (told,) = answer.json()["data"]
        width, height = opened(told).size
        assert width == 2 * height
        metadata = (await app.admin.get(f"/images/{told['id']}/metadata")).json()
        assert metadata["image_sha256"] == hashlib.sha256(png((0, 200, 0), (96, 48))).hexdigest()
        again = await app.admin.post("/images/generations", json=metadata["request"])
        assert again.status_code == 202, again.text


async def test_an_edit_streams(app: Running) -> None:
    """Under its own names."""
    answer = await edit(app.admin, png((1, 2, 3)), size="64x48", stream="true", partial_images="1")
    kinds = [kind for kind, _ in events_of(answer)]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]


async def test_wrong_forms_are_refused(app: Running) -> None:
    """Each with the field that is wrong; no job is made, and no file kept."""
    picture, clear = png((9, 9, 9)), png((0, 0, 0, 255), clear=(0, 0, 9, 9))
    for files, data, param in (
        ([("image", picture), ("image", picture)], {}, "image"),
        ([("image[]", picture), ("image[]", picture)], {}, "image"),
        ([("mask", clear)], {}, "image"),
        ([("image", picture), ("other", picture)], {}, "other"),
        ([("image", b"")], {}, "image"),
        ([("image", b"<svg/>")], {}, "image"),
        ([("image", picture), ("mask", png((0, 0, 0, 255), (32, 32), (0, 0, 9, 9)))], {}, "mask"),
        ([("image", picture), ("mask", png((0, 0, 0)))], {}, "mask"),
        ([("image", picture), ("mask", png((0, 0, 0, 255)))], {}, "mask"),
        ([("image", picture), ("mask", b"junk")], {}, "mask"),
        ([("image", picture)], {"n": "many"}, "n"),
        ([("image", picture)], {"n": "9"}, "n"),
        ([("image", picture)], {"prompt": ""}, "prompt"),
        ([("image", picture)], {"image": "text"}, "image"),
        ([("image", picture)], {"unknown": "1"}, "unknown"),
        ([("image", picture)], {"background": "transparent"}, "background"),
        ([("image", picture)], {"input_fidelity": "exact"}, "input_fidelity"),
        ([("image", picture)], {"output_format": "svg"}, "output_format"),
        ([("image", picture)], {"partial_images": "1"}, "partial_images"),
        ([("image", picture)], {"style": "vivid"}, "style"),
        ([("image", picture)], {"size": "65x48"}, "size"),
        ([("image", picture)], {"adapters": '[{"id": 3}]'}, "adapters[0].id"),
    ):
        sent = [(name, ("x.png", content, "image/png")) for name, content in files]
        body = {"model": "painter", "prompt": "a hill", **data}
        answer = await app.admin.post("/v1/images/edits", data=body, files=sent)
        assert refusal(answer)["param"] == param, (param, answer.text)
    await nothing_is_left(app)
    assert await jobs(app) == []


NAMED = b'--x\r\ncontent-disposition: form-data; name="%s"\r\n\r\n'
FORM = "multipart/form-data; boundary=x"
NO_FORMS: list[tuple[str, bytes]] = [
    ("application/json", b"{}"),
    ("application/x-www-form-urlencoded", b"prompt=x"),
    ("multipart/form-data", b"--x--"),
    (FORM, b""),
    (FORM, b"junk"),
    (f"{FORM}; charset=undefined", NAMED % b"a" + b"1\r\n--x--\r\n"),
    (f"{FORM}; charset=punycode", NAMED % b"a" + b"1\r\n--x--\r\n"),
    (FORM, b"--x\r\ncontent-disposition: form-data\r\n\r\n1\r\n--x--\r\n"),
    (FORM, b"--x\r\n" + b"a: b\r\n" * 500 + b"\r\n1\r\n--x--\r\n"),
    (FORM, NAMED % b"prompt" + b"x" * 100_000),
    (FORM, (NAMED % b"a" + b"1\r\n") * 100 + b"--x--\r\n"),
    (FORM, NAMED % b"prompt" + b"\0\r\n--x--\r\n"),
    (FORM, NAMED % b"\0" + b"1\r\n--x--\r\n"),
    (FORM, NAMED % b"seed" + b"NaN\r\n--x--\r\n"),
    (FORM, NAMED % b"seed" + b"9" * 5000 + b"\r\n--x--\r\n"),
    (FORM, NAMED % b"adapters" + b"[" * 60_000 + b"\r\n--x--\r\n"),
]


async def test_forms_that_are_none_are_refused(server: Running) -> None:
    """Other types, cut, without names, beyond bounds, in strange encodings: a 4xx in the form of this API."""
    for kind, body in NO_FORMS:
        answer = await server.admin.post("/v1/images/edits", content=body, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500, (kind, body[:100], answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_quota_holds_for_what_a_call_sends(app: Running) -> None:
    """Refused before anything is drawn, and nothing is left."""
    user = await app.make_user("small", "user")
    limited = await app.admin.patch(f"/users/{app.user_ids['small']}", json={"disk_quota_bytes": 10})
    assert limited.status_code == 200, limited.text
    assert refusal(await edit(user, png((1, 2, 3))), 429)["code"] == "insufficient_quota"
    await nothing_is_left(app, user)
    assert await jobs(app) == []


HOSTILE = [specimen for specimen in IMAGES if specimen.expectation not in ("ok", "any")]


async def test_no_hostile_picture_reaches_a_worker(tmp_path: Path) -> None:
    """The corpus of pictures that hurt, as image and as mask: each is a 4xx, no job is made, and no file kept."""
    async with running(tmp_path / "home", decode_timeout_s=2, worker_threads=1, rate_limits="off") as server:
        await painter(server, "painter")
        server.admin.timeout = PATIENT
        for number, specimen in enumerate(HOSTILE):
            await _refused(server, specimen, as_mask=number % 8 == 0)
        assert await jobs(server) == []
        assert (await server.admin.get("/ps")).json()["items"] == []
        await nothing_is_left(server)


async def _refused(server: Running, specimen: Specimen, *, as_mask: bool) -> None:
    content = await asyncio.to_thread(specimen.build)
    answer = await edit(server.admin, content)
    assert 400 <= answer.status_code < 500, (specimen.name, answer.text)
    assert answer.json()["error"]["param"] == "image", specimen.name
    if as_mask:
        answer = await edit(server.admin, png((1, 2, 3)), content)
        assert 400 <= answer.status_code < 500, (specimen.name, answer.text)
