"""Files through the API: what comes in is opened and typed by content, and comes back as it was."""

import hashlib
import io
import wave
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serai.storage.links import Collector
from support.api import Running, running

pytestmark = pytest.mark.anyio


async def said(call: Any, status: int = 200) -> Any:
    answer = await call
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def sound(seconds: float = 0.25) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * int(16_000 * seconds)))
    return out.getvalue()


async def upload(client: httpx.AsyncClient, content: bytes, query: str = "", status: int = 201, **headers: str) -> Any:
    return await said(client.post(f"/files{query}", content=content, headers=headers), status)


async def test_their_whole_life(server_on_both: Running) -> None:
    """Uploaded, shown, listed, fetched to the byte, removed; removed is gone, and each change is in the log."""
    user, content = await server_on_both.make_user("ada", "user"), picture()
    made = await upload(user, content, "?name=%D8%B1%D9%86%DA%AF.png")
    assert (made["name"], made["media_type"], made["size"]) == ("رنگ.png", "image/png", len(content))
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert (made["info"]["width"], made["info"]["height"]) == (40, 30)
    assert await said(user.get(f"/files/{made['id']}")) == made
    assert (await said(user.get("/files")))["items"] == [made]
    assert (await said(user.get("/whoami")))["disk_used_bytes"] == len(content)
    fetched = await user.get(made["content_url"])
    assert (fetched.status_code, fetched.content) == (200, content)
    head = await user.head(made["content_url"])
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("content-length", "etag", "content-type")} == {
        name: fetched.headers[name] for name in ("content-length", "etag", "content-type")
    }
    told = await said(user.delete(f"/files/{made['id']}?dry_run=1"))
    assert [change["action"] for change in told["changes"]] == ["files.remove"]
    assert await said(user.get(f"/files/{made['id']}")) == made
    await said(user.delete(f"/files/{made['id']}"), 204)
    for call in (user.get(f"/files/{made['id']}"), user.get(made["content_url"]), user.delete(f"/files/{made['id']}")):
        assert (await said(call, 404))["error"]["code"] == "FILE_NOT_FOUND"
    assert (await said(user.get("/whoami")))["disk_used_bytes"] == 0
    entries = (await said(server_on_both.admin.get(f"/audit?object_id={made['id']}")))["items"]
    assert [entry["action"] for entry in entries] == ["files.remove", "files.add"]


async def test_content_decides_the_type(server: Running) -> None:
    """Neither the name nor the Content-Type does; the answer is an attachment that no browser runs."""
    for content, media_type, said_type in (
        (picture("JPEG"), "image/jpeg", "text/html"),
        (picture("WEBP"), "image/webp", "image/svg+xml"),
        (sound(), "audio/wav", "application/json"),
    ):
        made = await upload(server.admin, content, "?name=evil.html", **{"content-type": said_type})
        assert made["media_type"] == media_type
        fetched = await server.admin.get(made["content_url"])
        assert fetched.content == content
        assert fetched.headers["content-type"] == media_type
        assert fetched.headers["content-disposition"] == f'attachment; filename="{made["id"]}"'
        assert fetched.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert fetched.headers["x-content-type-options"] == "nosniff"
        assert fetched.headers["etag"] == f'"{made["sha256"]}"'


async def test_what_cannot_be_opened_is_refused_and_not_kept(server: Running) -> None:
    """Nothing, noise, a page, a drawing with scripts, half a picture: refused with a reason, and no bytes stay."""
    whole = picture(size=(200, 200))
    for content, status in (
        (b"", 422),
        (b"\x00" * 100, 415),
        (b"<html><script>alert(1)</script>", 415),
        (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', 415),
        (b"%PDF-1.7\n", 415),
        (whole[: len(whole) // 2], 422),
        (whole[:20], 422),
    ):
        refused = await upload(server.admin, content, status=status)
        assert refused["error"]["message"]
    assert (await said(server.admin.get("/files")))["items"] == []
    kept = [path for path in server.settings.blobs_folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert [path for path in kept if path.name != hashlib.sha256(b"").hexdigest()] == []


async def test_a_name_is_for_people_and_is_no_path(server: Running) -> None:
    """Whatever the name, files lie under ids of ours; control characters and long names are refused."""
    for name in ("..%2F..%2Fetc%2Fpasswd", "CON", "%20", "a%2Fb", ".htaccess", ""):
        made = await upload(server.admin, picture(), f"?name={name}")
        assert (await server.admin.get(made["content_url"])).content == picture()
    for name in ("a%0Ab", "a%7F", "x" * 256):
        await upload(server.admin, picture(), f"?name={name}", 422)
    assert not list(server.settings.home.parent.rglob("*passwd*"))


async def test_a_quota_is_kept(server: Running) -> None:
    """What would go over is refused and counted nowhere; removing makes room; equal bytes count once."""
    content = picture()
    user = await server.make_user("ada", "user")
    quota = {"disk_quota_bytes": len(content) + len(picture(colour="blue"))}
    await said(server.admin.patch(f"/users/{server.user_ids['ada']}", json=quota))
    first = await upload(user, content)
    await upload(user, content)
    assert (await said(user.get("/whoami")))["disk_used_bytes"] == len(content)
    second = await upload(user, picture(colour="blue"))
    refused = await upload(user, picture(size=(60, 60)), status=413)
    assert refused["error"]["code"] == "QUOTA_EXCEEDED"
    assert refused["error"]["details"]["quota_bytes"] == quota["disk_quota_bytes"]
    assert len((await said(user.get("/files")))["items"]) == 3
    await said(user.delete(f"/files/{second['id']}"), 204)
    await upload(user, picture(colour="blue"))
    assert (await said(user.get(f"/files/{first['id']}")))["sha256"] == hashlib.sha256(content).hexdigest()


async def test_a_quota_of_nothing_keeps_nothing(server: Running) -> None:
    """Zero is a number, not 'the default'."""
    user = await server.make_user("ada", "user")
    await said(server.admin.patch(f"/users/{server.user_ids['ada']}", json={"disk_quota_bytes": 0}))
    await upload(user, picture(), status=413)


async def test_bytes_go_when_nobody_holds_them(server: Running) -> None:
    """Two files of the same bytes share them; the collector leaves them to the last one and then takes them."""
    parts = server.app.state.parts
    later = parts.clock.now() + timedelta(days=365)
    collector = Collector(parts.database, parts.blobs, grace_s=0)
    one, other = await upload(server.admin, picture()), await upload(server.admin, picture())
    await said(server.admin.delete(f"/files/{one['id']}"), 204)
    await collector.run(later)
    assert (await server.admin.get(other["content_url"])).content == picture()
    await said(server.admin.delete(f"/files/{other['id']}"), 204)
    assert (await collector.run(later)).blobs >= 1
    assert not list(server.settings.blobs_folder.rglob(one["sha256"]))


async def test_a_body_over_the_bound_is_refused(tmp_path: Path) -> None:
    """With or without its length told; nothing of it stays."""
    async with running(tmp_path / "home", max_body_bytes=1000) as server:

        async def pieces() -> Any:
            for _ in range(20):
                yield b"x" * 100

        for content in (b"x" * 1001, pieces()):
            refused = await server.admin.post("/files", content=content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "TOO_LARGE")
        assert not [path for path in server.settings.blobs_folder.rglob("*") if path.is_file() and path.stat().st_size]


async def test_a_full_disk_refuses_uploads(tmp_path: Path) -> None:
    """With less free than min_free_disk_bytes uploads are refused, and health says why."""
    async with running(tmp_path / "home", min_free_disk_bytes=2**49) as server:
        refused = await upload(server.admin, picture(), status=503)
        assert refused["error"]["code"] == "DISK_FULL"
        health = await said(server.admin.get("/health"))
        assert (health["status"], health["checks"]["disk"]["status"]) == ("degraded", "failed")


async def test_lists_come_in_pages(server: Running) -> None:
    """Along the cursors every file comes once."""
    made = [(await upload(server.admin, picture(), f"?name={number}"))["id"] for number in range(5)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await said(server.admin.get(f"/files?limit=2{f'&cursor={cursor}' if cursor else ''}"))
        seen += [file["id"] for file in page["items"]]
        cursor = page["next_cursor"]
    assert seen == made
