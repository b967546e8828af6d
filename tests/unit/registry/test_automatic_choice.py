"""What the policy chooses when it is asked to, and what it says of it."""

import pytest

from serai.registry.decision import Reason
from serai.registry.plan import Request
from serai.registry.policy import decide, make_plan
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.source import HubSource
from unit.registry.build import a_model, a_service, a_snapshot, a_version, link, to

HUB = HubSource(repo="o/n")


def products(**rules: str) -> RegistrySnapshot:
    """The product photos of the specification, all of them usable."""
    return a_snapshot(
        a_model("lora", task="background-removal", priority=30, marketplaces=("ozon", "amazon")),
        a_version("lora", "1.0.0", memory_class="medium", steps=30),
        a_version("lora", "2.0.0", memory_class="medium", steps=50, tags=("enhanced",)),
        a_model("birefnet", task="background-removal", priority=20),
        a_version("birefnet", memory_class="low"),
        a_service(
            "cutout",
            to("lora@2.0.0"),
            task="background-removal",
            fallback=(link("lora@1.0.0"), link("birefnet")),
        ),
        **rules,
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "lora@2.0.0"),
        ({"require_fast": True}, "lora@1.0.0"),
        ({"require_high_quality": True}, "lora@2.0.0"),
        ({"complexity": 0.71}, "lora@2.0.0"),
        ({"complexity": 0.7}, "lora@2.0.0"),
        ({"complexity": 0.3}, "lora@2.0.0"),
        ({"complexity": 0.29}, "birefnet@1.0.0"),
        ({"complexity": 0.1, "require_high_quality": True}, "lora@2.0.0"),
        ({"marketplace": "ozon"}, "lora@2.0.0"),
        ({"marketplace": "wildberries"}, "birefnet@1.0.0"),
        ({"require_fast": True, "marketplace": "wildberries"}, "birefnet@1.0.0"),
        ({"require_high_quality": True, "marketplace": "wildberries"}, "birefnet@1.0.0"),
    ],
)
def test_the_automatic_choice(asked: dict[str, object], expected: str) -> None:
    """Fast, high quality, complexity and marketplace lead where the specification says."""
    for request in (Request(service="cutout", model="auto", **asked), Request(task="background-removal", **asked)):
        decision = decide(products(), request)
        assert (f"{decision.model}@{decision.version}", decision.reason) == (expected, Reason.AUTO_POLICY)
        assert "The policy looked at 3 active candidates for background-removal" in decision.explanation


def test_complexity_and_marketplace_alone_do_not_leave_the_binding() -> None:
    """What is measured or preset is no wish of the caller: the binding answers."""
    decision = decide(products(), Request(service="cutout", complexity=0.1, marketplace="wildberries"))
    assert (decision.version, decision.reason) == ("2.0.0", Reason.BOUND)


def test_a_wish_leaves_the_binding() -> None:
    """require_fast on a bound service asks the policy, and the service's own order follows."""
    plan = make_plan(products(), Request(service="cutout", require_fast=True))
    assert plan.reason is Reason.AUTO_POLICY
    assert [step.name for step in plan.steps] == ["lora@1.0.0", "birefnet@1.0.0", "lora@2.0.0"]


def test_both_wishes_are_met_by_one_or_the_fast_one_goes_first() -> None:
    """Fast and of high quality: one that is both, or else a fast one, and the explanation says which."""
    both = Request(task="chat", require_fast=True, require_high_quality=True)
    quick = a_version("quick", memory_class="low", steps=4)
    fine = a_version("fine", memory_class="low", steps=50)
    perfect = a_version("perfect", memory_class="low", steps=10, tags=("high-quality",))
    assert decide(a_snapshot(quick, fine, perfect), both).model == "perfect"
    decision = decide(a_snapshot(quick, fine), both)
    assert decision.model == "quick"
    assert "none is both" in decision.explanation


def test_a_wish_that_nobody_meets_is_given_up_and_said() -> None:
    """Something that answers beats nothing: the highest priority is taken, and the explanation admits it."""
    decision = decide(a_snapshot(a_version(memory_class="high", steps=50)), Request(task="chat", require_fast=True))
    assert decision.model == "m"
    assert "none has that" in decision.explanation


def test_a_card_without_specifications_does_not_crash_the_choice() -> None:
    """Versions that say nothing of memory, steps or tags are chosen by priority (the choice once crashed here)."""
    snapshot = a_snapshot(a_version("a"), a_model("b", priority=1), a_version("b"))
    for asked in ({}, {"require_fast": True}, {"require_high_quality": True}, {"complexity": 0.9}, {"complexity": 0.0}):
        assert decide(snapshot, Request(task="chat", **asked)).model == "b"


@pytest.mark.parametrize(
    ("memory", "steps", "fast"),
    [
        ("low", 30, True),
        ("medium", 30, True),
        ("medium", 31, False),
        ("high", 4, False),
        ("low", None, True),
        (None, 4, False),
    ],
)
def test_what_is_fast(memory: str | None, steps: int | None, fast: bool) -> None:
    """Fast is low or medium memory and at most 30 steps; what takes no steps at all is fast."""
    snapshot = a_snapshot(a_version(memory_class=memory, steps=steps))
    assert snapshot.models["m"].candidates["1.0.0"].is_fast is fast


def test_a_service_without_a_binding_leaves_the_choice_to_the_policy() -> None:
    """No target means the policy, always."""
    snapshot = a_snapshot(a_version("a"), a_model("b", priority=5), a_version("b"), a_service("s"))
    decision = decide(snapshot, Request(service="s"))
    assert (decision.model, decision.reason) == ("b", Reason.AUTO_POLICY)


def test_capabilities_that_are_needed_must_be_there() -> None:
    """A request with a picture passes over what cannot see, and says what is lacking."""
    snapshot = a_snapshot(
        a_version("blind"),
        a_version("seeing", capabilities=("vision",)),
        a_service("s", to("blind@1.0.0"), fallback=(link("seeing"),)),
    )
    decision = decide(snapshot, Request(service="s", capabilities=frozenset({"vision"})))
    assert (decision.model, decision.reason) == ("seeing", Reason.FALLBACK_UNAVAILABLE)
    assert "it cannot do vision" in decision.explanation
    assert decide(snapshot, Request(task="chat", capabilities=frozenset({"vision"}))).model == "seeing"


def test_many_unpulled_favourites_do_not_hide_one_that_is_here() -> None:
    """However many versions of higher priority wait for a pull, the complete one answers."""
    favourites = [row for n in range(9) for row in (a_model(f"f{n}", priority=9), a_version(f"f{n}", source=HUB))]
    snapshot = a_snapshot(*favourites, a_version("here"))
    assert decide(snapshot, Request(task="chat")).model == "here"
