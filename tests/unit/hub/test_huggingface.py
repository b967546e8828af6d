"""The hub's own client library behind the guard: what it tells, what it must not do, and its errors."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from serai.clock import SystemClock
from serai.errors import InvalidInput, OutboundRefused, SeraiError
from serai.hub.errors import (
    GatedRepo,
    HubFailed,
    HubNonsense,
    HubRateLimited,
    HubTokenRefused,
    HubUnreachable,
    RepoNotFound,
    RevisionNotFound,
)
from serai.hub.huggingface import HuggingFaceHub
from serai.outbound import Outbound, OutboundSecret
from serai.registry.source import HubSource
from support.hub_server import HubServer, safetensors

pytestmark = pytest.mark.anyio

REPO = "acme/tiny"
SOURCE = HubSource(repo=REPO)
FILES = {"config.json": b"{}", "model.safetensors": safetensors(1000)}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer({REPO: FILES}) as server:
        yield server


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with Outbound(clock=SystemClock(), allow=["127.0.0.1"]) as outbound:
        yield outbound


def with_token(outbound: Outbound, server: HubServer, token: str, *origins: str) -> HuggingFaceHub:
    secret = OutboundSecret(name="hf_token", value=token, origins=frozenset(origins or (server.url,)))

    async def find() -> OutboundSecret:
        return secret

    return HuggingFaceHub(outbound, address=server.url, find_secret=find)


async def test_a_revision_is_pinned_and_sizes_are_asked_for(outbound: Outbound, server: HubServer) -> None:
    """A branch becomes a commit, sizes and digests come with the list, and the card's facts with it."""
    server.repos[REPO].info = {
        "pipeline_tag": "text-generation",
        "tags": ["license:apache-2.0"],
        "config": {"architectures": ["LlamaForCausalLM"]},
        "safetensors": {"parameters": {"BF16": 1000}, "total": 1000},
    }
    listing = await HuggingFaceHub(outbound, address=server.url).look(SOURCE)
    assert listing.source == HubSource(repo=REPO, revision=server.commit(REPO))
    assert (listing.task, listing.licence, listing.parameters) == ("chat", "Apache-2.0", 1000)
    assert listing.architectures == ("LlamaForCausalLM",)
    by_path = {file.path: file for file in listing.files}
    assert by_path["model.safetensors"].sha256
    assert by_path["config.json"].git_id
    assert "blobs=" in server.requests[0][1]


async def test_a_hub_that_tells_no_sizes_is_an_error(outbound: Outbound, server: HubServer) -> None:
    """Progress without a total is not accepted in silence."""
    server.tell_sizes = False
    with pytest.raises(HubNonsense, match="size"):
        await HuggingFaceHub(outbound, address=server.url).look(SOURCE)


async def test_a_renamed_repository_is_found(outbound: Outbound, server: HubServer) -> None:
    """The hub's redirect to the new name is followed, for the list and for the files."""
    server.rename(REPO, "acme/renamed")
    hub = HuggingFaceHub(outbound, address=server.url)
    listing = await hub.look(SOURCE)
    file = next(one for one in listing.files if one.path == "model.safetensors")
    async with hub.read(listing, file) as reading:
        assert b"".join([piece async for piece in reading.pieces]) == FILES["model.safetensors"]


async def test_a_token_goes_to_its_origin_alone(outbound: Outbound, server: HubServer) -> None:
    """The hub gets it; where the hub redirects to another origin, that gets nothing of it."""
    server.gate(REPO, "hf_right")
    with HubServer({REPO: FILES}) as cdn:
        server.cdn = cdn.url
        hub = with_token(outbound, server, "hf_right")
        listing = await hub.look(SOURCE)
        file = next(one for one in listing.files if one.path == "model.safetensors")
        async with hub.read(listing, file) as reading:
            assert b"".join([piece async for piece in reading.pieces]) == FILES["model.safetensors"]
        assert cdn.requests
        assert "hf_right" not in json.dumps(cdn.requests)
    assert {headers["authorization"] for _, _, headers in server.requests} == {"Bearer hf_right"}


async def test_a_token_for_another_origin_is_not_sent(outbound: Outbound, server: HubServer) -> None:
    """A secret that may not go to the hub stops the call before anything is sent."""
    with pytest.raises(OutboundRefused):
        await with_token(outbound, server, "hf_right", "https://huggingface.co").look(SOURCE)
    assert server.requests == []


async def test_gated_repositories_say_what_to_do(outbound: Outbound, server: HubServer) -> None:
    """Without a token: how to get one. With a token that has no access: how to ask for it."""
    server.gate(REPO, "hf_right")
    with pytest.raises(GatedRepo) as without:
        await HuggingFaceHub(outbound, address=server.url).look(SOURCE)
    assert "PUT /secrets/{name}" in (without.value.hint or "")
    with pytest.raises(GatedRepo) as denied:
        await with_token(outbound, server, "hf_wrong").look(SOURCE)
    assert "Ask for access" in (denied.value.hint or "")
    server.answer_next(401)
    with pytest.raises(HubTokenRefused):
        await with_token(outbound, server, "hf_old").look(SOURCE)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (404, {"x_error_code": "RepoNotFound"}, RepoNotFound),
        (401, {"x_error_code": "RepoNotFound"}, RepoNotFound),
        (404, {"x_error_code": "RevisionNotFound"}, RevisionNotFound),
        (403, {"x_error_code": "GatedRepo"}, GatedRepo),
        (429, {"retry_after": "12"}, HubRateLimited),
        (500, {}, HubFailed),
        (503, {}, HubFailed),
        (507, {}, HubFailed),
        (418, {}, HubNonsense),
        (204, {}, HubNonsense),
    ],
)
async def test_each_answer_of_the_hub_is_its_own_error(
    outbound: Outbound, server: HubServer, status: int, headers: dict[str, str], expected: type[SeraiError]
) -> None:
    """No answer ends as a defect, and each error has its remedy."""
    server.answer_next(status, **headers)
    with pytest.raises(expected) as refused:
        await HuggingFaceHub(outbound, address=server.url).look(SOURCE)
    assert refused.value.hint
    assert server.url not in refused.value.message
    if expected is HubRateLimited:
        assert refused.value.retry_after == 12


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>login</html>",
        b"[]",
        b"null",
        b'{"id": "a/b"}',
        b'{"id": "a/b", "sha": "main", "siblings": []}',
        b'{"id": "a/b", "sha": 5, "siblings": []}',
        b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "siblings": [{"rfilename": 3, "size": 1}]}',
        b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "siblings": [{"rfilename": "x", "size": "1"}]}',
        b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "siblings": [5]}',
        b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "siblings": {"a": 1}}',
        b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "siblings": [{"rfilename": "x", "size": 1, "blobId": 7, '
        b'"lfs": {"sha256": "../../x", "size": 1, "pointerSize": 1}}]}',
        b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "tags": 5, "siblings": []}',
        b"[" * 100_000,
    ],
)
async def test_nonsense_of_the_hub_is_refused(outbound: Outbound, server: HubServer, body: bytes) -> None:
    """Whatever an answer holds, it is understood or refused, and never a crash."""
    server.answer_next(200, body=body, content_type="application/json")
    with pytest.raises(HubNonsense):
        await HuggingFaceHub(outbound, address=server.url).look(SOURCE)


async def test_a_hub_that_is_not_there_is_unreachable(outbound: Outbound) -> None:
    """No connection is another error than no repository."""
    with HubServer({}) as gone:
        url = gone.url
    with pytest.raises(HubUnreachable):
        await HuggingFaceHub(outbound, address=url).look(SOURCE)


async def test_a_hub_at_a_private_address_is_refused(server: HubServer) -> None:
    """The guard of the way out holds for the library as for everything else."""
    async with Outbound(clock=SystemClock()) as strict:
        with pytest.raises(OutboundRefused):
            await HuggingFaceHub(strict, address=server.url).look(SOURCE)
    assert server.requests == []


@pytest.mark.parametrize("repo", ["a/b/c", "a--b/c", "-a/b", "a..b/c", "x" * 200, "a/b.git"])
async def test_a_name_that_no_repository_has_is_refused(outbound: Outbound, server: HubServer, repo: str) -> None:
    """The library's own rule for names is an error of the request."""
    with pytest.raises((InvalidInput, RepoNotFound)):
        await HuggingFaceHub(outbound, address=server.url).look(HubSource(repo=repo))


async def test_a_call_past_the_guard_is_refused(outbound: Outbound, server: HubServer) -> None:
    """Once the library is in use, no code in the process can call out with it by itself."""
    await HuggingFaceHub(outbound, address=server.url).look(SOURCE)
    from huggingface_hub import HfApi

    asked = len(server.requests)
    with pytest.raises(OutboundRefused):
        await asyncio.to_thread(HfApi(endpoint=server.url).model_info, REPO)
    assert len(server.requests) == asked


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from serai.clock import SystemClock
from serai.hub.huggingface import HuggingFaceHub
from serai.outbound import Outbound
from serai.registry.source import HubSource

looked_up = []
def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        looked_up.append(str(arguments[:2] if event == "socket.getaddrinfo" else arguments[1]))
sys.addaudithook(hook)

async def main(url):
    async with Outbound(clock=SystemClock(), allow=["127.0.0.1"]) as outbound:
        hub = HuggingFaceHub(outbound, address=url)
        listing = await hub.look(HubSource(repo="acme/tiny"))
        for file in listing.files:
            async with hub.read(listing, file) as reading:
                assert len(b"".join([piece async for piece in reading.pieces])) == file.size
asyncio.run(main(sys.argv[1]))
assert not [one for one in looked_up if "127.0.0.1" not in one], looked_up
assert "hf_xet" not in sys.modules
written = [str(path) for path in Path.home().rglob("*")]
assert not written, written
"""


async def test_the_library_has_no_habits_of_its_own(server: HubServer, tmp_path: Path) -> None:
    """No token of the environment, no file at home, no counting of users, no name looked up."""
    environment: dict[str, Any] = {
        **os.environ,
        "HOME": str(tmp_path),
        "HF_TOKEN": "hf_from_the_environment",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "",
    }
    environment.pop("HF_HOME", None)
    command = [sys.executable, "-W", "error", "-c", PROGRAM, server.url]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.dumps(server.requests)
    assert "hf_from_the_environment" not in seen
    assert {headers["user-agent"] for _, _, headers in server.requests} == {"serai"}
