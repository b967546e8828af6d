"""Moves of status, immutability, the limit on active versions, and what is refused while in use."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Conflict, InvalidInput
from serai.registry.errors import (
    ActiveVersionLimitExceeded,
    AliasMoved,
    ImmutableVersion,
    InvalidStatusMove,
    VersionInUse,
)
from serai.registry.lifecycle import (
    MOVES,
    activate,
    bury,
    can_move,
    check_alias_swap,
    check_unused,
    deprecate,
    edit,
    make_room,
    move,
    next_version,
    publish,
    receive_files,
    unpublish,
)
from serai.registry.rules import RegistryRules
from serai.registry.source import File, Footprint, HubSource
from serai.registry.version import ALWAYS_EDITABLE, IDENTITY, Status, Version, digest
from unit.registry.build import AT, a_version

LATER = AT + timedelta(days=1)
BY = {"at": LATER, "by": "bob"}
RULES = RegistryRules()
ALLOWED = {
    (Status.DRAFT, Status.ACTIVE),
    (Status.ACTIVE, Status.DEPRECATED),
    (Status.DEPRECATED, Status.ACTIVE),
    (Status.DEPRECATED, Status.RETIRED),
    *((status, Status.TOMBSTONE) for status in Status if status is not Status.TOMBSTONE),
}
CHANGES = {
    "source": HubSource(repo="o/n", revision="d" * 40),
    "engine": "other",
    "engine_options": {"n": 1},
    "quantization": "int8",
    "files": (File(path="a", size=1, sha256="a" * 64),),
    "capabilities": ("vision",),
    "licence": "other",
    "input_schema": {"type": "object"},
}


@pytest.mark.parametrize("before", Status)
@pytest.mark.parametrize("after", Status)
def test_every_move_that_is_not_in_the_table_is_refused(before: Status, after: Status) -> None:
    """Each of the 25 pairs is either one of the specification's moves or refused with the open ones."""
    assert set(MOVES) == set(Status)
    version = a_version(status=before)
    assert can_move(before, after) is ((before, after) in ALLOWED)
    if (before, after) in ALLOWED:
        assert move(version, after, **BY).status is after
    else:
        with pytest.raises(InvalidStatusMove) as caught:
            move(version, after, **BY)
        assert before.value in caught.value.message


def test_a_version_gets_its_digest_when_it_leaves_the_draft() -> None:
    """Activation seals a draft."""
    assert activate(a_version(status=Status.DRAFT), **BY).digest == digest(a_version())


def test_deprecation_has_dates_and_activation_forgets_them() -> None:
    """A deprecated version says since when, until when and why; a re-activated one says nothing."""
    old = deprecate(a_version(), reason="use 2.0.0", sunset_at=LATER + timedelta(days=30), **BY)
    assert (old.deprecated_at, old.deprecation_reason) == (LATER, "use 2.0.0")
    back = activate(old, **BY)
    assert (back.status, back.deprecated_at, back.sunset_at, back.deprecation_reason) == (Status.ACTIVE, None, None, "")
    with pytest.raises(InvalidInput, match="sunset_at"):
        deprecate(a_version(), sunset_at=LATER, **BY)


def test_publishing_makes_immutable_and_active() -> None:
    """Rule 3: publishing sets the flag and the time, and activates a draft."""
    published = publish(a_version(status=Status.DRAFT), RULES, **BY)
    assert (published.immutable, published.published_at, published.status) == (True, LATER, Status.ACTIVE)
    assert published.is_published


def test_publishing_leaves_the_flag_where_immutability_is_off() -> None:
    """Rule 3: without enable_version_immutability a published version stays editable."""
    published = publish(a_version(), RegistryRules(enable_version_immutability=False), **BY)
    assert not published.immutable
    assert edit(published, {"engine": "x"}, used_by_published_service=False, **BY).engine == "x"


def test_unpublishing_keeps_it_immutable() -> None:
    """What was once published is not rewritten; unpublishing twice is refused."""
    withdrawn = unpublish(publish(a_version(), RULES, **BY), **BY)
    assert withdrawn.immutable
    assert not withdrawn.is_published
    with pytest.raises(Conflict):
        unpublish(withdrawn, **BY)


@pytest.mark.parametrize("status", [Status.RETIRED, Status.TOMBSTONE])
def test_what_is_gone_cannot_be_published(status: Status) -> None:
    """A retired or deleted version does not come back by publishing it."""
    with pytest.raises(InvalidStatusMove):
        publish(a_version(status=status), RULES, **BY)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("immutable", "used"), [(True, False), (False, True)])
def test_an_immutable_version_refuses_every_change_of_what_it_is(name: str, immutable: bool, used: bool) -> None:
    """Rule 3: source, engine, options, files … are refused by name, also while a published service uses it."""
    version = a_version(immutable=immutable)
    with pytest.raises(ImmutableVersion) as caught:
        edit(version, {name: CHANGES[name], "release_notes": "x"}, used_by_published_service=used, **BY)
    assert caught.value.details == [name]
    assert caught.value.code == "IMMUTABLE_VERSION"


def test_release_notes_in_a_patch_are_kept() -> None:
    """Release notes and tags of an immutable version change, and are there afterwards (they were once lost)."""
    edited = edit(
        a_version(immutable=True), {"release_notes": "fixed", "tags": ("x",)}, used_by_published_service=True, **BY
    )
    assert (edited.release_notes, edited.tags, edited.updated_at, edited.updated_by) == ("fixed", ("x",), LATER, "bob")


def test_sending_the_same_value_is_no_change() -> None:
    """A PATCH that repeats what is there passes on an immutable version and touches nothing."""
    version = a_version(immutable=True)
    assert edit(version, {"engine": version.engine}, used_by_published_service=True, **BY) is version


def test_nothing_that_is_always_editable_is_part_of_the_identity() -> None:
    """No field is both what a version is and open to change."""
    assert not set(IDENTITY) & ALWAYS_EDITABLE


@given(st.sets(st.sampled_from(sorted(CHANGES)), min_size=1))
def test_the_digest_of_an_immutable_version_never_changes(names: set[str]) -> None:
    """Whatever is tried on an immutable version, its manifest has the digest that it had."""
    version = replace(a_version(immutable=True), digest=digest(a_version()))
    with pytest.raises(ImmutableVersion):
        edit(version, {name: CHANGES[name] for name in names}, used_by_published_service=False, **BY)
    assert digest(version) == version.digest


def test_a_tombstone_takes_no_change() -> None:
    """A deleted version cannot be edited."""
    with pytest.raises(InvalidStatusMove):
        edit(bury(a_version(), **BY), {"release_notes": "x"}, used_by_published_service=False, **BY)


def test_a_pull_completes_a_draft_once() -> None:
    """A draft receives its files and its pinned source; a second time, or an active version, is refused."""
    draft = a_version(status=Status.DRAFT, source=HubSource(repo="o/n"))
    pinned = HubSource(repo="o/n", revision="c" * 40)
    arrival = {
        "source": pinned,
        "files": (File(path="a", size=1, sha256="a" * 64),),
        "footprint": (Footprint(device="cpu", bytes=9),),
    }
    pulled = receive_files(draft, **arrival, **BY)
    assert (pulled.source, pulled.status, pulled.digest) == (pinned, Status.DRAFT, None)
    for refused in (pulled, a_version()):
        with pytest.raises(ImmutableVersion):
            receive_files(refused, **arrival, **BY)


def five(**of_third: object) -> list[Version]:
    return [a_version(version=f"1.{n}.0", seq=n, **(of_third if n == 3 else {})) for n in range(1, 6)]


def test_the_sixth_active_version_is_refused() -> None:
    """Rule 2: at the limit of five, one more is 409 with the code and the active versions."""
    assert make_room(five()[:4], (), RULES) == ()
    with pytest.raises(ActiveVersionLimitExceeded) as caught:
        make_room(five(), (), RULES)
    assert caught.value.code == "ACTIVE_VERSION_LIMIT_EXCEEDED"
    assert caught.value.details == ["1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0"]


def test_only_active_versions_count() -> None:
    """Rule 2: drafts, deprecated, retired and deleted versions take no place."""
    for status in Status:
        versions = five(status=status)
        if status is Status.ACTIVE:
            continue
        assert make_room(versions, (), RULES) == ()


def test_automatic_deprecation_is_reached_before_the_refusal() -> None:
    """Rule 2: with deprecate-oldest the oldest that no service uses goes (validation once raised first)."""
    rules = RegistryRules(on_limit="deprecate-oldest")
    assert [one.version for one in make_room(five()[::-1], (), rules)] == ["1.1.0"]
    assert [one.version for one in make_room(five(), {"1.1.0", "1.2.0"}, rules)] == ["1.3.0"]


def test_automatic_deprecation_never_takes_what_a_service_uses() -> None:
    """Rule 2: when each active version is in use, the sixth is refused after all."""
    with pytest.raises(ActiveVersionLimitExceeded):
        make_room(five(), {f"1.{n}.0" for n in range(1, 6)}, RegistryRules(on_limit="deprecate-oldest"))


@given(st.lists(st.sampled_from(Status), max_size=12), st.integers(1, 6), st.sets(st.integers(0, 11)))
def test_the_limit_holds_after_making_room(statuses: list[Status], limit: int, used: set[int]) -> None:
    """After what `make_room` says is deprecated, one more active version is within the limit."""
    versions = [a_version(version=f"1.{n}.0", seq=n, status=status) for n, status in enumerate(statuses)]
    in_use = {f"1.{n}.0" for n in used}
    rules = RegistryRules(max_active_versions_per_model=limit, on_limit="deprecate-oldest")
    try:
        going = make_room(versions, in_use, rules)
    except ActiveVersionLimitExceeded:
        assert sum(status is Status.ACTIVE for status in statuses) >= limit
        return
    left = [one for one in versions if one.status is Status.ACTIVE and one not in going]
    assert len(left) + 1 <= limit
    assert not {one.version for one in going} & in_use


def test_what_is_in_use_is_refused_with_the_services() -> None:
    """Rule 5: the answer names the services, in order; an admin's force, or no service, lets it pass."""
    with pytest.raises(VersionInUse) as caught:
        check_unused(a_version(), {"b", "a"}, "deprecated")
    assert (caught.value.code, caught.value.details) == ("VERSION_IN_USE", ["a", "b"])
    check_unused(a_version(), {"a"}, "deleted", force=True)
    check_unused(a_version(), (), "deleted")


def test_an_alias_moves_only_from_where_the_caller_believes() -> None:
    """Compare-and-swap: a stale expectation is 409 with the truth."""
    check_alias_swap("1.0.0", "1.0.0")
    check_alias_swap(None, None)
    with pytest.raises(AliasMoved) as caught:
        check_alias_swap("1.1.0", "1.0.0")
    assert caught.value.details == {"current": "1.1.0", "expected_from": "1.0.0"}
    with pytest.raises(AliasMoved):
        check_alias_swap("1.0.0", None)


@pytest.mark.parametrize(
    ("used", "expected"),
    [([], "1.0.0"), (["1.0.0"], "1.1.0"), (["1.9.0", "1.10.0", "1.2.0"], "1.11.0"), (["2.0.0-rc.1"], "2.1.0")],
)
def test_the_number_for_a_new_commit(used: list[str], expected: str) -> None:
    """The first version is 1.0.0, then the next minor of the highest ever used, by precedence."""
    assert next_version(used) == expected
