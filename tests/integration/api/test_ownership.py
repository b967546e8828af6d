"""What one user made does not exist for another: every route with an id in its path, with somebody else's ids."""

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from support.api import ROLES, Running, running
from support.picture_api import add_painter, drawn, ended, submitted
from support.waiting import eventually

pytestmark = pytest.mark.anyio


def picture(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


async def a_key(client: httpx.AsyncClient) -> str:
    made = await client.post("/keys", json={"name": "second"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def a_file(client: httpx.AsyncClient) -> str:
    made = await client.post("/files", content=picture())
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def a_job(client: httpx.AsyncClient) -> str:
    made = await client.post("/jobs", json={"kind": "digest", "payload": {"text": "mine"}})
    assert made.status_code == 202, made.text
    return str(made.json()["job_id"])


async def a_session(client: httpx.AsyncClient) -> str:
    made = await client.post("/sessions", json={"model": "toy"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def a_response(client: httpx.AsyncClient) -> str:
    made = await client.post("/v1/responses", json={"model": "toy", "input": "hello"})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


async def a_picture(client: httpx.AsyncClient) -> str:
    return str((await drawn(client))[0]["id"])


async def a_decision(client: httpx.AsyncClient) -> str:
    job_id = await submitted(client)
    decision_id = str((await ended(client, job_id))["decision"]["id"])

    async def is_stored() -> bool:
        return (await client.get(f"/decisions/{decision_id}")).status_code == 200

    await eventually(is_stored, seconds=60)
    return decision_id


OWNED: dict[str, Callable[[httpx.AsyncClient], Awaitable[str]]] = {
    "key_id": a_key,
    "file_id": a_file,
    "job_id": a_job,
    "session_id": a_session,
    "response_id": a_response,
    "image_id": a_picture,
    "decision_id": a_decision,
}
"""Path parameter → how a user comes to have one. What belongs to nobody in particular is in SHARED."""

BODIES: dict[str, Any] = {
    "/sessions/{session_id}/messages": {"content": "hello"},
    "/images/{image_id}": {"favourite": True},
}
"""What a route is sent whose body is read before the id is looked for."""

SHARED = {"name", "model_id", "reference", "version", "other", "alias", "service_id", "picture_id"}
"""Path parameters of routes that users below admin reach, whose objects are everybody's, or whoever's who has the
signed address of a picture."""


@pytest.fixture
async def app(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    async with running(tmp_path / "home", rate_limits="off") as started:
        toy = {"id": "toy", "task": "chat", "version": "1.0.0", "engine": "fake"}
        made = await started.admin.post("/models", json={**toy, "source": {"kind": "package", "name": "toy"}})
        assert made.status_code == 201, made.text
        await add_painter(started.admin)
        yield started


def owned_routes(app: Running) -> list[tuple[str, str, str, str]]:
    """Return least role, method, path and parameter of the routes that name what a user made."""
    found = []
    for route in app.app.routes:
        names = list(route.param_convertors)  # type: ignore[attr-defined]
        least = "public" if route.access is None else route.access.label  # type: ignore[attr-defined]
        if names and least != "admin":
            assert {*OWNED, *SHARED}.issuperset(names), f"{route}: whose is what it names?"
            owned = [name for name in names if name in OWNED]
            assert len(owned) < 2, f"{route} names two things of a user: extend this test"
            methods = route.methods  # type: ignore[attr-defined]
            found += [(least, method, route.path, name) for method in methods for name in owned]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("role", [role for role in ROLES if role != "admin"])
async def test_the_ids_of_another_answer_as_if_they_never_were(app: Running, role: str) -> None:
    """404, byte for byte what an id gets that nobody ever had; and afterwards the owner finds all as it was."""
    owner = await app.make_user("owner", "user")
    other = await app.make_user("other", role)
    swept = 0
    for least, method, path, name in owned_routes(app):
        if ROLES.index(role) < ROLES.index(least):
            continue
        mine = await OWNED[name](owner)
        never = mine[:-6] + "000000"
        answers = []
        for given in (mine, never):
            target = path.replace(f"{{{name}}}", given)
            answer = await other.request(method, target, json=BODIES.get(path), headers={"x-request-id": "same"})
            assert answer.status_code == 404, (method, target, answer.status_code)
            answers.append(answer)
        assert answers[0].content == answers[1].content, (method, path)
        assert telling(answers[0]) == telling(answers[1]), (method, path)
        still = await owner.get(path.split("{")[0] + mine)
        assert still.status_code == 200, (method, path)
        swept += 1
    assert swept >= 2


def telling(answer: httpx.Response) -> list[tuple[str, str]]:
    """Return the headers but for those that count requests."""
    return sorted((k, v) for k, v in answer.headers.items() if not k.startswith("x-ratelimit"))


@pytest.mark.parametrize("role", ["viewer", "user", "moderator"])
async def test_lists_hold_ones_own(app: Running, role: str) -> None:
    """No list tells a user below admin of what another made; an admin sees both."""
    owner = await app.make_user("owner", "user")
    other = await app.make_user("other", role)
    for collection, make in (("/keys", a_key), ("/files", a_file), ("/jobs", a_job), ("/images", a_picture)):
        theirs = await make(owner)
        shown = await other.get(collection)
        if shown.status_code != 403:
            assert theirs not in shown.text
        assert theirs in (await app.admin.get(collection)).text


async def test_a_key_for_another_user_is_refused_alike_for_all(app: Running) -> None:
    """Naming a user that exists and one that does not makes no difference to who may name neither."""
    await app.make_user("owner", "user")
    other = await app.make_user("other", "moderator")
    asked = {"name": "k", "user_id": app.user_ids["owner"]}
    same = {"x-request-id": "same"}
    existing = await other.post("/keys", json=asked, headers=same)
    missing = await other.post("/keys", json={**asked, "user_id": "user_00000000000000000000000000"}, headers=same)
    assert existing.status_code == 403
    assert existing.content == missing.content


async def test_whoever_uploads_the_same_bytes_learns_nothing(app: Running) -> None:
    """An upload of what another has answers as a new one does, and counts on its own quota."""
    owner = await app.make_user("owner", "user")
    other = await app.make_user("other", "user")
    bytes_ = picture("blue")
    first = (await owner.post("/files", content=bytes_)).json()
    second = (await other.post("/files", content=bytes_)).json()
    assert set(first) == set(second)
    assert first["id"] != second["id"]
    assert (await other.get("/whoami")).json()["disk_used_bytes"] == len(bytes_)
    assert (await other.delete(f"/files/{first['id']}")).status_code == 404
    assert (await other.delete(f"/files/{second['id']}")).status_code == 204
    assert (await owner.get(f"/files/{first['id']}/content")).content == bytes_
