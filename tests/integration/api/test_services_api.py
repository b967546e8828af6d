"""Services over HTTP: bindings, switches, rollbacks, histories, explanations; and the rehearsal of every change."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.api import Running, running, with_every_role
from support.registry_api import everything, make_model, make_service, refused, said

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application on SQLite, without rate limits."""
    async with running(tmp_path / "home", rate_limits="off") as started:
        yield started


@pytest.fixture
async def admin(app: Running) -> httpx.AsyncClient:
    """An admin's client of a registry that `prepare` made."""
    await prepare(app.admin)
    return app.admin


async def prepare(admin: httpx.AsyncClient) -> None:
    """Models m (1.0.0, 1.1.0, 1.2.0; alias x → 1.1.0) and n (1.0.0), and s bound to m@1.0.0."""
    await make_model(admin, "m", "1.0.0", "1.1.0", "1.2.0", lookup_names=["Owner/Name"], capabilities=["vision"])
    await make_model(admin, "n")
    await said(admin.put("/models/m/aliases/x", json={"to": "1.1.0"}))
    await make_service(admin, "s", model_id="m", model_version="1.0.0")


def targets(service: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service["revision"]["targets"]
    return found


# --- creating ---


async def test_a_service_is_what_was_sent(server_on_both: Running) -> None:
    """Every field comes back, with the binding's three names and the versions it could be switched to."""
    admin = server_on_both.admin
    await prepare(admin)
    sent = {
        "name": "گفتگو",
        "description": "d",
        "required": ["vision"],
        "hardware": "two cores",
        "benchmarks": [{"name": "b", "metric": "m", "value": 1.5}],
        "pinned": True,
        "published": True,
    }
    content = {
        "shadow": {"model": "m", "version": "1.2.0"},
        "fallback": [{"model": "m", "alias": "x", "condition": {"on": ["timeout"]}}],
        "limits": {"concurrency": 2, "timeout_s": 5.0, "queue_length": 0},
        "config": {"prompt": "سلام"},
    }
    made = await make_service(admin, "t", model_id="m", model_version="1.1.0", **sent, **content)
    assert {name: made[name] for name in sent} == sent
    assert {name: made["revision"][name] for name in content} == content
    assert (made["model_id"], made["model_version"], made["alias"]) == ("m", "1.1.0", None)
    assert [one["version"] for one in made["available_versions"]] == ["1.2.0", "1.1.0", "1.0.0"]
    assert (made["revision"]["n"], made["revision"]["reason"], made["warnings"]) == (1, "created", [])
    assert made["version_updated_at"] >= made["created_at"]
    assert made["health"] == {"status": "unknown", "checked_at": None, "detail": ""}
    assert await said(admin.get("/services/t")) == made
    assert made in (await said(admin.get("/services?task=chat&limit=200")))["items"]


async def test_a_service_is_bound_in_four_ways(admin: httpx.AsyncClient) -> None:
    """By version, by alias, by split, or not at all; by any name of the model, in either spelling."""
    camel = {"serviceId": "camel", "task": "chat", "modelId": "Owner/Name", "modelVersion": "1.0.0"}
    made = await said(admin.post("/services", json=camel), 201)
    assert targets(made) == [{"model": "m", "version": "1.0.0"}]
    made = await make_service(admin, "alias", model_id="m", alias="x")
    assert (made["model_id"], made["model_version"], made["alias"]) == ("m", "1.1.0", "x")
    made = await make_service(admin, "floating", model_id="owner/NAME")
    assert (targets(made), made["model_version"]) == ([{"model": "m"}], "1.2.0")
    split = [{"model": "owner/name", "version": "1.0.0", "weight": 30}, {"model": "n", "weight": 70}]
    made = await make_service(admin, "split", split=split, shadow={"model": "Owner/Name"})
    assert targets(made) == [{"model": "m", "version": "1.0.0", "weight": 30}, {"model": "n", "weight": 70}]
    assert (made["model_id"], made["revision"]["shadow"]) == ("n", {"model": "m"})
    made = await make_service(admin, "free", fallback=[{"model": "Owner/Name"}])
    assert (targets(made), made["model_id"], made["available_versions"]) == ([], None, [])
    assert made["revision"]["fallback"] == [{"model": "m"}]


async def test_a_service_that_cannot_be_is_refused(admin: httpx.AsyncClient) -> None:
    """422 names the field, 404 what it names and is not there, 409 what does not go together."""
    await make_model(admin, "painter", task="image-edit")
    await make_service(admin, "images", task="image-edit", model_id="painter")
    before = await everything(admin)
    cases: list[tuple[dict[str, Any], int, str, str | None]] = [
        ({"id": "UPPER"}, 422, "INVALID_INPUT", "id"),
        ({"task": "cooking"}, 422, "INVALID_INPUT", "task"),
        ({"name": ""}, 422, "INVALID_INPUT", "name"),
        ({"colour": "red"}, 422, "INVALID_INPUT", "colour"),
        ({"limits": {"concurrency": 0}}, 422, "INVALID_INPUT", "limits.concurrency"),
        ({"limits": {"colour": 0}}, 422, "INVALID_INPUT", "limits.colour"),
        ({"pinned": "yes"}, 422, "INVALID_INPUT", "pinned"),
        ({"model_version": "1.0.0"}, 422, "INVALID_INPUT", "model_id"),
        ({"model_id": "m", "model_version": "1.0.0", "alias": "x"}, 422, "INVALID_INPUT", "alias"),
        ({"model_id": "m", "split": [{"model": "n"}]}, 422, "INVALID_INPUT", "split"),
        ({"split": [{"model": "m", "weight": 50}]}, 422, "INVALID_SPLIT", None),
        ({"split": [{"model": "m"}, {"model": "n", "weight": 0.5}]}, 422, "INVALID_INPUT", "split[1].weight"),
        ({"split": [{"model": "m", "weight": 150}, {"model": "n", "weight": -50}]}, 422, "INVALID_SPLIT", None),
        ({"fallback": [{}]}, 422, "INVALID_INPUT", "fallback"),
        ({"fallback": [{"model": "m", "service": "s"}]}, 422, "INVALID_INPUT", "fallback"),
        (
            {"fallback": [{"model": "m", "condition": {"on": ["weather"]}}]},
            422,
            "INVALID_INPUT",
            "fallback[0].condition.on[0]",
        ),
        ({"model_id": "m", "model_version": "1.0"}, 422, "INVALID_VERSION_FORMAT", None),
        ({"model_id": "m@"}, 422, "INVALID_REFERENCE", "model"),
        ({"model_id": "nobody"}, 404, "MODEL_NOT_FOUND", None),
        ({"model_id": "m", "model_version": "9.9.9"}, 404, "VERSION_NOT_FOUND", None),
        ({"model_id": "m", "alias": "nobody"}, 404, "VERSION_NOT_FOUND", None),
        ({"shadow": {"model": "nobody"}}, 404, "MODEL_NOT_FOUND", None),
        ({"fallback": [{"service": "nobody"}]}, 404, "SERVICE_NOT_FOUND", None),
        ({"id": "s"}, 409, "SERVICE_ALREADY_EXISTS", None),
        ({"id": "m"}, 409, "NAME_COLLISION", None),
        ({"model_id": "painter"}, 409, "INCOMPATIBLE_FALLBACK", None),
        ({"fallback": [{"service": "images"}]}, 409, "INCOMPATIBLE_FALLBACK", None),
        ({"model_id": "n", "required": ["vision"]}, 409, "INCOMPATIBLE_FALLBACK", None),
        ({"fallback": [{"service": "t"}]}, 409, "FALLBACK_CYCLE", None),
    ]
    for changes, status, code, field in cases:
        body = {"id": "t", "task": "chat", **changes}
        await refused(admin.post("/services", json=body), status, code, field)
    for missing in ("id", "task"):
        body = {"id": "t", "task": "chat"}
        del body[missing]
        await refused(admin.post("/services", json=body), 422, "INVALID_INPUT", missing)
    assert await everything(admin) == before


async def test_services_are_listed_in_pages(server_on_both: Running) -> None:
    """Those that ship and those that were made, each once, by task or all."""
    admin = server_on_both.admin
    await prepare(admin)
    for name in ("z1", "z2", "z3"):
        await make_service(admin, name, model_id="m")
    everyone = [one["id"] for one in (await said(admin.get("/services?limit=200")))["items"]]
    assert sorted(everyone) == everyone
    assert {"s", "z1", "z2", "z3"} <= set(everyone)
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        page = await said(admin.get(f"/services?limit=2{cursor and f'&cursor={cursor}'}"))
        found += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert found == everyone
    assert "s" not in [one["id"] for one in (await said(admin.get("/services?task=lip-sync")))["items"]]


async def test_a_service_that_is_not_there_is_404(admin: httpx.AsyncClient) -> None:
    """Whatever is asked of it."""
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "x"}),
        ("DELETE", "", None),
        ("PATCH", "/version", {"version": "1.0.0"}),
        ("POST", "/rollback", None),
        ("GET", "/history", None),
        ("POST", "/publish", None),
        ("POST", "/unpublish", None),
        ("GET", "/explain", None),
    ):
        await refused(admin.request(method, f"/services/nobody{path}", json=body), 404, "SERVICE_NOT_FOUND")


# --- changing ---


async def test_a_service_is_changed_and_the_rest_stays(admin: httpx.AsyncClient) -> None:
    """What belongs to the revision makes a new one; a name does not; nothing that was sent is dropped."""
    before = await said(admin.get("/services/s"))
    after = await said(admin.patch("/services/s", json={"name": "new", "pinned": True}))
    assert (after["name"], after["pinned"], after["revision"]) == ("new", True, before["revision"])
    after = await said(admin.patch("/services/s", json={"limits": {"concurrency": 3}, "reason": "busy"}))
    assert (after["revision"]["n"], after["revision"]["reason"]) == (2, "busy")
    assert targets(after) == targets(before)
    assert after["version_updated_at"] == before["version_updated_at"]
    state = await everything(admin)
    for body, code, field in (
        ({"task": "chat"}, "INVALID_INPUT", "task"),
        ({"published": True}, "INVALID_INPUT", "published"),
        ({"name": None}, "INVALID_INPUT", "name"),
        ({"limits": None}, "INVALID_INPUT", "limits"),
        ({"fallback": None}, "INVALID_INPUT", "fallback"),
        ({"split": None}, "INVALID_INPUT", "split"),
    ):
        await refused(admin.patch("/services/s", json=body), 422, code, field)
    assert await everything(admin) == state


async def test_a_binding_is_changed_by_a_patch(admin: httpx.AsyncClient) -> None:
    """The version alone keeps the model, as the service before knew it; a null takes away what may be empty."""
    patch: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        ({"modelVersion": "1.1.0"}, [{"model": "m", "version": "1.1.0"}]),
        ({"alias": "x"}, [{"model": "m", "alias": "x"}]),
        ({"model_version": None}, [{"model": "m"}]),
        ({"model_id": "n", "model_version": "1.0.0"}, [{"model": "n", "version": "1.0.0"}]),
        ({"split": [{"model": "m", "weight": 1}, {"model": "n", "weight": 99}]}, []),
        ({"model_version": "1.0.0"}, [{"model": "n", "version": "1.0.0"}]),
        ({"model_id": None}, []),
    ]
    for body, expected in patch:
        after = await said(admin.patch("/services/s", json=body))
        assert targets(after) == expected or "split" in body
    await refused(admin.patch("/services/s", json={"model_version": "1.0.0"}), 422, "INVALID_INPUT", "model_id")
    await said(admin.patch("/services/s", json={"shadow": {"model": "m"}}))
    after = await said(admin.patch("/services/s", json={"shadow": None}))
    assert after["revision"]["shadow"] is None


async def test_a_switch_moves_all_traffic_to_a_version_of_the_model(server_on_both: Running) -> None:
    """By number or alias; another model, a missing, a deprecated, a retired version are refused with what to do."""
    admin = server_on_both.admin
    await prepare(admin)
    path = "/services/s/version"
    after = await said(admin.patch(path, json={"modelVersion": "1.1.0", "reason": "better"}))
    assert (after["model_version"], after["revision"]["reason"]) == ("1.1.0", "better")
    after = await said(admin.patch(path, json={"alias": "x", "model_id": "owner/name"}))
    assert targets(after) == [{"model": "m", "alias": "x"}]
    await said(admin.patch("/models/m/versions/1.0.0/deprecate"))
    error = await refused(admin.patch(path, json={"version": "1.0.0"}), 409, "DEPRECATED_VERSION")
    assert "activate" in error["hint"]
    await said(admin.patch("/models/m/versions/1.0.0/retire"))
    await refused(admin.patch(path, json={"version": "1.0.0"}), 409, "VERSION_NOT_ACTIVE")
    other = {"model_id": "n", "version": "1.0.0"}
    error = await refused(admin.patch(path, json=other), 409, "SERVICE_VERSION_SWITCH_ERROR")
    assert error["details"] == {"bound": "m", "asked": "n"}
    await refused(admin.patch(path, json={"version": "9.9.9"}), 404, "VERSION_NOT_FOUND")
    await refused(admin.patch(path, json={"alias": "nobody"}), 404, "VERSION_NOT_FOUND")
    await refused(admin.patch(path, json={}), 422, "INVALID_INPUT", "version")
    await refused(admin.patch(path, json={"version": "1.2.0", "alias": "x"}), 422, "INVALID_INPUT", "version")
    assert targets(await said(admin.get("/services/s"))) == [{"model": "m", "alias": "x"}]


async def test_a_switch_is_seen_by_the_next_request(admin: httpx.AsyncClient) -> None:
    """No cache keeps the version before, on any path that tells it."""
    for number in ("1.1.0", "1.2.0", "1.0.0") * 5:
        await said(admin.patch("/services/s/version", json={"version": number}))
        assert (await said(admin.get("/services/s")))["model_version"] == number
        assert (await said(admin.get("/services/s/explain")))["version"] == number


async def test_a_rollback_is_one_call_and_the_history_knows_all(server_on_both: Running) -> None:
    """Back to the whole state before, and which version answered at time T."""
    admin = server_on_both.admin
    await prepare(admin)
    times = [datetime.now(UTC)]
    for body in ({"model_version": "1.1.0", "limits": {"concurrency": 1}}, {"model_version": "1.2.0"}):
        await said(admin.patch("/services/s", json=body))
        times.append(datetime.now(UTC))
    after = await said(admin.post("/services/s/rollback"))
    assert (after["model_version"], after["revision"]["rolled_back_to"]) == ("1.1.0", 2)
    assert after["revision"]["limits"] == {"concurrency": 1}
    after = await said(admin.post("/services/s/rollback", json={"to": 3, "reason": "was fine"}))
    assert (after["model_version"], after["revision"]["reason"]) == ("1.2.0", "was fine")
    await refused(admin.post("/services/s/rollback", json={"to": 99}), 409, "NOTHING_TO_ROLL_BACK")
    await refused(admin.post("/services/s/rollback", json={"to": 0}), 422, "INVALID_INPUT", "to")
    told = await said(admin.get("/services/s/history"))
    assert [line["versions"] for line in told["answered"]] == [
        ["m@1.2.0"],
        ["m@1.1.0"],
        ["m@1.2.0"],
        ["m@1.1.0"],
        ["m@1.0.0"],
    ]
    assert [revision["n"] for revision in told["revisions"]] == [5, 4, 3, 2, 1]
    assert told["answered"][0]["until"] is None
    for moment, version in zip(times, ("m@1.0.0", "m@1.1.0", "m@1.2.0"), strict=True):
        then = await said(admin.get("/services/s/history", params={"at": moment.isoformat()}))
        assert [line["versions"] for line in then["answered"]] == [[version]]
        assert len(then["revisions"]) == 1
    long_ago = await said(admin.get("/services/s/history?at=2020-01-01T00:00:00Z"))
    assert long_ago == {"answered": [], "revisions": []}
    await refused(admin.get("/services/s/history?at=2020-01-01T00:00:00"), 422, "INVALID_INPUT", "at")
    await said(admin.delete("/services/s"), 204)
    assert (await said(admin.get("/services/s/history")))["answered"][0]["until"] is not None


async def test_a_rollback_with_nothing_before_is_refused(admin: httpx.AsyncClient) -> None:
    """409, and what to look at."""
    error = await refused(admin.post("/services/s/rollback"), 409, "NOTHING_TO_ROLL_BACK")
    assert "history" in error["hint"]


async def test_a_published_service_freezes_its_versions(admin: httpx.AsyncClient) -> None:
    """403 for what they are, while it is published."""
    made = await said(admin.post("/services/s/publish"))
    assert made["published"] is True
    path = "/models/m/versions/1.0.0"
    await refused(admin.patch(path, json={"engine": "x"}), 403, "IMMUTABLE_VERSION")
    await said(admin.patch(path, json={"release_notes": "x"}))
    assert (await said(admin.post("/services/s/unpublish")))["published"] is False
    await said(admin.patch(path, json={"engine": "x"}))


async def test_a_service_that_others_fall_back_on_is_not_deleted(admin: httpx.AsyncClient) -> None:
    """409 with their ids; forced, the links go with it. A circle is refused with the way round."""
    await make_service(admin, "t", model_id="m", fallback=[{"service": "s"}])
    error = await refused(admin.patch("/services/s", json={"fallback": [{"service": "t"}]}), 409, "FALLBACK_CYCLE")
    assert set(error["details"]) == {"s", "t"}
    assert (await refused(admin.delete("/services/s"), 409, "VERSION_IN_USE"))["details"] == ["t"]
    await said(admin.delete("/services/s?force=1"), 204)
    assert (await said(admin.get("/services/t")))["revision"]["fallback"] == []
    await refused(admin.get("/services/s"), 404, "SERVICE_NOT_FOUND")


async def test_a_licence_may_refuse_a_binding(tmp_path: Path) -> None:
    """In a commercial deployment: 409 with the reason, for bindings, switches and moved aliases."""
    async with running(tmp_path / "home", deployment="commercial") as app:
        admin = app.admin
        await make_model(admin, "m", commercial_use=True)
        body = {"version": "2.0.0", "commercial_use": False}
        await said(admin.post("/models/m/versions", json=body), 201)
        await said(admin.put("/models/m/aliases/x", json={"to": "1.0.0"}))
        await make_service(admin, "s", model_id="m", alias="x")
        new = {"id": "t", "task": "chat", "model_id": "m", "model_version": "2.0.0"}
        for call in (
            admin.post("/services", json=new),
            admin.patch("/services/s/version", json={"version": "2.0.0"}),
            admin.patch("/services/s", json={"fallback": [{"model": "m", "version": "2.0.0"}]}),
            admin.put("/models/m/aliases/x", json={"to": "2.0.0"}),
        ):
            error = await refused(call, 409, "LICENCE_REFUSED")
            assert "commercial" in error["message"]


# --- explaining ---


async def test_an_explanation_is_the_decision_without_running_it(server_on_both: Running) -> None:
    """Reason, sentence, chain and the whole order: bound, split, the caller's choice, the policy's, the fallback."""
    admin = server_on_both.admin
    await prepare(admin)
    told = await said(admin.get("/services/s/explain"))
    assert (told["model"], told["version"], told["service"], told["reason"]) == ("m", "1.0.0", "s", "bound")
    assert told["candidates"] == ["m@1.0.0"]
    assert told["chain"] == [{"model": "m", "version": "1.0.0", "outcome": "selected", "error": None, "ms": 0.0}]
    assert "s" in told["explanation"]
    told = await said(admin.get("/services/s/explain?model=m@x"))
    assert (told["version"], told["reason"], told["warnings"]) == ("1.1.0", "user_choice", [])
    told = await said(admin.get("/services/s/explain?model=nobody"))
    assert (told["reason"], len(told["warnings"])) == ("auto_policy", 1)
    told = await said(admin.get("/services/s/explain?model=auto&require_fast=1"))
    assert told["reason"] == "auto_policy"
    await said(admin.patch("/services/s", json={"fallback": [{"model": "n"}]}))
    await said(admin.patch("/models/m?force=1", json={"active": False}))
    told = await said(admin.get("/services/s/explain"))
    assert (told["model"], told["reason"]) == ("n", "fallback_unavailable")
    assert told["chain"][0]["outcome"] == "skipped"
    await said(admin.patch("/models/n?force=1", json={"active": False}))
    error = await refused(admin.get("/services/s/explain"), 503, "NO_CANDIDATE")
    assert len(error["details"]) == 2


async def test_a_split_is_sticky_by_the_clients_key(admin: httpx.AsyncClient) -> None:
    """One client always gets the same side; of many, each side gets about its share."""
    split = [{"model": "m", "version": "1.0.0", "weight": 30}, {"model": "m", "version": "1.1.0", "weight": 70}]
    await said(admin.patch("/services/s", json={"split": split}))

    async def side(key: str) -> str:
        told = await said(admin.get("/services/s/explain", params={"client_key": key}))
        assert told["reason"] == "split"
        return str(told["version"])

    sides = {f"client {number}": await side(f"client {number}") for number in range(60)}
    assert set(sides.values()) == {"1.0.0", "1.1.0"}
    assert 6 <= list(sides.values()).count("1.0.0") <= 30
    for key in list(sides)[:5]:
        assert await side(key) == sides[key]


async def test_an_explanation_refuses_what_it_does_not_know(admin: httpx.AsyncClient) -> None:
    """A complexity beyond 0 to 1, an unknown parameter, a flag that is none."""
    for query, field in (
        ("complexity=1.5", "complexity"),
        ("complexity=nan", "complexity"),
        ("require_fast=maybe", "require_fast"),
    ):
        await refused(admin.get(f"/services/s/explain?{query}"), 422, "INVALID_INPUT", field)
    await refused(admin.get("/services/s/explain?colour=red"), 422, "INVALID_INPUT")
    await refused(admin.get("/services/s/explain?model=a/b/c"), 422, "INVALID_REFERENCE")


async def test_what_ships_can_be_listed_and_explained(app: Running) -> None:
    """Each service that ships decides, or says what to fetch first."""
    services = (await said(app.admin.get("/services?limit=200")))["items"]
    assert services
    for service in services:
        answer = await app.admin.get(f"/services/{service['id']}/explain")
        if answer.status_code == 503:
            assert answer.json()["error"]["hint"]
        else:
            assert answer.status_code == 200, answer.text
    models = (await said(app.admin.get("/models?limit=200")))["items"]
    assert {"chat", "speech-to-text", "lip-sync"} <= {model["task"] for model in models}


async def test_every_time_is_told_in_utc_wherever_the_server_stands(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine in Tehran, what was made just now is told as now, in UTC, with its zone."""
    monkeypatch.setenv("TZ", "Asia/Tehran")
    time.tzset()
    try:
        started = datetime.now(UTC)
        await prepare(app.admin)
        await said(app.admin.patch("/models/m/versions/1.2.0/deprecate"))
        told = [
            await said(app.admin.get(path))
            for path in (
                "/models/m?version=1.2.0",
                "/services/s",
                "/services/s/history",
                "/models/m/aliases/x",
                "/audit",
            )
        ]
        ended = datetime.now(UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    found = [text for one in told for text in times_in(one)]
    assert len(found) > 20
    assert all(text.endswith("Z") for text in found)
    made = [datetime.fromisoformat(text) for text in times_in(told[:4])]
    assert all(started <= moment <= ended for moment in made)


def times_in(value: Any) -> Iterator[str]:
    """Yield every time in an answer, wherever it stands."""
    if isinstance(value, dict):
        for name, member in value.items():
            if isinstance(member, str) and (name.endswith("_at") or name in ("at", "since", "until")):
                yield member
            else:
                yield from times_in(member)
    elif isinstance(value, list):
        for member in value:
            yield from times_in(member)


# --- who may ---


async def test_each_role_does_its_part(app: Running) -> None:
    """Who reads may ask for explanations; a moderator binds, switches, rolls back; an admin deletes and forces."""
    await prepare(app.admin)
    roles = await with_every_role(app)
    for reader in (roles["viewer"], roles["user"]):
        for path in ("/services", "/services/s", "/services/s/history", "/services/s/explain"):
            await said(reader.get(path))
        for call in (
            reader.post("/services", json={"id": "t", "task": "chat"}),
            reader.patch("/services/s", json={"name": "x"}),
            reader.patch("/services/s/version", json={"version": "1.1.0"}),
            reader.post("/services/s/rollback"),
            reader.post("/services/s/publish"),
            reader.delete("/services/s"),
        ):
            await refused(call, 403, "FORBIDDEN")
    moderator = roles["moderator"]
    await said(moderator.patch("/services/s/version", json={"version": "1.1.0"}))
    await said(moderator.post("/services/s/rollback"))
    await said(moderator.post("/services/s/publish"))
    await make_service(moderator, "t", model_id="m")
    for path in ("/services/t", "/services/t?force=1"):
        await refused(moderator.delete(path), 403, "FORBIDDEN")
    await said(roles["admin"].delete("/services/t"), 204)


# --- rehearsals ---

VERSION = "/models/{model_id}/versions/{version}"
REHEARSED: dict[tuple[str, str], tuple[str, Any, list[str]]] = {
    ("POST", "/models"): ("/models", {"id": "new", "task": "chat", "version": "1.0.0"}, ["models.create"]),
    ("PATCH", "/models/{model_id}"): ("/models/m", {"name": "new"}, ["models.update"]),
    ("DELETE", "/models/{model_id}"): ("/models/n", None, ["models.delete"]),
    ("POST", "/models/{model_id}/versions"): ("/models/m/versions", {"version": "2.0.0"}, ["versions.create"]),
    ("PATCH", VERSION): ("/models/m/versions/1.0.0", {"release_notes": "x"}, ["versions.update"]),
    ("DELETE", VERSION): ("/models/m/versions/1.1.0?force=1", None, ["aliases.delete", "versions.delete"]),
    ("PATCH", f"{VERSION}/deprecate"): ("/models/m/versions/1.2.0/deprecate", {"reason": "r"}, ["versions.deprecate"]),
    ("PATCH", f"{VERSION}/activate"): ("/models/m/versions/0.1.0/activate", None, ["versions.activate"]),
    ("PATCH", f"{VERSION}/publish"): ("/models/m/versions/1.0.0/publish", None, ["versions.publish"]),
    ("PATCH", f"{VERSION}/unpublish"): ("/models/m/versions/1.2.0/unpublish", None, ["versions.unpublish"]),
    ("PATCH", f"{VERSION}/retire"): ("/models/m/versions/0.2.0/retire", None, ["versions.retire"]),
    ("PUT", "/models/{model_id}/aliases/{alias}"): ("/models/m/aliases/y", {"to": "1.0.0"}, ["aliases.put"]),
    ("DELETE", "/models/{model_id}/aliases/{alias}"): ("/models/m/aliases/x", None, ["aliases.delete"]),
    ("POST", "/services"): ("/services", {"id": "new", "task": "chat"}, ["services.create"]),
    ("PATCH", "/services/{service_id}"): ("/services/s", {"pinned": True}, ["services.update"]),
    ("DELETE", "/services/{service_id}"): ("/services/s", None, ["services.delete"]),
    ("PATCH", "/services/{service_id}/version"): (
        "/services/s/version",
        {"version": "1.2.0"},
        ["services.switch"],
    ),
    ("POST", "/services/{service_id}/rollback"): ("/services/s/rollback", {}, ["services.rollback"]),
    ("POST", "/services/{service_id}/publish"): ("/services/s/publish", None, ["services.publish"]),
    ("POST", "/services/{service_id}/unpublish"): ("/services/p/unpublish", None, ["services.unpublish"]),
}
"""Method and path of every change → what to call, with which body, and the changes that it tells."""


async def test_every_change_can_be_rehearsed(server_on_both: Running) -> None:
    """`dry_run=1` tells the changes, makes none, and refuses what the change itself would."""
    admin = server_on_both.admin
    await prepare(admin)
    for number in ("0.1.0", "0.2.0"):
        await said(admin.post("/models/m/versions", json={"version": number, "based_on": "1.0.0"}), 201)
        await said(admin.patch(f"/models/m/versions/{number}/deprecate"))
    await said(admin.patch("/models/m/versions/1.2.0/publish"))
    await said(admin.patch("/services/s", json={"config": {"a": 1}}))
    await make_service(admin, "p", published=True)
    before = await everything(admin)
    for (method, _), (path, body, expected) in REHEARSED.items():
        mark = "&" if "?" in path else "?"
        told = await said(admin.request(method, f"{path}{mark}dry_run=1", json=body))
        assert told["dry_run"] is True
        assert [change["action"] for change in told["changes"]] == expected, path
        assert all(change["before"] != change["after"] for change in told["changes"]), path
        assert await everything(admin) == before, path
    error = await refused(admin.delete("/models/m?dry_run=1"), 409, "VERSION_IN_USE")
    assert error["details"] == ["s"]
    await refused(admin.post("/models/m/versions?dry_run=1", json={"version": "1.0"}), 422, "INVALID_VERSION_FORMAT")
    await refused(admin.patch("/services/s/version?dry_run=2", json={"version": "1.1.0"}), 422, "INVALID_INPUT")
    assert await everything(admin) == before


async def test_no_change_is_without_a_rehearsal(app: Running) -> None:
    """A route that changes models or services, and is not in the table above, fails here; /ps has its own."""
    changing = {
        (method, route.path)  # type: ignore[attr-defined]
        for route in app.app.routes
        if getattr(route, "scope", None) in ("models", "services")
        and not any(part in route.path for part in ("/admin/", "{reference}", "/api/", "/pull"))  # type: ignore[attr-defined]
        for method in route.methods - {"GET", "HEAD"}  # type: ignore[attr-defined]
    }
    assert changing == set(REHEARSED)


async def test_requests_at_once_see_what_they_wrote(server_on_both: Running) -> None:
    """Each of many clients that write at once finds its own change in the answer, and all of them at the end."""
    admin = server_on_both.admin
    await prepare(admin)

    async def write(number: int) -> None:
        made = await make_service(admin, f"w{number}", model_id="m", model_version="1.0.0")
        assert made["model_version"] == "1.0.0"
        switched = await said(admin.patch(f"/services/w{number}/version", json={"version": "1.1.0"}))
        assert switched["model_version"] == "1.1.0"
        assert (await said(admin.get(f"/services/w{number}")))["model_version"] == "1.1.0"
        assert (await said(admin.get(f"/services/w{number}/explain")))["version"] == "1.1.0"

    await asyncio.gather(*(write(number) for number in range(12)))
    found = [one["id"] for one in (await said(admin.get("/services?limit=200")))["items"]]
    assert {f"w{number}" for number in range(12)} <= set(found)
