"""Loading, unloading, clearing and pinning by name; what is in memory, and for whom."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serai.errors import LoadFailed
from serai.events import Failed
from serai.registry import bindings, releases
from serai.registry.errors import CandidateInCooldown, LicenceRefused, ModelNotFound, VersionNotFound
from serai.registry.source import Adapter, FolderSource
from serai.registry.version import Status
from serai.runtime.errors import ModelUnloaded
from serai.serving.errors import NotInMemory
from serai.storage.database import Database
from support.registry import Desk
from support.scripted_backend import ScriptedBackend
from unit.serving.stage import Stage, done, staged

pytestmark = pytest.mark.anyio
PATIENT_S = 60.0


def names(stage: Stage) -> list[tuple[str, ...]]:
    return [one.names for one in stage.runtime.loaded()]


@pytest.mark.parametrize("reference", ["m", "m@1.0.0", "s", "m@best"])
async def test_whatever_a_client_may_name_is_loaded(stage: Stage, reference: str) -> None:
    """A model, a version, an alias, a service; it is idle then, and the next call finds it there."""
    stage.fake("m")
    stage.service("m@1.0.0")
    stage.desk.do(releases.put_alias, "m", "best", "1.0.0", expected_from=None, check=False)
    loaded = await stage.serving.preload(reference, keep_alive=-1, timeout_s=PATIENT_S)
    assert loaded.names == ("m@1.0.0",)
    assert (loaded.in_flight, loaded.expires) == (0, None)
    _, events = await stage.ask()
    assert {type(event).__name__ for event in events} == {"Text", "Done"}


async def test_what_cannot_be_loaded_says_why(stage: Stage) -> None:
    """Unknown names, drafts, other servers, failures; and a failure is remembered for decisions."""
    stage.fake("bad", fail="load")
    stage.remote("far", "https://example.org/v1")
    stage.desk.model("draft", engine="fake", status=Status.DRAFT)
    for reference, error in {
        "nobody": ModelNotFound,
        "bad@9.0.0": VersionNotFound,
        "draft@1.0.0": VersionNotFound,
        "far": NotInMemory,
        "bad": LoadFailed,
    }.items():
        with pytest.raises(error):
            await stage.serving.preload(reference, timeout_s=PATIENT_S)
    with pytest.raises(CandidateInCooldown):
        await stage.serving.preload("bad", timeout_s=PATIENT_S)
    with pytest.raises(CandidateInCooldown):
        await stage.open(None, "bad")
    await stage.serving.clear_cooldown("bad")
    answer, _ = await stage.ask(None, "bad")
    assert isinstance(answer.error, LoadFailed)


async def test_a_licence_that_refuses_is_not_loaded(sqlite: Database, tmp_path: Path) -> None:
    """Memory is no way around the gate."""
    async with staged(sqlite, tmp_path, deployment="commercial") as stage:
        stage.desk.model("m", engine="fake", licence="CC-BY-NC-4.0")
        with pytest.raises(LicenceRefused):
            await stage.serving.preload("m@1.0.0", timeout_s=PATIENT_S)


async def test_unloading_by_name(stage: Stage) -> None:
    """What a name means leaves, with what shares its unit; what is not there is no error."""
    stage.fake("m")
    stage.desk.do(releases.create_version, "m", "1.1.0", {})
    stage.fake("n")
    assert await stage.serving.unload("m") == ()
    for reference in ("m@1.0.0", "m@1.1.0", "n"):
        await stage.ask(None, reference)
    assert names(stage) == [("m@1.0.0", "m@1.1.0"), ("n@1.0.0",)]
    (gone,) = await stage.serving.unload("m@1.1.0")
    assert gone.names == ("m@1.0.0", "m@1.1.0")
    assert names(stage) == [("n@1.0.0",)]


async def test_unloading_by_force_ends_what_runs(sqlite: Database, tmp_path: Path) -> None:
    """Its answers end with MODEL_UNLOADED."""
    backend, begun = ScriptedBackend(), asyncio.Event()
    backend.on_spawn = lambda worker: worker.ready(1)
    backend.on_run = lambda worker, run: begun.set()
    async with staged(sqlite, tmp_path, backend=backend) as stage:
        stage.fake("m")
        async with await stage.open(None, "m") as answer:
            await begun.wait()
            await stage.serving.unload("m", force=True)
            assert isinstance([event async for event in answer][-1], Failed)
            assert isinstance(answer.error, ModelUnloaded)
            assert names(stage) == []


async def test_what_is_in_memory_is_told_with_who_it_is_for(stage: Stage) -> None:
    """Versions that used it and still exist, services that are bound to one of them."""
    stage.fake("m")
    stage.desk.do(releases.create_version, "m", "1.1.0", {})
    stage.service("m@1.1.0", id_="t")
    stage.service("m@1.0.0")
    for service in ("s", "t"):
        await stage.ask(service)
    (one,) = await stage.serving.loaded()
    assert one.versions == ("m@1.0.0", "m@1.1.0")
    assert one.services == ("s", "t")
    stage.desk.do(bindings.delete_service, "s", force=True)
    stage.desk.do(releases.delete_version, "m", "1.0.0", force=True)
    (one,) = await stage.serving.loaded()
    assert (one.versions, one.services) == (("m@1.1.0",), ("t",))


def pin(desk: Desk, service: str, *, pinned: bool) -> None:
    desk.do(bindings.update_service, service, {"pinned": pinned}, {})


async def test_pinned_services_are_kept_in_memory(stage: Stage) -> None:
    """What they are bound to is loaded and pinned; what no longer is, is let go; one that fails stops no other."""
    for name in ("a", "b"):
        stage.fake(name)
        stage.service(f"{name}@1.0.0", id_=f"s{name}")
        pin(stage.desk, f"s{name}", pinned=True)
    stage.fake("bad", fail="load")
    stage.service("bad@1.0.0", id_="sbad")
    pin(stage.desk, "sbad", pinned=True)
    await stage.serving.keep_pinned(timeout_s=PATIENT_S)
    assert {one.names: one.pinned for one in stage.runtime.loaded()} == {("a@1.0.0",): True, ("b@1.0.0",): True}
    pin(stage.desk, "sa", pinned=False)
    await stage.serving.keep_pinned(timeout_s=PATIENT_S)
    assert {one.names: one.pinned for one in stage.runtime.loaded()} == {("a@1.0.0",): False, ("b@1.0.0",): True}


async def test_what_was_deleted_leaves_memory(stage: Stage) -> None:
    """As soon as nobody uses it; what a version that exists has used, and a reservation, stay."""
    for name in ("kept", "gone"):
        stage.fake(name)
        await stage.serving.preload(name, keep_alive=-1, timeout_s=PATIENT_S)
    await stage.serving.residency.unload_deleted()
    assert names(stage) == [("kept@1.0.0",), ("gone@1.0.0",)]
    stage.desk.do(releases.delete_model, "gone", force=True)
    await stage.serving.residency.unload_deleted()
    assert names(stage) == [("kept@1.0.0",)]


async def test_versions_with_other_adapters_share_what_is_in_memory(sqlite: Database, tmp_path: Path) -> None:
    """One unit serves both; each answer is that of its own adapter."""
    async with staged(sqlite, tmp_path) as stage:
        (tmp_path / "lab").mkdir()
        adapters: list[dict[str, Any]] = []
        for name in ("one", "two"):
            (tmp_path / "lab" / name).write_bytes(b"lora")
            adapters.append({"adapters": (Adapter(id=name, source=FolderSource(root="lab", path=name), scale=0.5),)})
        stage.fake("m")
        for number, values in zip(("1.1.0", "1.2.0"), adapters, strict=True):
            stage.desk.do(releases.create_version, "m", number, values, status=Status.ACTIVE)
        texts = set()
        for number in ("1.0.0", "1.1.0", "1.2.0"):
            _, events = await stage.ask(None, f"m@{number}")
            assert done(events)
            texts.add("".join(getattr(event, "delta", "") for event in events))
        assert len(texts) == 3
        assert names(stage) == [("m@1.0.0", "m@1.1.0", "m@1.2.0")]
