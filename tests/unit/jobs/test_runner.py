"""What is checked before a job is stored, and the kind that comes with the package."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import ConfigurationError, InvalidInput, NotFound, TooLarge
from serai.hub.errors import ChecksumMismatch, HubFailed, HubRateLimited, HubUnreachable, NotEnoughSpace
from serai.ids import is_id, new_id
from serai.jobs import model
from serai.jobs.digest import DigestRunner
from serai.jobs.model import (
    MAX_JSON_BYTES,
    IllegalMove,
    UnknownJobKind,
    backoff_s,
    check_json,
    check_move,
    is_retryable,
)
from serai.jobs.runner import Resource, Runners
from serai.runtime.errors import DoesNotFit
from serai.storage.connect import open_sqlite

BLOB = "ab" * 32
PIECES = [b"one", b"", b"two" * 1000]


async def read_blob(owner_id: str, digest: str) -> AsyncIterator[bytes]:
    if (owner_id, digest) != ("ann", BLOB):
        raise NotFound("There is no such blob.")
    for piece in PIECES:
        yield piece


@pytest.fixture
def runners() -> Runners:
    resource = Resource(name="light", concurrency=2, max_queued=10)
    return Runners([resource], [DigestRunner(read_blob, resource="light")])


def prepare(runners: Runners, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"kind": "digest", "payload": {"text": "x"}, "owner_id": "ann", **changes}
    return runners.prepare(new_id=new_id, **arguments)


def test_a_prepared_job_has_what_its_runner_says(runners: Runners) -> None:
    """Version, resource and bound are the server's, not the client's."""
    new = prepare(runners)
    assert (new.version, new.resource, new.max_queued, new.priority) == (1, "light", 10, 5)
    assert is_id(new.id, "job")


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": {}},
        {"payload": {"text": 1}},
        {"payload": {"text": "a", "blob": BLOB}},
        {"payload": {"text": "a", "more": 1}},
        {"payload": {"blob": "../../etc/passwd"}},
        {"payload": {"text": "\x00"}},
        {"payload": {"text": "\ud800"}},
        {"priority": -1},
        {"priority": 10},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 256},
        {"webhook_url": "ftp://example.org"},
        {"webhook_url": "http://"},
        {"webhook_url": "http://[::1"},
        {"webhook_url": "https://example.org/" + "x" * 2048},
    ],
)
def test_what_is_wrong_is_refused_at_the_door(runners: Runners, changes: dict[str, Any]) -> None:
    """Nothing that could never run, or be stored, gets in."""
    with pytest.raises(InvalidInput):
        prepare(runners, **changes)


def test_an_unknown_kind_is_refused_and_the_known_ones_are_named(runners: Runners) -> None:
    """The hint lists what there is."""
    with pytest.raises(UnknownJobKind) as refused:
        prepare(runners, kind="dance")
    assert "digest" in (refused.value.hint or "")


def test_a_wrong_composition_stops_the_start() -> None:
    """Two runners of one kind, or one without its resource, are configuration errors."""
    runner = DigestRunner(read_blob, resource="light")
    light = Resource(name="light", concurrency=1)
    for resources, several in (([light], [runner, runner]), ([], [runner])):
        with pytest.raises(ConfigurationError):
            Runners(resources, several)


def test_one_request_has_one_digest_and_another_has_another(runners: Runners) -> None:
    """The order of keys does not matter; every part of the request does."""
    new = prepare(runners, payload={"text": "x"})
    same = prepare(runners, payload={"text": "x"}, idempotency_key="other")
    assert new.request_digest == same.request_digest
    for changes in ({"payload": {"text": "y"}}, {"priority": 1}, {"webhook_url": "https://a"}, {"kind": "k"}):
        assert replace(new, **changes).request_digest != new.request_digest


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("payload", "data"), [({"text": "سلام"}, "سلام".encode()), ({"blob": BLOB}, b"".join(PIECES)), ({"text": ""}, b"")]
)
async def test_digest_is_the_sha256(sqlite_path: Path, tmp_path: Path, payload: Any, data: bytes, serve: Any) -> None:
    """Of a text's UTF-8 bytes, or of a blob's."""
    database = open_sqlite(sqlite_path)
    try:
        async with serve(database, {}, runner=DigestRunner(read_blob, resource="cpu")) as server:
            job = await server.ended(await server.put("", kind="digest", payload=payload))
        assert job.result == {"sha256": hashlib.sha256(data).hexdigest()}
    finally:
        await asyncio.to_thread(database.close_sync)


@pytest.mark.anyio
async def test_digest_of_a_foreign_blob_fails_once(sqlite_path: Path, serve: Any) -> None:
    """It is not found, which no repetition changes."""
    database = open_sqlite(sqlite_path)
    try:
        async with serve(database, {}, runner=DigestRunner(read_blob, resource="cpu")) as server:
            job = await server.ended(await server.put("", kind="digest", payload={"blob": BLOB}, owner_id="ann"))
            assert job.status == "succeeded"
            eve = await server.put("", kind="digest", payload={"blob": BLOB[::-1]})
            ended = await server.ended(eve)
        assert (ended.status, ended.attempts, ended.error and ended.error["code"]) == ("failed", 1, "NOT_FOUND")
    finally:
        await asyncio.to_thread(database.close_sync)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_that_both_databases_hold_is_accepted(value: Any) -> None:
    """The check refuses nothing that is fine."""
    check_json(value, "value")


def test_json_is_bounded() -> None:
    """In depth and in size."""
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(InvalidInput):
        check_json(deep, "value")
    with pytest.raises(TooLarge):
        check_json("x" * MAX_JSON_BYTES, "value")


def test_the_table_leads_nowhere_from_an_end() -> None:
    """Terminal is terminal, and every status but `queued` can be reached from another."""
    assert not {source for source, _ in model.TABLE} & model.TERMINAL
    assert set(model.TABLE.values()) == set(model.STATUSES)
    with pytest.raises(IllegalMove):
        check_move("succeeded", "claim")


def test_retryable_are_the_families_that_pass_and_their_leaves() -> None:
    """A leaf that another package adds belongs to its family, or says for itself; an unknown code is final."""
    assert all(is_retryable(code) for code in ("UNAVAILABLE", "DISK_FULL", "JOB_STALLED", "INTERNAL_ERROR"))
    assert not any(is_retryable(code) for code in ("NOT_FOUND", "INVALID_INPUT", "JOB_OUTPUT_TOO_LARGE", "WHATEVER"))
    assert not is_retryable(DoesNotFit.code)
    assert all(is_retryable(kind.code) for kind in (HubUnreachable, HubFailed, HubRateLimited))
    assert not any(is_retryable(kind.code) for kind in (NotEnoughSpace, ChecksumMismatch))


def test_pauses_between_tries_grow_to_a_bound() -> None:
    """2, 8, 32 … seconds, never more than the bound that the store relies on."""
    assert [backoff_s(errors, 0.5) for errors in (1, 2, 3)] == [2.0, 8.0, 32.0]
    source = random.Random(1)
    assert all(backoff_s(errors, source.random()) <= model.MAX_PAUSE_S for errors in range(1, 50))


def test_the_design_names_what_exists() -> None:
    """Every `name` in DESIGN.md that looks like one of the package's is found in its code."""
    import re

    folder = Path(model.__file__).parent
    code = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    code += Path(model.__file__).parents[1].joinpath("storage/tables/jobs.py").read_text()
    names = re.findall(r"`([A-Za-z_][A-Za-z_.]*)(?:\(\))?`", (folder / "DESIGN.md").read_text())
    missing = {name for name in names if name.split(".")[-1] not in code}
    assert names
    assert not missing
