"""The server about itself: health, status, metrics, its own pages, and what its home holds."""

import asyncio
import json
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from serai import __version__
from serai.api.native import system
from serai.errors import DatabaseUnavailable
from support.api import Running, running

pytestmark = pytest.mark.anyio
SECRET = "planted-secret-0123456789-0123456789"


async def said(call: Any, status: int = 200) -> Any:
    answer = await call
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


class TestHealth:
    """Alive, ready, healthy."""

    async def test_without_a_key_only_the_word_is_told(self, server: Running) -> None:
        """No version, no uptime, no parts: nothing that helps whoever looks for weak servers."""
        assert await said(server.anonymous.get("/live")) == {"status": "live"}
        assert await said(server.anonymous.get("/ready")) == {"status": "ready"}
        assert await said(server.anonymous.get("/health")) == {"status": "healthy"}

    async def test_with_a_key_every_part_is_told(self, server_on_both: Running) -> None:
        """Database, cache and disk, each with its status."""
        told = await said(server_on_both.admin.get("/health"))
        assert (told["status"], told["version"]) == ("healthy", __version__)
        assert told["uptime_seconds"] >= 0
        assert {"database", "cache", "disk"} <= set(told["checks"])
        assert {check["status"] for check in told["checks"].values()} == {"ok"}

    async def test_a_part_that_fails_is_named(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        """A lesser part: degraded, and 200; the database: unhealthy, 503, and not ready. Hanging is failing."""
        checks = server.app.state.parts.checks
        whole = dict(checks)

        async def fail() -> dict[str, Any]:
            raise DatabaseUnavailable("The database does not answer.")

        async def crash() -> dict[str, Any]:
            raise RuntimeError("/home/secret")

        async def hang() -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

        monkeypatch.setattr(system, "CHECK_TIMEOUT_S", 2.0)  # the sound parts answer in it on any machine
        ways = ((fail, "does not answer"), (crash, "the log describes"), (hang, "no answer within 2"))
        for broken, problem in ways:
            checks["cache"] = broken
            told = await said(server.admin.get("/health"))
            assert told["status"] == "degraded"
            assert problem in told["checks"]["cache"]["problem"]
            assert "/home" not in json.dumps(told)
            checks.update(whole)
            checks["database"] = broken
            assert await said(server.anonymous.get("/health"), 503) == {"status": "unhealthy"}
            assert await said(server.anonymous.get("/ready"), 503) == {"status": "not ready"}
            assert await said(server.anonymous.get("/live")) == {"status": "live"}
            checks.update(whole)
        assert (await said(server.admin.get("/health")))["status"] == "healthy"


class TestAboutItself:
    """Status, settings, diagnosis and metrics."""

    async def test_it_says_what_it_runs_on_and_what_is_missing(self, server_on_both: Running) -> None:
        """Each extra is installed, or its install command is told."""
        told = await said(server_on_both.admin.get("/status"))
        assert (told["version"], told["auth"], told["profile"]) == (__version__, "on", "development")
        assert told["database"] in ("sqlite", "postgresql")
        for name, extra in told["extras"].items():
            assert extra["installed"] is (extra["install"] is None)
            assert extra["install"] in (None, f"pip install 'serai[{name}]'")

    async def test_settings_and_diagnosis_hold_no_secret(self, tmp_path: Path) -> None:
        """All settings are there; secrets and passwords are stars."""
        secret = {"jwt_secret": SECRET, "secrets_key": SECRET, "secrets": {"hub": SECRET}}
        async with running(tmp_path / "home", redis_url=f"redis://:{SECRET}@127.0.0.1:1/0", **secret) as server:
            shown = await said(server.admin.get("/settings"))
            diagnosis = await said(server.admin.get("/diag"))
            assert shown == diagnosis["settings"]
            assert set(shown) == set(type(server.settings).model_fields)
            assert shown["jwt_secret"] == "**********"
            assert SECRET not in json.dumps([shown, diagnosis])
            assert (await said(server.admin.get("/health")))["checks"]["cache"]["status"] == "failed"

    async def test_metrics_count_by_route_and_never_by_id(self, server: Running) -> None:
        """A request shows up under the path as the route spells it, whatever id was asked for."""
        for number in range(3):
            await said(server.admin.get(f"/users/user_{number}"), 404)
        page = await server.admin.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        assert 'serai_http_requests_total{method="GET",route="/users/{user_id}",status="404"} 3.0' in page.text
        assert "user_0" not in page.text
        opened = await server.admin.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert opened.text.endswith("# EOF\n")


class TestPages:
    """The front page and the API reference."""

    async def test_the_front_page_is_a_page_for_browsers_and_json_for_others(self, server: Running) -> None:
        """Both need no key, and the JSON says where to go on."""
        page = await server.anonymous.get("/", headers={"accept": "text/html,*/*"})
        assert page.headers["content-type"].startswith("text/html")
        assert "API key" in page.text
        assert (await said(server.anonymous.get("/")))["docs"] == "/docs"

    @pytest.mark.parametrize(
        ("headers", "is_text"),
        [
            ({"user-agent": "ollama-python/0.6.1 (x86_64 linux) Python/3.11.7"}, True),
            ({"user-agent": "ollama-js/0.6.3 (x64 linux Node.js/v20)", "accept": "application/json"}, True),
            ({"user-agent": "ollama/0.12.3 (amd64 linux) Go/go1.24.1"}, True),
            ({"user-agent": "curl/8.5.0", "accept": "*/*"}, False),
            ({"user-agent": "an ollama-like client"}, False),
            ({"accept": "text/plain"}, True),
            ({"accept": "text/html;q=0.5, Text/Plain;q=0.8"}, True),
            ({"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, False),
            ({"accept": "text/plain;q=0.2, text/html"}, False),
            ({"accept": "text/plain;q=much, */*"}, False),
        ],
    )
    async def test_clients_of_ollama_find_what_they_look_for(
        self, server: Running, headers: dict[str, str], is_text: bool
    ) -> None:
        """By their name, or because plain text is what they would rather have."""
        answer = await server.anonymous.get("/", headers=headers)
        assert answer.status_code == 200
        assert (answer.text == "Ollama is running") == is_text
        assert answer.headers["content-type"].startswith("text/plain") == is_text
        assert (await server.anonymous.head("/", headers=headers)).status_code == 200

    async def test_the_reference_needs_a_session(self, server: Running) -> None:
        """Without one the way leads to the front page; its description needs a key."""
        sent = await server.anonymous.get("/docs")
        assert (sent.status_code, sent.headers["location"]) == (303, "/")
        assert (await server.admin.get("/docs")).status_code == 200
        await said(server.anonymous.get("/openapi.json"), 401)

    async def test_the_description_is_made_once_and_keeps_nobody_waiting(self, server: Running) -> None:
        """In a thread, for all who ask meanwhile; others are answered while it is made."""
        make, gate, makers = server.app.openapi, threading.Event(), list[int]()

        def making() -> dict[str, Any]:
            makers.append(threading.get_ident())
            assert gate.wait(300)
            return make()

        server.app.openapi = making  # type: ignore[method-assign]
        asked = [asyncio.create_task(server.admin.get("/openapi.json")) for _ in range(3)]
        try:
            await said(server.anonymous.get("/live"))
            assert not any(one.done() for one in asked)
        finally:
            gate.set()
        first, *others = [await one for one in asked]
        assert first.json()["openapi"]
        assert (await server.admin.get("/openapi.json")).content == first.content
        assert {one.content for one in others} == {first.content}
        assert len(makers) == 1
        assert makers[0] != threading.get_ident()

    async def test_nothing_is_fetched_from_elsewhere(self, server: Running) -> None:
        """Every link of our pages and scripts stays here, and the policy of the page forbids any other."""
        for path in ("/", "/docs"):
            page = await server.admin.get(path, headers={"accept": "text/html"})
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "http" not in policy
            assert "unsafe-eval" not in policy
            assert re.findall(r"script-src ([^;]*)", policy) == ["'self'"]
            links = re.findall(r"""(?:src|href|action)=["']([^"']*)""", page.text)
            assert links
            outside = [link for link in links if not re.match(r"/(?!/)|data:", link)]
            assert outside == []
            assert not re.search(r"<script(?![^>]* src=)", page.text)
            for link in links:
                if link.startswith("/docs/"):
                    asset = await server.anonymous.get(link)
                    assert asset.status_code == 200, link
                    assert asset.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")

    async def test_no_other_file_is_served(self, server: Running) -> None:
        """The names are a list, not a folder."""
        for name in ("other.js", "..%2f..%2fetc%2fpasswd", "front.js%00", "%2e", "", "swagger-ui.css.map"):
            assert (await server.anonymous.get(f"/docs/{name}")).status_code in (400, 404, 422), name

    async def test_the_description_covers_every_route(self, server: Running) -> None:
        """Each route that is not a page is in it, with a summary and what it needs."""
        described = (await said(server.admin.get("/openapi.json")))["paths"]
        for route in server.app.routes:
            if not route.include_in_schema:  # type: ignore[attr-defined]
                continue
            for method in route.methods:  # type: ignore[attr-defined]
                told = described[route.path.replace(":path}", "}")][method.lower()]  # type: ignore[attr-defined]
                assert told["summary"], route
                assert told["description"], route
                assert told["x-serai-access"] in ("public", "viewer", "user", "moderator", "admin")


async def test_every_answer_has_its_id_and_its_headers(server: Running) -> None:
    """Good or bad, public or not: an id, and the headers that keep browsers from guessing, framing and keeping."""
    for client, path in (
        (server.anonymous, "/live"),
        (server.anonymous, "/users"),
        (server.admin, "/none"),
        (server.admin, "/users"),
    ):
        answer = await client.get(path)
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
    given = await server.anonymous.get("/users", headers={"x-request-id": "mine-7"})
    assert (given.headers["x-request-id"], given.json()["error"]["request_id"]) == ("mine-7", "mine-7")
    odd = await server.anonymous.get("/users", headers={"x-request-id": "a b\x01"})
    assert odd.headers["x-request-id"].startswith("req_")


async def test_a_path_or_method_that_is_not_there(server: Running) -> None:
    """Both have the envelope; a known path says which methods it has."""
    assert (await said(server.admin.get("/nowhere"), 404))["error"]["code"] == "NOT_FOUND"
    wrong = await server.admin.put("/users", json={})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert "allow" in wrong.headers


class TestTheHome:
    """What the first start leaves on the disk, and what a later one finds."""

    async def test_the_first_start_makes_one_admin_and_its_private_key(self, tmp_path: Path) -> None:
        """The key is in a file of mode 0600, works, and is in no other file; folders are private."""
        home = tmp_path / "home"
        async with running(home) as server:
            key = (home / "admin.key").read_text().strip()
            users = (await said(server.admin.get("/users")))["items"]
            assert [(user["name"], user["role"], user["created_by"]) for user in users] == [
                ("admin", "admin", "system")
            ]
        for path in home.rglob("*"):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
            assert path.name == "admin.key" or not path.is_file() or key.encode() not in path.read_bytes()

    async def test_a_second_start_makes_no_second(self, tmp_path: Path) -> None:
        """Key, tokens and users go on; a key file that was removed is not made again."""
        home = tmp_path / "home"
        async with running(home) as server:
            token = (await said(server.admin.post("/tokens"), 201))["token"]
            key = (home / "admin.key").read_text().strip()
        (home / "admin.key").unlink()
        async with running(home, admin_key=key) as server, server.client(token) as by_token:
            assert not (home / "admin.key").exists()
            assert len((await said(server.admin.get("/users")))["items"]) == 1
            assert (await said(by_token.get("/whoami")))["name"] == "admin"
