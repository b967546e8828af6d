"""Named secrets through the API: set by an admin, shown to nobody."""

import logging
from pathlib import Path
from typing import Any

import pytest

from serai.errors import ConfigurationError
from support.api import Running, running

pytestmark = pytest.mark.anyio
VALUE = "hf_planted-secret-value-0123456789"
HUB = "https://hub.example"


async def said(call: Any, status: int = 200) -> Any:
    answer = await call
    assert answer.status_code == status, answer.text
    assert VALUE not in answer.text
    return answer.json() if answer.content else None


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_their_whole_life(server_on_both: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Set, listed, changed, used and removed; no answer, log, entry or file ever holds the value."""
    caplog.set_level(logging.DEBUG)
    admin, parts = server_on_both.admin, server_on_both.app.state.parts
    made = await said(admin.put("/secrets/hub", json={"value": VALUE, "origins": [HUB, "https://HUB.example"]}))
    assert (made["name"], made["origins"], made["source"]) == ("hub", [HUB], "store")
    assert (await said(admin.get("/secrets")))["items"] == [made]
    assert (await parts.database.read(parts.secrets.reveal, "hub")).value == VALUE
    moved = await said(admin.put("/secrets/hub", json={"origins": ["http://mirror.example:8080"]}))
    assert moved["origins"] == ["http://mirror.example:8080"]
    assert (await parts.database.read(parts.secrets.reveal, "hub")).value == VALUE
    assert (await said(admin.put("/secrets/hub", json={"value": "another", "origins": [HUB]})))["source"] == "store"
    await said(admin.delete("/secrets/hub"), 204)
    assert (await said(admin.delete("/secrets/hub"), 404))["error"]["code"] == "SECRET_NOT_FOUND"
    entries = (await said(admin.get("/audit?object_kind=secret")))["items"]
    assert [entry["action"] for entry in entries] == ["secrets.delete", *["secrets.put"] * 3]
    assert [entry["after"]["value_changed"] for entry in entries[1:]] == [True, False, True]
    assert VALUE not in caplog.text
    assert files_with(tmp_path, VALUE) == []


async def test_what_is_no_secret_is_refused(server: Running) -> None:
    """Names, values and origins out of form; a refusal never repeats the value."""
    good = {"value": VALUE, "origins": [HUB]}
    for name in ("Hub", "1hub", "a-b", "a" * 65, "hub.env", "..%2fx"):
        await said(server.admin.put(f"/secrets/{name}", json=good), 404 if "%2f" in name else 422)
    for body in (
        {},
        {"value": VALUE},
        {"value": "", "origins": [HUB]},
        {"value": VALUE * 1000, "origins": [HUB]},
        {"value": [VALUE], "origins": [HUB]},
        {"value": VALUE, "origins": []},
        {"value": VALUE, "origins": [HUB] * 21},
        {"value": VALUE, "origins": ["hub.example"]},
        {"value": VALUE, "origins": ["https://hub.example/path"]},
        {"value": VALUE, "origins": ["https://user@hub.example"]},
        {"value": VALUE, "origins": ["https://*"]},
        {"value": VALUE, "origins": ["ftp://hub.example"]},
        {"value": VALUE, "origins": [HUB + "\n"]},
        {**good, "source": "environment"},
    ):
        await said(server.admin.put("/secrets/hub", json=body), 422)
    missing = await said(server.admin.put("/secrets/hub", json={"origins": [HUB]}), 422)
    assert missing["error"]["details"][0]["field"] == "value"
    assert (await said(server.admin.get("/secrets")))["items"] == []


@pytest.mark.parametrize("value", ["sk-…", "schlüssel", "a\nb", "a\r", "\x00a", "a\x7f", " a", "a ", "a\tb", "\u00a0"])
async def test_a_value_that_no_header_can_carry_is_refused(server: Running, value: str) -> None:
    """When it is set, and not at the first call with it: with the field and what to do."""
    body = {"value": value, "origins": [HUB]}
    for query in ("", "?dry_run=1"):
        answer = await server.admin.put(f"/secrets/hub{query}", json=body)
        error = answer.json()["error"]
        if "\x00" in value:  # which no JSON may hold
            assert answer.status_code == 400 or error["details"][0]["field"] == "value"
            continue
        assert (answer.status_code, error["details"][0]["field"]) == (422, "value")
        assert error["hint"]
    assert (await said(server.admin.get("/secrets")))["items"] == []


async def test_a_value_from_outside_needs_its_origins_only(tmp_path: Path) -> None:
    """SERAI_SECRET_HUB gives the value; the API says so, and never what it is."""
    async with running(tmp_path / "home", secrets={"hub": VALUE}) as server:
        assert (await said(server.admin.get("/secrets")))["items"] == []
        made = await said(server.admin.put("/secrets/hub", json={"origins": [HUB]}))
        assert made["source"] == "environment"
        for path in ("/secrets", "/settings", "/diag"):
            await said(server.admin.get(path))
        parts = server.app.state.parts
        assert (await parts.database.read(parts.secrets.reveal, "hub")).value == VALUE


async def test_another_key_of_the_store_reads_nothing(tmp_path: Path) -> None:
    """A server with another secrets_key lists them, cannot use them, and says what to do."""
    home = tmp_path / "home"
    async with running(home, secrets_key="a" * 32) as server:
        await said(server.admin.put("/secrets/hub", json={"value": VALUE, "origins": [HUB]}))
    async with running(home, secrets_key="b" * 32) as server:
        parts = server.app.state.parts
        assert len((await said(server.admin.get("/secrets")))["items"]) == 1
        with pytest.raises(ConfigurationError, match="hub cannot be decrypted"):
            await parts.database.read(parts.secrets.reveal, "hub")
    async with running(home, secrets_key="a" * 32) as server:
        parts = server.app.state.parts
        assert (await parts.database.read(parts.secrets.reveal, "hub")).value == VALUE


async def test_they_are_listed_in_pages(server: Running) -> None:
    """By name, along the cursor."""
    for name in ("c", "a", "b"):
        await said(server.admin.put(f"/secrets/{name}", json={"value": "v", "origins": [HUB]}))
    first = await said(server.admin.get("/secrets?limit=2"))
    second = await said(server.admin.get(f"/secrets?limit=2&cursor={first['next_cursor']}"))
    assert [item["name"] for item in first["items"] + second["items"]] == ["a", "b", "c"]
    assert second["next_cursor"] is None
