"""Two server processes on one PostgreSQL: a change through one is seen by the other within a second; either may die."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.process import ServerProcess, serving
from support.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

SEEN_S = 1.0
ROUNDS = 10
SECRET = "a secret for signing that both servers know"
SOURCE = {"kind": "package", "name": "m"}


@pytest.fixture
def pair(tmp_path: Path, postgres_url: str) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers, each in a home of its own; the first admin's key is known to the first one's home."""
    shared = {
        "database_url": postgres_url,
        "jwt_secret": "a secret for signing that both servers know",
        "rate_limits": "off",
    }
    with ExitStack() as stack:
        one = stack.enter_context(serving(tmp_path / "one", **shared))
        two = stack.enter_context(serving(tmp_path / "two", **shared))
        yield one, two


def said(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def prepare(admin: httpx.Client) -> None:
    """Make the model m with two versions, its alias x, and the services s (by version) and t (by alias)."""
    said(admin.post("/models", json={"id": "m", "task": "chat", "version": "1.0.0", "source": SOURCE}), 201)
    said(admin.post("/models/m/versions", json={"version": "1.1.0"}), 201)
    said(admin.put("/models/m/aliases/x", json={"to": "1.0.0"}))
    said(admin.post("/services", json={"id": "s", "task": "chat", "model_id": "m", "model_version": "1.0.0"}), 201)
    said(admin.post("/services", json={"id": "t", "task": "chat", "model_id": "m", "alias": "x"}), 201)


def test_what_one_server_changes_the_other_sees_within_a_second(pair: tuple[ServerProcess, ServerProcess]) -> None:
    """A switch, a moved alias and a revoked key; in the services, their explanations, and in both directions."""
    one, two = pair
    key = one.admin_key
    with one.client(key) as here, two.client(key) as there:
        prepare(here)
        for turn in range(ROUNDS):
            writer, reader = (here, there) if turn % 2 == 0 else (there, here)
            number = f"1.{(turn + 1) % 2}.0"
            said(writer.patch("/services/s/version", json={"version": number}))
            wait_until(lambda r=reader, n=number: r.get("/services/s").json()["model_version"] == n, SEEN_S)
            assert said(reader.get("/services/s/explain"))["version"] == number
            said(writer.put("/models/m/aliases/x", json={"to": number}))
            wait_until(lambda r=reader, n=number: r.get("/services/t/explain").json()["version"] == n, SEEN_S)
            made = said(here.post("/keys", json={"name": f"key {turn}"}), 201)
            with two.client(made["key"]) as other:
                assert other.get("/whoami").status_code == 200
                said(here.delete(f"/keys/{made['id']}"), 204)
                wait_until(lambda o=other: o.get("/whoami").status_code == 401, SEEN_S)
        listed = [said(client.get("/services/s/history"))["answered"] for client in (here, there)]
        assert listed[0] == listed[1]
        assert len(listed[0]) == ROUNDS + 1


def test_when_one_server_is_killed_the_other_goes_on(pair: tuple[ServerProcess, ServerProcess]) -> None:
    """Nothing that was answered is lost, every rule still holds, and the log's chain is whole."""
    one, two = pair
    key = one.admin_key
    switched = []
    with one.client(key) as here, two.client(key) as there:
        prepare(here)
        for turn in range(4):
            number = f"1.{(turn + 1) % 2}.0"
            said(here.patch("/services/s/version", json={"version": number}))
            switched.append(number)
        os.kill(one.pid, signal.SIGKILL)
        one.wait()
        with pytest.raises(httpx.TransportError):
            here.get("/live")
        assert said(there.get("/services/s"))["model_version"] == switched[-1]
        assert said(there.post("/services/s/rollback"))["model_version"] == switched[-2]
        said(there.post("/models/m/versions", json={"version": "2.0.0"}), 201)
        assert there.delete("/models/m").json()["error"]["details"] == ["s", "t"]
        answered = [line["versions"][0] for line in said(there.get("/services/s/history"))["answered"]]
        assert answered == [f"m@{number}" for number in (switched[-2], *reversed(switched), "1.0.0")]
        verdict = said(there.post("/audit/verify"))
        assert verdict["ok"] is True
