"""The registry's rules for models, versions and aliases, each on the rows of both databases."""

from datetime import timedelta
from typing import Any

import pytest

from serai.errors import Conflict, InvalidInput
from serai.registry import bindings, releases, store
from serai.registry.decision import Reason
from serai.registry.errors import (
    ActiveVersionLimitExceeded,
    AliasMoved,
    AliasNotFound,
    DeprecatedVersion,
    ImmutableVersion,
    IncompatibleFallback,
    InvalidStatusMove,
    InvalidVersionFormat,
    LicenceRefused,
    ModelAlreadyExists,
    ModelNotFound,
    NameCollision,
    ServiceAlreadyExists,
    VersionAlreadyExists,
    VersionInUse,
    VersionNotActive,
    VersionNotFound,
)
from serai.registry.model import alias_at
from serai.registry.plan import Request
from serai.registry.policy import decide
from serai.registry.service import Limits
from serai.registry.source import File, Footprint, HubSource, PackageSource
from serai.registry.version import IDENTITY, TECHNICAL, Status, digest
from serai.storage.tables import registry as tables
from support.registry import Desk, Opener, check_integrity, entries, refused, rows
from unit.registry.build import a_model, a_service, a_version, link, to

FILES = (File(path="weights", size=3, sha256="a" * 64),)


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
    """An admin allowed one source's code; a version or an edit with other weights or engine starts without that."""
    trusted = HubSource(repo="good/model", revision="a" * 40)
    other = HubSource(repo="evil/model", revision="b" * 40)
    desk.model("m", "1.0.0", source=trusted, allow_remote_code=True, allow_pickle=True)
    same = desk.do(releases.create_version, "m", "1.1.0", {"quantization": "int8"})
    assert (same.allow_remote_code, same.allow_pickle) == (True, True)
    for number, changes in (("1.2.1", {"files": FILES}), ("1.2.2", {"engine": "x"}), ("1.2.3", {"source": other})):
        moved = desk.do(releases.create_version, "m", number, changes, based_on="1.0.0", status=Status.DRAFT)
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


def test_the_policy_deprecates_the_oldest_that_nobody_uses(start: Opener) -> None:
    """In the same transaction, with an entry of its own; what a service or an alias uses stays."""
    desk = start(on_limit="deprecate-oldest", max_active_versions_per_model=3)
    desk.model("m", "1.0.0", "1.1.0", "1.2.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(releases.put_alias, "m", "prod", "1.1.0", expected_from=None, check=False)
    mark = len(entries(desk.database))
    desk.do(releases.create_version, "m", "1.3.0", {})
    assert [desk.status(f"m@1.{n}.0") for n in range(4)] == ["active", "active", "deprecated", "active"]
    assert [(entry.action, entry.object_id) for entry in entries(desk.database)[mark:]] == [
        ("versions.deprecate", "m@1.2.0"),
        ("versions.create", "m@1.3.0"),
    ]
    desk.service("t", to("m@1.3.0"))
    refused(ActiveVersionLimitExceeded, desk, releases.create_version, "m", "1.4.0", {})


def test_the_default_status_is_a_setting(start: Opener) -> None:
    """A version without a status gets it."""
    assert start(default_version_status="draft").model("a").id == "a"
    desk = start(default_version_status="draft")
    assert desk.do(releases.create_version, "a", "2.0.0", {}).status is Status.DRAFT
    assert start().do(releases.create_version, "a", "3.0.0", {}).status is Status.ACTIVE


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


def test_without_the_setting_publishing_leaves_a_version_open(start: Opener) -> None:
    """And its digest follows what it is."""
    desk = start(enable_version_immutability=False)
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


def test_the_two_settings_on_deprecation_are_independent(start: Opener) -> None:
    """One allows the switch, the other the warning; each alone."""
    start().model("m", "1.0.0", "1.1.0")
    start().do(releases.deprecate, "m", "1.0.0")
    for allowed in (True, False):
        for warned in (True, False):
            desk = start(allow_service_deprecated_version_switch=allowed, warn_on_deprecated_version_usage=warned)
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
    shadowed = a_service("s", to("m@1.0.0", 60), to("m@1.1.0", 13), to("m@1.2.0", 27), shadow=to("m@:x"))
    desk.do(bindings.create_service, shadowed)
    desk.service("alone", to("m@:x"), fallback=(link("m@1.0.0"), link("m@1.1.0"), link("service:s")))
    desk.service("idle", to("m@1.0.0", 100), to("m@1.1.0", 0))
    desk.service("other", to("m@1.1.0"))
    mark = len(entries(desk.database))
    desk.do(releases.delete_version, "m", "1.0.0", force=True)
    services = desk.see().services
    assert [(target.reference, target.weight) for target in services["s"].revision.targets] == [
        ("m@1.1.0", 33),
        ("m@1.2.0", 67),
    ]
    assert services["s"].revision.shadow is None
    assert services["alone"].revision.targets == ()
    assert services["alone"].revision.fallback == (link("m@1.1.0"), link("service:s"))
    assert services["idle"].revision.targets == (to("m@1.1.0", 100),)
    assert services["other"].revision.n == 1
    assert "x" not in desk.see().models["m"].aliases
    assert sorted((entry.action, entry.object_id) for entry in entries(desk.database)[mark:]) == [
        ("aliases.delete", "m@x"),
        ("services.detach", "alone"),
        ("services.detach", "idle"),
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


def test_a_retired_version_takes_its_aliases_with_it(desk: Desk) -> None:
    """Each with an event and an entry; the other aliases stay."""
    desk.model("m", "1.0.0", "1.1.0")
    for name, number in (("x", "1.0.0"), ("y", "1.0.0"), ("z", "1.1.0")):
        desk.do(releases.put_alias, "m", name, number, expected_from=None, check=False)
    desk.do(releases.deprecate, "m", "1.0.0")
    mark = len(entries(desk.database))
    desk.do(releases.retire, "m", "1.0.0")
    assert desk.see().models["m"].aliases == {"z": "1.1.0"}
    assert sorted((entry.action, entry.object_id) for entry in entries(desk.database)[mark:]) == [
        ("aliases.delete", "m@x"),
        ("aliases.delete", "m@y"),
        ("versions.retire", "m@1.0.0"),
    ]
    check_integrity(desk.database, desk.rules)


def test_force_puts_right_also_where_the_model_is_switched_off(desk: Desk) -> None:
    """A retired version is gone for a service, whatever else stands in its way."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.service("s", to("m@1.0.0"))
    desk.do(releases.update_model, "m", {"active": False}, force=True)
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


def test_an_alias_does_not_lead_a_service_where_it_could_not_be_bound(start: Opener) -> None:
    """To a deprecated or retired version, to one that cannot do what the service promises, to a refused licence."""
    desk = start(deployment="commercial")
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
