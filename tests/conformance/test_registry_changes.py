"""Changes of the registry as such: logged, rehearsed, undone, made by two servers at once; on both databases."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serai import audit
from serai.audit import SYSTEM
from serai.errors import Conflict, NotFound
from serai.registry import bindings, releases, store
from serai.registry.errors import (
    ActiveVersionLimitExceeded,
    AliasMoved,
    VersionInUse,
)
from serai.registry.registry import Change, Registry
from serai.registry.rules import RegistryRules
from serai.registry.seed import seed
from serai.registry.service import Limits
from serai.storage.database import Database
from serai.storage.tables import registry as tables
from support.registry import ANN, Desk, Opener, check_integrity, entries, facts, loaded_anew, refused, rows
from unit.registry.build import a_model, a_service, a_version, to

# --- rule 6: the audit log ---

CHANGES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[str]]] = {
    "create a model": (releases.create_model, (a_model("new"), a_version("new")), {}, ["models.create new"]),
    "update a model": (releases.update_model, ("m", {"name": "other"}), {}, ["models.update m"]),
    "delete a model": (releases.delete_model, ("free",), {}, ["models.delete free"]),
    "create a version": (releases.create_version, ("m", "2.0.0", {}), {}, ["versions.create m@2.0.0"]),
    "update a version": (releases.update_version, ("m", "1.0.0", {"tags": ("x",)}), {}, ["versions.update m@1.0.0"]),
    "deprecate": (releases.deprecate, ("m", "1.0.0"), {}, ["versions.deprecate m@1.0.0"]),
    "activate": (releases.activate, ("m", "1.2.0"), {}, ["versions.activate m@1.2.0"]),
    "publish": (releases.publish, ("m", "1.0.0"), {}, ["versions.publish m@1.0.0"]),
    "unpublish": (releases.unpublish, ("free", "1.0.0"), {}, ["versions.unpublish free@1.0.0"]),
    "retire": (releases.retire, ("m", "1.2.0"), {}, ["versions.retire m@1.2.0"]),
    "delete a version": (releases.delete_version, ("m", "1.0.0"), {}, ["versions.delete m@1.0.0"]),
    "make an alias": (
        releases.put_alias,
        ("m", "y", "1.0.0"),
        {"expected_from": None, "check": True},
        ["aliases.put m@y"],
    ),
    "move an alias": (
        releases.put_alias,
        ("m", "x", "1.0.0"),
        {"expected_from": "1.1.0", "check": True},
        ["aliases.put m@x"],
    ),
    "delete an alias": (releases.delete_alias, ("free", "x"), {}, ["aliases.delete free@x"]),
    "create a service": (bindings.create_service, (a_service("t", to("m@1.0.0")),), {}, ["services.create t"]),
    "update a service": (bindings.update_service, ("s", {"name": "other"}, {}), {}, ["services.update s"]),
    "switch": (
        bindings.switch_version,
        ("s",),
        {"model": "m", "version": "1.0.0", "alias": None},
        ["services.switch s"],
    ),
    "roll back": (bindings.rollback, ("s",), {}, ["services.rollback s"]),
    "publish a service": (bindings.set_published, ("s",), {"published": True}, ["services.publish s"]),
    "unpublish a service": (bindings.set_published, ("p",), {"published": False}, ["services.unpublish p"]),
    "delete a service": (bindings.delete_service, ("s",), {}, ["services.delete s"]),
}


def prepare(desk: Desk) -> None:
    """Make what `CHANGES` changes."""
    desk.model("m", "1.0.0", "1.1.0", "1.2.0")
    desk.model("free")
    desk.do(releases.publish, "free", "1.0.0")
    desk.do(releases.deprecate, "m", "1.2.0")
    desk.do(releases.put_alias, "m", "x", "1.1.0", expected_from=None, check=False)
    desk.do(releases.put_alias, "free", "x", "1.0.0", expected_from=None, check=False)
    desk.service("s", to("m@1.1.0"))
    desk.do(bindings.update_service, "s", {}, {"limits": Limits(concurrency=1)})
    desk.service("p", published=True)


def undone(desk: Desk, command: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Run a command in a transaction that is rolled back, as a rehearsal is."""

    def rehearse(connection: Any) -> None:
        desk.registry.write(connection, command, ANN, desk.now, *args, **kwargs)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        desk.database.run_sync(rehearse)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_one_entry_and_can_be_rehearsed(desk: Desk, name: str) -> None:
    """One row per changed object with who, when, what, before, after and the request; a rehearsal writes none."""
    command, args, kwargs, expected = CHANGES[name]
    prepare(desk)
    before, seen = entries(desk.database), facts(desk.see())
    undone(desk, command, *args, **kwargs)
    assert (entries(desk.database), facts(desk.see())) == (before, seen)
    desk.clock.advance(60)
    desk.do(command, *args, **kwargs)
    written = entries(desk.database)[len(before) :]
    assert [f"{entry.action} {entry.object_id}" for entry in written] == expected
    for entry in written:
        assert (entry.actor, entry.address, entry.request_id) == (ANN.id, ANN.address, ANN.request_id)
        assert entry.at == desk.now
        assert (entry.before is None) is (entry.action.endswith(".create") or name == "make an alias")
        assert (entry.after is None) is (entry.action.endswith(".delete") and entry.object_kind != "version")
        assert entry.before != entry.after
    assert desk.database.read_sync(audit.verify).ok
    assert facts(desk.see()) == facts(loaded_anew(desk.database, desk.rules)) != seen


def test_the_log_tells_what_a_new_and_a_deleted_model_held(desk: Desk) -> None:
    """The first version as a whole, and all versions and aliases at the end: the log alone can say what there was."""
    desk.model("m", "1.0.0", engine="e")
    desk.do(releases.create_version, "m", "1.1.0", {})
    desk.do(releases.put_alias, "m", "x", "1.1.0", expected_from=None, check=False)
    desk.do(releases.delete_model, "m")
    created, *_, deleted = entries(desk.database)
    assert created.after["version"]["engine"] == "e"
    assert [version["version"] for version in deleted.before["versions"]] == ["1.1.0", "1.0.0"]
    assert deleted.before["aliases"] == {"x": "1.1.0"}


# --- what ships ---


def test_what_ships_is_written_once_and_only_into_an_empty_registry(start: Opener) -> None:
    """Two servers that start together seed once; whoever deleted all of it does not get it back."""
    desks = [start(), start(deployment="commercial")]
    database, seeded = desks[0].database, list[bool]()
    run_together([lambda desk=desk: seeded.append(database.run_sync(seed, desk.registry, desk.now)) for desk in desks])
    assert sorted(seeded) == [False, True]
    seen = desks[0].see()
    assert {"chat", "speech-to-text"} <= {entry.model.task for entry in seen.models.values()}
    assert facts(seen) == facts(loaded_anew(database, desks[0].rules))
    assert {entry.action for entry in entries(database)} == {"models.seed", "services.seed"}
    assert {entry.actor for entry in entries(database)} == {SYSTEM.id}
    for service in seen.services.values():
        assert len(database.read_sync(store.bindings, service.id)) == 1
    check_integrity(database, desks[0].rules)
    for service_id in list(seen.services):
        desks[0].do(bindings.delete_service, service_id, force=True)
    for model_id in list(seen.models):
        desks[0].do(releases.delete_model, model_id, force=True)
    assert not database.run_sync(seed, desks[1].registry, desks[1].now)
    assert desks[1].see().models == {}


# --- two servers ---


def run_together(calls: list[Callable[[], Any]]) -> None:
    """Run each call on a thread of its own, all starting at once; raise what any of them raised."""
    barrier = threading.Barrier(len(calls))
    failed: list[BaseException] = []

    def run(call: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised again on the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_another_server_catches_up_with_every_kind_of_change(start: Opener) -> None:
    """After each change here, what the other sees is what a fresh start would load."""
    here, there = start(), start()
    there.see()
    prepare(here)
    for command, args, kwargs, _ in CHANGES.values():
        if command in (releases.delete_version, bindings.delete_service) or command is bindings.rollback:
            continue
        try:
            here.do(command, *args, **kwargs)
        except (Conflict, NotFound):
            continue
        assert facts(there.see()) == facts(here.see()) == facts(loaded_anew(here.database, here.rules))
    here.do(bindings.delete_service, "s")
    here.do(releases.delete_model, "m", force=True)
    assert facts(there.see()) == facts(here.see()) == facts(loaded_anew(here.database, here.rules))
    assert "m" not in there.see().models


def test_a_rule_is_judged_on_what_the_other_server_wrote(start: Opener) -> None:
    """A server that never looked since still knows it when it writes."""
    here, there = start(), start()
    there.see()
    here.model("m", *(f"1.{n}.0" for n in range(5)))
    with pytest.raises(ActiveVersionLimitExceeded):
        there.do(releases.create_version, "m", "2.0.0", {})
    here.service("s", to("m@1.0.0"))
    with pytest.raises(VersionInUse):
        there.do(releases.delete_version, "m", "1.0.0")


def test_two_servers_that_write_at_once_miss_nothing(start: Opener) -> None:
    """Eight threads through two registries: no change is lost, both end where a fresh start does, the cap holds."""
    desks = [start(on_limit="deprecate-oldest") for _ in range(2)]
    for name in "ab":
        desks[0].model(name)
        desks[1].service(f"s-{name}", to(name))

    def work(number: int) -> None:
        desk, name = desks[number % 2], "ab"[number % 4 // 2]
        for step in range(6):
            made = f"1.{number + 1}.{step}"
            desk.do(releases.create_version, name, made, {})
            desk.do(releases.put_alias, name, f"x{number % 3}", made, expected_from=None, check=False)
            config = {"thread": number, "step": step}
            desk.do(bindings.update_service, f"s-{name}", {"description": made}, {"config": config})
            desk.see()

    mark = len(entries(desks[0].database))
    run_together([lambda number=number: work(number) for number in range(8)])
    fresh = facts(loaded_anew(desks[0].database, desks[0].rules))
    assert facts(desks[0].see()) == facts(desks[1].see()) == fresh
    written = [entry.action for entry in entries(desks[0].database)[mark:]]
    assert {action: written.count(action) for action in set(written) - {"versions.deprecate"}} == {
        "versions.create": 48,
        "aliases.put": 48,
        "services.update": 48,
    }
    check_integrity(desks[0].database, desks[0].rules)


@pytest.mark.parametrize("on_limit", ["refuse", "deprecate-oldest"])
def test_twenty_creators_at_once_never_pass_the_limit(start: Opener, on_limit: str) -> None:
    """From two servers; with the policy nobody is refused, and what a service uses stays active."""
    desks = [start(on_limit=on_limit) for _ in range(2)]
    desks[0].model("m")
    desks[0].service("s", to("m@1.0.0"))
    refused_: list[str] = []

    def create(number: int) -> None:
        try:
            desks[number % 2].do(releases.create_version, "m", f"2.{number}.0", {})
        except ActiveVersionLimitExceeded as error:
            refused_.append(error.code)

    run_together([lambda number=number: create(number) for number in range(20)])
    statuses = [one.version.status.value for one in desks[1].see().models["m"].candidates.values()]
    assert statuses.count("active") == 5
    assert len(refused_) == (16 if on_limit == "refuse" else 0)
    assert desks[1].status("m@1.0.0") == "active"
    check_integrity(desks[0].database, desks[0].rules)


def test_one_of_two_who_swap_an_alias_wins(start: Opener) -> None:
    """Both saw 1.0.0; exactly one of them moves it."""
    desks = [start(), start()]
    desks[0].model("m", "1.0.0", "1.1.0", "1.2.0")
    desks[0].do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=True)
    outcome: list[str] = []

    def swap(desk: Desk, to_: str) -> None:
        try:
            desk.do(releases.put_alias, "m", "x", to_, expected_from="1.0.0", check=True)
            outcome.append("moved")
        except AliasMoved:
            outcome.append("refused")

    run_together([lambda i=i: swap(desks[i % 2], f"1.{i % 2 + 1}.0") for i in range(6)])
    assert sorted(outcome) == ["moved"] + ["refused"] * 5
    check_integrity(desks[0].database, desks[0].rules)


# --- a change that did not happen ---


def test_what_was_rolled_back_was_never_seen(desk: Desk) -> None:
    """A transaction with several changes that fails at its end leaves the registry as it was, then and later."""
    desk.model("m")
    before = facts(desk.see())

    def fail(connection: Any) -> None:
        desk.registry.write(connection, releases.create_version, ANN, desk.now, "m", "2.0.0", {})
        desk.registry.write(connection, releases.create_model, ANN, desk.now, a_model("n"), a_version("n"))
        desk.registry.write(connection, releases.put_alias, ANN, desk.now, "n", "x", "1.0.0", **ANYHOW)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        desk.database.run_sync(fail)
    assert facts(desk.see()) == before
    desk.do(releases.update_model, "m", {"name": "other"})
    desk.model("o")
    assert set(desk.see().models) == {"m", "o"}
    assert facts(desk.see()) == facts(loaded_anew(desk.database, desk.rules))


ANYHOW: dict[str, Any] = {"expected_from": None, "check": False}


def test_several_changes_in_one_transaction_see_each_other(desk: Desk) -> None:
    """A later one is judged on what the earlier ones did, and all of them arrive."""

    def both(connection: Any) -> None:
        desk.registry.write(connection, releases.create_model, ANN, desk.now, a_model("n"), a_version("n"))
        desk.registry.write(connection, bindings.create_service, ANN, desk.now, a_service("s", to("n@1.0.0")))

    desk.database.run_sync(both)
    assert desk.bound("s") == ("n@1.0.0",)
    assert facts(desk.see()) == facts(loaded_anew(desk.database, desk.rules))


def test_a_refused_change_leaves_no_trace(desk: Desk) -> None:
    """A command that fails after it has written some of its rows leaves none of them."""
    desk.model("m")

    def half(change: Change) -> None:
        releases.create_version(change, "m", "2.0.0", {})
        raise VersionInUse("no")

    refused(VersionInUse, desk, half)
    assert len(rows(desk.database, tables.versions)) == 1


# --- the snapshot in memory ---

pytest_anyio = pytest.mark.anyio


@pytest_anyio
async def test_the_registry_is_read_again_only_when_something_changed(desk: Desk) -> None:
    """Asking twice gives the very same snapshot; a change of anybody on this server gives a new one."""
    registry = desk.registry
    first = await registry.current()
    assert await registry.current() is first
    await desk.database.run(registry.write, releases.create_model, ANN, desk.now, a_model("m"), a_version("m"))
    second = await registry.current()
    assert second is not first
    assert "m" in second.models
    assert await registry.current() is second


@pytest_anyio
async def test_a_change_is_seen_although_somebody_else_is_reading_it(start: Opener) -> None:
    """While one request reads what another server changed, no other is answered with what was there before."""
    here, there = start(), start()
    registry, database = here.registry, here.database
    await registry.current()
    reading, released = threading.Event(), threading.Event()

    class Slow:
        """The database, whose reads wait until they are released."""

        async def read(self, function: Callable[..., Any]) -> Any:
            def held(connection: Any) -> Any:
                reading.set()
                assert released.wait(20)
                return function(connection)

            return await database.read(held)

    registry._database = Slow()  # type: ignore[assignment]
    await database.run(there.registry.write, releases.create_model, ANN, here.now, a_model("m"), a_version("m"))
    first = asyncio.create_task(registry.current())
    assert await asyncio.to_thread(reading.wait, 20)
    second = asyncio.create_task(registry.current())
    await asyncio.sleep(0)
    released.set()
    assert "m" in (await second).models
    assert "m" in (await first).models


@pytest_anyio
async def test_a_read_that_failed_is_tried_again(desk: Desk) -> None:
    """A look that could not be taken leaves the registry to be looked at."""

    class Broken:
        async def read(self, function: Callable[..., Any]) -> Any:
            raise InterruptedError

    registry = desk.registry
    desk.model("m")
    registry._database, kept = Broken(), registry._database  # type: ignore[assignment]
    with pytest.raises(InterruptedError):
        await registry.current()
    registry._database = kept
    assert "m" in (await registry.current()).models


def test_a_closed_registry_hears_nothing(registry_database: Database) -> None:
    """Its subscription ends with it."""
    registry = Registry(registry_database, RegistryRules())
    registry.close()
    assert registry_database.notices._subscribers("registry") == []
