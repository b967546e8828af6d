"""What may be written: bindings, chains, switches and names, and who a change would touch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.registry.checks import (
    bound_versions,
    check_names,
    check_new_model,
    check_new_service,
    check_service,
    check_switch,
    deprecated_uses,
    impact,
    parse_target,
    versions_in_use,
)
from serai.registry.errors import (
    DeprecatedVersion,
    FallbackCycle,
    IncompatibleFallback,
    LicenceRefused,
    ModelAlreadyExists,
    ModelNotFound,
    NameCollision,
    ServiceAlreadyExists,
    ServiceNotFound,
    ServiceVersionSwitchError,
    VersionNotActive,
    VersionNotFound,
)
from serai.registry.service import Service
from serai.registry.version import Status
from unit.registry.build import a_model, a_service, a_snapshot, a_version, an_alias, link, to

ROWS = (
    a_version("a"),
    a_version("a", "1.1.0"),
    a_version("old", status=Status.DEPRECATED),
    a_version("gone", status=Status.RETIRED),
    a_version("draft", status=Status.DRAFT),
    a_version("nc", licence="CC-BY-NC-4.0"),
    a_model("lips", task="lip-sync"),
    a_version("lips"),
    a_version("eye", capabilities=("vision", "text")),
)


@pytest.mark.parametrize(
    ("service", "error"),
    [
        (a_service("s", to("nobody")), ModelNotFound),
        (a_service("s", to("a@9.0.0")), VersionNotFound),
        (a_service("s", to("a@:blue")), VersionNotFound),
        (a_service("s", to("gone@1.0.0")), VersionNotActive),
        (a_service("s", to("old@1.0.0")), DeprecatedVersion),
        (a_service("s", to("lips")), IncompatibleFallback),
        (a_service("s", to("a"), fallback=(link("nobody"),)), ModelNotFound),
        (a_service("s", to("a"), fallback=(link("lips"),)), IncompatibleFallback),
        (a_service("s", to("a"), fallback=(link("old@1.0.0"),)), DeprecatedVersion),
        (a_service("s", to("a"), fallback=(link("service:nobody"),)), ServiceNotFound),
        (a_service("s", to("a"), fallback=(link("service:mouth"),)), IncompatibleFallback),
        (a_service("s", to("a"), shadow=to("lips")), IncompatibleFallback),
        (a_service("s", to("a"), required=("vision",)), IncompatibleFallback),
        (a_service("s", to("eye"), fallback=(link("a"),), required=("vision",)), IncompatibleFallback),
        (a_service("s", to("eye"), fallback=(link("service:t"),), required=("vision",)), IncompatibleFallback),
        (a_service("s", to("a"), fallback=(link("service:s"),)), FallbackCycle),
    ],
)
def test_a_service_that_could_not_serve_is_refused(service: Service, error: type[Exception]) -> None:
    """Unknown, retired, deprecated, of another task or without a promised capability: each has its own error."""
    snapshot = a_snapshot(*ROWS, a_service("t", to("a")), a_service("mouth", to("lips"), task="lip-sync"))
    with pytest.raises(error):
        check_service(snapshot, service)


def test_a_good_service_passes_and_a_draft_is_told() -> None:
    """A full service passes without a word; a binding that waits for its weights passes with a warning."""
    snapshot = a_snapshot(*ROWS, a_service("t", to("eye"), required=("vision",)))
    good = a_service("s", to("eye"), fallback=(link("service:t"),), required=("vision",))
    assert check_service(snapshot, good) == ()
    warnings = check_service(snapshot, a_service("s", to("draft@1.0.0")))
    assert len(warnings) == 1
    assert "draft" in warnings[0]


def test_a_deprecated_version_takes_no_new_bindings_but_keeps_the_old() -> None:
    """Rule 4: refused for a new service or switch, kept by one that has it, allowed by the setting alone."""
    bound = a_service("s", to("old@1.0.0"))
    snapshot = a_snapshot(*ROWS, bound)
    assert check_service(snapshot, a_service("s", to("old@1.0.0"), fallback=(link("a"),)), before=bound)
    with pytest.raises(DeprecatedVersion):
        check_service(snapshot, a_service("other", to("old@1.0.0")))
    assert check_service(
        a_snapshot(*ROWS, allow_service_deprecated_version_switch=True), a_service("other", to("old@1.0.0"))
    )


def test_the_two_settings_on_deprecation_are_independent() -> None:
    """Rule 4: allowing the switch leaves the warning, and silencing the warning leaves the refusal."""
    service = a_service("s", to("old@1.0.0"))
    quiet = {"warn_on_deprecated_version_usage": False}
    with pytest.raises(DeprecatedVersion):
        check_service(a_snapshot(*ROWS, **quiet), service)
    assert check_service(a_snapshot(*ROWS, allow_service_deprecated_version_switch=True, **quiet), service) == ()


def test_the_licence_gate_refuses_to_bind() -> None:
    """A commercial deployment refuses the binding and says why; another accepts it."""
    service = a_service("s", to("nc"))
    assert check_service(a_snapshot(*ROWS), service) == ()
    with pytest.raises(LicenceRefused, match="commercial"):
        check_service(a_snapshot(*ROWS, deployment="commercial"), service)


def test_a_switch_stays_with_its_model() -> None:
    """A version of another model, or an unbound service, is 409 SERVICE_VERSION_SWITCH_ERROR."""
    service = a_service("s", to("a@1.0.0"))
    snapshot = a_snapshot(*ROWS, service)
    assert check_switch(snapshot, service, "a", "1.1.0") == to("a@1.1.0")
    for refused, model in ((service, "eye"), (service, "nobody"), (a_service("s"), "a")):
        with pytest.raises(ServiceVersionSwitchError) as caught:
            check_switch(snapshot, refused, model, "1.0.0")
        assert caught.value.code == "SERVICE_VERSION_SWITCH_ERROR"


@pytest.mark.parametrize(("model", "error"), [("old", DeprecatedVersion), ("gone", VersionNotActive)])
def test_a_switch_obeys_the_status(model: str, error: type[Exception]) -> None:
    """A switch to a deprecated or retired version is refused, and so is one to a version that is not there."""
    service = a_service("s", to(f"{model}@:blue"))
    snapshot = a_snapshot(*ROWS, service)
    with pytest.raises(error):
        check_switch(snapshot, service, model, "1.0.0")
    with pytest.raises(VersionNotFound):
        check_switch(snapshot, service, model, "3.0.0")


def test_a_circle_of_services_is_named() -> None:
    """Invariant I6: closing a circle over several services is refused, with the way round."""
    snapshot = a_snapshot(
        a_version("a"),
        a_service("t", to("a"), fallback=(link("service:u"),)),
        a_service("u", to("a"), fallback=(link("service:s"),)),
    )
    with pytest.raises(FallbackCycle) as caught:
        check_service(snapshot, a_service("s", to("a"), fallback=(link("service:t"),)))
    assert caught.value.details == ("s", "t", "u", "s")


EDGES = st.lists(st.tuples(st.sampled_from("stuv"), st.sampled_from("stuv")), max_size=10, unique=True)


@given(EDGES)
def test_no_order_of_writes_makes_a_circle(edges: list[tuple[str, str]]) -> None:
    """Writing links one by one, refused or not, leaves chains that end, and refuses none without need."""
    snapshot = a_snapshot(a_version("a"), *(a_service(name, to("a")) for name in "stuv"))
    kept: dict[str, set[str]] = {name: set() for name in "stuv"}

    def reaches(start: str, goal: str) -> bool:
        return start == goal or any(reaches(other, goal) for other in kept[start])

    for one, two in edges:
        chain = tuple(link(f"service:{name}") for name in sorted({*kept[one], two}))
        service = a_service(one, to("a"), fallback=chain)
        try:
            check_service(snapshot, service)
        except FallbackCycle:
            assert reaches(two, one)
            continue
        assert not reaches(two, one)
        kept[one].add(two)
        snapshot = snapshot.with_service(service)


def test_names_do_not_collide() -> None:
    """A model and a service, or two models, never answer to one name; each way of colliding is 409."""
    snapshot = a_snapshot(a_model("a", lookup_names=("Org/A", "aa")), a_version("a"), a_service("s", to("a")))
    with pytest.raises(ModelAlreadyExists):
        check_new_model(snapshot, a_model("a"))
    with pytest.raises(ServiceAlreadyExists):
        check_new_service(snapshot, "s")
    for model in (
        a_model("s"),
        a_model("aa"),
        a_model("b", lookup_names=("org/a",)),
        a_model("b", lookup_names=("s",)),
    ):
        with pytest.raises(NameCollision):
            check_new_model(snapshot, model)
    for service_id in ("a", "aa"):
        with pytest.raises(NameCollision):
            check_new_service(snapshot, service_id)
    check_new_model(snapshot, a_model("b", lookup_names=("Org/B",)))
    check_new_service(snapshot, "t")
    check_names(snapshot, a_model("a", lookup_names=("ORG/A",)))


def test_a_target_is_written_by_the_models_id() -> None:
    """A hub name in a binding is kept as the id, so that it cannot change its meaning."""
    snapshot = a_snapshot(a_model("a", lookup_names=("Org/A",)), a_version("a"))
    assert parse_target(snapshot, "org/a@1.0.0", 30) == to("a@1.0.0", 30)
    assert parse_target(snapshot, "a@blue") == to("a@:blue")
    with pytest.raises(ModelNotFound):
        parse_target(snapshot, "Org/B")


def test_the_impact_of_a_version_is_everyone_who_reaches_it() -> None:
    """Rule 5: targets, aliases, floating targets, shadows and chains count, through other services too."""
    snapshot = a_snapshot(
        a_version("m"),
        a_version("m", "2.0.0"),
        a_version("x"),
        an_alias("m", "blue", "1.0.0"),
        a_service("by-version", to("m@1.0.0"), published=True),
        a_service("by-alias", to("m@:blue")),
        a_service("floating", to("m")),
        a_service("in-chain", to("x"), fallback=(link("m@1.0.0"),)),
        a_service("shadow", to("x"), shadow=to("m@1.0.0")),
        a_service("through", to("x"), fallback=(link("service:in-chain"),)),
        a_service("far", to("x"), fallback=(link("service:through"),)),
        a_service("apart", to("x")),
    )
    one = impact(snapshot, "m", "1.0.0")
    assert one.services == ("by-alias", "by-version", "far", "in-chain", "shadow", "through")
    assert one.published_services == ("by-version",)
    assert one.aliases == ("blue",)
    assert {use.role for use in one.uses} == {"target", "fallback", "shadow", "through"}
    assert impact(snapshot, "m", "2.0.0").services == ("floating",)
    assert impact(snapshot, "m").services == (
        "by-alias",
        "by-version",
        "far",
        "floating",
        "in-chain",
        "shadow",
        "through",
    )
    assert impact(snapshot, "nobody").services == ()
    assert versions_in_use(snapshot, "m") == {"1.0.0", "2.0.0"}
    assert versions_in_use(snapshot, "nobody") == frozenset()


def test_who_still_uses_deprecated_versions() -> None:
    """Only deprecated versions that somebody uses are listed, with who."""
    snapshot = a_snapshot(
        a_version("m", status=Status.DEPRECATED),
        a_version("m", "1.1.0", status=Status.DEPRECATED),
        a_version("m", "2.0.0"),
        a_service("s", to("m@1.0.0")),
        a_service("t", to("m@2.0.0")),
    )
    assert {version: [use.service for use in uses] for version, uses in deprecated_uses(snapshot, "m").items()} == {
        "1.0.0": ["s"]
    }
    assert deprecated_uses(snapshot, "nobody") == {}


def test_the_versions_of_a_line_of_history() -> None:
    """What the targets mean now is written down, not what they are called."""
    service = a_service("s", to("m@:blue", 90), to("m", 10))
    snapshot = a_snapshot(a_version("m"), a_version("m", "1.10.0"), an_alias("m", "blue", "1.0.0"), service)
    assert bound_versions(snapshot, service.revision) == ("m@1.0.0", "m@1.10.0")
