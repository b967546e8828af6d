"""What happens when a candidate fails: who is next, who never is, and what the record says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.registry.decision import Outcome, Reason
from serai.registry.failure import Cooldown, Failure, Situation
from serai.registry.plan import Plan, Request, finish, give_up, next_candidate
from serai.registry.policy import make_plan
from serai.registry.service import Condition, FallbackEntry
from unit.registry.build import a_service, a_snapshot, a_version, link, to

FALLING = [failure for failure in Failure if not failure.is_final]
FINAL = [Failure.CLIENT_ERROR, Failure.CANCELLED]


def three(*fallback: FallbackEntry, request: Request | None = None) -> Plan:
    """A service bound to a, with b and c behind it unless a chain is given."""
    chain = fallback or (link("b"), link("c"))
    snapshot = a_snapshot(a_version("a"), a_version("b"), a_version("c"), a_service("s", to("a"), fallback=chain))
    return make_plan(snapshot, request or Request(service="s"))


@pytest.mark.parametrize("failure", FALLING)
def test_our_failures_lead_to_the_next_candidate(failure: Failure) -> None:
    """Load, memory, crash, time, upstream 5xx and 429, cooldown and a refused output fall back, in order."""
    second = next_candidate(three(), failure, error="it broke", ms=12.5)
    assert second is not None
    decision = finish(second, ms=40.0)
    assert decision.model == "b"
    assert decision.fell_back
    assert [entry.model for entry in decision.chain] == ["a", "b"]
    assert decision.chain[0].error == "it broke"
    assert decision.chain[0].ms == 12.5
    assert decision.chain[1].outcome is Outcome.SERVED
    expected = Reason.FALLBACK_UNAVAILABLE if failure.never_tried else Reason.FALLBACK_ERROR
    assert decision.reason is expected


@pytest.mark.parametrize("failure", FINAL)
def test_a_clients_own_error_is_never_tried_elsewhere(failure: Failure) -> None:
    """Bad input and cancellation end the plan."""
    assert next_candidate(three(), failure) is None


@pytest.mark.parametrize("failure", list(Failure))
def test_nothing_is_tried_after_the_first_output(failure: Failure) -> None:
    """Once a byte of the answer was sent, no failure leads on."""
    assert next_candidate(three(), failure, output_started=True) is None


def test_the_chain_ends() -> None:
    """After the last candidate there is none, and the record names each with its error."""
    plan: Plan | None = three()
    seen = []
    last = plan
    while plan is not None:
        last = plan
        seen.append(plan.candidate.name)
        plan = next_candidate(plan, Failure.LOAD_ERROR, error=f"{plan.candidate.name} broke", ms=1)
    assert seen == ["a@1.0.0", "b@1.0.0", "c@1.0.0"]
    assert last is not None
    decision = give_up(last, Failure.LOAD_ERROR, error="c broke", ms=1)
    assert [(entry.model, entry.outcome) for entry in decision.chain] == [(name, Outcome.FAILED) for name in "abc"]
    assert decision.reason is Reason.FALLBACK_ERROR


def test_cooldowns_that_began_meanwhile_count() -> None:
    """The situation at the time of the failure decides who is next, not that of the beginning."""
    now = Situation(now=0.0, cooldowns={("b", "1.0.0"): Cooldown(until=300.0, seconds=300.0)})
    third = next_candidate(three(), Failure.TIMEOUT, situation=now)
    assert third is not None
    assert third.candidate.name == "c@1.0.0"
    assert third.decision.reason is Reason.FALLBACK_ERROR
    assert [entry.outcome for entry in third.decision.chain] == [Outcome.FAILED, Outcome.SKIPPED, Outcome.SELECTED]


def test_a_condition_on_failures_is_held() -> None:
    """A link for memory trouble is used for that and passed over for anything else."""
    chain = (link("b", condition=Condition(on=(Failure.OUT_OF_MEMORY,))), link("c"))
    hungry = next_candidate(three(*chain), Failure.OUT_OF_MEMORY)
    slow = next_candidate(three(*chain), Failure.TIMEOUT)
    assert hungry is not None
    assert slow is not None
    assert (hungry.candidate.name, slow.candidate.name) == ("b@1.0.0", "c@1.0.0")
    assert "it is only for out_of_memory" in slow.decision.explanation


@pytest.mark.parametrize(
    ("condition", "request_", "met"),
    [
        (Condition(marketplaces=("ozon",)), Request(service="s", marketplace="ozon"), True),
        (Condition(marketplaces=("ozon",)), Request(service="s", marketplace="amazon"), False),
        (Condition(marketplaces=("ozon",)), Request(service="s"), False),
        (Condition(min_complexity=0.5), Request(service="s", complexity=0.5), True),
        (Condition(min_complexity=0.5), Request(service="s", complexity=0.4), False),
        (Condition(max_complexity=0.5), Request(service="s", complexity=0.6), False),
        (Condition(max_complexity=0.5), Request(service="s"), False),
        (Condition(), Request(service="s"), True),
    ],
)
def test_conditions_on_the_request_are_held(condition: Condition, request_: Request, met: bool) -> None:
    """A link for a marketplace or a range of complexity is used exactly there."""
    plan = next_candidate(three(link("b", condition=condition), link("c"), request=request_), Failure.LOAD_ERROR)
    assert plan is not None
    assert plan.candidate.name == ("b@1.0.0" if met else "c@1.0.0")


def test_a_candidate_behind_an_unmet_condition_may_come_later() -> None:
    """The same candidate, first under a condition and later without one, is reached the second time."""
    chain = (link("b", condition=Condition(on=(Failure.OUT_OF_MEMORY,))), link("c"), link("b"))
    plan = next_candidate(three(*chain), Failure.TIMEOUT)
    assert plan is not None
    assert plan.candidate.name == "c@1.0.0"
    last = next_candidate(plan, Failure.TIMEOUT)
    assert last is not None
    assert last.candidate.name == "b@1.0.0"


def test_a_candidate_that_failed_under_a_condition_is_not_tried_again() -> None:
    """The same candidate, reached through its condition and failed, is left out where it stands again."""
    chain = (link("b", condition=Condition(on=(Failure.TIMEOUT,))), link("b"), link("c"))
    second = next_candidate(three(*chain), Failure.TIMEOUT)
    assert second is not None
    assert second.candidate.name == "b@1.0.0"
    third = next_candidate(second, Failure.TIMEOUT)
    assert third is not None
    assert third.candidate.name == "c@1.0.0"


def test_the_condition_of_a_service_link_holds_for_its_whole_chain() -> None:
    """A link to another service under a condition lets none of that service's candidates through without it."""
    snapshot = a_snapshot(
        a_version("a"),
        a_version("b"),
        a_version("c"),
        a_service("s", to("a"), fallback=(link("service:t", condition=Condition(marketplaces=("ozon",))),)),
        a_service("t", to("b"), fallback=(link("c"),)),
    )
    assert next_candidate(make_plan(snapshot, Request(service="s")), Failure.TIMEOUT) is None
    plan = next_candidate(make_plan(snapshot, Request(service="s", marketplace="ozon")), Failure.TIMEOUT)
    assert plan is not None
    assert plan.candidate.name == "b@1.0.0"


def test_the_explanation_is_honest_at_every_stage() -> None:
    """Before: who and who would follow; after a failure: that, with the failed one and its error."""
    plan = three()
    assert plan.decision.explanation == (
        "a@1.0.0 answers: it is the binding of s. If it fails, next in order: b@1.0.0, c@1.0.0."
    )
    second = next_candidate(plan, Failure.LOAD_ERROR, error="its files are damaged")
    assert second is not None
    assert second.decision.explanation == (
        "b@1.0.0 answers: a candidate before it failed; it is in the fallback chain of s. "
        "a@1.0.0 failed: its files are damaged. If it fails, next in order: c@1.0.0."
    )
    assert finish(second, 12.0).explanation == (
        "b@1.0.0 answers: a candidate before it failed; it is in the fallback chain of s. "
        "a@1.0.0 failed: its files are damaged."
    )
    assert give_up(plan, Failure.CRASH, error="it broke after its first words").explanation == (
        "a@1.0.0 was to answer: it is the binding of s. It failed: it broke after its first words."
    )


def test_the_record_has_the_names_of_the_specification() -> None:
    """The JSON of a decision has exactly the specified keys."""
    document = three().decision.document()
    assert list(document) == ["model", "version", "service", "reason", "explanation", "chain", "warnings"]
    assert list(document["chain"][0]) == ["model", "version", "outcome", "error", "ms"]
    assert (document["reason"], document["chain"][0]["outcome"]) == ("bound", "selected")


@given(st.lists(st.sampled_from(list(Failure)), max_size=6), st.sets(st.sampled_from("abc")))
def test_nobody_is_tried_twice_and_the_last_link_is_the_answer(failures: list[Failure], cold: set[str]) -> None:
    """Whatever fails in whatever order, candidates are tried in order, once each, never a cold one."""
    snapshot = a_snapshot(
        *(a_version(name) for name in "abcd"),
        a_service("s", to("d"), fallback=(link("a"), link("b"), link("a"), link("c"))),
    )
    situation = Situation(cooldowns={(name, "1.0.0"): Cooldown(until=9.0, seconds=300.0) for name in cold})
    plan: Plan | None = make_plan(snapshot, Request(service="s"), situation)
    tried = []
    for failure in failures:
        if plan is None:
            break
        tried.append(plan.candidate.model.id)
        decision = plan.decision
        assert decision.chain[-1].model == decision.model
        assert decision.fell_back == (plan.position > 0)
        plan = next_candidate(plan, failure)
        assert plan is None or not failure.is_final
    assert tried == sorted(set(tried), key="dabc".index)
    assert not set(tried) & cold
