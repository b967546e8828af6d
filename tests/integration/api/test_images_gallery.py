"""The gallery over HTTP: files, search, marks, removal, archives; and whose pictures they are."""

import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serai.images import store
from support.api import Running, running
from support.embedded import read_embedded
from support.images import a_png
from support.picture_api import add_painter, drawn
from support.registry_api import refused, said

pytestmark = pytest.mark.anyio

PROMPTS = ("a red fox in snow", "a blue whale", "a red balloon")


@pytest.fixture
async def studio(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """An application with a model that draws."""
    async with running(tmp_path / "home", rate_limits="off") as started:
        await add_painter(started.admin)
        yield started


async def some_pictures(client: httpx.AsyncClient) -> list[str]:
    """Make a picture of each prompt, and return their ids."""
    return [(await drawn(client, prompt=prompt, settings={"width": 32, "height": 32}))[0]["id"] for prompt in PROMPTS]


async def ids(client: httpx.AsyncClient, **asked: Any) -> list[str]:
    return [one["id"] for one in (await said(client.get("/images", params=asked)))["items"]]


async def test_a_file_is_for_ever_the_same_and_is_read_in_ranges(studio: Running) -> None:
    """ETag and 304, ranges and 416, a thumbnail; shown in a page, never run, kept by the browser of its owner alone."""
    admin = studio.admin
    (picture,) = await drawn(admin, settings={"format": "jpeg", "width": 128})
    whole = await admin.get(picture["url"])
    assert whole.headers["content-type"] == "image/jpeg"
    assert whole.headers["etag"] == f'"{picture["sha256"]}"'
    assert whole.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert whole.headers["content-disposition"] == f'inline; filename="{picture["id"]}.jpeg"'
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in whole.headers["content-security-policy"]
    assert int(whole.headers["content-length"]) == len(whole.content) == picture["bytes"]
    for known in (whole.headers["etag"], "*", f'"x", W/{whole.headers["etag"]}'):
        same = await admin.get(picture["url"], headers={"if-none-match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", whole.headers["etag"])
    size = len(whole.content)
    for asked, first, end in (("0-9", 0, 10), ("10-", 10, size), ("-5", size - 5, size), (f"5-{size * 9}", 5, size)):
        part = await admin.get(picture["url"], headers={"range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, whole.content[first:end]), asked
        assert part.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
    for asked in ("bytes=0-1,3-4", "bytes=9-2", "bytes=-", "bytes=x", "items=0-1"):
        assert (await admin.get(picture["url"], headers={"range": asked})).status_code == 200, asked
    for path in (picture["url"], picture["thumb_url"], f"/api/image/{picture['id']}"):
        for headers in ({}, {"range": "bytes=0-9"}, {"if-none-match": "*"}):
            head, got = await admin.head(path, headers=headers), await admin.get(path, headers=headers)
            assert (head.status_code, head.content) == (got.status_code, b"")
            same = ("content-length", "content-type", "etag", "cache-control", "content-range")
            assert [head.headers.get(name) for name in same] == [got.headers.get(name) for name in same]
    assert (await admin.head("/images/img_none")).status_code == 404
    stale = await admin.get(picture["url"], headers={"range": "bytes=0-9", "if-range": '"other"'})
    assert stale.status_code == 200
    for path in (picture["url"], f"/api/image/{picture['id']}"):
        for asked in (f"bytes={size}-", "bytes=-0"):
            behind = await admin.get(path, headers={"range": asked})
            assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{size}")
    thumb = await admin.get(picture["thumb_url"])
    with Image.open(io.BytesIO(thumb.content)) as image:
        assert (image.format, image.size, thumb.headers["content-type"]) == ("WEBP", (128, 64), "image/webp")
    await refused(admin.get(f"{picture['url']}?size=huge"), 422, "INVALID_INPUT", "size")


async def test_pictures_are_found_by_words_model_tag_favourite_and_time(server_on_both: Running) -> None:
    """The newest first, in pages."""
    admin = server_on_both.admin
    await add_painter(admin)
    fox, whale, balloon = await some_pictures(admin)
    assert await ids(admin) == [balloon, whale, fox]
    assert await ids(admin, search="red") == [balloon, fox]
    assert await ids(admin, search="whale", model="painter") == [whale]
    assert await ids(admin, model="other") == []
    changed = await said(admin.patch(f"/images/{fox}", json={"tags": ["animal", "winter"], "favourite": True}))
    assert (changed["tags"], changed["favourite"]) == (["animal", "winter"], True)
    await said(admin.patch(f"/images/{whale}", json={"tags": ["animal"]}))
    assert await ids(admin, tag="animal") == [whale, fox]
    assert await ids(admin, tag="animal", favourite=True) == [fox]
    assert await ids(admin, favourite=False) == [balloon, whale]
    at = {one["id"]: one["created_at"] for one in (await said(admin.get("/images")))["items"]}
    assert await ids(admin, **{"from": at[whale]}) == [balloon, whale]
    assert await ids(admin, to=at[whale]) == [fox]
    later = (datetime.fromisoformat(at[balloon]) + timedelta(seconds=1)).isoformat()
    assert await ids(admin, **{"from": later}) == []
    page = await said(admin.get("/images?limit=2"))
    rest = await said(admin.get(f"/images?limit=2&cursor={page['next_cursor']}"))
    assert [one["id"] for one in (*page["items"], *rest["items"])] == [balloon, whale, fox]
    assert rest["next_cursor"] is None


async def test_a_wrong_search_is_refused(studio: Running) -> None:
    """422 names the parameter."""
    wrong = ("limit=0", "limit=201", "cursor=x", "cursor=YWJj", "from=5", "to=2026-01-01", "favourite=perhaps", "q=x")
    for asked in wrong:
        await refused(studio.admin.get(f"/images?{asked}"), 422, "INVALID_INPUT", asked.partition("=")[0])
    by_version = {"model": "painter@1.0.0"}
    longest = {"tag": "t" * 64, "search": "w " * 32}
    for asked, field in (
        (by_version, "model"),
        ({"search": "word " * 33}, "search"),
        ({"search": "x" * 201}, "search"),
        ({"tag": "t" * 65}, "tag"),
        ({"tag": "a\nb"}, "tag"),
        (longest, None),
    ):
        for call in (
            studio.admin.get("/images", params=asked),
            studio.admin.post("/images/archive", json={"filter": asked}),
        ):
            if field is None:
                assert (await call).status_code == 200
                continue
            error = await refused(call, 422, "INVALID_INPUT")
            assert field in error["details"][0]["field"]
            assert field != "model" or "model=painter" in error["hint"]


async def test_marks_and_removal_are_audited_and_can_be_rehearsed(studio: Running) -> None:
    """What is wrong is refused; a rehearsal tells the change; what is removed is gone, its bytes with it."""
    admin = studio.admin
    (picture,) = await drawn(admin)
    path = picture["url"]
    for body in ({"tags": ["x" * 65]}, {"tags": [""]}, {"tags": ["a\nb"]}, {"tags": ["t"] * 33}, {"favourite": 1}):
        await refused(admin.patch(path, json=body), 422, "INVALID_INPUT")
    await refused(admin.patch(path, json={"prompt": "another"}), 422, "INVALID_INPUT", "prompt")
    told = await said(admin.patch(f"{path}?dry_run=1", json={"favourite": True}))
    assert [change["action"] for change in told["changes"]] == ["images.change"]
    told = await said(admin.delete(f"{path}?dry_run=1"))
    assert [change["action"] for change in told["changes"]] == ["images.remove"]
    assert (await said(admin.get(f"{path}/metadata")))["favourite"] is False
    await said(admin.patch(path, json={"favourite": True, "tags": ["a", "a"]}))
    assert (await said(admin.get(f"{path}/metadata")))["tags"] == ["a"]
    await said(admin.delete(path), 204)
    for call in (admin.get(path), admin.get(f"{path}/metadata"), admin.patch(path, json={}), admin.delete(path)):
        await refused(call, 404, "PICTURE_NOT_FOUND")
    log = (await said(admin.get("/audit?limit=20")))["items"]
    assert [entry["action"] for entry in log if entry["object_id"] == picture["id"]] == [
        "images.remove",
        "images.change",
    ]


async def test_pictures_are_their_owners(studio: Running) -> None:
    """Nobody else finds, reads, marks or archives them; an admin does."""
    ada, bob = await studio.make_user("ada", "user"), await studio.make_user("bob", "user")
    (hers,), (his,) = await drawn(ada), await drawn(bob)
    assert (await ids(ada), await ids(bob)) == ([hers["id"]], [his["id"]])
    assert await ids(studio.admin) == [his["id"], hers["id"]]
    for call in (
        bob.get(hers["url"]),
        bob.get(hers["thumb_url"]),
        bob.patch(hers["url"], json={"favourite": True}),
        bob.delete(hers["url"]),
        bob.post("/images/archive", json={"ids": [hers["id"]]}),
    ):
        await refused(call, 404, "PICTURE_NOT_FOUND")
    assert (await studio.admin.get(hers["url"])).status_code == 200


async def test_an_archive_finds_more_than_a_page(studio: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture once, the newest first."""
    monkeypatch.setattr(store, "MAX_PAGE", 2)
    expected = (await some_pictures(studio.admin))[::-1]
    answer = await studio.admin.post("/images/archive", json={"filter": {}})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
    assert [Path(name).stem for name in names] == expected


async def test_the_file_the_archive_and_the_metadata_tell_the_same(studio: Running) -> None:
    """Of the second of two pictures: its own seed, alone, and the digests of what it began with."""
    admin = studio.admin
    photo = a_png((64, 64))
    image = (await said(admin.post("/files", content=photo), 201))["id"]
    settings = {"num_images": 2, "seed": 5, "format": "webp"}
    _, picture = await drawn(admin, image=image, settings=settings)
    embedded = read_embedded((await admin.get(picture["url"])).content)
    assert embedded is not None
    assert (embedded["seed"], embedded["settings"]["seed"], embedded["settings"]["num_images"]) == (6, 6, 1)
    assert embedded["image_sha256"] == hashlib.sha256(photo).hexdigest()
    shown = await said(admin.get(f"{picture['url']}/metadata"))
    assert {name: shown[name] for name in embedded} == embedded
    answer = await admin.post("/images/archive", json={"ids": [picture["id"]]})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        told = json.loads(archive.read(archive.namelist()[1]))
    beside = {"id": picture["id"], "created_at": told["created_at"], "tags": [], "is_favourite": False}
    assert told == {**embedded, **beside}
    assert datetime.fromisoformat(told["created_at"]) == datetime.fromisoformat(shown["created_at"])


async def test_an_archive_holds_each_picture_and_what_made_it(studio: Running) -> None:
    """By ids, or all that a filter finds; a zip that is sent as it is made."""
    admin = studio.admin
    fox, whale, balloon = await some_pictures(admin)
    for body, expected in (
        ({"ids": [whale, fox]}, {whale, fox}),
        ({"filter": {"search": "red"}}, {fox, balloon}),
        ({"filter": {}}, {fox, whale, balloon}),
    ):
        answer = await admin.post("/images/archive", json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
        assert answer.headers["content-disposition"].startswith("attachment")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            told = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
            files = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
        assert {one["id"] for one in told} == expected
        assert len(files) == len(expected)
        assert (await admin.get(f"/images/{told[0]['id']}")).content in files
    for body in ({}, {"ids": []}, {"ids": [fox], "filter": {}}, {"ids": [fox, fox]}, {"filter": {"from": 5}}):
        await refused(admin.post("/images/archive", json=body), 422, "INVALID_INPUT")
    await refused(admin.post("/images/archive", json={"ids": [fox, "img_0"]}), 404, "PICTURE_NOT_FOUND")
    nothing = await admin.post("/images/archive", json={"filter": {"tag": "nothing"}})
    with zipfile.ZipFile(io.BytesIO(nothing.content)) as archive:
        assert archive.namelist() == []
