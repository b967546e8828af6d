"""Services in themselves: weights, links, history, aliases and later shapes."""

from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest

from serai.errors import InvalidInput
from serai.registry.errors import InvalidSplit
from serai.registry.failure import Failure
from serai.registry.governance import Approval
from serai.registry.model import AliasEvent, alias_at, check_model
from serai.registry.service import Binding, Condition, FallbackEntry, Target, binding_at, check_shape
from serai.registry.source import HubSource, Source
from unit.registry.build import AT, a_model, a_service, link, to

DAY = timedelta(days=1)


@pytest.mark.parametrize("weights", [(50, 49), (100, 100), (101, -1), (0, 0), (99,)])
def test_weights_sum_to_100(weights: tuple[int, ...]) -> None:
    """Invariant I6: weights that are no percents, or do not make 100, are refused."""
    targets = [to(f"m@1.{n}.0", weight) for n, weight in enumerate(weights)]
    with pytest.raises(InvalidSplit):
        check_shape(a_service("s", *targets))


def test_good_splits_pass() -> None:
    """A full split, one with an empty share, and no binding at all are fine."""
    check_shape(a_service("s", to("m@1.0.0", 90), to("m@1.1.0", 10)))
    check_shape(a_service("s", to("m@1.0.0", 100), to("m@1.1.0", 0)))
    check_shape(a_service("s"))


def test_a_target_is_named_once() -> None:
    """The same target twice in one split is refused."""
    with pytest.raises(InvalidSplit):
        check_shape(a_service("s", to("m@1.0.0", 50), to("m@1.0.0", 50)))


@pytest.mark.parametrize(
    "entry",
    [
        FallbackEntry(),
        FallbackEntry(model="m", service="s"),
        FallbackEntry(service="s", version="1.0.0"),
        FallbackEntry(model="m", version="1.0.0", alias="a"),
        link("m", condition=Condition(min_complexity=0.8, max_complexity=0.2)),
        link("m", condition=Condition(on=(Failure.CLIENT_ERROR,))),
    ],
)
def test_a_link_names_one_thing_and_can_be_met(entry: FallbackEntry) -> None:
    """A link that names nothing, two things, or a condition that never holds is refused."""
    with pytest.raises(InvalidInput):
        check_shape(a_service("s", to("m"), fallback=(entry,)))


def test_the_binding_is_the_heaviest_target() -> None:
    """Of a split, the target with most traffic is what the service is said to be bound to."""
    assert a_service("s", to("m@1.0.0", 10), to("m@1.1.0", 90)).binding == to("m@1.1.0", 90)
    assert a_service("s").binding is None


def test_stored_values_refuse_keys_that_they_do_not_know() -> None:
    """Decoding a stored target, link or source with a foreign key fails instead of dropping it."""
    for kind, text in (
        (Target, b'{"model": "m", "wieght": 3}'),
        (FallbackEntry, b'{"model": "m", "when": {}}'),
        (Source, b'{"kind": "hub", "repo": "o/n", "branch": "x"}'),
        (Source, b'{"kind": "ftp", "repo": "o/n"}'),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=kind)


def test_stored_values_survive_a_round_trip() -> None:
    """A chain and a source come back as they were written."""
    entry = link("m@1.0.0", condition=Condition(on=(Failure.TIMEOUT,), marketplaces=("ozon",), min_complexity=0.2))
    assert msgspec.json.decode(msgspec.json.encode(entry), type=FallbackEntry) == entry
    source = HubSource(repo="o/n", revision="c" * 40)
    assert msgspec.json.decode(msgspec.json.encode(source), type=Source) == source


def test_the_history_says_which_version_answered_at_a_time() -> None:
    """A moment belongs to the line that began at or before it and had not ended."""
    lines = [
        Binding(service_id="s", revision=1, versions=("m@1.0.0",), since=AT, until=AT + DAY),
        Binding(service_id="s", revision=2, versions=("m@1.1.0",), since=AT + DAY),
    ]
    assert binding_at(lines, AT - DAY) is None
    assert binding_at(lines, AT) == lines[0]
    assert binding_at(lines, AT + DAY) == lines[1]
    assert binding_at(lines, AT + 9 * DAY) == lines[1]


def test_what_an_alias_meant_at_a_time() -> None:
    """The events of an alias answer what it pointed to, also when it pointed to nothing."""
    moves = [(None, "1.0.0"), ("1.0.0", "1.1.0"), ("1.1.0", None)]
    events = tuple(
        AliasEvent(model_id="m", name="a", epoch=n, before=before, after=after, at=AT + n * DAY, by="ann")
        for n, (before, after) in enumerate(moves, start=1)
    )
    assert [alias_at(events[::-1], AT + n * DAY) for n in range(5)] == [None, "1.0.0", "1.1.0", None, None]


def test_an_approval_holds_for_one_digest() -> None:
    """Changing anything makes an approval void."""
    approval = Approval(
        id="a", version_digest="sha256:1", policy_id="p", verdict="approved", requested_by="ann", requested_at=AT
    )
    assert approval.holds_for("sha256:1")
    assert not approval.holds_for("sha256:2")
    assert not replace(approval, verdict="requested").holds_for("sha256:1")


@pytest.mark.parametrize(
    "values", [{"id": "A"}, {"id": "auto"}, {"task": "vision"}, {"name": " "}, {"lookup_names": ("x y",)}]
)
def test_a_card_that_could_not_be_kept_is_refused(values: dict[str, object]) -> None:
    """Id, task, name and lookup names of a card are checked."""
    with pytest.raises(InvalidInput):
        check_model(a_model(**({"id_": values.pop("id")} if "id" in values else {}), **values))
