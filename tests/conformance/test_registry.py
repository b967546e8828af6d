"""The registry's rules, each on the rows of both databases: versions, services, histories, two servers."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from serai import audit
from serai.audit import SYSTEM
from serai.clock import ManualClock
from serai.errors import Conflict, InvalidInput, NotFound, SeraiError
from serai.registry import bindings, releases, store
from serai.registry.decision import Reason
from serai.registry.errors import (
    ActiveVersionLimitExceeded,
    AliasMoved,
    AliasNotFound,
    DeprecatedVersion,
    FallbackCycle,
    ImmutableVersion,
    IncompatibleFallback,
    InvalidSplit,
    InvalidStatusMove,
    InvalidVersionFormat,
    LicenceRefused,
    ModelAlreadyExists,
    ModelNotFound,
    NameCollision,
    NothingToRollBack,
    ServiceAlreadyExists,
    ServiceNotFound,
    ServiceVersionSwitchError,
    VersionAlreadyExists,
    VersionInUse,
    VersionNotActive,
    VersionNotFound,
)
from serai.registry.model import alias_at
from serai.registry.plan import Request
from serai.registry.policy import decide
from serai.registry.registry import Change, Registry
from serai.registry.rules import RegistryRules
from serai.registry.seed import seed
from serai.registry.service import Limits, binding_at
from serai.registry.source import File, Footprint, HubSource, PackageSource
from serai.registry.version import IDENTITY, TECHNICAL, Status, digest
from serai.storage.database import Database
from serai.storage.tables import registry as tables
from support.registry import ANN, Desk, check_integrity, entries, facts, loaded_anew, rows
from unit.registry.build import a_model, a_service, a_version, link, to

FILES = (File(path="weights", size=3, sha256="a" * 64),)
Opener = Callable[..., Desk]


@pytest.fixture
def database(registry_database: Database) -> Database:
    """An empty database."""
    return registry_database


@pytest.fixture
def server(database: Database) -> Iterator[Opener]:
    """Starts registries on the database, each with rules of its own; they stand for servers."""
    opened: list[Desk] = []

    def start(clock: ManualClock | None = None, **rules: Any) -> Desk:
        opened.append(Desk(database, clock=clock, **rules))
        return opened[-1]

    yield start
    for desk in opened:
        desk.registry.close()


@pytest.fixture
def desk(server: Opener) -> Desk:
    """One registry with the rules as they come."""
    return server()


def refused(error: type[SeraiError], desk: Desk, command: Callable[..., Any], *args: Any, **kwargs: Any) -> SeraiError:
    """Assert that a command is refused with that error, and that nothing at all has changed by it."""
    before = entries(desk.database), facts(desk.see())
    with pytest.raises(error) as caught:
        desk.do(command, *args, **kwargs)
    assert (entries(desk.database), facts(desk.see())) == before
    assert facts(loaded_anew(desk.database, desk.rules)) == before[1]
    return caught.value


# --- rule 1: a new version copies the technical fields ---


def test_a_new_version_copies_the_newest_and_overrides_in_the_same_call(desk: Desk) -> None:
    """Every technical field but the overridden; the newest by precedence is the base if none is named."""
    desk.model("m", "1.9.0", engine="vllm", quantization="int8", files=FILES, duties=("attribution",))
    desk.do(releases.create_version, "m", "1.10.0", {"quantization": "int4"})
    made = desk.do(releases.create_version, "m", "2.0.0", {"engine_options": {"a": 1}, "release_notes": "new"})
    first, base = desk.version("m@1.9.0"), desk.version("m@1.10.0")
    assert (made.based_on, base.based_on) == ("1.10.0", "1.9.0")
    assert made.quantization == "int4"
    kept = set(TECHNICAL) - {"quantization", "engine_options"}
    assert {name: getattr(made, name) for name in kept} == {name: getattr(first, name) for name in kept}
    assert (made.engine_options, made.release_notes, base.release_notes) == ({"a": 1}, "new", "")
    assert desk.version("m@2.0.0") == made


def test_a_new_version_may_be_based_on_an_older_one(desk: Desk) -> None:
    """By its number; one that does not exist is 404, and a tombstone is none."""
    desk.model("m", "1.0.0", engine="a")
    desk.do(releases.create_version, "m", "2.0.0", {"engine": "b"})
    assert desk.do(releases.create_version, "m", "1.1.0", {}, based_on="1.0.0").engine == "a"
    refused(VersionNotFound, desk, releases.create_version, "m", "3.0.0", {}, based_on="9.9.9")
    desk.do(releases.delete_version, "m", "1.0.0")
    refused(VersionNotFound, desk, releases.create_version, "m", "3.0.0", {}, based_on="1.0.0")
    refused(ModelNotFound, desk, releases.create_version, "other", "3.0.0", {})


def test_leave_to_run_code_stays_with_the_source_it_was_given_for(desk: Desk) -> None:
    """An admin allowed one source's code; a version or an edit with another source starts without that."""
    trusted = HubSource(repo="good/model", revision="a" * 40)
    other = HubSource(repo="evil/model", revision="b" * 40)
    desk.model("m", "1.0.0", source=trusted, allow_remote_code=True, allow_pickle=True)
    same = desk.do(releases.create_version, "m", "1.1.0", {"engine": "x"})
    assert (same.allow_remote_code, same.allow_pickle) == (True, True)
    moved = desk.do(releases.create_version, "m", "1.2.0", {"source": other})
    assert (moved.allow_remote_code, moved.allow_pickle) == (False, False)
    edited = desk.do(releases.update_version, "m", "1.0.0", {"source": other})
    assert (edited.allow_remote_code, edited.allow_pickle) == (False, False)
    told = desk.do(releases.create_version, "m", "1.3.0", {"source": trusted, "allow_remote_code": True})
    assert (told.allow_remote_code, told.allow_pickle) == (True, False)


@pytest.mark.parametrize("number", ["1.0.0junk", "01.0.0", "1.0.0\n", "v1.0.0", "1.0", "", "1.0.0-", "latest"])
def test_a_number_that_is_no_semantic_version_is_refused(desk: Desk, number: str) -> None:
    """With a new model and with a new version alike."""
    refused(InvalidVersionFormat, desk, releases.create_model, a_model("new"), a_version("new", number))
    desk.model("m")
    refused(InvalidVersionFormat, desk, releases.create_version, "m", number, {})


# --- rule 2: the limit on active versions ---


def test_the_sixth_active_version_is_refused(desk: Desk) -> None:
    """By creation, activation and publication; drafts and past versions do not count."""
    desk.model("m", *(f"1.{minor}.0" for minor in range(5)))
    desk.do(releases.create_version, "m", "2.0.0", {}, status=Status.DRAFT)
    error = refused(ActiveVersionLimitExceeded, desk, releases.create_version, "m", "2.1.0", {})
    assert (error.code, sorted(error.details)) == ("ACTIVE_VERSION_LIMIT_EXCEEDED", [f"1.{n}.0" for n in range(5)])
    refused(ActiveVersionLimitExceeded, desk, releases.activate, "m", "2.0.0")
    refused(ActiveVersionLimitExceeded, desk, releases.publish, "m", "2.0.0")
    desk.do(releases.deprecate, "m", "1.2.0")
    desk.do(releases.publish, "m", "2.0.0")
    refused(ActiveVersionLimitExceeded, desk, releases.activate, "m", "1.2.0")
    check_integrity(desk.database, desk.rules)


def test_publishing_an_active_version_needs_no_room(desk: Desk) -> None:
    """At the limit it is still one of the five."""
    desk.model("m", *(f"1.{minor}.0" for minor in range(5)))
    assert desk.do(releases.publish, "m", "1.0.0").is_published


def test_the_policy_deprecates_the_oldest_that_nobody_uses(server: Opener) -> None:
    """In the same transaction, with an entry of its own; what a service or an alias uses stays."""
    desk = server(on_limit="deprecate-oldest", max_active_versions_per_model=3)
    desk.model("m", "1.0.0", "1.1.0", "1.2.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(releases.put_alias, "m", "prod", "1.1.0", expected_from=None, check=False)
    start = len(entries(desk.database))
    desk.do(releases.create_version, "m", "1.3.0", {})
    assert [desk.status(f"m@1.{n}.0") for n in range(4)] == ["active", "active", "deprecated", "active"]
    assert [(entry.action, entry.object_id) for entry in entries(desk.database)[start:]] == [
        ("versions.deprecate", "m@1.2.0"),
        ("versions.create", "m@1.3.0"),
    ]
    desk.service("t", to("m@1.3.0"))
    refused(ActiveVersionLimitExceeded, desk, releases.create_version, "m", "1.4.0", {})


def test_the_default_status_is_a_setting(server: Opener) -> None:
    """A version without a status gets it."""
    assert server(default_version_status="draft").model("a").id == "a"
    desk = server(default_version_status="draft")
    assert desk.do(releases.create_version, "a", "2.0.0", {}).status is Status.DRAFT
    assert server().do(releases.create_version, "a", "3.0.0", {}).status is Status.ACTIVE


# --- rule 3: immutability ---


def test_a_published_version_refuses_what_it_is_and_takes_the_rest(desk: Desk) -> None:
    """Source, engine, options, files and the like are refused by name; notes, tags, results and status are not."""
    desk.model("m", "1.0.0")
    published = desk.do(releases.publish, "m", "1.0.0")
    assert published.immutable
    assert published.digest == digest(published)
    other: dict[str, Any] = {
        "source": PackageSource(name="other"),
        "engine": "other",
        "engine_options": {"a": 1},
        "quantization": "int4",
        "files": FILES,
        "allow_pickle": True,
    }
    for name, value in other.items():
        error = refused(ImmutableVersion, desk, releases.update_version, "m", "1.0.0", {name: value, "tags": ("t",)})
        assert name in error.details
    desk.do(releases.update_version, "m", "1.0.0", {"release_notes": "notes", "tags": ("t",)})
    desk.do(releases.update_version, "m", "1.0.0", {"footprint": (Footprint(device="cpu", bytes=5, measured=True),)})
    desk.do(releases.deprecate, "m", "1.0.0")
    after = desk.version("m@1.0.0")
    assert (after.release_notes, after.tags, after.status) == ("notes", ("t",), Status.DEPRECATED)
    assert {name: getattr(after, name) for name in IDENTITY} == {name: getattr(published, name) for name in IDENTITY}
    assert after.digest == published.digest
    assert desk.do(releases.unpublish, "m", "1.0.0").immutable
    refused(ImmutableVersion, desk, releases.update_version, "m", "1.0.0", {"engine": "other"})


def test_without_the_setting_publishing_leaves_a_version_open(server: Opener) -> None:
    """And its digest follows what it is."""
    desk = server(enable_version_immutability=False)
    desk.model("m")
    before = desk.do(releases.publish, "m", "1.0.0")
    after = desk.do(releases.update_version, "m", "1.0.0", {"engine": "other"})
    assert not before.immutable
    assert after.digest == digest(after) != before.digest


def test_what_a_published_service_uses_is_immutable(desk: Desk) -> None:
    """Also through an alias, a floating target and a chain; not any more when the service is taken back."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    desk.service("chained", to("m@:x"))
    desk.service("s", to("m"), fallback=(link("service:chained"),))
    desk.do(releases.update_version, "m", "1.0.0", {"engine": "still open"})
    desk.do(bindings.set_published, "s", published=True)
    for number in ("1.0.0", "1.1.0"):
        refused(ImmutableVersion, desk, releases.update_version, "m", number, {"engine": "other"})
    desk.do(releases.update_version, "m", "1.0.0", {"release_notes": "notes"})
    desk.do(bindings.set_published, "s", published=False)
    assert desk.do(releases.update_version, "m", "1.0.0", {"engine": "other"}).engine == "other"


def test_an_edit_that_changes_nothing_writes_nothing(desk: Desk) -> None:
    """Sending the values there are is no change, not even of an immutable version."""
    desk.model("m", engine="e")
    desk.do(releases.publish, "m", "1.0.0")
    before = entries(desk.database)
    desk.do(releases.update_version, "m", "1.0.0", {"engine": "e", "tags": ()})
    assert entries(desk.database) == before


# --- rule 4: deprecated versions ---


def test_a_deprecated_version_takes_no_new_binding_and_keeps_the_old(desk: Desk) -> None:
    """Creation, update, switch, split, shadow, chain and alias are refused; who uses it goes on and may be edited."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("old", to("m@1.0.0"))
    desk.service("s", to("m@1.1.0"))
    desk.do(releases.put_alias, "m", "x", "1.1.0", expected_from=None, check=False)
    desk.service("by-alias", to("m@:x"))
    desk.do(releases.deprecate, "m", "1.0.0", force=True)
    old = to("m@1.0.0")
    refused(DeprecatedVersion, desk, bindings.create_service, a_service("new", old))
    refused(DeprecatedVersion, desk, bindings.update_service, "s", {}, {"targets": (old,)})
    refused(DeprecatedVersion, desk, bindings.update_service, "s", {}, {"shadow": old})
    refused(DeprecatedVersion, desk, bindings.update_service, "s", {}, {"fallback": (link("m@1.0.0"),)})
    split = (to("m@1.1.0", 60), to("m@1.0.0", 40))
    refused(DeprecatedVersion, desk, bindings.update_service, "s", {}, {"targets": split})
    refused(DeprecatedVersion, desk, bindings.switch_version, "s", model="m", version="1.0.0", alias=None)
    refused(DeprecatedVersion, desk, releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    written = desk.do(bindings.update_service, "old", {"name": "renamed"}, {"limits": Limits(concurrency=2)})
    assert "deprecated" in written.warnings[0]
    decision = decide(desk.see(), Request(service="old"))
    assert (decision.version, decision.reason) == ("1.0.0", Reason.BOUND)
    assert "deprecated" in decision.warnings[0]


def test_the_two_settings_on_deprecation_are_independent(server: Opener, database: Database) -> None:
    """One allows the switch, the other the warning; each alone."""
    server().model("m", "1.0.0", "1.1.0")
    server().do(releases.deprecate, "m", "1.0.0")
    for allowed in (True, False):
        for warned in (True, False):
            desk = server(allow_service_deprecated_version_switch=allowed, warn_on_deprecated_version_usage=warned)
            name = f"s-{allowed}-{warned}".lower()
            desk.service(name, to("m@1.1.0"))
            if not allowed:
                refused(DeprecatedVersion, desk, bindings.switch_version, name, model="m", version="1.0.0", alias=None)
                continue
            written = desk.do(bindings.switch_version, name, model="m", version="1.0.0", alias=None)
            assert bool(written.warnings) is warned
            assert bool(decide(desk.see(), Request(service=name)).warnings) is warned


def test_deprecation_has_dates_and_activation_forgets_them(desk: Desk) -> None:
    """When, until when and why; a sunset must lie ahead."""
    desk.model("m", "1.0.0", "1.1.0")
    sunset = desk.now + timedelta(days=30)
    made = desk.do(releases.deprecate, "m", "1.0.0", reason="old", sunset_at=sunset)
    assert (made.deprecated_at, made.sunset_at, made.deprecation_reason) == (desk.now, sunset, "old")
    refused(InvalidInput, desk, releases.deprecate, "m", "1.1.0", sunset_at=desk.now)
    again = desk.do(releases.activate, "m", "1.0.0")
    assert (again.deprecated_at, again.sunset_at, again.deprecation_reason) == (None, None, "")


def test_a_status_moves_only_by_the_table(desk: Desk) -> None:
    """draft → active ↔ deprecated → retired; everything else is refused, and so is a version that is not there."""
    desk.model("m", "1.0.0", status=Status.DRAFT)
    refused(InvalidStatusMove, desk, releases.deprecate, "m", "1.0.0")
    refused(InvalidStatusMove, desk, releases.retire, "m", "1.0.0")
    desk.do(releases.activate, "m", "1.0.0")
    refused(InvalidStatusMove, desk, releases.activate, "m", "1.0.0")
    refused(InvalidStatusMove, desk, releases.retire, "m", "1.0.0")
    desk.do(releases.deprecate, "m", "1.0.0")
    refused(InvalidStatusMove, desk, releases.deprecate, "m", "1.0.0")
    desk.do(releases.retire, "m", "1.0.0")
    for command in (releases.activate, releases.deprecate, releases.publish, releases.retire):
        refused(InvalidStatusMove, desk, command, "m", "1.0.0")
    refused(Conflict, desk, releases.unpublish, "m", "1.0.0")
    commands = (releases.activate, releases.deprecate, releases.publish, releases.unpublish, releases.retire)
    for command in (*commands, releases.delete_version):
        refused(VersionNotFound, desk, command, "m", "9.9.9")
        refused(ModelNotFound, desk, command, "other", "1.0.0")


# --- rule 5: what a service uses ---


def test_what_a_service_uses_is_refused_with_the_list(desk: Desk) -> None:
    """Deprecation, deletion, retirement, unpublication of a version; deletion of the model and of the alias."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    desk.service("direct", to("m@1.0.0", 50), to("m@1.1.0", 50))
    desk.service("alias", to("m@:x"))
    desk.service("chain", to("m@1.1.0"), fallback=(link("service:alias"),))
    desk.do(releases.publish, "m", "1.0.0")
    users = ["alias", "chain", "direct"]
    for command in (releases.deprecate, releases.unpublish, releases.delete_version):
        assert refused(VersionInUse, desk, command, "m", "1.0.0").details == users
    assert refused(VersionInUse, desk, releases.delete_model, "m").details == users
    assert refused(VersionInUse, desk, releases.delete_alias, "m", "x").details == ["alias"]
    assert refused(VersionInUse, desk, bindings.delete_service, "alias").details == ["chain"]
    desk.do(releases.deprecate, "m", "1.0.0", force=True)
    assert refused(VersionInUse, desk, releases.retire, "m", "1.0.0").details == users


def test_force_puts_the_services_right(desk: Desk) -> None:
    """Targets, shadow and links to what goes are taken out, the weights that are left make 100, all in one change."""
    desk.model("m", "1.0.0", "1.1.0", "1.2.0")
    desk.do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    shadowed = a_service("s", to("m@1.0.0", 60), to("m@1.1.0", 30), to("m@1.2.0", 10), shadow=to("m@:x"))
    desk.do(bindings.create_service, shadowed)
    desk.service("alone", to("m@:x"), fallback=(link("m@1.0.0"), link("m@1.1.0"), link("service:s")))
    desk.service("other", to("m@1.1.0"))
    start = len(entries(desk.database))
    desk.do(releases.delete_version, "m", "1.0.0", force=True)
    services = desk.see().services
    assert [(target.reference, target.weight) for target in services["s"].revision.targets] == [
        ("m@1.1.0", 75),
        ("m@1.2.0", 25),
    ]
    assert services["s"].revision.shadow is None
    assert services["alone"].revision.targets == ()
    assert services["alone"].revision.fallback == (link("m@1.1.0"), link("service:s"))
    assert services["other"].revision.n == 1
    assert "x" not in desk.see().models["m"].aliases
    assert sorted((entry.action, entry.object_id) for entry in entries(desk.database)[start:]) == [
        ("aliases.delete", "m@x"),
        ("services.detach", "alone"),
        ("services.detach", "s"),
        ("versions.delete", "m@1.0.0"),
    ]
    check_integrity(desk.database, desk.rules)


def test_a_forced_deletion_of_a_model_leaves_nothing_that_names_it(desk: Desk) -> None:
    """Its versions are tombstones, its aliases gone with an event, its services without it."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.model("n")
    desk.do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    desk.service("s", to("m@:x", 1), to("n@1.0.0", 99), fallback=(link("m"),))
    desk.service("t", to("m"))
    desk.do(releases.delete_model, "m", force=True)
    seen = desk.see()
    assert "m" not in seen.models
    assert seen.services["s"].revision.targets == (to("n@1.0.0"),)
    assert seen.services["s"].revision.fallback == ()
    assert seen.services["t"].revision.targets == ()
    assert {row.status for row in rows(desk.database, tables.versions, model_id="m")} == {"tombstone"}
    assert desk.database.read_sync(store.alias_events, "m", "x")[-1].after is None
    check_integrity(desk.database, desk.rules)


def test_retiring_the_last_version_that_a_floating_target_means(desk: Desk) -> None:
    """Forced, it leaves no target; with another version left, the target goes on to mean that."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("s", to("m"))
    for number in ("1.1.0", "1.0.0"):
        desk.do(releases.deprecate, "m", number, force=True)
    assert decide(desk.see(), Request(service="s")).version == "1.1.0"
    desk.do(releases.retire, "m", "1.1.0", force=True)
    assert desk.bound("s") == ("m",)
    assert decide(desk.see(), Request(service="s")).version == "1.0.0"
    desk.do(releases.retire, "m", "1.0.0", force=True)
    assert desk.bound("s") == ()
    check_integrity(desk.database, desk.rules)


def test_force_puts_right_also_where_the_model_is_switched_off(desk: Desk) -> None:
    """A retired version is gone for a service, whatever else stands in its way."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(releases.update_model, "m", {"active": False})
    desk.do(releases.deprecate, "m", "1.0.0", force=True)
    desk.do(releases.retire, "m", "1.0.0", force=True)
    assert desk.bound("s") == ()


def test_a_deprecated_version_can_be_activated_again(desk: Desk) -> None:
    """Its services never stopped."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(releases.deprecate, "m", "1.0.0", force=True)
    assert desk.do(releases.activate, "m", "1.0.0").status is Status.ACTIVE
    assert decide(desk.see(), Request(service="s")).warnings == ()


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


# --- models ---


def test_names_do_not_collide(desk: Desk) -> None:
    """A model's id and lookup names, and a service's id, are one name space, whatever the case."""
    desk.model("m", lookup_names=("Qwen/Qwen3",))
    desk.service("s", to("m"))
    new = a_version("new")
    refused(ModelAlreadyExists, desk, releases.create_model, a_model("m"), a_version("m", "2.0.0"))
    refused(NameCollision, desk, releases.create_model, a_model("s"), a_version("s"))
    refused(NameCollision, desk, releases.create_model, a_model("new", lookup_names=("qwen/QWEN3",)), new)
    refused(NameCollision, desk, releases.create_model, a_model("new", lookup_names=("s",)), new)
    refused(NameCollision, desk, releases.create_model, a_model("new", lookup_names=("m",)), new)
    refused(NameCollision, desk, bindings.create_service, a_service("m", to("m")))
    refused(ServiceAlreadyExists, desk, bindings.create_service, a_service("s", to("m")))
    desk.model("n")
    refused(NameCollision, desk, releases.update_model, "n", {"lookup_names": ("Qwen/qwen3",)})
    desk.do(releases.update_model, "m", {"lookup_names": ()})
    desk.do(releases.update_model, "n", {"lookup_names": ("Qwen/qwen3",)})
    assert desk.see().find_model("QWEN/qwen3") is desk.see().models["n"]


def test_a_card_is_changed_as_a_whole_or_not_at_all(desk: Desk) -> None:
    """What is wrong in it refuses all of it."""
    desk.model("m")
    refused(InvalidInput, desk, releases.update_model, "m", {"description": "x", "task": "cooking"})
    refused(InvalidInput, desk, releases.create_model, a_model("UPPER"), a_version("UPPER"))
    refused(ModelNotFound, desk, releases.update_model, "other", {"description": "x"})
    refused(ModelNotFound, desk, releases.delete_model, "other")


def test_the_numbers_of_a_deleted_version_are_never_used_again(desk: Desk) -> None:
    """Nor those of a deleted model whose id is made again; seq goes on too."""
    desk.model("m", "1.0.0", "1.1.0")
    refused(VersionAlreadyExists, desk, releases.create_version, "m", "1.1.0", {})
    desk.do(releases.delete_version, "m", "1.1.0")
    refused(VersionAlreadyExists, desk, releases.create_version, "m", "1.1.0", {})
    desk.do(releases.delete_model, "m")
    refused(VersionAlreadyExists, desk, releases.create_model, a_model("m"), a_version("m", "1.0.0"))
    refused(VersionAlreadyExists, desk, releases.create_model, a_model("m"), a_version("m", "1.1.0"))
    desk.model("m", "1.2.0")
    assert desk.version("m@1.2.0").seq == 3
    assert list(desk.see().models["m"].candidates) == ["1.2.0"]
    check_integrity(desk.database, desk.rules)


def test_the_default_is_the_newest_active_by_precedence(desk: Desk) -> None:
    """1.10.0 before 1.9.0, 2.0.0-rc.1 below 2.0.0, whatever the order in which they came."""
    desk.model("m", "1.10.0", "1.9.0", "2.0.0-rc.1")
    assert decide(desk.see(), Request(model="m")).version == "2.0.0-rc.1"
    desk.do(releases.create_version, "m", "2.0.0", {})
    assert decide(desk.see(), Request(model="m")).version == "2.0.0"
    desk.do(releases.deprecate, "m", "2.0.0")
    desk.do(releases.deprecate, "m", "2.0.0-rc.1")
    assert decide(desk.see(), Request(model="m")).version == "1.10.0"


# --- aliases ---


def test_an_alias_moves_only_from_where_the_caller_believes(desk: Desk) -> None:
    """Compare and swap: of two who both saw the same, the second is refused and told where it points now."""
    desk.model("m", "1.0.0", "1.1.0", "1.2.0")
    put = releases.put_alias
    refused(AliasMoved, desk, put, "m", "prod", "1.0.0", expected_from="1.1.0", check=True)
    assert desk.do(put, "m", "prod", "1.0.0", expected_from=None, check=True).epoch == 1
    assert desk.do(put, "m", "prod", "1.1.0", expected_from="1.0.0", check=True).epoch == 2
    error = refused(AliasMoved, desk, put, "m", "prod", "1.2.0", expected_from="1.0.0", check=True)
    assert error.details == {"current": "1.1.0", "expected_from": "1.0.0"}
    refused(AliasMoved, desk, put, "m", "prod", "1.2.0", expected_from=None, check=True)
    assert desk.do(put, "m", "prod", "1.2.0", expected_from=None, check=False).epoch == 3
    refused(VersionNotFound, desk, put, "m", "prod", "9.9.9", expected_from=None, check=False)
    for name in ("1.0", "v1", "latest", "UPPER", ""):
        refused(InvalidInput, desk, put, "m", name, "1.0.0", expected_from=None, check=False)


def test_what_an_alias_named_at_a_time(desk: Desk) -> None:
    """Its events answer, also for one that was deleted and made again; epochs count on."""
    desk.model("m", "1.0.0", "1.1.0")
    times = []
    for to_ in ("1.0.0", "1.1.0", None, "1.0.0"):
        desk.clock.advance(60)
        times.append((desk.now, to_))
        if to_ is None:
            desk.do(releases.delete_alias, "m", "prod", reason="gone")
        else:
            desk.do(releases.put_alias, "m", "prod", to_, expected_from=None, check=False, reason="why")
    events = tuple(desk.database.read_sync(store.alias_events, "m", "prod"))
    assert [event.epoch for event in events] == [1, 2, 3, 4]
    assert [event.reason for event in events] == ["why", "why", "gone", "why"]
    for moment, expected in times:
        assert alias_at(events, moment) == alias_at(events, moment + timedelta(seconds=59)) == expected
    assert alias_at(events, times[0][0] - timedelta(seconds=1)) is None
    refused(AliasNotFound, desk, releases.delete_alias, "m", "other")
    check_integrity(desk.database, desk.rules)


def test_an_alias_does_not_lead_a_service_where_it_could_not_be_bound(server: Opener) -> None:
    """To a deprecated or retired version, to one that cannot do what the service promises, to a refused licence."""
    desk = server(deployment="commercial")
    able: dict[str, Any] = {"capabilities": ("vision",), "commercial_use": True}
    desk.model("m", "1.0.0", **able)
    for number, overrides in (
        ("1.1.0", {}),
        ("1.2.0", {}),
        ("1.3.0", {"capabilities": ()}),
        ("1.4.0", {"commercial_use": False}),
    ):
        desk.do(releases.create_version, "m", number, overrides, based_on="1.0.0")
    desk.do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    desk.service("s", to("m@:x"), required=("vision",))
    desk.do(releases.deprecate, "m", "1.1.0")
    desk.do(releases.deprecate, "m", "1.2.0")
    desk.do(releases.retire, "m", "1.2.0")
    for number, error in (
        ("1.1.0", DeprecatedVersion),
        ("1.2.0", VersionNotActive),
        ("1.3.0", IncompatibleFallback),
        ("1.4.0", LicenceRefused),
    ):
        refused(error, desk, releases.put_alias, "m", "x", number, expected_from=None, check=False)
    desk.do(releases.put_alias, "m", "free", "1.1.0", expected_from=None, check=False)
    refused(VersionNotActive, desk, releases.put_alias, "m", "free", "1.2.0", expected_from=None, check=False)


# --- services ---


def test_a_service_that_could_not_serve_is_refused(desk: Desk) -> None:
    """Unknown models, versions, aliases and services, another task, a capability it lacks, bad weights."""
    desk.model("m", capabilities=("vision",))
    desk.model("painter", task="image-edit")
    desk.service("images", to("painter"), task="image-edit")
    cases: list[tuple[type[SeraiError], Any]] = [
        (ModelNotFound, a_service("new", to("nobody"))),
        (VersionNotFound, a_service("new", to("m@9.9.9"))),
        (VersionNotFound, a_service("new", to("m@:nobody"))),
        (ServiceNotFound, a_service("new", to("m"), fallback=(link("service:nobody"),))),
        (IncompatibleFallback, a_service("new", to("painter"))),
        (IncompatibleFallback, a_service("new", to("m"), fallback=(link("painter"),))),
        (IncompatibleFallback, a_service("new", to("m"), fallback=(link("service:images"),))),
        (IncompatibleFallback, a_service("new", to("m"), required=("tools",))),
        (InvalidSplit, a_service("new", to("m@1.0.0", 50), to("m", 49))),
        (FallbackCycle, a_service("new", to("m"), fallback=(link("service:new"),))),
        (InvalidInput, a_service("new", to("m"), name=" ")),
    ]
    for error, service in cases:
        refused(error, desk, bindings.create_service, service)
    desk.service("new", to("m"), required=("vision",))


def test_a_circle_of_fallbacks_is_refused_however_it_would_come_about(desk: Desk) -> None:
    """By a change and by a rollback; the services on the way are named."""
    desk.model("m")
    for name in "abc":
        desk.service(name, to("m"))
    desk.do(bindings.update_service, "a", {}, {"fallback": (link("service:b"),)})
    desk.do(bindings.update_service, "b", {}, {"fallback": (link("service:c"),)})
    error = refused(FallbackCycle, desk, bindings.update_service, "c", {}, {"fallback": (link("service:a"),)})
    assert set(error.details) == {"a", "b", "c"}
    desk.do(bindings.update_service, "b", {}, {"fallback": ()})
    desk.do(bindings.update_service, "c", {}, {"fallback": (link("service:a"),)})
    refused(FallbackCycle, desk, bindings.rollback, "b")


def test_a_service_keeps_what_it_promised_to_those_that_fall_back_on_it(desk: Desk) -> None:
    """A capability that another service's chain relies on is not taken back, nor taken from a version in use."""
    desk.model("m", capabilities=("vision", "tools"))
    desk.service("helper", to("m"), required=("vision", "tools"))
    desk.service("s", to("m"), required=("vision",), fallback=(link("service:helper"),))
    refused(IncompatibleFallback, desk, bindings.update_service, "helper", {"required": ("tools",)}, {})
    refused(IncompatibleFallback, desk, releases.update_version, "m", "1.0.0", {"capabilities": ("tools",)})
    desk.do(bindings.update_service, "helper", {"required": ("vision",)}, {})
    desk.do(releases.update_version, "m", "1.0.0", {"capabilities": ("vision",)})


def test_a_new_version_that_lacks_what_a_service_promises_does_not_slip_in(desk: Desk) -> None:
    """Where a service follows a model's newest version, one that cannot do its work is not made the newest."""
    desk.model("m", capabilities=("vision",))
    desk.service("s", to("m"), required=("vision",))
    refused(IncompatibleFallback, desk, releases.create_version, "m", "2.0.0", {"capabilities": ()})
    desk.do(releases.create_version, "m", "2.0.0", {"capabilities": ()}, status=Status.DRAFT)
    refused(IncompatibleFallback, desk, releases.activate, "m", "2.0.0")
    desk.do(releases.create_version, "m", "0.9.0", {"capabilities": ()})
    desk.do(releases.create_version, "m", "3.0.0", {}, based_on="1.0.0")
    assert decide(desk.see(), Request(service="s")).version == "3.0.0"


def test_a_forced_deprecation_does_not_leave_a_service_with_what_cannot_do_its_work(desk: Desk) -> None:
    """Where only a version that lacks the promised capability is left, the service goes without it."""
    desk.model("m", "0.9.0")
    desk.do(releases.create_version, "m", "1.0.0", {"capabilities": ("vision",)})
    desk.service("s", to("m"), required=("vision",))
    desk.service("t", to("m"))
    desk.do(releases.deprecate, "m", "1.0.0", force=True)
    assert (desk.bound("s"), desk.bound("t")) == ((), ("m",))
    assert decide(desk.see(), Request(service="t")).version == "0.9.0"


def test_a_switch_changes_the_version_and_nothing_else(desk: Desk) -> None:
    """By number or alias, under any name of the model; a new revision with the same chain, limits, configuration."""
    desk.model("m", "1.0.0", "1.1.0", lookup_names=("Owner/Name",))
    desk.do(releases.put_alias, "m", "x", "1.1.0", expected_from=None, check=False)
    desk.service("s", to("m@1.0.0"), fallback=(link("m"),))
    desk.do(bindings.update_service, "s", {}, {"limits": Limits(concurrency=3), "config": {"a": 1}})
    before = desk.see().services["s"]
    desk.clock.advance(5)
    after = desk.do(bindings.switch_version, "s", model=None, version="1.1.0", alias=None).service
    assert after.revision.targets == (to("m@1.1.0"),)
    assert (after.revision.fallback, after.revision.limits, after.revision.config) == (
        before.revision.fallback,
        before.revision.limits,
        before.revision.config,
    )
    assert (after.revision.n, after.version_updated_at) == (before.revision.n + 1, desk.now)
    for model in ("m", "owner/name"):
        desk.do(bindings.switch_version, "s", model=model, version=None, alias="x")
        assert desk.bound("s") == ("m@x",)
        desk.do(bindings.switch_version, "s", model=model, version="1.0.0", alias=None)
        assert desk.bound("s") == ("m@1.0.0",)


def test_a_switch_that_cannot_be_is_refused(desk: Desk) -> None:
    """Another model, a version that is not there or retired, a service without a binding."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.model("n", "1.0.0")
    desk.service("s", to("m@1.0.0"))
    desk.service("free")
    desk.do(releases.deprecate, "m", "1.1.0")
    desk.do(releases.retire, "m", "1.1.0")
    switch = bindings.switch_version
    refused(ServiceVersionSwitchError, desk, switch, "s", model="n", version="1.0.0", alias=None)
    refused(ServiceVersionSwitchError, desk, switch, "s", model="nobody", version="1.0.0", alias=None)
    refused(ServiceVersionSwitchError, desk, switch, "free", model="m", version="1.0.0", alias=None)
    refused(ServiceVersionSwitchError, desk, switch, "free", model=None, version="1.0.0", alias=None)
    refused(VersionNotFound, desk, switch, "s", model="m", version="9.9.9", alias=None)
    refused(VersionNotFound, desk, switch, "s", model="m", version=None, alias="nobody")
    refused(VersionNotActive, desk, switch, "s", model="m", version="1.1.0", alias=None)
    refused(ServiceNotFound, desk, switch, "nobody", model="m", version="1.0.0", alias=None)


def test_a_rollback_is_one_call_and_going_back_again_goes_further(desk: Desk) -> None:
    """To the whole state before: targets, chain, limits, configuration; or to a revision by number."""
    desk.model("m", "1.0.0", "1.1.0", "1.2.0")
    desk.service("s", to("m@1.0.0"), fallback=(link("m@1.2.0"),))
    desk.do(bindings.update_service, "s", {}, {"targets": (to("m@1.1.0"),), "limits": Limits(concurrency=1)})
    desk.do(bindings.update_service, "s", {}, {"targets": (to("m@1.2.0"),), "fallback": ()})
    states = {revision.n: content(revision) for revision in desk.database.read_sync(store.revisions, "s")}
    first = desk.do(bindings.rollback, "s").service.revision
    assert (first.n, first.rolled_back_to, content(first)) == (4, 2, states[2])
    second = desk.do(bindings.rollback, "s", reason="worse").service.revision
    assert (second.n, second.rolled_back_to, second.reason, content(second)) == (5, 1, "worse", states[1])
    refused(NothingToRollBack, desk, bindings.rollback, "s")
    refused(NothingToRollBack, desk, bindings.rollback, "s", to=99)
    refused(ServiceNotFound, desk, bindings.rollback, "nobody")
    assert content(desk.do(bindings.rollback, "s", to=3).service.revision) == states[3]
    check_integrity(desk.database, desk.rules)


def content(revision: Any) -> tuple[Any, ...]:
    return tuple(getattr(revision, name) for name in bindings.CONTENT)


def test_a_rollback_takes_a_version_that_was_deprecated_since_and_none_that_is_gone(desk: Desk) -> None:
    """The one was in use before; the other could not answer, and the service stays as it is."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(bindings.switch_version, "s", model=None, version="1.1.0", alias=None)
    desk.do(releases.deprecate, "m", "1.0.0")
    assert desk.do(bindings.rollback, "s").service.revision.targets == (to("m@1.0.0"),)
    desk.do(bindings.rollback, "s", to=2)
    desk.do(releases.retire, "m", "1.0.0")
    refused(VersionNotActive, desk, bindings.rollback, "s", to=1)
    desk.do(releases.delete_version, "m", "1.0.0")
    refused(VersionNotFound, desk, bindings.rollback, "s", to=1)
    assert desk.bound("s") == ("m@1.1.0",)


def test_a_service_made_anew_does_not_roll_back_into_its_predecessor(desk: Desk) -> None:
    """The revisions of a deleted service are history; only by number does one come back."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(bindings.delete_service, "s")
    desk.clock.advance(1)
    made = replace(a_service("s", to("m@1.1.0")), created_at=desk.now)
    assert desk.do(bindings.create_service, made).service.revision.n == 2
    refused(NothingToRollBack, desk, bindings.rollback, "s")
    assert desk.do(bindings.rollback, "s", to=1).service.revision.targets == (to("m@1.0.0"),)


def test_the_history_says_which_version_answered_at_a_time(desk: Desk) -> None:
    """Through switches, moved aliases, floating targets, splits, rollbacks and the end; each a line, none a gap."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.do(releases.put_alias, "m", "x", "1.0.0", expected_from=None, check=False)
    desk.service("s", to("m@1.0.0"))
    steps: list[tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]] = [
        ((bindings.switch_version, "s"), {"model": None, "version": "1.1.0", "alias": None}, ("m@1.1.0",)),
        ((bindings.switch_version, "s"), {"model": None, "version": None, "alias": "x"}, ("m@1.0.0",)),
        ((releases.put_alias, "m", "x", "1.1.0"), {"expected_from": None, "check": False}, ("m@1.1.0",)),
        ((bindings.update_service, "s", {}, {"targets": (to("m"),)}), {}, ("m@1.1.0",)),
        ((releases.create_version, "m", "2.0.0", {}), {}, ("m@2.0.0",)),
        ((releases.deprecate, "m", "2.0.0"), {"force": True}, ("m@1.1.0",)),
        (
            (bindings.update_service, "s", {}, {"targets": (to("m@1.0.0", 30), to("m@1.1.0", 70))}),
            {},
            ("m@1.0.0", "m@1.1.0"),
        ),
        ((bindings.rollback, "s"), {}, ("m@1.1.0",)),
        ((releases.delete_model, "m"), {"force": True}, ()),
    ]
    expected = [(desk.now, ("m@1.0.0",))]
    for args, kwargs, versions in steps:
        desk.clock.advance(60)
        desk.do(*args, **kwargs)
        expected.append((desk.now, versions))
    history = desk.database.read_sync(store.bindings, "s")
    for moment, versions in expected:
        for at in (moment, moment + timedelta(seconds=59)):
            line = binding_at(history, at)
            assert line is not None
            assert line.versions == versions, (at, line)
            assert line.by == ANN.id
    assert binding_at(history, expected[0][0] - timedelta(seconds=1)) is None
    desk.clock.advance(60)
    desk.do(bindings.delete_service, "s")
    history = desk.database.read_sync(store.bindings, "s")
    assert binding_at(history, desk.now) is None
    check_integrity(desk.database, desk.rules)


def test_a_change_that_leaves_what_a_service_means_writes_no_history(desk: Desk) -> None:
    """Its name, its publication, or another model."""
    desk.model("m")
    desk.service("s", to("m"))
    desk.do(bindings.update_service, "s", {"name": "other", "pinned": True}, {})
    desk.do(bindings.set_published, "s", published=True)
    desk.model("n")
    desk.do(releases.update_version, "m", "1.0.0", {"release_notes": "x"})
    assert len(desk.database.read_sync(store.bindings, "s")) == 1


def test_publishing_twice_is_one_change(desk: Desk) -> None:
    """And so is taking back."""
    desk.service("s")
    for published in (True, False):
        desk.do(bindings.set_published, "s", published=published)
        before = entries(desk.database)
        desk.do(bindings.set_published, "s", published=published)
        assert entries(desk.database) == before


# --- licences ---


@pytest.mark.parametrize("deployment", ["private", "research", "commercial"])
def test_the_licence_gate_refuses_to_bind_what_may_not_be_used(server: Opener, deployment: str) -> None:
    """A commercial deployment refuses what is not cleared for it, and says why; the others bind it."""
    desk = server(deployment=deployment)
    desk.model("free", licence="Apache-2.0")
    desk.model("bound", licence="FLUX-1-dev-non-commercial", commercial_use=False)
    desk.service("s", to("free"))
    actions: list[tuple[Any, ...]] = [
        (bindings.create_service, a_service("t", to("bound"))),
        (bindings.update_service, "s", {}, {"targets": (to("bound"),)}),
        (bindings.update_service, "s", {}, {"fallback": (link("bound"),)}),
        (bindings.update_service, "s", {}, {"shadow": to("bound")}),
    ]
    for command, *args in actions:
        if deployment == "commercial":
            assert "commercial" in str(refused(LicenceRefused, desk, command, *args))
        else:
            desk.do(command, *args)


def test_a_licence_is_judged_by_each_server_on_its_own_rules(server: Opener) -> None:
    """What a private server bound, a commercial one on the same database passes over and says why."""
    private, commercial = server(), server(deployment="commercial")
    private.model("bound", commercial_use=False)
    private.model("free", licence="MIT")
    private.service("s", to("bound"), fallback=(link("free"),))
    decision = decide(commercial.see(), Request(service="s"))
    assert (decision.model, decision.reason) == ("free", Reason.FALLBACK_UNAVAILABLE)
    assert "licence" in str(decision.chain[0].error)
    assert decide(private.see(), Request(service="s")).model == "bound"


# --- what ships ---


def test_what_ships_is_written_once_and_only_into_an_empty_registry(server: Opener, database: Database) -> None:
    """Two servers that start together seed once; whoever deleted all of it does not get it back."""
    desks = [server(), server(deployment="commercial")]
    seeded: list[bool] = []
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


def test_another_server_catches_up_with_every_kind_of_change(server: Opener) -> None:
    """After each change here, what the other sees is what a fresh start would load."""
    here, there = server(), server()
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


def test_a_rule_is_judged_on_what_the_other_server_wrote(server: Opener) -> None:
    """A server that never looked since still knows it when it writes."""
    here, there = server(), server()
    there.see()
    here.model("m", *(f"1.{n}.0" for n in range(5)))
    with pytest.raises(ActiveVersionLimitExceeded):
        there.do(releases.create_version, "m", "2.0.0", {})
    here.service("s", to("m@1.0.0"))
    with pytest.raises(VersionInUse):
        there.do(releases.delete_version, "m", "1.0.0")


def test_two_servers_that_write_at_once_miss_nothing(server: Opener) -> None:
    """Eight threads through two registries: no change is lost, both end where a fresh start does, the cap holds."""
    desks = [server(on_limit="deprecate-oldest") for _ in range(2)]
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

    start = len(entries(desks[0].database))
    run_together([lambda number=number: work(number) for number in range(8)])
    fresh = facts(loaded_anew(desks[0].database, desks[0].rules))
    assert facts(desks[0].see()) == facts(desks[1].see()) == fresh
    written = [entry.action for entry in entries(desks[0].database)[start:]]
    assert {action: written.count(action) for action in set(written) - {"versions.deprecate"}} == {
        "versions.create": 48,
        "aliases.put": 48,
        "services.update": 48,
    }
    check_integrity(desks[0].database, desks[0].rules)


@pytest.mark.parametrize("on_limit", ["refuse", "deprecate-oldest"])
def test_twenty_creators_at_once_never_pass_the_limit(server: Opener, on_limit: str) -> None:
    """From two servers; with the policy nobody is refused, and what a service uses stays active."""
    desks = [server(on_limit=on_limit) for _ in range(2)]
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


def test_one_of_two_who_swap_an_alias_wins(server: Opener) -> None:
    """Both saw 1.0.0; exactly one of them moves it."""
    desks = [server(), server()]
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
async def test_whoever_wrote_sees_it_although_somebody_else_is_reading(desk: Desk) -> None:
    """While one request reads what changed, no other is answered with what was there before."""
    import asyncio

    registry, database = desk.registry, desk.database
    await registry.current()
    reading, released = threading.Event(), threading.Event()

    class Slow:
        """The database, whose first read takes its state and then waits."""

        def __init__(self) -> None:
            self.waits = True

        async def read(self, function: Callable[..., Any]) -> Any:
            def held(connection: Any) -> Any:
                found = function(connection)
                if self.waits:
                    self.waits = False
                    reading.set()
                    assert released.wait(20)
                return found

            return await database.read(held)

    registry._database = Slow()  # type: ignore[assignment]
    await database.run(registry.write, releases.create_model, ANN, desk.now, a_model("m"), a_version("m"))
    somebody = asyncio.create_task(registry.current())
    await asyncio.to_thread(reading.wait, 20)
    writer = asyncio.create_task(registry.current())
    await asyncio.sleep(0)
    released.set()
    assert "m" in (await writer).models
    assert "m" in (await somebody).models


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


def test_a_closed_registry_hears_nothing(database: Database) -> None:
    """Its subscription ends with it."""
    registry = Registry(database, RegistryRules())
    registry.close()
    assert database.notices._subscribers("registry") == []
