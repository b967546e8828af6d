"""Pulls as jobs: from a request to a registered version whose files are on the disk."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serai import audit
from serai.errors import LoadFailed
from serai.events import Progress
from serai.jobs.model import backoff_s
from serai.pulls.errors import MissingExtra
from serai.pulls.model import PullPolicy
from serai.registry import releases
from serai.registry.source import File, HubSource
from serai.registry.version import Status
from support.hub_server import HubServer, safetensors
from support.registry import Desk

pytestmark = pytest.mark.anyio

REPO = "acme/Tiny-LM"
WEIGHTS = safetensors(200_000)
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}).encode()
CHAT = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}", "README.md": b"# hi"}
IR = {
    "openvino_model.xml": b"<?xml version='1.0'?><net/>",
    "openvino_model.bin": bytes(300_000),
    "config.json": CONFIG,
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that failed is tried again at once."""
    monkeypatch.setattr("serai.jobs.run.backoff_s", lambda errors, jitter: 0.001 * backoff_s(errors, jitter))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({REPO: CHAT, "acme/ir-int8-ov": IR}) as server:
        server.repos[REPO].info = {
            "pipeline_tag": "text-generation",
            "tags": ["license:apache-2.0"],
            "config": {"architectures": ["LlamaForCausalLM"]},
        }
        yield server


async def test_a_pull_is_a_registered_version(start: Any, hub: HubServer) -> None:
    """Fetched, converted, registered: source pinned, files with digests, the decision and its reason kept."""
    async with start(hub.url) as puller:
        job = await puller.pull(REPO)
        assert job.status == "succeeded", job.error
        version = await puller.version("tiny-lm@1.0.0")
        snapshot = await puller.see()
        folder = puller.files.folder_of("tiny-lm", "1.0.0")
        assert puller.files.verify("tiny-lm", "1.0.0", version.files) == ()
    assert version.source == HubSource(repo=REPO, revision=hub.commit(REPO))
    assert (version.status, version.quantization) == (Status.ACTIVE, "int8")
    assert {file.path for file in version.files} == {"openvino_model.xml", "openvino_model.bin", "config.json"}
    assert {path.name for path in folder.iterdir()} == {file.path for file in version.files}
    assert "8 bits" in version.release_notes
    assert version.footprint[0].bytes > 200_000
    assert version.licence == "Apache-2.0"
    assert job.result is not None
    assert job.result["why"] in version.release_notes
    assert job.decision is not None
    assert job.decision["source"]["revision"] == hub.commit(REPO)
    model = snapshot.models["tiny-lm"].model
    assert (model.task, model.lookup_names) == ("chat", (REPO,))
    newest = puller.database.read_sync(audit.entries, limit=1)[0]
    assert (newest.actor, newest.action) == ("user_ann", "models.create")
    assert "README.md" not in hub.served


async def test_progress_is_numeric_and_only_grows(start: Any, hub: HubServer) -> None:
    """Every event of the download has bytes, total, speed and time left; the fraction runs from 0 to 1."""
    hub.cut("model.safetensors", at=100_000)
    async with start(hub.url) as puller:
        job = await puller.put(REPO)
        async with asyncio.timeout(60):
            followed = [one async for one in puller.feed.follow(job.id, owner_id=None, after=None)]
    steps = [one for one in followed if isinstance(one.event, Progress) and one.event.fraction is not None]
    for is_stored in (True, False):
        told = [one.event for one in steps if (one.seq is not None) is is_stored]
        fractions = [event.fraction for event in told]
        assert fractions == sorted(fractions, key=lambda fraction: fraction or 0.0)
    assert steps[-1].event.fraction == 1.0
    stages = list(dict.fromkeys(one.event.stage for one in steps if one.seq is None))
    assert stages == ["resolve", "download", "verify", "convert", "register"]
    measured = [one.event.detail for one in steps if one.event.stage != "resolve"]
    total = len(CONFIG) + len(WEIGHTS) + 2
    for detail in measured:
        assert detail is not None
        assert set(detail) == {"downloaded_bytes", "total_bytes", "speed", "eta_s"}
        assert 0 <= detail["downloaded_bytes"] <= detail["total_bytes"] == total
    assert measured[-1] is not None
    assert measured[-1]["downloaded_bytes"] == total


async def test_the_same_commit_again_fetches_nothing(start: Any, hub: HubServer) -> None:
    """The second pull answers with the version there is."""
    async with start(hub.url) as puller:
        first = await puller.result(REPO)
        served = sum(hub.served.values())
        again = await puller.result("tiny-lm")
        assert len((await puller.see()).models["tiny-lm"].candidates) == 1
    assert (again["version"], again["already"], again["fetched_bytes"]) == (first["version"], True, 0)
    assert sum(hub.served.values()) == served


async def test_another_quantization_is_there_for_who_names_it(start: Any, hub: HubServer) -> None:
    """Its number is below that of the commit, so the bare name means what it meant; what is here is not fetched."""
    async with start(hub.url) as puller:
        assert (await puller.result(REPO, quantize="no"))["version"] == "1.0.0"
        small = await puller.result(REPO, quantize="q4")
        smaller = await puller.result("tiny-lm", quantize="q8")
        again = await puller.result(REPO, quantize="q4")
        entry = (await puller.see()).models["tiny-lm"]
        assert puller.files.holds("tiny-lm", "1.0.0-int4", entry.candidates["1.0.0-int4"].version.files)
        hub.push(REPO, {**CHAT, "tokenizer.json": b'{"new": 1}'})
        newer = await puller.result(REPO, quantize="q4")
    assert hub.served["model.safetensors"] == len(WEIGHTS)
    assert [one["version"] for one in (small, smaller, again)] == ["1.0.0-int4", "1.0.0-int8", "1.0.0-int4"]
    assert (small["reused_bytes"], again["already"]) == (len(WEIGHTS), True)
    assert small["warnings"] == ["tiny-lm still means 1.0.0; this one is tiny-lm@1.0.0-int4."]
    assert entry.default is not None
    assert entry.default.version.version == "1.0.0"
    assert entry.candidates["1.0.0-int4"].version.based_on == "1.0.0"
    assert (newer["version"], newer["warnings"]) == ("1.1.0", [])


async def test_one_quantization_after_another_moves_no_default(start: Any, hub: HubServer, database: Any) -> None:
    """Also where only a number below the commit's is left, and where it was used before."""
    async with start(hub.url) as puller:
        numbers = [(await puller.result(REPO, quantize=quantize))["version"] for quantize in ("q8", "q4")]
    with Desk(database) as desk:
        desk.do(releases.delete_version, "tiny-lm", "1.0.0", force=True)
    async with start(hub.url) as puller:
        numbers += [(await puller.result(REPO, quantize=quantize))["version"] for quantize in ("q8", "fp16")]
    with Desk(database) as desk:
        desk.do(releases.delete_version, "tiny-lm", "1.0.0-0.fp16", force=True)
    async with start(hub.url) as puller:
        numbers.append((await puller.result(REPO, quantize="fp16"))["version"])
        entry = (await puller.see()).models["tiny-lm"]
    assert numbers == ["1.0.0", "1.0.0-int4", "1.0.0-0.int8", "1.0.0-0.fp16", "1.0.0-0.fp16.2"]
    assert entry.default is not None
    assert entry.default.version.version == "1.0.0-int4"


async def test_a_new_commit_is_the_next_minor(start: Any, hub: HubServer) -> None:
    """Files that both commits have are fetched once and lie on the disk once."""
    async with start(hub.url) as puller:
        await puller.result(REPO, quantize="no")
        hub.push(REPO, {**CHAT, "tokenizer.json": b'{"new": 1}'})
        second = await puller.result(REPO, quantize="no")
        one, other = (puller.files.folder_of("tiny-lm", number) for number in ("1.0.0", "1.1.0"))
        assert (one / "model.safetensors").samefile(other / "model.safetensors")
        assert not (one / "tokenizer.json").samefile(other / "tokenizer.json")
        assert (await puller.version("tiny-lm@1.1.0")).based_on == "1.0.0"
        assert puller.files.remove("tiny-lm", "1.0.0") < len(WEIGHTS)
        assert (other / "model.safetensors").read_bytes() == WEIGHTS
        assert puller.files.remove("tiny-lm", "1.1.0") > len(WEIGHTS)
        assert not list((puller.files.root / "blobs").iterdir())
    assert (second["version"], second["reused_bytes"]) == ("1.1.0", len(WEIGHTS))
    assert hub.served["model.safetensors"] == len(WEIGHTS)


async def test_two_pulls_of_one_repository_end_in_one_version(start: Any, hub: HubServer) -> None:
    """The second waits for the first, finds its version, and converts nothing."""
    held = hub.hold("model.safetensors", at=50_000)
    async with start(hub.url) as puller:
        jobs = [await puller.put(REPO) for _ in range(2)]
        assert await asyncio.to_thread(held.reached.wait, 30)
        held.release.set()
        results = [(await puller.ended(job)).result for job in jobs]
        assert len(puller.converter.plans) == 1
    assert {result["version"] for result in results if result} == {"1.0.0"}
    assert hub.served["model.safetensors"] == len(WEIGHTS)


async def test_a_cancelled_pull_goes_on_later(start: Any, hub: HubServer) -> None:
    """Cancelling pauses: what came stays, and the next pull asks for the rest."""
    hub.cut("model.safetensors", at=300_000)
    held = hub.hold("model.safetensors", at=0)
    async with start(hub.url) as puller:
        job = await puller.put(REPO)
        assert await asyncio.to_thread(held.reached.wait, 30)
        assert (await puller.cancel(job)).status == "cancelled"
        held.release.set()
        await puller.result(REPO)
    starts = [headers.get("range") for _, path, headers in hub.requests if "/cdn/" in path]
    assert "bytes=300000-" in starts
    assert starts.count(None) == 1


async def test_a_pull_is_cancelled_while_it_converts(start: Any, hub: HubServer) -> None:
    """No version appears; the next pull has nothing to fetch."""
    async with start(hub.url) as puller:
        puller.converter.gate = asyncio.Event()
        job = await puller.put(REPO)
        async with asyncio.timeout(30):
            await puller.converter.begun.wait()
        assert (await puller.cancel(job)).status == "cancelled"
        assert (await puller.see()).models == {}
        puller.converter.gate = None
        result = await puller.result(REPO)
    assert (result["version"], result["fetched_bytes"]) == ("1.0.0", 0)


async def test_the_commit_of_the_first_attempt_is_kept(start: Any, hub: HubServer, tmp_path: Path) -> None:
    """A job that goes on in another life of the server goes on with the commit that it began with."""
    first = hub.commit(REPO)
    held = hub.hold("model.safetensors", at=100_000)
    async with start(hub.url) as puller:
        job = await puller.put(REPO, quantize="no")
        async with asyncio.timeout(30):
            while (await puller.get(job)).decision is None:  # noqa: ASYNC110 - a row is what is waited for
                await asyncio.sleep(0.01)
    hub.push(REPO, {**CHAT, "tokenizer.json": b'{"new": 1}'})
    held.release.set()
    async with start(hub.url) as puller:
        ended = await puller.ended(job)
        version = await puller.version("tiny-lm@1.0.0")
    assert ended.status == "succeeded"
    assert version.source == HubSource(repo=REPO, revision=first)


async def test_a_missing_extra_is_told_before_the_first_byte(start: Any, hub: HubServer) -> None:
    """The error names the command; an OpenVINO repository works without the extra, and so does quantize=no."""
    async with start(hub.url) as puller:
        puller.converter.missing = MissingExtra("These weights must be converted, which needs the extra 'torch'.")
        error = await puller.error(REPO)
        assert error["code"] == "MISSING_EXTRA"
        assert "pip install 'serai[torch]'" in error["hint"]
        assert not hub.served
        assert (await puller.result("acme/ir-int8-ov"))["quantization"] == "int8"
        assert (await puller.result(REPO, quantize="no"))["quantization"] == "none"


async def test_openvino_files_beside_safetensors_serve_where_nothing_converts(start: Any, hub: HubServer) -> None:
    """A repository that holds both forms needs no extra."""
    hub.push("acme/both", {**CHAT, **IR})
    async with start(hub.url) as puller:
        puller.converter.missing = MissingExtra("no extra")
        await puller.result("acme/both")
        version = await puller.version("both@1.0.0")
    assert "openvino_model.bin" in {file.path for file in version.files}
    assert "model.safetensors" not in {file.path for file in version.files}


@pytest.mark.parametrize(
    ("quantize", "policy", "expected", "reason"),
    [
        ("auto", {}, "int8", "8 bits"),
        ("auto", {"q4_threshold_bytes": 1000}, "int4", "q4_threshold_bytes"),
        ("auto", {"budget_bytes": 100_000}, "int4", "budget"),
        ("q8", {"q4_threshold_bytes": 1000}, "int8", "asked for"),
        ("q4", {}, "int4", "asked for"),
        ("fp16", {}, "fp16", "asked for"),
        ("no", {}, "none", "asked for"),
        ("auto", {"device": "cuda"}, "none", "CUDA"),
        ("q4", {"device": "cuda"}, "nf4", "CUDA"),
    ],
)
async def test_the_quantization_is_decided_and_the_reason_kept(
    start: Any, hub: HubServer, quantize: str, policy: dict[str, Any], expected: str, reason: str
) -> None:
    """What is chosen depends on size, budget and device; the version says it and why."""
    async with start(hub.url, policy=PullPolicy(**policy)) as puller:
        result = await puller.result(REPO, quantize=quantize)
        version = await puller.version("tiny-lm@1.0.0")
        converted = [one.quantization for one in puller.converter.plans]
    assert (result["quantization"], version.quantization) == (expected, expected)
    assert reason in result["why"]
    assert reason in version.release_notes
    on_cpu = policy.get("device") != "cuda"
    assert converted == ([expected] if on_cpu and expected != "none" else [])


async def test_a_shipped_draft_is_filled_and_becomes_active(start: Any, hub: HubServer, database: Any) -> None:
    """A card that waits for its files gets them, pinned as it said, instead of a second version."""
    source = HubSource(repo=REPO, revision=hub.commit(REPO))
    hub.push(REPO, {**CHAT, "tokenizer.json": b'{"later": 1}'})
    with Desk(database) as desk:
        desk.model("tiny", "1.0.0", status=Status.DRAFT, source=source, lookup_names=(REPO,), capabilities=("tools",))
    async with start(hub.url) as puller:
        result = await puller.result("tiny")
        version = await puller.version("tiny@1.0.0")
        newer = await puller.result(REPO, revision="main")
    assert (result["version"], version.status) == ("1.0.0", Status.ACTIVE)
    assert (version.source, version.capabilities, version.quantization) == (source, ("tools",), "int8")
    assert newer["version"] == "1.1.0"


async def test_a_full_set_of_active_versions_leaves_a_draft(start: Any, hub: HubServer) -> None:
    """Where the limit allows no more active version, the pull ends as a draft, and says so."""
    async with start(hub.url, max_active_versions_per_model=1) as puller:
        await puller.result(REPO)
        hub.push(REPO, {**CHAT, "tokenizer.json": b'{"new": 1}'})
        result = await puller.result(REPO)
    assert (result["version"], result["status"]) == ("1.1.0", "draft")
    assert "deprecate" in result["warnings"][0].lower()


async def test_init_loads_and_a_failure_of_it_leaves_the_version(start: Any, hub: HubServer) -> None:
    """The job says that loading failed; the version stays registered with its files."""
    async with start(hub.url) as puller:
        assert (await puller.result("acme/ir-int8-ov", init=True))["loaded"] is True
        assert puller.loader.versions == ["ir-int8-ov@1.0.0"]
        puller.loader.error = LoadFailed("out of luck", hint="Buy luck.")
        error = await puller.error(REPO, init=True)
        assert (await puller.version("tiny-lm@1.0.0")).status is Status.ACTIVE
    assert error["code"] == "INIT_FAILED"
    assert "out of luck" in error["message"]
    assert "Buy luck." in error["hint"]


async def test_folders_and_addresses_are_pulled_like_repositories(start: Any, hub: HubServer, tmp_path: Path) -> None:
    """A folder below a listed one, and a file by address and digest, become versions; the same again is the same."""
    place = tmp_path / "shelf" / "my-model"
    place.mkdir(parents=True)
    for name, data in CHAT.items():
        (place / name).write_bytes(data)
    url = f"{hub.url}/acme/Tiny-LM/resolve/main/model.safetensors#sha256={hashlib.sha256(WEIGHTS).hexdigest()}"
    async with start(hub.url, roots={"shelf": tmp_path / "shelf"}) as puller:
        first = await puller.result("folder:shelf/my-model")
        assert (first["model"], first["version"], first["quantization"]) == ("my-model", "1.0.0", "int8")
        assert (await puller.result("folder:shelf/my-model"))["version"] == "1.0.0"
        (place / "model.safetensors").write_bytes(safetensors(200_000, seed=3))
        assert (await puller.result("folder:shelf/my-model"))["version"] == "1.1.0"
        single = await puller.result(url, name="one-file")
        assert (single["model"], single["quantization"]) == ("one-file", "none")
        assert (await puller.version("one-file@1.0.0")).files == (
            File(path="model.safetensors", size=len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest()),
        )


async def test_each_refusal_has_its_own_code_and_remedy(start: Any, hub: HubServer) -> None:
    """Unknown, gated, no space, unsafe, GGUF: different codes, each with the next step, and no version."""
    hub.push("acme/pickles", {"pytorch_model.bin": b"\x80\x02}q\x00.", "config.json": CONFIG})
    hub.push("acme/gguf", {"model.gguf": b"GGUF" + bytes(100)})
    hub.push("acme/secret", CHAT)
    hub.gate("acme/secret", "hf_right")
    expected = {
        ("acme/nothing", None): ("REPO_NOT_FOUND", "owner/name"),
        (REPO, "v9"): ("REVISION_NOT_FOUND", "main"),
        ("acme/secret", None): ("GATED_REPO", "PUT /secrets/{name}"),
        ("acme/pickles", None): ("FILES_REFUSED", "allow_pickle"),
        ("acme/gguf", None): ("UNSUPPORTED_WEIGHTS", "safetensors"),
        ("nonsense", None): ("MODEL_NOT_FOUND", "owner/name"),
    }
    async with start(hub.url) as puller:
        for (model, revision), (code, remedy) in expected.items():
            error = await puller.error(model, **({"revision": revision} if revision else {}))
            assert error["code"] == code
            assert remedy in error["hint"], error
        assert (await puller.see()).models == {}
    assert not hub.served


async def test_a_full_disk_is_told_before_the_first_byte(start: Any, hub: HubServer) -> None:
    """The error says how many bytes to free."""
    async with start(hub.url, free=1000) as puller:
        error = await puller.error(REPO)
    assert error["code"] == "NOT_ENOUGH_SPACE"
    assert "Free " in error["hint"]
    assert not hub.served


async def test_no_network_is_told(start: Any) -> None:
    """A hub that nobody answers for is another error than an unknown repository."""
    with HubServer({}) as gone:
        url = gone.url
    async with start(url) as puller:
        error = await puller.error(REPO)
    assert error["code"] == "HUB_UNREACHABLE"
    assert "hub_endpoint" in error["hint"]


async def test_pickles_are_taken_where_an_admin_allowed_them_for_the_draft(
    start: Any, hub: HubServer, database: Any
) -> None:
    """Leave is of one draft with its source; the same repository under another name is refused."""
    hub.push("acme/pickles", {"pytorch_model.bin": b"\x80\x02}q\x00.", "config.json": CONFIG})
    source = HubSource(repo="acme/pickles")
    with Desk(database) as desk:
        desk.model("old", "1.0.0", status=Status.DRAFT, source=source, allow_pickle=True)
    async with start(hub.url) as puller:
        await puller.result("old")
        version = await puller.version("old@1.0.0")
        assert (await puller.error("acme/pickles", name="other"))["code"] == "FILES_REFUSED"
    assert version.allow_pickle
    assert "pytorch_model.bin" in {file.path for file in version.files}


async def test_files_that_were_lost_come_back_under_the_same_version(start: Any, hub: HubServer) -> None:
    """A server whose disk lost a version's files pulls them again; the registry does not change."""
    async with start(hub.url) as puller:
        await puller.result(REPO, quantize="no")
        before = puller.database.read_sync(audit.head)
        puller.files.remove("tiny-lm", "1.0.0")
        result = await puller.result(REPO, quantize="no")
        version = await puller.version("tiny-lm@1.0.0")
        assert puller.files.verify("tiny-lm", "1.0.0", version.files) == ()
        assert puller.database.read_sync(audit.head) == before
    assert (result["version"], result["already"]) == ("1.0.0", False)


async def test_a_deleted_number_is_never_used_again(start: Any, hub: HubServer, database: Any) -> None:
    """The number after a tombstone is the next one."""
    from serai.registry import releases

    async with start(hub.url) as puller:
        await puller.result(REPO)
        with Desk(database) as desk:
            desk.do(releases.delete_version, "tiny-lm", "1.0.0")
        assert (await puller.result(REPO))["version"] == "1.1.0"


async def test_a_name_that_belongs_to_another_model_is_not_taken(start: Any, hub: HubServer, database: Any) -> None:
    """Two repositories with one last part do not become versions of one model by accident."""
    with Desk(database) as desk:
        desk.model("tiny-lm")
    async with start(hub.url) as puller:
        error = await puller.error(REPO)
        assert (await puller.result(REPO, name="tiny-lm"))["version"] == "1.1.0"
    assert error["code"] == "MODEL_NAME_TAKEN"
    assert "'name'" in error["hint"]
