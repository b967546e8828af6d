"""Pictures as jobs: from the request to the gallery, through a real worker that draws gradients."""

import asyncio
import gc
import hashlib
import io
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from PIL import Image

from serai.api.parts import Parts
from serai.decode.decoder import DecodedImage
from serai.images import store
from serai.images.model import Picture
from serai.storage import links
from serai.storage.links import Collector
from serai.storage.tables.blobs import blob_links
from support.api import Running, running
from support.image_upstream import ImageUpstream
from support.images import a_png, a_wav, ask, drawn, ended, events_of, generating, job_of, paints, upload
from support.upstream import Asked, reply
from support.waiting import eventually

pytestmark = pytest.mark.anyio

Follow = Callable[[str], Awaitable[list[Picture]]]


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    async with running(tmp_path / "home", worker_threads=1) as started:
        await paints(started.admin, "painter")
        yield started


def parts_of(server: Running) -> Parts:
    parts: Parts = server.app.state.parts
    return parts


async def rows_of(server: Running, job_id: str) -> list[Picture]:
    return await parts_of(server).database.read(store.of_job, job_id, None)


async def content(server: Running, digest: str) -> bytes:
    return b"".join([piece async for piece in parts_of(server).blobs.read(digest)])


async def test_a_job_ends_with_pictures_in_the_gallery(server: Running) -> None:
    """Result, rows, blobs and thumbnails agree; each picture has the next seed; the decision is stored."""
    job_id = await ask(server.admin, "painter", settings={"num_images": 2, "seed": 5})
    job = await ended(server.admin, job_id)
    assert job["status"] == "succeeded", job
    result, rows = job["result"], await rows_of(server, job_id)
    assert (result["model"], result["version"], result["seed"]) == ("painter", "1.0.0", 5)
    assert job["decision"]["reason"] == "default"
    assert await stored_decision(server, job["decision"]["id"]) == ("painter", "served")
    assert {row.decision["id"] for row in rows} == {job["decision"]["id"]}
    assert [(one["id"], one["seed"], one["sha256"], one["bytes"]) for one in result["images"]] == [
        (row.id, row.seed, row.digest, row.size) for row in rows
    ]
    assert [row.seed for row in rows] == [5, 6]
    for row in rows:
        picture = Image.open(io.BytesIO(await content(server, row.digest)))
        assert (picture.format, picture.size) == ("PNG", (64, 48))
        thumb = Image.open(io.BytesIO(await content(server, row.thumb_digest)))
        assert thumb.format == "WEBP"
        assert (row.model, row.prompt, row.settings) == ("painter", "a fox", result["settings"])
    assert result["settings"]["guidance_scale"] == 7.5, "defaults are filled in"
    assert {"loading_s", "generating_s", "total_s", "denoising_s"} <= set(result["timings"])


async def stored_decision(server: Running, id_: str) -> tuple[str, str]:
    """Return the model and the outcome of a decision, as soon as it is stored."""
    found: dict[str, Any] = {}

    async def is_stored() -> bool:
        answer = await server.admin.get(f"/decisions/{id_}")
        found.update(answer.json())
        return answer.status_code == 200

    await eventually(is_stored, seconds=60)
    return found["model"], found["decision"]["outcome"]


async def test_the_same_seed_gives_the_same_file(server: Running) -> None:
    """Byte for byte, although the jobs differ: also where the first one drew its seed."""
    first = await drawn(server.admin, await ask(server.admin, "painter"))
    again = await drawn(server.admin, await ask(server.admin, "painter", settings={"seed": first["seed"]}))
    other = await drawn(server.admin, await ask(server.admin, "painter"))
    sent_again = await drawn(server.admin, await ask(server.admin, "painter", settings=first["settings"]))
    digests = [one["images"][0]["sha256"] for one in (first, again, sent_again, other)]
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert first["seed"] != other["seed"]
    assert len({one["images"][0]["id"] for one in (first, again, sent_again)}) == 3


async def test_progress_is_told_in_stages_with_previews(server: Running) -> None:
    """loading, generating with steps and ETA, saving; previews in between; nothing holds the picture itself."""
    job_id = await ask(server.admin, "painter", settings={"num_images": 2, "num_inference_steps": 10}, previews=5)
    await drawn(server.admin, job_id)
    live = await events_of(server.admin, job_id)
    stages = [event["stage"] for event in live if event["type"] == "progress"]
    assert [stage for stage in dict.fromkeys(stages) if stage != "started"] == ["loading", "generating", "saving"]
    steps = [event for event in live if event.get("stage") == "generating"]
    assert set(steps[-1]["detail"]) == {"image", "images", "step", "steps", "eta_s"}
    shown = Counter((event["name"], event["index"]) for event in live if event["type"] == "media")
    assert shown == {("preview", 0): 5, ("preview", 1): 5}
    followed = [entry.event async for entry in parts_of(server).feed.follow(job_id, owner_id=None, after=None)]
    assert type(followed[-1]).__name__ == "Done"


async def test_formats_and_settings_are_those_of_the_file(server: Running) -> None:
    """JPEG and WebP are what they say, with the metadata in them unless it is switched off."""
    for name in ("jpeg", "webp"):
        result = await drawn(server.admin, await ask(server.admin, "painter", settings={"format": name, "quality": 80}))
        (image,) = result["images"]
        picture = Image.open(io.BytesIO(await content(server, image["sha256"])))
        assert (str(picture.format).lower(), picture.size, result["settings"]["quality"]) == (name, (64, 48), 80)
        assert b"a fox" in await content(server, image["sha256"])


async def test_metadata_can_be_switched_off(tmp_path: Path) -> None:
    """Then the file says nothing of the prompt."""
    async with running(tmp_path / "home", worker_threads=1, image_metadata="off") as server:
        await paints(server.admin, "painter")
        result = await drawn(server.admin, await ask(server.admin, "painter"))
        assert b"a fox" not in await content(server, result["images"][0]["sha256"])


async def test_a_picture_is_started_from_and_masked(server: Running) -> None:
    """The source is fitted to the size; where the mask is black it stays, whatever is drawn."""
    red, black = await upload(server.admin, a_png()), await upload(server.admin, a_png(colour=(0, 0, 0)))
    result = await drawn(server.admin, await ask(server.admin, "painter", image=red, mask=black))
    picture = Image.open(io.BytesIO(await content(server, result["images"][0]["sha256"])))
    assert picture.size == (64, 48)
    assert picture.convert("RGB").getpixel((10, 10)) == (200, 30, 30)
    free = await drawn(server.admin, await ask(server.admin, "painter", image=red))
    changed = Image.open(io.BytesIO(await content(server, free["images"][0]["sha256"])))
    assert changed.convert("RGB").getpixel((10, 10)) != (200, 30, 30)
    assert free["settings"]["strength"] == 0.8


async def test_a_job_that_cannot_be_done_is_not_enqueued(server: Running) -> None:
    """Asked for as a job of any kind or as pictures, the answer is the same: a 4xx, no job, and nothing loaded."""
    await paints(server.admin, "bounded", parameters={"width": {"default": 64, "max": 64}})
    other = await server.make_user("ann", "user")
    theirs, sound = await upload(server.admin, a_png()), await upload(other, a_wav())
    for client, asked, status, said in (
        (server.admin, {"model": "bounded", "settings": {"width": 128}}, 422, ("settings.width", "64", "128")),
        (server.admin, {"model": "painter", "settings": {"adapters": [{"id": "x"}]}}, 422, ("adapters[0].id",)),
        (server.admin, {"model": "nobody"}, 404, ("nobody",)),
        (other, {"model": "painter", "image": theirs}, 404, ("No such file",)),
        (other, {"model": "painter", "image": "0" * 64}, 404, ("no such blob",)),
        (other, {"model": "painter", "image": sound}, 422, ("image", "no picture")),
    ):
        payload = {"prompt": "a fox", **asked}
        as_job = await client.post("/jobs", json={"kind": "images", "payload": payload})
        as_pictures = await client.post("/images/generations", json=payload)
        for answer in (as_job, as_pictures):
            assert answer.status_code == status, answer.text
            assert all(word in answer.json()["error"]["message"] for word in said), answer.text
    assert (await server.admin.get("/jobs", params={"kind": "images"})).json()["items"] == []
    assert (await server.admin.get("/ps")).json()["items"] == []


async def test_a_file_that_goes_while_its_job_waits_ends_the_job(tmp_path: Path) -> None:
    """The job fails, and says no more than that there is no such file."""
    gate = tmp_path / "gate"
    async with running(tmp_path / "home", worker_threads=1, image_concurrency=1) as server:
        await paints(server.admin, "gated", step_gate=str(gate))
        first = await ask(server.admin, "gated")
        await running_now(server, first)
        file_id = await upload(server.admin, a_png())
        second = await ask(server.admin, "gated", image=file_id)
        assert (await server.admin.delete(f"/files/{file_id}")).status_code == 204
        gate.touch()
        job = await ended(server.admin, second)
        assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "FILE_NOT_FOUND", 1)


async def test_a_picture_that_cannot_be_opened_ends_its_job(server: Running, tmp_path: Path) -> None:
    """One that was damaged on the disk since it came: the job fails with the reason, and no model is blamed."""
    whole = a_png((400, 200))
    damaged = await upload(server.admin, whole)
    (path,) = (tmp_path / "home" / "blobs").rglob(hashlib.sha256(whole).hexdigest())
    path.chmod(0o600)
    path.write_bytes(whole[: len(whole) // 2])
    job = await ended(server.admin, await ask(server.admin, "painter", image=damaged))
    assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "MEDIA_MALFORMED", 1)
    assert "damaged" in job["error"]["message"]
    sound = await upload(server.admin, a_png())
    await drawn(server.admin, await ask(server.admin, "painter", image=sound))


async def test_a_job_that_waits_for_its_model_holds_no_picture(server: Running, tmp_path: Path) -> None:
    """What it starts from is opened for the model's task, and let go."""
    gate = tmp_path / "gate"
    await paints(server.admin, "late", load_gate=str(gate))
    large = await upload(server.admin, a_png((2000, 1000)))
    job_id = await ask(server.admin, "late", image=large)

    async def loads() -> bool:
        return ((await job_of(server.admin, job_id))["progress"] or {}).get("stage") == "loading"

    await eventually(loads, seconds=60)
    gc.collect()
    assert [one for one in gc.get_objects() if type(one) is DecodedImage] == []
    gate.touch()
    await drawn(server.admin, job_id)


async def running_now(server: Running, job_id: str) -> None:
    """Return when the job runs."""

    async def runs() -> bool:
        return bool((await job_of(server.admin, job_id))["status"] == "running")

    await eventually(runs, seconds=60)


async def test_a_cancel_stops_the_model(server: Running, tmp_path: Path) -> None:
    """While it draws: no run is left on the worker, and no row of the job."""
    await paints(server.admin, "slow", step_s=0.2)
    job_id = await ask(server.admin, "slow", settings={"num_inference_steps": 200, "num_images": 2})
    await generating(server.admin, job_id)
    assert (await server.admin.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await ended(server.admin, job_id))["status"] == "cancelled"

    async def is_idle() -> bool:
        items = (await server.admin.get("/ps")).json()["items"]
        return all(item["in_flight"] == 0 for item in items)

    await eventually(is_idle)
    assert await rows_of(server, job_id) == []


async def test_a_full_quota_is_told(tmp_path: Path) -> None:
    """At the end where the pictures do not fit, and before anything is drawn where nothing would."""
    async with running(tmp_path / "home", worker_threads=1, disk_quota_bytes=600) as server:
        await paints(server.admin, "painter")
        await paints(server.admin, "never", fail="load")
        job = await ended(server.admin, await ask(server.admin, "painter", settings={"num_images": 4}))
        assert (job["status"], job["error"]["code"]) == ("failed", "QUOTA_EXCEEDED")
        assert await usage(server) == 0
        ann = await server.make_user("ann", "user")
        await upload(ann, a_png())
        path = f"/users/{server.user_ids['ann']}"
        assert (await server.admin.patch(path, json={"disk_quota_bytes": 1})).status_code == 200
        refused = await ended(ann, await ask(ann, "never"))
        assert (refused["status"], refused["error"]["code"]) == ("failed", "QUOTA_EXCEEDED")


async def usage(server: Running) -> int:
    def held(connection: Any) -> int:
        owners = connection.execute(sa.select(blob_links.c.owner_id).distinct()).scalars()
        return sum(links.usage(connection, owner) for owner in owners)

    return await parts_of(server).database.read(held)


async def test_a_chain_draws_where_its_first_cannot(server: Running) -> None:
    """The decision of the job tells who drew and why."""
    await paints(server.admin, "broken", fail="load")
    chain = {"id": "draw", "task": "image-generation", "model_id": "broken", "fallback": [{"model": "painter"}]}
    assert (await server.admin.post("/services", json=chain)).status_code == 201
    job = await ended(server.admin, await ask(server.admin, "draw"))
    assert (job["status"], job["result"]["model"]) == ("succeeded", "painter")
    assert job["decision"]["reason"] == "fallback_error"
    assert [link["outcome"] for link in job["decision"]["chain"]] == ["failed", "served"]


@pytest.mark.parametrize("fail", ["run", "oom", "crash"])
async def test_a_chain_goes_on_after_previews(server: Running, fail: str) -> None:
    """A preview is no part of the answer: who fails on the way is followed by the next, which shows its own too."""
    await paints(server.admin, "broken", fail=fail, fail_after=5)
    chain = {"id": "draw", "task": "image-generation", "model_id": "broken", "fallback": [{"model": "painter"}]}
    assert (await server.admin.post("/services", json=chain)).status_code == 201
    job_id = await ask(server.admin, "draw", previews=1, settings={"num_inference_steps": 6})
    job = await ended(server.admin, job_id)
    assert (job["status"], job["result"]["model"]) == ("succeeded", "painter")
    assert [link["outcome"] for link in job["decision"]["chain"]] == ["failed", "served"]
    told = (_loaded_or_shown(event) for event in await events_of(server.admin, job_id))
    assert [one for one, _ in groupby(filter(None, told))] == ["broken", "preview", "painter", "preview"]


def _loaded_or_shown(event: Mapping[str, Any]) -> str | None:
    """Return which model an event tells to be loaded, or the name of a picture that it shows."""
    shown: str | None = event.get("model") if event["type"] == "loading" else event.get("name")
    return shown


async def test_what_befell_one_candidate_is_not_said_of_the_next(server: Running) -> None:
    """The first fails while it draws, the second for want of memory at its load: trying again would not help."""
    await paints(server.admin, "broken", fail="run", fail_after=5)
    await paints(server.admin, "large", fail="load_oom")
    chain = {"id": "draw", "task": "image-generation", "model_id": "broken", "fallback": [{"model": "large"}]}
    assert (await server.admin.post("/services", json=chain)).status_code == 201
    job = await ended(server.admin, await ask(server.admin, "draw", settings={"num_inference_steps": 6}))
    assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "OUT_OF_MEMORY", 1)
    assert [link["model"] for link in job["decision"]["chain"]] == ["broken", "large"]


async def test_a_model_that_cannot_be_loaded_fails_its_job_with_the_reason(server: Running) -> None:
    """At once: trying again would not help."""
    await paints(server.admin, "broken", fail="load")
    job = await ended(server.admin, await ask(server.admin, "broken"))
    assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "LOAD_FAILED", 1)
    assert await stored_decision(server, job["decision"]["id"]) == ("broken", "failed")


async def test_a_job_that_waits_shows_its_place(tmp_path: Path) -> None:
    """Behind the one that runs: 1 is next; the more urgent of two goes first."""
    gate = tmp_path / "gate"
    async with running(tmp_path / "home", worker_threads=1, image_concurrency=1) as server:
        await paints(server.admin, "gated", step_gate=str(gate))
        first = await ask(server.admin, "gated")
        await running_now(server, first)
        later = await ask(server.admin, "gated", priority=9)
        urgent = await ask(server.admin, "gated", priority=0)
        places = [(await job_of(server.admin, job))["position"] for job in (urgent, later)]
        assert places == [1, 2]
        gate.touch()
        ends = [await ended(server.admin, job) for job in (first, later, urgent)]
        assert [job["status"] for job in ends] == ["succeeded"] * 3
        assert ends[2]["started_at"] <= ends[1]["started_at"]


async def test_old_pictures_go_and_favourites_stay(tmp_path: Path) -> None:
    """After image_retention_days, when the server cleans up."""
    home = tmp_path / "home"
    async with running(home, worker_threads=1) as server:
        await paints(server.admin, "painter")
        old, loved = [await ask(server.admin, "painter") for _ in range(2)]
        results = [await drawn(server.admin, job_id) for job_id in (old, loved)]
        favourite = results[1]["images"][0]
        assert (await server.admin.patch(favourite["url"], json={"favourite": True})).status_code == 200
    settings = {"image_retention_days": 1e-9, "cleanup_interval_s": 0.2}
    async with running(home, worker_threads=1, **settings) as server:

        async def is_gone() -> bool:
            return await rows_of(server, old) == []

        await eventually(is_gone)
        assert [row.id for row in await rows_of(server, loved)] == [favourite["id"]]
        assert (await server.admin.get(favourite["url"])).status_code == 200


class TwoPictures:
    """Another server that draws two pictures, the second of which is only ready when it may be."""

    def __init__(self, upstream: ImageUpstream) -> None:
        self.may_end = asyncio.Event()
        upstream.always("status", self._status)

    async def _status(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        is_ready = "/r1/" in asked.path or self.may_end.is_set()
        writer.write(reply(200, {"status": "COMPLETED" if is_ready else "IN_PROGRESS"}))

    async def first_came(self, server: Running, upstream: ImageUpstream) -> str:
        """Return a job of which one picture was drawn, long ago: a whole other job was done since then."""
        await paints(server.admin, "painter")
        source = {"kind": "remote", "endpoint": upstream.endpoint, "model": "fal-ai/flux/dev"}
        far = {"id": "far", "task": "image-generation", "licence": "MIT", "version": "1.0.0", "source": source}
        answer = await server.admin.post("/models", json={**far, "engine_options": {"images": "fal"}})
        assert answer.status_code == 201, answer.text
        job_id = await ask(server.admin, "far", settings={"num_images": 2})

        async def has_come() -> bool:
            progress = (await job_of(server.admin, job_id))["progress"] or {}
            return (progress.get("detail") or {}).get("image") == 1  # the other one is waited for

        await eventually(has_come, seconds=60)
        await drawn(server.admin, await ask(server.admin, "painter"))
        return job_id


async def test_pictures_outlive_a_collection_while_their_job_goes_on(tmp_path: Path) -> None:
    """However long a job takes: what its first picture is stored as is not taken for abandoned."""
    async with ImageUpstream() as upstream:
        two = TwoPictures(upstream)
        async with running(tmp_path / "home", worker_threads=1, outbound_allow=("127.0.0.1",)) as server:
            job_id = await two.first_came(server, upstream)
            parts = parts_of(server)
            await Collector(parts.database, parts.blobs, grace_s=60).run(parts.clock.now() + timedelta(days=1))
            assert (await job_of(server.admin, job_id))["status"] == "running"
            two.may_end.set()
            result = await drawn(server.admin, job_id)
            for image in result["images"]:
                for path in (image["url"], image["thumb_url"]):
                    assert (await server.admin.get(path)).status_code == 200


async def test_a_job_that_is_cancelled_between_two_pictures_leaves_none(tmp_path: Path) -> None:
    """Neither a row nor a blob: those that there are belong to others."""
    home = tmp_path / "home"
    async with ImageUpstream() as upstream:
        two = TwoPictures(upstream)
        async with running(home, worker_threads=1, outbound_allow=("127.0.0.1",)) as server:
            job_id = await two.first_came(server, upstream)
            assert (await server.admin.post(f"/jobs/{job_id}/cancel")).status_code == 200
            assert (await ended(server.admin, job_id))["status"] == "cancelled"
            assert await rows_of(server, job_id) == []
            held = await parts_of(server).database.read(
                lambda connection: set(connection.execute(sa.select(blob_links.c.digest)).scalars())
            )
            there = {path.name for path in (home / "blobs").rglob("*") if re.fullmatch("[0-9a-f]{64}", path.name)}
            assert there == held
            assert len(held) == 2, "file and thumbnail of the other job"


async def test_many_large_pictures_do_not_overrun_the_server(server: Running) -> None:
    """They come as fast as they are drawn, faster than files are made of them, and none is lost."""
    await paints(server.admin, "large", parameters={"width": {"default": 2560, "max": 4096}})
    settings = {"width": 2560, "height": 2048, "num_images": 8, "num_inference_steps": 1, "format": "webp"}
    result = await drawn(server.admin, await ask(server.admin, "large", settings=settings, previews=0))
    assert len({image["sha256"] for image in result["images"]}) == 8
