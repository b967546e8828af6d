"""The registry's rules for services: bindings, switches, rollbacks, histories, licences; on both databases."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from serai.errors import InvalidInput, SeraiError
from serai.registry import bindings, releases, store
from serai.registry.decision import Reason
from serai.registry.errors import (
    FallbackCycle,
    IncompatibleFallback,
    InvalidSplit,
    LicenceRefused,
    ModelNotFound,
    NothingToRollBack,
    ServiceNotFound,
    ServiceVersionSwitchError,
    VersionInUse,
    VersionNotActive,
    VersionNotFound,
)
from serai.registry.plan import Request
from serai.registry.policy import decide
from serai.registry.service import Limits, binding_at
from serai.registry.version import Status
from support.registry import ANN, Desk, Opener, check_integrity, entries, refused
from unit.registry.build import a_service, link, to

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


def test_a_retired_version_is_not_bound_although_its_model_is_switched_off(desk: Desk) -> None:
    """Switching the model on again would not bring it back; a draft or a model that is off may still come."""
    desk.model("m", "1.0.0", "1.1.0")
    desk.do(releases.deprecate, "m", "1.0.0")
    desk.do(releases.retire, "m", "1.0.0")
    desk.do(releases.update_model, "m", {"active": False}, force=True)
    refused(VersionNotActive, desk, bindings.create_service, a_service("s", to("m@1.0.0")))
    written = desk.service("s", to("m@1.1.0"))
    assert "switched off" in written.warnings[0]


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


def test_a_service_that_goes_leaves_no_link_to_it(desk: Desk) -> None:
    """Refused with the services that fall back on it; forced, they go on without the link, each with an entry."""
    desk.model("m")
    desk.service("s", to("m"))
    desk.service("t", to("m"), fallback=(link("service:s"), link("m")))
    desk.service("u", to("m"), fallback=(link("service:t"),))
    assert refused(VersionInUse, desk, bindings.delete_service, "s").details == ["t"]
    mark = len(entries(desk.database))
    desk.do(bindings.delete_service, "s", force=True)
    assert desk.see().services["t"].revision.fallback == (link("m"),)
    assert [(entry.action, entry.object_id) for entry in entries(desk.database)[mark:]] == [
        ("services.delete", "s"),
        ("services.detach", "t"),
    ]
    check_integrity(desk.database, desk.rules)


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
def test_the_licence_gate_refuses_to_bind_what_may_not_be_used(start: Opener, deployment: str) -> None:
    """A commercial deployment refuses what is not cleared for it, and says why; the others bind it."""
    desk = start(deployment=deployment)
    desk.model("free", licence="Apache-2.0")
    desk.model("bound", licence="FLUX-1-dev-non-commercial", commercial_use=False)
    desk.do(releases.create_version, "bound", "2.0.0", {}, status=Status.DRAFT)
    desk.service("s", to("free"))
    actions: list[tuple[Any, ...]] = [
        (bindings.create_service, a_service("t", to("bound"))),
        (bindings.create_service, a_service("u", to("bound@2.0.0"))),
        (bindings.update_service, "s", {}, {"targets": (to("bound"),)}),
        (bindings.update_service, "s", {}, {"fallback": (link("bound"),)}),
        (bindings.update_service, "s", {}, {"shadow": to("bound")}),
    ]
    for command, *args in actions:
        if deployment == "commercial":
            assert "commercial" in str(refused(LicenceRefused, desk, command, *args))
        else:
            desk.do(command, *args)


def test_a_licence_is_judged_by_each_server_on_its_own_rules(start: Opener) -> None:
    """What a private server bound, a commercial one on the same database passes over and says why."""
    private, commercial = start(), start(deployment="commercial")
    private.model("bound", commercial_use=False)
    private.model("free", licence="MIT")
    private.service("s", to("bound"), fallback=(link("free"),))
    decision = decide(commercial.see(), Request(service="s"))
    assert (decision.model, decision.reason) == ("free", Reason.FALLBACK_UNAVAILABLE)
    assert "licence" in str(decision.chain[0].error)
    assert decide(private.see(), Request(service="s")).model == "bound"
