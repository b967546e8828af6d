"""The admin paths of the service that this one replaces: the same rules by other names."""

from typing import Any

import httpx
import pytest

from support.api import Running

pytestmark = pytest.mark.anyio

MODEL = {"id": "m", "task": "chat", "version": "1.0.0", "source": {"kind": "package", "name": "m"}}
ADMIN = "/services/admin"


@pytest.fixture
async def admin(server_on_both: Running) -> httpx.AsyncClient:
    """An admin's client of a registry with the model m at 1.0.0 and the service s bound to it."""
    client = server_on_both.admin
    await said(client.post("/models", json=MODEL), 201)
    bound = {"id": "s", "task": "chat", "modelId": "m", "modelVersion": "1.0.0"}
    await said(client.post("/services", json=bound), 201)
    return client


async def said(call: Any, status: int = 200) -> Any:
    answer = await call
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def test_the_life_of_a_version_by_the_old_paths(admin: httpx.AsyncClient) -> None:
    """Create, publish, switch a service, deprecate, list, unpublish: camelCase in, the native answer out."""
    body = {"version": "1.1.0", "releaseNotes": "faster", "basedOn": "1.0.0"}
    made = await said(admin.post(f"{ADMIN}/create/model/m/version", json=body), 201)
    assert (made["version"], made["release_notes"], made["based_on"]) == ("1.1.0", "faster", "1.0.0")
    named = {"modelId": "m", "version": "1.1.0"}
    published = await said(admin.patch(f"{ADMIN}/publish/model/version", json=named))
    assert published["immutable"] is True
    switch = {"serviceId": "s", "modelVersion": "1.1.0"}
    assert (await said(admin.patch(f"{ADMIN}/update/service/version", json=switch)))["model_version"] == "1.1.0"
    old = {"modelId": "m", "version": "1.0.0", "reason": "replaced"}
    deprecated = await said(admin.patch(f"{ADMIN}/deprecate/model/version", json=old))
    assert (deprecated["status"], deprecated["deprecation_reason"]) == ("deprecated", "replaced")
    versions = await said(admin.get(f"{ADMIN}/model/m/versions"))
    assert [one["version"] for one in versions["items"]] == ["1.1.0", "1.0.0"]
    await said(admin.patch(f"{ADMIN}/unpublish/model/version?force=1", json=named))


async def test_an_old_path_answers_as_the_new_one_does(admin: httpx.AsyncClient) -> None:
    """What is read is equal to the byte, errors but for their request ids, pages with their cursors."""
    await said(admin.post("/models/m/versions", json={"version": "1.1.0"}), 201)
    pairs = {
        f"{ADMIN}/model/m/versions?limit=1": "/models/m/versions?limit=1",
        f"{ADMIN}/model/m/version/1.0.0/services": "/models/m/versions/1.0.0/services",
        f"{ADMIN}/model/m/deprecated-version-services": "/models/m/deprecated-version-services",
        f"{ADMIN}/model/none/versions": "/models/none/versions",
        f"{ADMIN}/model/m/version/9.9.9/services": "/models/m/versions/9.9.9/services",
    }
    for old, new in pairs.items():
        one, other = await admin.get(old), await admin.get(new)
        assert (one.status_code, without_id(one.json())) == (other.status_code, without_id(other.json())), old


def without_id(answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        answer["error"].pop("request_id")
    return answer


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PATCH", "deprecate/model/version", {"modelId": "m", "version": "1.0.0"}, 409, "VERSION_IN_USE"),
        ("PATCH", "deprecate/model/version", {"modelId": "m", "version": "9.0.0"}, 404, "VERSION_NOT_FOUND"),
        ("PATCH", "deprecate/model/version", {"version": "1.0.0"}, 422, "INVALID_INPUT"),
        ("PATCH", "publish/model/version", {"modelId": "none", "version": "1.0.0"}, 404, "MODEL_NOT_FOUND"),
        ("PATCH", "unpublish/model/version", {"modelId": "m", "version": "1.0.0"}, 409, "VERSION_IN_USE"),
        ("POST", "create/model/m/version", {"version": "1.0.0"}, 409, "VERSION_ALREADY_EXISTS"),
        ("POST", "create/model/m/version", {"version": "1.0.0junk"}, 422, "INVALID_VERSION_FORMAT"),
        ("PATCH", "update/service/version", {"serviceId": "none", "modelVersion": "1.0.0"}, 404, "SERVICE_NOT_FOUND"),
        ("PATCH", "update/service/version", {"serviceId": "s", "modelVersion": "9.0.0"}, 404, "VERSION_NOT_FOUND"),
        ("PATCH", "update/service/version", {"serviceId": "s", "version": "1.0.0"}, 422, "INVALID_INPUT"),
    ],
)
async def test_the_old_paths_refuse_what_the_new_ones_refuse(
    admin: httpx.AsyncClient, method: str, path: str, body: dict[str, str], status: int, code: str
) -> None:
    """With the code of the rule that spoke."""
    answer = await said(admin.request(method, f"{ADMIN}/{path}", json=body), status)
    assert answer["error"]["code"] == code


async def test_only_moderators_and_admins_reach_the_old_paths(server_on_both: Running) -> None:
    """A user is refused even what it could read by the new paths; a moderator is not."""
    await said(server_on_both.admin.post("/models", json=MODEL), 201)
    for role, status in (("user", 403), ("moderator", 200)):
        client = await server_on_both.make_user(f"the-{role}", role)
        await said(client.get(f"{ADMIN}/model/m/versions"), status)
        await said(client.get("/models/m/versions"), 200)


async def test_a_key_for_services_changes_no_model_by_an_old_path(server_on_both: Running) -> None:
    """The scope is that of the thing that is changed, not of the first word of the path."""
    await said(server_on_both.admin.post("/models", json=MODEL), 201)
    made = await said(server_on_both.admin.post("/keys", json={"name": "narrow", "scopes": ["services"]}), 201)
    async with server_on_both.client(made["key"]) as client:
        await said(client.post(f"{ADMIN}/create/model/m/version", json={"version": "2.0.0"}), 403)
        refused = await client.patch(
            f"{ADMIN}/update/service/version", json={"serviceId": "x", "modelVersion": "1.0.0"}
        )
        assert refused.status_code == 404


async def test_an_old_path_can_be_rehearsed_and_is_audited(admin: httpx.AsyncClient) -> None:
    """dry_run=1 tells and changes nothing; the real call is one entry of the audit log."""
    body = {"version": "1.1.0"}
    told = await said(admin.post(f"{ADMIN}/create/model/m/version?dry_run=1", json=body))
    assert [change["action"] for change in told["changes"]] == ["versions.create"]
    before = (await said(admin.get("/audit/head")))["seq"]
    await said(admin.post(f"{ADMIN}/create/model/m/version", json=body), 201)
    entries = (await said(admin.get("/audit?limit=5")))["items"]
    assert [entry["action"] for entry in entries if entry["seq"] > before] == ["versions.create"]


async def test_no_service_is_called_admin(admin: httpx.AsyncClient) -> None:
    """The word belongs to the paths, so no service hides behind it; a model may have it."""
    refused = await said(admin.post("/services", json={"id": "admin", "task": "chat", "model_id": "m"}), 422)
    assert refused["error"]["details"] == [
        {"field": "id", "problem": "must not be 'admin': /services/admin/… are paths of their own"}
    ]
    assert (await said(admin.get("/services/admin"), 404))["error"]["code"] == "SERVICE_NOT_FOUND"
    await said(admin.post("/models", json=MODEL | {"id": "admin"}), 201)
