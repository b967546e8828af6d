"""Whose bytes count, and how often: quotas under parallel uploads, and a disk that is kept from filling up."""

import asyncio
import io
import random
from pathlib import Path

import pytest
from PIL import Image

from support.api import Running, running

pytestmark = pytest.mark.anyio


def picture(seed: int, side: int = 64) -> bytes:
    """Return a PNG of noise of about 12 kB, another for each seed."""
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(out, "PNG")
    return out.getvalue()


async def used(client: object) -> int:
    return int((await client.get("/whoami")).json()["disk_used_bytes"])  # type: ignore[attr-defined]


async def test_parallel_uploads_do_not_pass_together(server_on_both: Running) -> None:
    """Each fits by itself, no two do: of four at once exactly one is kept, every time, and the others leave nothing."""
    user = await server_on_both.make_user("ada", "user")
    target = f"/users/{server_on_both.user_ids['ada']}"
    size = max(len(picture(seed)) for seed in range(20))
    await server_on_both.admin.patch(target, json={"disk_quota_bytes": size + size // 2})
    for number in range(5):
        contents = [picture(4 * number + n) for n in range(4)]
        answers = await asyncio.gather(*(user.post("/files", content=content) for content in contents))
        assert sorted(answer.status_code for answer in answers) == [201, 413, 413, 413]
        kept = next(answer.json() for answer in answers if answer.status_code == 201)
        refused = next(answer.json()["error"] for answer in answers if answer.status_code == 413)
        assert refused["code"] == "QUOTA_EXCEEDED"
        assert await used(user) == kept["size"]
        assert [file["id"] for file in (await user.get("/files")).json()["items"]] == [kept["id"]]
        assert (await user.delete(f"/files/{kept['id']}")).status_code == 204
        assert await used(user) == 0


async def test_the_same_bytes_count_once_for_each_owner(server_on_both: Running) -> None:
    """Twice the same picture is two files and one share; for another user it counts in full again."""
    ada, eve = [await server_on_both.make_user(name, "user") for name in ("ada", "eve")]
    content = picture(1)
    files = [(await ada.post("/files", content=content)).json()["id"] for _ in range(3)]
    assert len(set(files)) == 3
    assert await used(ada) == len(content)
    assert (await eve.post("/files", content=content)).status_code == 201
    assert (await used(ada), await used(eve)) == (len(content), len(content))
    for number, file in enumerate(files, 1):
        assert (await ada.delete(f"/files/{file}")).status_code == 204
        assert await used(ada) == (0 if number == 3 else len(content))
    assert await used(eve) == len(content)


async def test_a_full_disk_is_told_and_nothing_is_kept(tmp_path: Path, anyio_backend: str) -> None:
    """Below min_free_disk_bytes an upload is 503 DISK_FULL, /health says so, and reading goes on."""
    async with running(tmp_path / "home", min_free_disk_bytes=2**50) as server:
        refused = await server.admin.post("/files", content=picture(1))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "DISK_FULL"
        assert refused.json()["error"]["hint"]
        health = await server.admin.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["checks"]["disk"]["status"] == "failed"
        assert (await server.admin.get("/files")).json()["items"] == []
        assert await used(server.admin) == 0
        kept = [path for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file() and "lock" not in path.name]
        assert kept == []
