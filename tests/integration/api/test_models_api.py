"""Models, versions and aliases over HTTP: every route, its refusals by status and code, roles, rehearsals."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from serai.registry.semver import parse
from support.api import Running, running, with_every_role
from support.registry_api import SOURCE, everything, make_model, make_service, refused, said

pytestmark = pytest.mark.anyio

FULL = {
    "id": "full",
    "name": "مدل گفتگو",
    "task": "chat",
    "description": "خوب",
    "publisher": "Qwen",
    "licence": "Apache-2.0",
    "reference_url": "https://example.org/m",
    "lookup_names": ["Ours/Qwen3-0.6B"],
    "languages": ["fa"],
    "domain": "general",
    "tags": ["enhanced", "50% off_"],
    "pros": ["fast"],
    "cons": ["small"],
    "benchmarks": [{"name": "MMLU", "metric": "accuracy", "value": 0.5, "dataset": "d", "unit": "%"}],
    "inference_schema": {"type": "object"},
    "priority": -3,
    "marketplaces": ["digikala"],
    "active": True,
}
FULL_VERSION = {
    "release_notes": "first",
    "source": {"kind": "hub", "repo": "Qwen/Qwen3-0.6B", "revision": "a" * 40},
    "engine": "openvino",
    "engine_options": {"threads": 2},
    "quantization": "int8",
    "adapters": [{"id": "lora", "source": SOURCE, "scale": 0.5}],
    "parameters": {"steps": {"default": 28, "min": 1, "max": 50}, "guidance": {"default": 3.5, "fixed": True}},
    "files": [{"path": "w", "size": 3, "sha256": "a" * 64}],
    "footprint": [{"device": "cpu", "bytes": 7}],
    "memory_class": "low",
    "capabilities": ["tools"],
    "input_schema": {"type": "object"},
    "output_schema": {"type": "string"},
    "commercial_use": True,
    "duties": ["attribution"],
}


@pytest.fixture
async def app(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application on SQLite, without rate limits."""
    async with running(tmp_path / "home", rate_limits="off") as started:
        yield started


@pytest.fixture
async def admin(app: Running) -> httpx.AsyncClient:
    """An admin's client of a registry with the model m at 1.0.0 and 1.1.0."""
    await make_model(app.admin, "m", "1.0.0", "1.1.0")
    return app.admin


# --- creating ---


async def test_a_model_is_what_was_sent(server_on_both: Running) -> None:
    """Every field of card and version comes back, in snake_case, wherever the model is shown."""
    admin = server_on_both.admin
    made = await said(admin.post("/models", json={**FULL, **FULL_VERSION, "version": "1.0.0"}), 201)
    assert {name: made[name] for name in FULL} == FULL
    assert (made["default_version"], made["aliases"]) == ("1.0.0", {})
    assert [one["version"] for one in made["versions"]] == ["1.0.0"]
    shown = await said(admin.get("/models/full?version=1.0.0"))
    assert {name: shown["version"][name] for name in FULL_VERSION} == FULL_VERSION
    assert await said(admin.get("/models/full")) == made
    alone = await said(admin.get("/models/full/versions/1.0.0"))
    assert {name: alone[name] for name in FULL_VERSION} == FULL_VERSION
    assert (alone["status"], alone["seq"], alone["weights"]) == ("active", 1, "ready")
    assert alone["digest"].startswith("sha256:")
    listed = await said(admin.get("/models?search=گفتگو&tag=50%25 off_"))
    assert listed["items"] == [made]


async def test_the_names_of_the_service_before_are_accepted(admin: httpx.AsyncClient) -> None:
    """camelCase on input, snake_case in the answer; one name twice is refused."""
    body = {
        "modelId": "camel",
        "task": "chat",
        "version": "2.0.0-rc.1",
        "versionStatus": "draft",
        "releaseNotes": "notes",
        "referenceUrl": "https://example.org",
        "engineOptions": {"keepMe": 1},
    }
    made = await said(admin.post("/models", json=body), 201)
    assert (made["id"], made["name"], made["reference_url"]) == ("camel", "camel", "https://example.org")
    version = await said(admin.get("/models/camel/versions/2.0.0-rc.1"))
    assert (version["status"], version["release_notes"], version["engine_options"]) == ("draft", "notes", {"keepMe": 1})
    more = {"version": "2.0.0", "releaseNotes": "n", "versionStatus": "active", "basedOn": "2.0.0-rc.1"}
    made = await said(admin.post("/models/camel/versions", json=more), 201)
    assert (made["release_notes"], made["status"], made["based_on"]) == ("n", "active", "2.0.0-rc.1")
    twice = {"version": "2.1.0", "releaseNotes": "a", "release_notes": "b"}
    await refused(admin.post("/models/camel/versions", json=twice), 422, "INVALID_INPUT", "releaseNotes")
    twice = {**body, "id": "other"}
    await refused(admin.post("/models", json=twice), 422, "INVALID_INPUT", "modelId")


async def test_a_model_that_cannot_be_is_refused_with_its_field(admin: httpx.AsyncClient) -> None:
    """422 names the field, 409 what is taken; nothing is written by any of them."""
    await make_service(admin, "s", model_id="m")
    await make_model(admin, "n", lookup_names=["Owner/Name"])
    before = await everything(admin)
    good = {"id": "new", "task": "chat", "version": "1.0.0"}
    cases: list[tuple[dict[str, Any], int, str, str | None]] = [
        ({"version": None}, 422, "INVALID_INPUT", "version"),
        ({"id": None}, 422, "INVALID_INPUT", "id"),
        ({"id": "UPPER"}, 422, "INVALID_INPUT", "id"),
        ({"id": "a/b"}, 422, "INVALID_INPUT", "id"),
        ({"id": "auto"}, 422, "INVALID_INPUT", "id"),
        ({"id": "a" * 129}, 422, "INVALID_INPUT", "id"),
        ({"task": "cooking"}, 422, "INVALID_INPUT", "task"),
        ({"name": ""}, 422, "INVALID_INPUT", "name"),
        ({"name": "  "}, 422, "INVALID_INPUT", "name"),
        ({"priority": "3"}, 422, "INVALID_INPUT", "priority"),
        ({"tags": "fast"}, 422, "INVALID_INPUT", "tags"),
        ({"reference_url": "javascript:alert(1)"}, 422, "INVALID_INPUT", "reference_url"),
        ({"source": {"kind": "ftp"}}, 422, "INVALID_INPUT", "source.kind"),
        ({"source": {"kind": "hub", "repo": "a/b", "token": "x"}}, 422, "INVALID_INPUT", "source.token"),
        ({"parameters": {"steps": {"default": 99, "max": 50}}}, 422, "INVALID_INPUT", "parameters.steps"),
        ({"files": [{"path": "../x", "size": 1, "sha256": "a" * 64}]}, 422, "INVALID_INPUT", "files"),
        ({"files": [{"path": "x", "size": 1, "sha256": "short"}]}, 422, "INVALID_INPUT", "files[0].sha256"),
        ({"version_status": "retired"}, 422, "INVALID_INPUT", "version_status"),
        ({"status": "active"}, 422, "INVALID_INPUT", "status"),
        ({"colour": "red"}, 422, "INVALID_INPUT", "colour"),
        ({"lookup_names": ["No Such Form"]}, 422, "INVALID_INPUT", "lookup_names"),
        ({"id": "m"}, 409, "MODEL_ALREADY_EXISTS", None),
        ({"id": "s"}, 409, "NAME_COLLISION", None),
        ({"lookup_names": ["OWNER/name"]}, 409, "NAME_COLLISION", None),
        ({"lookup_names": ["s"]}, 409, "NAME_COLLISION", None),
    ]
    numbers = ("1.0.0junk", "01.0.0", "1.0.0\n", "v1.0.0", "1.0", "1", "", "1.0.0-01", "latest")
    cases += [({"version": number}, 422, "INVALID_VERSION_FORMAT", "version") for number in numbers]
    for changes, status, code, field in cases:
        body = {name: value for name, value in {**good, **changes}.items() if value is not None}
        await refused(admin.post("/models", json=body), status, code, field)
    assert await everything(admin) == before


# --- changing the card ---


async def test_a_card_is_changed_and_the_rest_stays(admin: httpx.AsyncClient) -> None:
    """Only what was sent; who did it and when is noted."""
    before = await said(admin.get("/models/m"))
    changes = {"name": "new name", "tags": ["a"], "lookup_names": ["o/n"], "priority": 5, "active": False}
    after = await said(admin.patch("/models/m", json=changes))
    assert {name: after[name] for name in changes} == changes
    kept = set(before) - set(changes) - {"updated_at"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after["updated_at"] > before["updated_at"]
    await refused(admin.patch("/models/none", json={"name": "x"}), 404, "MODEL_NOT_FOUND")
    await refused(admin.patch("/models/m", json={"task": "chat"}), 422, "INVALID_INPUT", "task")


async def test_release_notes_in_a_patch_are_not_lost(admin: httpx.AsyncClient) -> None:
    """By either path and spelling they are there afterwards; without a version they are refused, not dropped."""
    await said(admin.patch("/models/m", json={"version": "1.0.0", "releaseNotes": "one"}))
    assert (await said(admin.get("/models/m/versions/1.0.0")))["release_notes"] == "one"
    await said(admin.patch("/models/m/versions/1.0.0", json={"release_notes": "two"}))
    assert (await said(admin.get("/models/m?version=1.0.0")))["version"]["release_notes"] == "two"
    await refused(admin.patch("/models/m", json={"release_notes": "three"}), 422, "INVALID_INPUT", "version")
    await refused(admin.patch("/models/m", json={"version": "9.9.9", "release_notes": "x"}), 404, "VERSION_NOT_FOUND")


async def test_card_and_version_are_changed_together_or_not_at_all(admin: httpx.AsyncClient) -> None:
    """One call, one transaction: where the version refuses, the card stays as it was."""
    await said(admin.patch("/models/m", json={"version": "1.0.0", "engine": "e", "description": "d"}))
    shown = await said(admin.get("/models/m?version=1.0.0"))
    assert (shown["description"], shown["version"]["engine"]) == ("d", "e")
    await said(admin.patch("/models/m/versions/1.0.0/publish"))
    before = await everything(admin)
    body = {"version": "1.0.0", "engine": "other", "description": "lost"}
    await refused(admin.patch("/models/m", json=body), 403, "IMMUTABLE_VERSION")
    assert await everything(admin) == before


async def test_a_null_clears_what_may_be_empty_and_is_refused_for_the_rest(admin: httpx.AsyncClient) -> None:
    """Nothing that was sent is dropped in silence."""
    body = {**FULL, **FULL_VERSION, "version": "1.0.0"}
    await said(admin.post("/models", json=body), 201)
    cleared = await said(admin.patch("/models/full", json={"reference_url": None, "inference_schema": None}))
    assert (cleared["reference_url"], cleared["inference_schema"]) == (None, None)
    nullable = ("source", "memory_class", "commercial_use", "input_schema", "output_schema")
    version = await said(admin.patch("/models/full/versions/1.0.0", json=dict.fromkeys(nullable)))
    assert {name: version[name] for name in nullable} == dict.fromkeys(nullable)
    before = await everything(admin)
    for name in ("name", "description", "tags", "priority", "active", "lookupNames", "releaseNotes", "version"):
        wanted = {"lookupNames": "lookup_names", "releaseNotes": "release_notes"}.get(name, name)
        await refused(admin.patch("/models/full", json={name: None}), 422, "INVALID_INPUT", wanted)
    for name in ("engine", "files", "parameters", "capabilities", "licence"):
        await refused(admin.patch("/models/full/versions/1.0.0", json={name: None}), 422, "INVALID_INPUT", name)
    assert await everything(admin) == before


# --- versions ---


async def test_a_new_version_takes_over_and_overrides(admin: httpx.AsyncClient) -> None:
    """From the newest, or from the one that is named; 201 with all of it."""
    await said(admin.patch("/models/m/versions/1.0.0", json={"engine": "old", "duties": ["attribution"]}))
    made = await said(admin.post("/models/m/versions", json={"version": "1.10.0", "based_on": "1.0.0"}), 201)
    assert (made["engine"], made["duties"], made["based_on"], made["seq"]) == ("old", ["attribution"], "1.0.0", 3)
    body = {"version": "2.0.0", "engine": "new", "release_notes": "n", "tags": ["t"], "status": "draft"}
    made = await said(admin.post("/models/m/versions", json=body), 201)
    assert (made["engine"], made["duties"], made["based_on"]) == ("new", ["attribution"], "1.10.0")
    assert (made["release_notes"], made["tags"], made["status"], made["digest"]) == ("n", ["t"], "draft", None)


async def test_a_version_that_cannot_be_is_refused(admin: httpx.AsyncClient) -> None:
    """404 for model and base, 409 for a number that was used, 422 for the format."""
    post = "/models/m/versions"
    await refused(admin.post("/models/none/versions", json={"version": "1.0.0"}), 404, "MODEL_NOT_FOUND")
    await refused(admin.post(post, json={"version": "2.0.0", "based_on": "9.9.9"}), 404, "VERSION_NOT_FOUND")
    await refused(admin.post(post, json={"version": "1.0.0"}), 409, "VERSION_ALREADY_EXISTS")
    await refused(admin.post(post, json={}), 422, "INVALID_INPUT", "version")
    for number in ("1.0.0junk", "01.0.0", "1.0.0\n", "v1.0.0", "1.0"):
        await refused(admin.post(post, json={"version": number}), 422, "INVALID_VERSION_FORMAT", "version")
    await said(admin.delete(f"{post}/1.1.0"), 204)
    await refused(admin.post(post, json={"version": "1.1.0"}), 409, "VERSION_ALREADY_EXISTS")
    await refused(admin.get(f"{post}/1.1.0"), 404, "VERSION_NOT_FOUND")


async def test_the_sixth_active_version_is_refused(admin: httpx.AsyncClient) -> None:
    """409 with the five, and what to call; a draft may be made and may not be activated."""
    for number in ("1.2.0", "1.3.0", "1.4.0"):
        await said(admin.post("/models/m/versions", json={"version": number}), 201)
    post = "/models/m/versions"
    error = await refused(admin.post(post, json={"version": "2.0.0"}), 409, "ACTIVE_VERSION_LIMIT_EXCEEDED")
    assert sorted(error["details"]) == ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"]
    assert "deprecate" in error["hint"]
    await said(admin.post(post, json={"version": "2.0.0", "status": "draft"}), 201)
    for verb in ("activate", "publish"):
        await refused(admin.patch(f"{post}/2.0.0/{verb}"), 409, "ACTIVE_VERSION_LIMIT_EXCEEDED")
    await said(admin.patch(f"{post}/1.0.0/deprecate"))
    await said(admin.patch(f"{post}/2.0.0/activate"))


async def test_versions_are_listed_by_precedence_in_pages(server_on_both: Running) -> None:
    """1.10.0 above 1.9.0, a release above its candidates; each once, whatever the size of a page."""
    admin = server_on_both.admin
    numbers = ["1.9.0", "1.10.0", "2.0.0-rc.1", "2.0.0", "1.0.0+b", "1.0.0+a"]
    await make_model(admin, "p", "1.0.0", "0.1.0")
    for number in numbers:
        await said(admin.post("/models/p/versions", json={"version": number, "status": "draft"}), 201)
    await said(admin.patch("/models/p/versions/0.1.0/deprecate"))
    expected = sorted(["1.0.0", "0.1.0", *numbers], key=parse, reverse=True)
    for size in (1, 3, 8, 200):
        found, cursor = [], ""
        while cursor is not None:
            page = await said(admin.get(f"/models/p/versions?limit={size}{cursor and f'&cursor={cursor}'}"))
            assert 0 < len(page["items"]) <= size
            found += [one["version"] for one in page["items"]]
            cursor = page["next_cursor"]
        assert found == expected
    for query, wanted in (
        ("status=deprecated", ["0.1.0"]),
        ("status=active", ["1.0.0"]),
        ("include_deprecated=0&limit=1", ["2.0.0"]),
    ):
        page = await said(admin.get(f"/models/p/versions?{query}"))
        assert [one["version"] for one in page["items"]] == wanted
    await refused(admin.get("/models/p/versions?cursor=bm9uZQ"), 422, "INVALID_INPUT", "cursor")
    await refused(admin.get("/models/p/versions?limit=0"), 422, "INVALID_INPUT", "limit")
    await refused(admin.get("/models/p/versions?status=tombstone"), 422, "INVALID_INPUT", "status")
    await refused(admin.get("/models/none/versions"), 404, "MODEL_NOT_FOUND")


async def test_models_are_listed_in_pages_and_filtered(server_on_both: Running) -> None:
    """By task, status, tag and words; old ones only when they are asked for."""
    admin = server_on_both.admin
    for name in ("za", "zb", "zc", "zd"):
        await make_model(admin, name, tags=[f"tag-{name}", "z"], task="lip-sync" if name == "zd" else "chat")
    await said(admin.post("/models/za/versions", json={"version": "2.0.0", "status": "draft"}), 201)
    await said(admin.patch("/models/zb/versions/1.0.0/deprecate"))

    async def found(query: str) -> list[str]:
        names, cursor = [], ""
        while cursor is not None:
            page = await said(admin.get(f"/models?limit=2&tag=z&{query}{cursor and f'&cursor={cursor}'}"))
            names += [model["id"] for model in page["items"]]
            cursor = page["next_cursor"]
        return names

    assert await found("") == ["za", "zc", "zd"]
    assert await found("include_deprecated=1") == ["za", "zb", "zc", "zd"]
    assert await found("task=lip-sync") == ["zd"]
    assert await found("version_status=draft") == ["za"]
    assert await found("version_status=deprecated") == ["zb"]
    assert await found("search=TAG-ZC") == ["zc"]
    assert (await said(admin.get("/models?tag=tag_za")))["items"] == []
    (old,) = (await said(admin.get("/models?version_status=deprecated&tag=z")))["items"]
    assert [one["status"] for one in old["versions"]] == ["deprecated"]
    await refused(admin.get("/models?version_status=gone"), 422, "INVALID_INPUT", "version_status")
    await refused(admin.get("/models?colour=red"), 422, "INVALID_INPUT")
    await refused(admin.get("/models?cursor=%21"), 422, "INVALID_INPUT", "cursor")


async def test_a_page_goes_on_behind_a_model_that_was_deleted_meanwhile(app: Running) -> None:
    """What is gone when the page is put together does not end the list."""
    for name in ("a1", "a2", "a3"):
        await make_model(app.admin, name, tags=["gone"])
    parts = app.app.state.parts
    current = parts.registry.current

    async def without_a_model() -> Any:
        return (await current()).without_model("a1")

    parts.registry.current = without_a_model
    page = await said(app.admin.get("/models?tag=gone&limit=1"))
    parts.registry.current = current
    assert page["items"] == []
    page = await said(app.admin.get(f"/models?tag=gone&limit=1&cursor={page['next_cursor']}"))
    assert [model["id"] for model in page["items"]] == ["a2"]


async def test_the_life_of_a_version(admin: httpx.AsyncClient) -> None:
    """draft → active ↔ deprecated → retired; published and unpublished; each answers with the version as it is then."""
    await said(admin.post("/models/m/versions", json={"version": "2.0.0", "status": "draft"}), 201)
    path = "/models/m/versions/2.0.0"
    assert (await said(admin.patch(f"{path}/activate")))["status"] == "active"
    await refused(admin.patch(f"{path}/activate"), 409, "INVALID_STATUS_MOVE")
    sunset = (datetime.now(UTC) + timedelta(days=9)).isoformat()
    old = await said(admin.patch(f"{path}/deprecate", json={"reason": "old", "sunsetAt": sunset}))
    assert (old["status"], old["deprecation_reason"]) == ("deprecated", "old")
    assert datetime.fromisoformat(old["sunset_at"]) == datetime.fromisoformat(sunset)
    assert (await said(admin.patch(f"{path}/activate")))["sunset_at"] is None
    published = await said(admin.patch(f"{path}/publish"))
    assert published["published_at"]
    assert published["immutable"] is True
    assert (await said(admin.patch(f"{path}/unpublish")))["unpublished_at"]
    await refused(admin.patch(f"{path}/unpublish"), 409, "CONFLICT")
    await refused(admin.patch(f"{path}/retire"), 409, "INVALID_STATUS_MOVE")
    await said(admin.patch(f"{path}/deprecate"))
    assert (await said(admin.patch(f"{path}/retire")))["status"] == "retired"
    await refused(admin.patch(f"{path}/activate"), 409, "INVALID_STATUS_MOVE")
    past = {"sunset_at": "2020-01-01T00:00:00Z"}
    await refused(admin.patch("/models/m/versions/1.0.0/deprecate", json=past), 422, "INVALID_INPUT", "sunset_at")
    naive = {"sunset_at": "2999-01-01T00:00:00"}
    await refused(admin.patch("/models/m/versions/1.0.0/deprecate", json=naive), 422, "INVALID_INPUT", "sunset_at")


async def test_whatever_is_done_to_a_missing_version_is_404(admin: httpx.AsyncClient) -> None:
    """Deprecating one that is not there, above all; nor is a model, an alias or a tombstone taken for a version."""
    await said(admin.put("/models/m/aliases/x", json={"to": "1.0.0"}))
    await said(admin.post("/models/m/versions", json={"version": "3.0.0"}), 201)
    await said(admin.delete("/models/m/versions/3.0.0"), 204)
    before = await everything(admin)
    for number in ("9.9.9", "x", "3.0.0", "latest"):
        path = f"/models/m/versions/{number}"
        for verb in ("deprecate", "activate", "publish", "unpublish", "retire"):
            await refused(admin.patch(f"{path}/{verb}"), 404, "VERSION_NOT_FOUND")
            await refused(admin.patch(f"/models/none/versions/1.0.0/{verb}"), 404, "MODEL_NOT_FOUND")
        await refused(admin.get(path), 404, "VERSION_NOT_FOUND")
        await refused(admin.patch(path, json={"release_notes": "x"}), 404, "VERSION_NOT_FOUND")
        await refused(admin.delete(path), 404, "VERSION_NOT_FOUND")
        await refused(admin.get(f"{path}/services"), 404, "VERSION_NOT_FOUND")
        await refused(admin.get(f"{path}/diff/1.0.0"), 404, "VERSION_NOT_FOUND")
        await refused(admin.get(f"/models/m/versions/1.0.0/diff/{number}"), 404, "VERSION_NOT_FOUND")
    assert await everything(admin) == before


async def test_an_immutable_version_refuses_what_it_is(admin: httpx.AsyncClient) -> None:
    """403 with the fields; notes and tags are taken."""
    path = "/models/m/versions/1.0.0"
    await said(admin.patch(f"{path}/publish"))
    error = await refused(admin.patch(path, json={"engine": "x", "tags": ["t"]}), 403, "IMMUTABLE_VERSION")
    assert error["details"] == ["engine"]
    after = await said(admin.patch(path, json={"tags": ["t"], "release_notes": "n"}))
    assert (after["tags"], after["release_notes"]) == (["t"], "n")


async def test_a_deprecated_version_says_so_in_headers(admin: httpx.AsyncClient) -> None:
    """Deprecation (RFC 9745) and Sunset (RFC 8594) on the version and on the explanation; an active one has none."""
    await make_service(admin, "s", model_id="m", model_version="1.0.0")
    clean = await admin.get("/models/m/versions/1.0.0")
    assert not {"deprecation", "sunset"} & set(clean.headers)
    body = {"reason": "old", "sunset_at": "2999-12-31T23:59:59Z"}
    old = await said(admin.patch("/models/m/versions/1.0.0/deprecate?force=1", json=body))
    since = int(datetime.fromisoformat(old["deprecated_at"]).timestamp())
    for path in ("/models/m/versions/1.0.0", "/services/s/explain"):
        headers = (await admin.get(path)).headers
        assert headers["deprecation"] == f"@{since}"
        assert headers["sunset"] == "Tue, 31 Dec 2999 23:59:59 GMT"
    explained = await said(admin.get("/services/s/explain"))
    assert "deprecated" in explained["warnings"][0]
    assert "old" in explained["warnings"][0]


async def test_without_the_setting_a_deprecated_version_is_silent(tmp_path: Path) -> None:
    """`warn_on_deprecated_version_usage` off: no header, no warning."""
    async with running(tmp_path / "home", warn_on_deprecated_version_usage=False) as app:
        await make_model(app.admin, "m", "1.0.0", "1.1.0")
        await make_service(app.admin, "s", model_id="m", model_version="1.0.0")
        await said(app.admin.patch("/models/m/versions/1.0.0/deprecate?force=1"))
        answer = await app.admin.get("/services/s/explain")
        assert "deprecation" not in answer.headers
        assert (answer.json()["version"], answer.json()["warnings"]) == ("1.0.0", [])


async def test_two_versions_are_compared(admin: httpx.AsyncClient) -> None:
    """Field by field, files by digest, results side by side, what would break."""
    changes = {
        "files": [{"path": "w", "size": 1, "sha256": "a" * 64}],
        "benchmarks": [{"name": "b", "metric": "m", "value": 1.0}],
        "capabilities": ["tools"],
    }
    await said(admin.patch("/models/m/versions/1.0.0", json=changes))
    changes = {
        "files": [{"path": "w", "size": 2, "sha256": "b" * 64}],
        "benchmarks": [{"name": "b", "metric": "m", "value": 2.0}],
        "capabilities": [],
    }
    await said(admin.patch("/models/m/versions/1.1.0", json=changes))
    told = await said(admin.get("/models/m/versions/1.0.0/diff/1.1.0"))
    assert (told["before"], told["after"], told["identical"]) == ("1.0.0", "1.1.0", False)
    assert [one["name"] for one in told["fields"]] == ["capabilities"]
    assert (told["files"]["changed"], told["files"]["added"], told["files"]["removed"]) == (["w"], [], [])
    (row,) = told["benchmarks"]
    assert (row["before"], row["after"], row["change"]) == (1.0, 2.0, 1.0)
    assert told["breaking"] == ["It can no longer do tools."]
    same = await said(admin.get("/models/m/versions/1.0.0/diff/1.0.0"))
    assert (same["identical"], same["fields"], same["files"]["same"], same["breaking"]) == (True, [], ["w"], [])


# --- who uses it ---


async def test_what_services_use_is_refused_with_their_ids(server_on_both: Running) -> None:
    """409 with the list; a moderator may not force it, an admin may, and nothing dangles then."""
    admin = server_on_both.admin
    moderator = (await with_every_role(server_on_both))["moderator"]
    await make_model(admin, "m", "1.0.0", "1.1.0")
    await said(admin.put("/models/m/aliases/x", json={"to": "1.0.0"}))
    await make_service(admin, "direct", model_id="m", model_version="1.0.0")
    await make_service(admin, "alias", model_id="m", alias="x")
    await make_service(admin, "chain", model_id="m", model_version="1.1.0", fallback=[{"service": "alias"}])
    await said(admin.patch("/models/m/versions/1.0.0/publish"))
    users = ["alias", "chain", "direct"]
    told = await said(moderator.get("/models/m/versions/1.0.0/services"))
    assert (told["services"], told["aliases"]) == (users, ["x"])
    assert {use["role"] for use in told["uses"]} == {"target", "through"}
    path = "/models/m/versions/1.0.0"
    for verb in ("deprecate", "unpublish"):
        error = await refused(moderator.patch(f"{path}/{verb}"), 409, "VERSION_IN_USE")
        assert error["details"] == users
        error = await refused(moderator.patch(f"{path}/{verb}?force=1"), 403, "FORBIDDEN")
    error = await refused(moderator.patch("/models/m", json={"active": False}), 409, "VERSION_IN_USE")
    assert error["details"] == users
    await refused(moderator.patch("/models/m?force=1", json={"active": False}), 403, "FORBIDDEN")
    for deleted in (path, "/models/m"):
        assert (await refused(admin.delete(deleted), 409, "VERSION_IN_USE"))["details"] == users
    assert (await refused(moderator.delete("/models/m/aliases/x"), 409, "VERSION_IN_USE"))["details"] == ["alias"]
    await refused(moderator.delete("/models/m/aliases/x?force=1"), 403, "FORBIDDEN")
    await said(admin.patch(f"{path}/deprecate?force=1"))
    (use,) = await said(moderator.get("/models/m/deprecated-version-services"))
    assert use["version"] == "1.0.0"
    assert sorted({one["service"] for one in use["uses"]}) == users
    await said(admin.delete(f"{path}?force=1"), 204)
    services = {one["id"]: one for one in (await said(admin.get("/services")))["items"]}
    assert (services["direct"]["model_id"], services["alias"]["model_id"]) == (None, None)
    assert services["chain"]["revision"]["fallback"] == [{"service": "alias"}]
    assert (await said(admin.get("/models/m")))["aliases"] == {}
    await said(admin.delete("/models/m?force=1"), 204)
    await refused(admin.get("/models/m"), 404, "MODEL_NOT_FOUND")
    await refused(admin.get("/models/m/deprecated-version-services"), 404, "MODEL_NOT_FOUND")


# --- aliases ---


async def test_an_alias_moves_by_compare_and_swap(admin: httpx.AsyncClient) -> None:
    """Made, moved from where it is believed to be, refused from elsewhere with where it is; its history stays."""
    path = "/models/m/aliases/production"
    made = await said(admin.put(path, json={"to": "1.0.0", "expected_from": None, "reason": "go"}))
    assert (made["version"], made["epoch"]) == ("1.0.0", 1)
    await refused(admin.put(path, json={"to": "1.1.0", "expected_from": None}), 409, "ALIAS_MOVED")
    error = await refused(admin.put(path, json={"to": "1.1.0", "expectedFrom": "1.1.0"}), 409, "ALIAS_MOVED")
    assert error["details"] == {"current": "1.0.0", "expected_from": "1.1.0"}
    between = datetime.now(UTC)
    assert (await said(admin.put(path, json={"to": "1.1.0", "expected_from": "1.0.0"})))["epoch"] == 2
    assert (await said(admin.put(path, json={"to": "1.0.0"})))["epoch"] == 3
    shown = await said(admin.get(path))
    assert shown["version"] == "1.0.0"
    assert [(one["epoch"], one["before"], one["after"]) for one in shown["events"]] == [
        (3, "1.1.0", "1.0.0"),
        (2, "1.0.0", "1.1.0"),
        (1, None, "1.0.0"),
    ]
    assert shown["events"][-1]["reason"] == "go"
    then = await said(admin.get(path, params={"at": between.isoformat()}))
    assert then["version"] == "1.0.0"
    long_ago = await said(admin.get(path, params={"at": "2020-01-01T00:00:00Z"}))
    assert long_ago["version"] is None
    assert (await said(admin.get("/models/m")))["aliases"] == {"production": "1.0.0"}
    assert (await said(admin.get("/models/m?version=production")))["version"]["version"] == "1.0.0"
    await said(admin.delete(path), 204)
    assert (await said(admin.get(path)))["version"] is None
    await refused(admin.delete(path), 404, "ALIAS_NOT_FOUND")


async def test_an_alias_that_cannot_be_is_refused(admin: httpx.AsyncClient) -> None:
    """A name that looks like a version, `latest`, a version that is not there or retired, a model that is not."""
    for name in ("1.0.0", "v2", "latest", "UPPER", "auto"):
        await refused(admin.put(f"/models/m/aliases/{name}", json={"to": "1.0.0"}), 422, "INVALID_INPUT", "alias")
    await refused(admin.put("/models/m/aliases/x", json={"to": "9.9.9"}), 404, "VERSION_NOT_FOUND")
    await refused(admin.put("/models/none/aliases/x", json={"to": "1.0.0"}), 404, "MODEL_NOT_FOUND")
    await refused(admin.put("/models/m/aliases/x", json={}), 422, "INVALID_INPUT", "to")
    await refused(admin.get("/models/m/aliases/x"), 404, "ALIAS_NOT_FOUND")
    await said(admin.patch("/models/m/versions/1.0.0/deprecate"))
    await said(admin.patch("/models/m/versions/1.0.0/retire"))
    await refused(admin.put("/models/m/aliases/x", json={"to": "1.0.0"}), 409, "VERSION_NOT_ACTIVE")


# --- who may ---


async def test_each_role_does_its_part(app: Running) -> None:
    """A viewer reads, a user reads, a moderator changes and does not delete or force, an admin does all."""
    roles = await with_every_role(app)
    viewer, user, moderator, admin = (roles[name] for name in ("viewer", "user", "moderator", "admin"))
    new = {"id": "m", "task": "chat", "version": "1.0.0", "source": SOURCE}
    for nobody in (app.anonymous,):
        assert (await nobody.get("/models")).status_code == 401
    for reader in (viewer, user):
        await refused(reader.post("/models", json=new), 403, "FORBIDDEN")
    await said(moderator.post("/models", json=new), 201)
    for reader in (viewer, user, moderator, admin):
        for path in ("/models", "/models/m", "/models/m/versions", "/models/m/versions/1.0.0"):
            await said(reader.get(path))
    for reader in (viewer, user):
        await refused(reader.patch("/models/m/versions/1.0.0/deprecate"), 403, "FORBIDDEN")
        await refused(reader.put("/models/m/aliases/x", json={"to": "1.0.0"}), 403, "FORBIDDEN")
    for path in ("/models/m/versions/1.0.0", "/models/m"):
        await refused(moderator.delete(path), 403, "FORBIDDEN")
        await refused(moderator.delete(f"{path}?force=1"), 403, "FORBIDDEN")
    await said(admin.delete("/models/m"), 204)


async def test_only_an_admin_binds_a_secret_or_lets_code_run(app: Running) -> None:
    """On create, on a new version, on a change, in an adapter; leave for one source is not inherited by another."""
    roles = await with_every_role(app)
    moderator, admin = roles["moderator"], roles["admin"]
    remote = {"kind": "remote", "endpoint": "https://api.example.org/v1", "model": "g", "secret": "openai"}
    hub = {"kind": "hub", "repo": "good/model", "revision": "a" * 40}
    guarded: list[dict[str, Any]] = [
        {"source": remote},
        {"adapters": [{"id": "a", "source": remote}]},
        {"allow_remote_code": True},
        {"allowPickle": True},
    ]
    await make_model(moderator, "m", source={**remote, "secret": None})
    for number, fields in enumerate(guarded):
        new = {"id": f"new{number}", "task": "chat", "version": "1.0.0", **fields}
        version = {"version": f"1.{number + 1}.0", **fields}
        await refused(moderator.post("/models", json=new), 403, "FORBIDDEN")
        await refused(moderator.post("/models/m/versions", json=version), 403, "FORBIDDEN")
        await refused(moderator.patch("/models/m/versions/1.0.0", json=fields), 403, "FORBIDDEN")
        await refused(moderator.patch("/models/m", json={"version": "1.0.0", **fields}), 403, "FORBIDDEN")
        await said(admin.post("/models/m/versions", json=version), 201)
    await make_model(admin, "trusted", source=hub, allow_remote_code=True)
    elsewhere = {"version": "2.0.0", "source": {**hub, "repo": "evil/model"}}
    made = await said(moderator.post("/models/trusted/versions", json=elsewhere), 201)
    assert made["allow_remote_code"] is False
    changed = await said(moderator.patch("/models/trusted/versions/1.0.0", json={"source": elsewhere["source"]}))
    assert changed["allow_remote_code"] is False


# --- many at once ---


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str | None:
    return str(request.getfixturevalue("postgres_url")) if request.param == "postgresql" else None


@pytest.mark.parametrize("on_limit", ["refuse", "deprecate-oldest"])
async def test_twenty_creators_at_once_never_pass_the_limit(
    tmp_path: Path, database_url: str | None, on_limit: str
) -> None:
    """Exactly five active at the end and never more on the way; what a service uses is never taken for it."""
    settings: dict[str, Any] = {"on_limit": on_limit, "rate_limits": "off", "database_url": database_url}
    async with running(tmp_path / "home", **settings) as app:
        await make_model(app.admin, "m", "1.0.0")
        await make_service(app.admin, "s", model_id="m", model_version="1.0.0")

        async def create(number: int) -> int:
            answer = await app.admin.post("/models/m/versions", json={"version": f"2.{number}.0"})
            if answer.status_code == 409:
                assert answer.json()["error"]["code"] == "ACTIVE_VERSION_LIMIT_EXCEEDED"
            listed = (await app.admin.get("/models/m/versions?status=active&limit=200")).json()["items"]
            assert len(listed) <= 5
            return answer.status_code

        answers = await asyncio.gather(*(create(number) for number in range(20)))
        active = await said(app.admin.get("/models/m/versions?status=active"))
        assert len(active["items"]) == 5
        assert "1.0.0" in {one["version"] for one in active["items"]}
        wanted = {201: 4, 409: 16} if on_limit == "refuse" else {201: 20}
        assert {status: answers.count(status) for status in set(answers)} == wanted
        assert (await said(app.admin.post("/audit/verify")))["ok"] is True
