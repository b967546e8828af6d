"""Who may use which route: every route of the application, every role, every kind of credential."""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, WebSocketRoute

from serai.api.access import unclassified
from serai.auth.policy import SCOPES
from support.api import ROLES, Running, running, with_every_role

pytestmark = pytest.mark.anyio

PUBLIC = "public"
MATRIX: dict[tuple[str, str], tuple[str, str]] = {
    ("GET", "/"): (PUBLIC, "system"),
    ("HEAD", "/"): (PUBLIC, "system"),
    ("GET", "/live"): (PUBLIC, "system"),
    ("GET", "/ready"): (PUBLIC, "system"),
    ("GET", "/health"): (PUBLIC, "system"),
    ("GET", "/docs"): (PUBLIC, "system"),
    ("GET", "/docs/{name}"): (PUBLIC, "system"),
    ("GET", "/openapi.json"): ("viewer", "system"),
    ("GET", "/status"): ("viewer", "system"),
    ("GET", "/metrics"): ("viewer", "system"),
    ("GET", "/diag"): ("admin", "system"),
    ("GET", "/settings"): ("admin", "system"),
    ("GET", "/whoami"): ("viewer", "any"),
    ("GET", "/users"): ("admin", "users"),
    ("POST", "/users"): ("admin", "users"),
    ("GET", "/users/{user_id}"): ("admin", "users"),
    ("PATCH", "/users/{user_id}"): ("admin", "users"),
    ("DELETE", "/users/{user_id}"): ("admin", "users"),
    ("GET", "/keys"): ("user", "keys"),
    ("POST", "/keys"): ("user", "keys"),
    ("GET", "/keys/{key_id}"): ("user", "keys"),
    ("DELETE", "/keys/{key_id}"): ("user", "keys"),
    ("POST", "/tokens"): ("viewer", "keys"),
    ("POST", "/login"): (PUBLIC, "keys"),
    ("POST", "/logout"): ("viewer", "keys"),
    ("POST", "/files"): ("user", "files"),
    ("GET", "/files"): ("viewer", "files"),
    ("GET", "/files/{file_id}"): ("viewer", "files"),
    ("GET", "/files/{file_id}/content"): ("viewer", "files"),
    ("HEAD", "/files/{file_id}/content"): ("viewer", "files"),
    ("DELETE", "/files/{file_id}"): ("user", "files"),
    ("POST", "/jobs"): ("user", "jobs"),
    ("GET", "/jobs"): ("viewer", "jobs"),
    ("GET", "/jobs/webhook-secret"): ("user", "jobs"),
    ("GET", "/jobs/{job_id}"): ("viewer", "jobs"),
    ("DELETE", "/jobs/{job_id}"): ("user", "jobs"),
    ("GET", "/jobs/{job_id}/events"): ("viewer", "jobs"),
    ("POST", "/jobs/{job_id}/cancel"): ("user", "jobs"),
    ("POST", "/jobs/{job_id}/retry"): ("user", "jobs"),
    ("GET", "/models"): ("viewer", "models"),
    ("POST", "/models"): ("moderator", "models"),
    ("GET", "/models/{model_id}"): ("viewer", "models"),
    ("PATCH", "/models/{model_id}"): ("moderator", "models"),
    ("DELETE", "/models/{model_id}"): ("admin", "models"),
    ("GET", "/models/{model_id}/versions"): ("viewer", "models"),
    ("POST", "/models/{model_id}/versions"): ("moderator", "models"),
    ("GET", "/models/{model_id}/versions/{version}"): ("viewer", "models"),
    ("PATCH", "/models/{model_id}/versions/{version}"): ("moderator", "models"),
    ("DELETE", "/models/{model_id}/versions/{version}"): ("admin", "models"),
    ("PATCH", "/models/{model_id}/versions/{version}/deprecate"): ("moderator", "models"),
    ("PATCH", "/models/{model_id}/versions/{version}/activate"): ("moderator", "models"),
    ("PATCH", "/models/{model_id}/versions/{version}/publish"): ("moderator", "models"),
    ("PATCH", "/models/{model_id}/versions/{version}/unpublish"): ("moderator", "models"),
    ("PATCH", "/models/{model_id}/versions/{version}/retire"): ("moderator", "models"),
    ("GET", "/models/{model_id}/versions/{version}/diff/{other}"): ("viewer", "models"),
    ("GET", "/models/{model_id}/versions/{version}/services"): ("viewer", "models"),
    ("GET", "/models/{model_id}/deprecated-version-services"): ("viewer", "models"),
    ("GET", "/models/{model_id}/aliases/{alias}"): ("viewer", "models"),
    ("PUT", "/models/{model_id}/aliases/{alias}"): ("moderator", "models"),
    ("DELETE", "/models/{model_id}/aliases/{alias}"): ("moderator", "models"),
    ("POST", "/services/admin/create/model/{model_id}/version"): ("moderator", "models"),
    ("PATCH", "/services/admin/deprecate/model/version"): ("moderator", "models"),
    ("PATCH", "/services/admin/publish/model/version"): ("moderator", "models"),
    ("PATCH", "/services/admin/unpublish/model/version"): ("moderator", "models"),
    ("GET", "/services/admin/model/{model_id}/versions"): ("moderator", "models"),
    ("GET", "/services/admin/model/{model_id}/version/{version}/services"): ("moderator", "models"),
    ("GET", "/services/admin/model/{model_id}/deprecated-version-services"): ("moderator", "models"),
    ("PATCH", "/services/admin/update/service/version"): ("moderator", "services"),
    ("GET", "/ps"): ("viewer", "models"),
    ("POST", "/models/{reference}/load"): ("moderator", "models"),
    ("POST", "/models/{reference}/unload"): ("moderator", "models"),
    ("POST", "/models/{reference}/cooldown/clear"): ("moderator", "models"),
    ("POST", "/pull"): ("moderator", "models"),
    ("POST", "/chat"): ("user", "chat"),
    ("POST", "/sessions"): ("user", "chat"),
    ("GET", "/sessions/{session_id}"): ("user", "chat"),
    ("DELETE", "/sessions/{session_id}"): ("user", "chat"),
    ("POST", "/sessions/{session_id}/messages"): ("user", "chat"),
    ("POST", "/v1/chat/completions"): ("user", "chat"),
    ("POST", "/v1/completions"): ("user", "chat"),
    ("POST", "/v1/embeddings"): ("user", "chat"),
    ("POST", "/v1/images/generations"): ("user", "images"),
    ("POST", "/v1/images/edits"): ("user", "images"),
    ("POST", "/v1/images/variations"): ("user", "images"),
    ("GET", "/v1/images/files/{picture_id}"): (PUBLIC, "images"),
    ("HEAD", "/v1/images/files/{picture_id}"): (PUBLIC, "images"),
    ("GET", "/v1/models"): ("viewer", "chat"),
    ("GET", "/v1/models/{model_id:path}"): ("viewer", "chat"),
    ("POST", "/v1/responses"): ("user", "chat"),
    ("GET", "/v1/responses/{response_id}"): ("user", "chat"),
    ("GET", "/v1/responses/{response_id}/input_items"): ("user", "chat"),
    ("DELETE", "/v1/responses/{response_id}"): ("user", "chat"),
    ("POST", "/api/chat"): ("user", "chat"),
    ("POST", "/api/generate"): ("user", "chat"),
    ("POST", "/api/embed"): ("user", "chat"),
    ("POST", "/api/embeddings"): ("user", "chat"),
    ("POST", "/images/generations"): ("user", "images"),
    ("POST", "/images/archive"): ("viewer", "images"),
    ("GET", "/images"): ("viewer", "images"),
    ("GET", "/images/{image_id}"): ("viewer", "images"),
    ("HEAD", "/images/{image_id}"): ("viewer", "images"),
    ("GET", "/images/{image_id}/metadata"): ("viewer", "images"),
    ("PATCH", "/images/{image_id}"): ("user", "images"),
    ("DELETE", "/images/{image_id}"): ("user", "images"),
    ("GET", "/queue"): ("viewer", "images"),
    ("POST", "/prompts/enrich"): ("user", "chat"),
    ("GET", "/api/status/{job_id}"): ("viewer", "jobs"),
    ("GET", "/api/image/{image_id}"): ("viewer", "images"),
    ("HEAD", "/api/image/{image_id}"): ("viewer", "images"),
    ("GET", "/api/image/{image_id}/metadata"): ("viewer", "images"),
    ("GET", "/api/queue"): ("viewer", "images"),
    ("GET", "/api/version"): ("viewer", "models"),
    ("GET", "/api/tags"): ("viewer", "models"),
    ("GET", "/api/ps"): ("viewer", "models"),
    ("POST", "/api/show"): ("viewer", "models"),
    ("POST", "/api/copy"): ("moderator", "models"),
    ("DELETE", "/api/delete"): ("admin", "models"),
    ("POST", "/api/pull"): ("moderator", "models"),
    ("GET", "/services"): ("viewer", "services"),
    ("POST", "/services"): ("moderator", "services"),
    ("GET", "/services/{service_id}"): ("viewer", "services"),
    ("PATCH", "/services/{service_id}"): ("moderator", "services"),
    ("DELETE", "/services/{service_id}"): ("admin", "services"),
    ("PATCH", "/services/{service_id}/version"): ("moderator", "services"),
    ("POST", "/services/{service_id}/rollback"): ("moderator", "services"),
    ("GET", "/services/{service_id}/history"): ("viewer", "services"),
    ("POST", "/services/{service_id}/publish"): ("moderator", "services"),
    ("POST", "/services/{service_id}/unpublish"): ("moderator", "services"),
    ("GET", "/services/{service_id}/explain"): ("viewer", "services"),
    ("GET", "/decisions/{decision_id}"): ("viewer", "services"),
    ("GET", "/audit"): ("admin", "audit"),
    ("GET", "/audit/head"): ("admin", "audit"),
    ("POST", "/audit/verify"): ("admin", "audit"),
    ("GET", "/secrets"): ("admin", "secrets"),
    ("PUT", "/secrets/{name}"): ("admin", "secrets"),
    ("DELETE", "/secrets/{name}"): ("admin", "secrets"),
}
"""Method and path → least role and scope. A line here is a decision; no route exists without one."""

ONLY_WITH_A_KEY = {("POST", "/tokens")}
"""403 for whoever calls with a token or a cookie, by a rule of its own."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
async def app(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application without rate limits: this is a great many requests of a few callers."""
    async with running(tmp_path / "home", rate_limits="off") as started:
        yield started


def walk(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and path of every route, those inside mounts too; `*` stands for any method."""
    for route in routes:
        path = prefix + getattr(route, "path", "?")
        if nested := getattr(route, "routes", None):
            yield from walk(nested, path)
            continue
        for method in getattr(route, "methods", None) or {"WEBSOCKET" if isinstance(route, WebSocketRoute) else "*"}:
            yield method, path


def concrete(path: str) -> str:
    """Return `path` with something that names nothing in the place of its parameters."""
    return path.replace("{name}", "nothing").replace("_id}", "_0}").replace("{", "").replace("}", "")


def may(role: str, least: str) -> bool:
    return least == PUBLIC or ROLES.index(role) >= ROLES.index(least)


async def call(client: httpx.AsyncClient, method: str, path: str) -> int:
    return (await client.request(method, concrete(path))).status_code


async def test_every_route_is_in_the_matrix_and_says_the_same(app: Running) -> None:
    """A route that nobody classified, or whose access or scope changed, fails until the table says so too."""
    assert set(walk(app.app.routes)) == set(MATRIX)
    declared = {}
    for route in app.app.routes:
        least = PUBLIC if route.access is None else route.access.label  # type: ignore[attr-defined]
        for method in route.methods:  # type: ignore[attr-defined]
            declared[method, route.path] = (least, route.scope)  # type: ignore[attr-defined]
    assert declared == MATRIX


@pytest.mark.parametrize("kind", ["route", "mount", "websocket"])
async def test_a_route_without_an_access_is_noticed(kind: str) -> None:
    """Whatever way it comes in: by the framework's decorator, mounted, or as a websocket."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if kind == "route":
        app.get("/open")(lambda: None)
    elif kind == "mount":
        app.router.routes.append(Mount("/open", app=Response(), routes=None))
    else:
        router = APIRouter()
        router.add_api_websocket_route("/open", lambda websocket: None)
        app.router.routes.extend(router.routes)
    assert unclassified(app.routes) == ["/open"]


async def test_without_a_credential_only_public_routes_answer(app: Running) -> None:
    """401 everywhere else, with the header that says how to do better."""
    for (method, path), (least, _) in MATRIX.items():
        answer = await app.anonymous.request(method, concrete(path))
        assert (answer.status_code == 401) == (least != PUBLIC), (method, path, answer.status_code)
        assert answer.status_code != 403, (method, path)
        if least != PUBLIC:
            assert answer.headers["www-authenticate"].startswith("Bearer"), (method, path)


async def test_a_wrong_credential_opens_nothing_and_closes_nothing_public(app: Running) -> None:
    """An invented key is 401 wherever a key is needed, and ignored where none is."""
    async with app.client("sk-serai-" + "A" * 43) as client:
        for (method, path), (least, _) in MATRIX.items():
            assert (await call(client, method, path) == 401) == (least != PUBLIC), (method, path)


@pytest.mark.parametrize("kind", ["key", "token", "session"])
async def test_each_role_may_use_exactly_its_routes(app: Running, kind: str) -> None:
    """403 where the table says so and nowhere else, whether the caller shows a key, a token or a cookie."""
    clients = await with_every_role(app)
    for role in ROLES:
        client = await credential(app, clients[role], kind)
        for (method, path), (least, _) in MATRIX.items():
            refused = not may(role, least) or (kind != "key" and (method, path) in ONLY_WITH_A_KEY)
            status = await call(client, method, path)
            assert (status == 403) == refused, (role, method, path, status)
            assert status != 401, (role, method, path)


async def credential(app: Running, client: httpx.AsyncClient, kind: str) -> httpx.AsyncClient:
    """Return a client of the same user with another kind of credential."""
    if kind == "key":
        return client
    if kind == "token":
        token = (await client.post("/tokens")).json()["token"]
        return await app.stack.enter_async_context(app.client(token))
    key = client.headers["authorization"].partition(" ")[2]
    browser = await app.stack.enter_async_context(app.client())
    login = await browser.post("/login", json={"api_key": key})
    assert login.status_code == 200, login.text
    browser.headers["x-csrf-token"] = login.json()["csrf_token"]
    browser.cookies.delete("serai_session")
    browser.headers["cookie"] = login.headers["set-cookie"].partition(";")[0]
    return browser


@pytest.mark.parametrize("kind", ["key", "token", "session"])
async def test_a_scope_narrows_to_its_routes(app: Running, kind: str) -> None:
    """An admin's key of one scope, and what is made from it, gets 403 from the routes of every other."""
    for scope in sorted(SCOPES):
        made = await app.admin.post("/keys", json={"name": "narrow", "scopes": sorted({scope, "keys"})})
        assert made.status_code == 201, made.text
        async with app.client(made.json()["key"]) as key:
            client = await credential(app, key, kind)
            for (method, path), (least, of_route) in MATRIX.items():
                refused = least != PUBLIC and of_route not in (scope, "keys", "any")
                refused |= kind != "key" and (method, path) in ONLY_WITH_A_KEY
                status = await call(client, method, path)
                assert (status == 403) == refused, (scope, method, path, status)


async def test_no_method_is_answered_that_is_not_in_the_matrix(app: Running) -> None:
    """405 with an Allow header for the rest, for an admin and for nobody alike; HEAD is no way around."""
    patterns = [
        (method, re.compile(re.sub(r"\{\w+\}", "[^/]+", re.sub(r"\{\w+:path\}", ".+", path))))
        for method, path in MATRIX
    ]
    for path in {path for _, path in MATRIX}:
        for method in METHODS:
            if any(method == known and pattern.fullmatch(path) for known, pattern in patterns):
                continue
            for client in (app.admin, app.anonymous):
                answer = await client.request(method, concrete(path))
                assert answer.status_code == 405, (method, path, answer.status_code)


def _pattern(path: str) -> str:
    return re.sub(r"\{\w+\}", "[^/]+", re.sub(r"\{\w+:path\}", ".+", path))


async def test_a_role_ends_with_what_it_came_from(app: Running) -> None:
    """A revoked key, a disabled user and a deleted user are 401 at the next request, with each kind of credential."""
    clients = await with_every_role(app)
    for role, ending in (("viewer", "revoke"), ("user", "disable"), ("moderator", "delete")):
        everyone = [await credential(app, clients[role], kind) for kind in ("key", "token", "session")]
        assert [await call(client, "GET", "/whoami") for client in everyone] == [200, 200, 200]
        user_id = app.user_ids[f"the-{role}"]
        if ending == "revoke":
            key_id = (await clients[role].get("/whoami")).json()["key_id"]
            ended = await app.admin.delete(f"/keys/{key_id}")
        elif ending == "disable":
            ended = await app.admin.patch(f"/users/{user_id}", json={"disabled": True})
        else:
            ended = await app.admin.delete(f"/users/{user_id}")
        assert ended.status_code < 300, ended.text
        assert [await call(client, "GET", "/whoami") for client in everyone] == [401, 401, 401], ending


async def test_a_lesser_role_takes_hold_at_once(app: Running) -> None:
    """The key of an admin who is made a viewer is a viewer's at the next request; tokens and sessions end."""
    client = await app.make_user("fallen", "admin")
    everyone = [await credential(app, client, kind) for kind in ("key", "token", "session")]
    assert [await call(one, "GET", "/users") for one in everyone] == [200, 200, 200]
    await app.admin.patch(f"/users/{app.user_ids['fallen']}", json={"role": "viewer"})
    assert [await call(one, "GET", "/users") for one in everyone] == [403, 401, 401]
