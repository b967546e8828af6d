"""Who is chosen: the explicit choice, the binding, the split, the automatic choice, and with which words."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry.decision import Outcome, Reason
from serai.registry.errors import (
    AliasNotFound,
    CandidateInCooldown,
    InvalidVersionFormat,
    LicenceRefused,
    ModelNotFound,
    ModelNotPulled,
    NoCandidate,
    ServiceNotFound,
    VersionNotFound,
)
from serai.registry.failure import Cooldown, Situation
from serai.registry.plan import Request
from serai.registry.policy import choose_target, decide, make_plan, own_steps, split_position
from serai.registry.source import HubSource
from serai.registry.version import Status
from unit.registry.build import a_model, a_service, a_snapshot, a_version, an_alias, link, to

HUB = HubSource(repo="o/n")


def cold(*keys: tuple[str, str], loaded: tuple[tuple[str, str], ...] = ()) -> Situation:
    """A minute after these versions failed to load."""
    return Situation(
        now=60.0, cooldowns={key: Cooldown(until=300.0, seconds=300.0) for key in keys}, loaded=frozenset(loaded)
    )


# A model by name


def test_a_bare_model_is_its_newest_active_version_by_precedence() -> None:
    """`model` alone is 1.10.0, not 1.9.0; drafts and deprecated versions above it do not count."""
    snapshot = a_snapshot(
        a_version(version="1.9.0"),
        a_version(version="1.10.0"),
        a_version(version="2.0.0", status=Status.DEPRECATED),
        a_version(version="3.0.0", status=Status.DRAFT),
    )
    decision = decide(snapshot, Request(model="m"))
    assert (decision.model, decision.version, decision.reason) == ("m", "1.10.0", Reason.DEFAULT)
    assert decide(snapshot, Request(model="m:latest")).version == "1.10.0"


@pytest.mark.parametrize("text", ["m@1.0.0", "m@production", "m:production", "Org/M@1.0.0", "org/m@production"])
def test_a_version_by_number_alias_or_hub_name_is_the_callers_choice(text: str) -> None:
    """Every form that names a version picks it, whatever is newer."""
    snapshot = a_snapshot(
        a_model("m", lookup_names=("Org/M",)),
        a_version(version="1.0.0"),
        a_version(version="2.0.0"),
        an_alias("m", "production", "1.0.0"),
    )
    decision = decide(snapshot, Request(model=text))
    assert (decision.version, decision.reason) == ("1.0.0", Reason.USER_CHOICE)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nobody", ModelNotFound),
        ("Org/Nobody", ModelNotFound),
        ("m@9.9.9", VersionNotFound),
        ("m@staging", AliasNotFound),
        ("m@1.0", InvalidVersionFormat),
        ("m@0.1.0", VersionNotFound),
        ("m@0.2.0", VersionNotFound),
        ("m@0.3.0", VersionNotFound),
        ("off", ModelNotFound),
        ("fresh", ModelNotPulled),
        ("fresh@1.0.0", ModelNotPulled),
        ("old", VersionNotFound),
    ],
)
def test_an_unknown_or_inactive_choice_of_a_bare_model_is_404(text: str, error: type[Exception]) -> None:
    """Without a service there is nothing to fall back on: the error says what is wrong and what to call."""
    snapshot = a_snapshot(
        a_version(),
        a_version(version="0.1.0", status=Status.DRAFT),
        a_version(version="0.2.0", status=Status.RETIRED),
        a_version(version="0.3.0", status=Status.TOMBSTONE),
        a_model("off", active=False),
        a_version("off"),
        a_version("fresh", status=Status.DRAFT, source=HUB),
        a_version("old", status=Status.RETIRED),
    )
    with pytest.raises(error) as caught:
        decide(snapshot, Request(model=text))
    assert getattr(caught.value, "hint", None)


def test_an_unpulled_model_names_the_pull() -> None:
    """The hint of an un-pulled model is the exact call that fetches it."""
    snapshot = a_snapshot(a_version("fresh", status=Status.DRAFT, source=HUB))
    with pytest.raises(ModelNotPulled) as caught:
        decide(snapshot, Request(model="fresh"))
    assert caught.value.hint == 'POST /pull {"model": "o/n"}'


def test_a_deprecated_version_answers_and_warns() -> None:
    """Rule 4: an existing use of a deprecated version goes on, with a warning; the setting takes the warning away."""
    rows = (a_version(status=Status.DEPRECATED, deprecation_reason="use 2.0.0"), a_version(version="2.0.0"))
    decision = decide(a_snapshot(*rows), Request(model="m@1.0.0"))
    assert decision.version == "1.0.0"
    assert any("deprecated" in warning and "use 2.0.0" in warning for warning in decision.warnings)
    assert decide(a_snapshot(*rows, warn_on_deprecated_version_usage=False), Request(model="m@1.0.0")).warnings == ()


def test_a_model_of_another_task_is_bad_input() -> None:
    """A model that does something else is refused with what it does."""
    snapshot = a_snapshot(a_model("m", task="lip-sync"), a_version())
    with pytest.raises(InvalidInput, match="lip-sync"):
        decide(snapshot, Request(model="m", task="chat"))


def test_the_wrong_task_is_said_before_what_the_model_lacks() -> None:
    """To pull it, or to make a version active, would not help."""
    snapshot = a_snapshot(
        a_model("m", task="lip-sync"), a_version(status=Status.DRAFT, source=HUB), a_model("bare", task="lip-sync")
    )
    for text in ("m", "m@1.0.0", "m@9.9.9", "m@staging", "bare"):
        with pytest.raises(InvalidInput, match="does lip-sync, not chat"):
            decide(snapshot, Request(model=text, task="chat"))


def test_what_is_left_alone_is_so_for_a_second_at_least() -> None:
    """Nobody is told to wait 0 s."""
    rows = a_version("a"), a_service("s", to("a"))
    almost = replace(cold(("a", "1.0.0")), cooldowns={("a", "1.0.0"): Cooldown(until=60.2, seconds=300)})
    for request in (Request(model="a"), Request(service="s")):
        with pytest.raises(CandidateInCooldown, match="left alone for 1 s more"):
            decide(a_snapshot(*rows), request, almost)


def test_a_bare_model_in_cooldown_says_when() -> None:
    """Cooldown of the only candidate is 429 with the seconds; a loaded version answers all the same."""
    snapshot = a_snapshot(a_version())
    key = ("m", "1.0.0")
    with pytest.raises(CandidateInCooldown) as caught:
        decide(snapshot, Request(model="m"), cold(key))
    assert caught.value.retry_after == 240.0
    assert decide(snapshot, Request(model="m"), cold(key, loaded=(key,))).version == "1.0.0"


def test_nothing_named_is_bad_input() -> None:
    """A request without service, model and task cannot be decided."""
    with pytest.raises(InvalidInput):
        decide(a_snapshot(), Request())


# A service


def test_a_bound_service_answers_with_its_binding() -> None:
    """A service with one target answers with it, by reason `bound`, and names itself."""
    snapshot = a_snapshot(a_version(), a_version(version="2.0.0"), a_service("s", to("m@1.0.0")))
    decision = decide(snapshot, Request(service="s"))
    assert (decision.service, decision.version, decision.reason) == ("s", "1.0.0", Reason.BOUND)
    assert "it is the binding of s" in decision.explanation
    assert decide(snapshot, Request(model="s")) == decision
    assert decide(snapshot, Request(model="s:latest")) == decision


def test_a_service_id_wins_over_a_model_id() -> None:
    """A name that is a service is the service, even if a model had it too."""
    snapshot = a_snapshot(a_version("x"), a_version("m"), a_service("x", to("m@1.0.0")))
    decision = decide(snapshot, Request(model="x"))
    assert (decision.service, decision.model) == ("x", "m")


@pytest.mark.parametrize(("text", "error"), [("s@1.0.0", VersionNotFound), ("s@blue", AliasNotFound)])
def test_a_service_has_no_versions_to_choose(text: str, error: type[Exception]) -> None:
    """`service@version` is 404 with the way to say it."""
    with pytest.raises(error):
        decide(a_snapshot(a_version(), a_service("s", to("m"))), Request(model=text))


def test_an_unknown_service_is_404() -> None:
    """A service that does not exist is not searched among the models."""
    with pytest.raises(ServiceNotFound):
        decide(a_snapshot(a_version()), Request(service="m"))


def test_an_alias_binding_follows_the_alias() -> None:
    """A service bound to an alias answers with what the alias means now; a floating one with the newest active."""
    rows = (a_version(), a_version(version="1.1.0"), a_service("s", to("m@:blue")), a_service("t", to("m")))
    assert decide(a_snapshot(*rows, an_alias("m", "blue", "1.0.0")), Request(service="s")).version == "1.0.0"
    assert decide(a_snapshot(*rows, an_alias("m", "blue", "1.1.0")), Request(service="s")).version == "1.1.0"
    assert decide(a_snapshot(*rows), Request(service="t")).version == "1.1.0"


def test_an_explicit_choice_goes_before_the_binding() -> None:
    """`service` and `model` together: the model answers, and the service's own order stands behind it."""
    snapshot = a_snapshot(a_version("a"), a_version("b"), a_service("s", to("a@1.0.0"), fallback=(link("b"),)))
    plan = make_plan(snapshot, Request(service="s", model="b"))
    assert (plan.decision.model, plan.decision.reason) == ("b", Reason.USER_CHOICE)
    assert [step.name for step in plan.steps] == ["b@1.0.0", "a@1.0.0"]


@pytest.mark.parametrize("choice", ["nobody", "a@9.9.9", "a@blue", "draft", "off", "other"])
def test_an_unusable_choice_on_a_service_falls_to_the_policy_and_says_so(choice: str) -> None:
    """Unknown, inactive or of another task: the policy chooses, and `warnings` holds the choice and why not."""
    snapshot = a_snapshot(
        a_version("a"),
        a_version("draft", status=Status.DRAFT),
        a_model("off", active=False),
        a_version("off"),
        a_model("other", task="embedding"),
        a_version("other"),
        a_service("s", to("a@1.0.0")),
    )
    decision = decide(snapshot, Request(service="s", model=choice))
    assert (decision.model, decision.reason) == ("a", Reason.AUTO_POLICY)
    assert any(repr(choice) in warning for warning in decision.warnings)


def test_naming_the_service_itself_is_no_choice() -> None:
    """A client that puts the service's id into both fields gets the binding, without a warning."""
    snapshot = a_snapshot(a_version(), a_service("s", to("m@1.0.0")))
    decision = decide(snapshot, Request(service="s", model="s"))
    assert (decision.reason, decision.warnings) == (Reason.BOUND, ())


def test_a_service_of_another_task_is_bad_input() -> None:
    """A chat call on a service that does something else is refused."""
    snapshot = a_snapshot(a_version(), a_service("s", to("m"), task="embedding"))
    with pytest.raises(InvalidInput, match="embedding"):
        decide(snapshot, Request(service="s", task="chat"))


# The split


def test_a_split_is_sticky_and_roughly_fair() -> None:
    """One client always meets one version; many clients spread as the weights say."""
    snapshot = a_snapshot(a_version(), a_version(version="2.0.0"), a_service("s", to("m@1.0.0", 80), to("m@2.0.0", 20)))
    met = {key: decide(snapshot, Request(service="s", client_key=key)) for key in map(str, range(2000))}
    assert all(decision.reason is Reason.SPLIT for decision in met.values())
    shares = Counter(decision.version for decision in met.values())
    assert 0.15 < shares["2.0.0"] / 2000 < 0.25
    again = {key: decide(snapshot, Request(service="s", client_key=key)).version for key in met}
    assert again == {key: decision.version for key, decision in met.items()}


def test_without_a_client_key_the_heaviest_target_answers() -> None:
    """No key, no side: the version with most traffic."""
    service = a_service("s", to("m@1.0.0", 20), to("m@2.0.0", 80))
    assert choose_target(service, "") == to("m@2.0.0", 80)


def test_where_a_client_stands_is_written_down_here() -> None:
    """The place of a client comes from SHA-256 of service and key, and from nothing else."""
    assert split_position("s", "ann") == pytest.approx(75.82502789, abs=1e-6)


@given(st.text(max_size=20), st.integers(0, 100), st.integers(0, 100))
def test_only_clients_between_the_bounds_move(key: str, before: int, after: int) -> None:
    """When a weight changes, a client moves only if its place lies between the old and the new bound."""
    sides = []
    for weight in (before, after):
        service = a_service("s", to("m@1.0.0", weight), to("m@2.0.0", 100 - weight))
        sides.append(choose_target(service, key or "x"))
    place = split_position("s", key or "x")
    moved = sides[0] is not None and sides[1] is not None and sides[0].version != sides[1].version
    assert moved == (min(before, after) <= place < max(before, after))


def test_a_target_with_no_weight_gets_no_client() -> None:
    """A share of zero is met by nobody."""
    service = a_service("s", to("m@1.0.0", 0), to("m@2.0.0", 100))
    assert {choose_target(service, str(n)) for n in range(200)} == {to("m@2.0.0", 100)}


def test_the_other_targets_of_a_split_stand_before_the_chain() -> None:
    """If a canary fails, the version that has the rest of the traffic is asked before the fallback chain."""
    snapshot = a_snapshot(
        a_version(),
        a_version(version="2.0.0"),
        a_version("b"),
        a_service("s", to("m@1.0.0", 99), to("m@2.0.0", 1), fallback=(link("b"),)),
    )
    assert [step.name for step in own_steps(snapshot, snapshot.services["s"])] == ["m@1.0.0", "m@2.0.0", "b@1.0.0"]


# What cannot answer


def test_candidates_that_cannot_be_tried_are_passed_over_with_the_reason() -> None:
    """Draft, retired, gone, cold and unpulled ones are told one by one, and the reason is fallback_unavailable."""
    snapshot = a_snapshot(
        a_version("a", status=Status.DRAFT),
        a_version("b", status=Status.RETIRED),
        a_version("c"),
        a_version("d", source=HUB),
        a_version("e"),
        a_service("s", to("a@1.0.0"), fallback=(link("b@1.0.0"), link("gone@1.0.0"), link("c"), link("d"), link("e"))),
    )
    decision = decide(snapshot, Request(service="s"), cold(("c", "1.0.0")))
    assert (decision.model, decision.reason) == ("e", Reason.FALLBACK_UNAVAILABLE)
    assert [(entry.model, entry.outcome) for entry in decision.chain] == [
        ("a", Outcome.SKIPPED),
        ("b", Outcome.SKIPPED),
        ("gone", Outcome.SKIPPED),
        ("c", Outcome.SKIPPED),
        ("d", Outcome.SKIPPED),
        ("e", Outcome.SELECTED),
    ]
    for words in ("draft", "retired", "no such version", "left alone for 240 s", "not pulled"):
        assert words in decision.explanation


def test_an_unpulled_active_version_answers_only_if_nothing_else_can() -> None:
    """A version without its files goes after every complete one, and with a warning if it must go first."""
    rows = (a_version("d", source=HUB), a_service("s", to("d@1.0.0")))
    decision = decide(a_snapshot(*rows), Request(service="s"))
    assert (decision.model, decision.reason) == ("d", Reason.BOUND)
    assert any("may not load" in warning for warning in decision.warnings)
    ranked = a_snapshot(a_model("d", priority=9), a_version("d", source=HUB), a_version("e"))
    assert decide(ranked, Request(task="chat")).model == "e"


def test_a_licence_is_passed_over_on_a_service_and_refused_by_name() -> None:
    """The gate: a commercial deployment skips what it may not use, says why, and refuses it asked for by name."""
    rows = (
        a_version("a", licence="flux-1-dev-non-commercial"),
        a_version("b"),
        a_service("s", to("a@1.0.0"), fallback=(link("b"),)),
    )
    assert decide(a_snapshot(*rows), Request(service="s")).model == "a"
    commercial = a_snapshot(*rows, deployment="commercial")
    decision = decide(commercial, Request(service="s"))
    assert (decision.model, decision.reason) == ("b", Reason.FALLBACK_UNAVAILABLE)
    assert "does not allow commercial use" in decision.explanation
    assert decide(commercial, Request(task="chat")).model == "b"
    with pytest.raises(LicenceRefused, match="commercial"):
        decide(commercial, Request(model="a"))


def test_nobody_left_lists_everyone_and_what_to_call() -> None:
    """When nobody may answer, the error holds each candidate with its reason, and the hint names a call."""
    snapshot = a_snapshot(
        a_version("a", status=Status.RETIRED),
        a_version("b", status=Status.DRAFT, source=HUB),
        a_service("s", to("a@1.0.0"), fallback=(link("b"),)),
    )
    with pytest.raises(NoCandidate) as caught:
        decide(snapshot, Request(service="s"))
    assert isinstance(caught.value.details, list)
    assert [entry["candidate"] for entry in caught.value.details] == ["a@1.0.0", "b@1.0.0"]
    assert "POST /pull" in (caught.value.hint or "")


def test_if_waiting_helps_the_error_says_how_long() -> None:
    """When a candidate is only in cooldown, the answer is 429 with the shortest wait."""
    snapshot = a_snapshot(a_version("a"), a_version("b"), a_service("s", to("a"), fallback=(link("b"),)))
    situation = replace(
        cold(("a", "1.0.0")),
        cooldowns={("a", "1.0.0"): Cooldown(until=300, seconds=300), ("b", "1.0.0"): Cooldown(until=100, seconds=300)},
    )
    with pytest.raises(CandidateInCooldown) as caught:
        decide(snapshot, Request(service="s"), situation)
    assert caught.value.retry_after == 40
    assert "a@1.0.0 it failed a short while ago and is left alone for 240 s more." in caught.value.message


def test_a_model_that_is_left_alone_says_for_how_long() -> None:
    """In words that are true after a failed load and after failed runs."""
    with pytest.raises(CandidateInCooldown) as caught:
        decide(a_snapshot(a_version("a")), Request(model="a"), cold(("a", "1.0.0")))
    assert caught.value.message == "a@1.0.0 failed a short while ago and is left alone for 240 s more."


def test_a_chain_may_name_a_service() -> None:
    """A link that is a service stands for that service's own order, flat; one that runs in a circle ends."""
    snapshot = a_snapshot(
        a_version("a"),
        a_version("b"),
        a_version("c"),
        a_service("s", to("a@1.0.0"), fallback=(link("service:t"), link("a"))),
        a_service("t", to("b@1.0.0"), fallback=(link("service:s"), link("c"))),
    )
    assert [step.name for step in make_plan(snapshot, Request(service="s")).steps] == ["a@1.0.0", "b@1.0.0", "c@1.0.0"]
