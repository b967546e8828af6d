"""Any sequence of changes, through two servers on one database, against an oracle; on both databases.

After each step the invariants of the specification are looked for in the rows themselves (`check_integrity`):
I1 what is immutable never changes, I2 digests, I3 numbers, I4 aliases, I5 and I7 nothing dangles, I6
weights and chains, I8 the audit log, I9 lists agree with what is in memory, I10 the cap.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serai.clock import ManualClock
from serai.errors import SeraiError
from serai.registry import bindings, releases, store
from serai.registry.model import alias_at
from serai.registry.service import FallbackEntry, Service, Target, binding_at
from serai.registry.version import IDENTITY, Status
from serai.storage.database import Database
from support.registry import Desk, check_integrity, entries, facts, loaded_anew
from support.registry_oracle import NUMBERS, Content, Entry, Move, Oracle, Refused
from support.registry_oracle import Target as OTarget
from unit.registry.build import AT, a_model, a_service, a_version, link

PICK = st.integers(0, 1000)
"""Which of what there is; a few stand for what there is not."""
SERVICES = ("s", "t", "u")
ALIASES = st.sampled_from(["x", "x", "y"])
FORCE = st.sampled_from([False, False, True])
SELECTOR = st.one_of(
    st.sampled_from(NUMBERS).map(lambda one: (one, None)), ALIASES.map(lambda one: (None, one)), st.just((None, None))
)
TARGET = st.tuples(st.sampled_from(["a", "a", "b"]), SELECTOR).map(lambda one: (one[0], *one[1]))
TARGETS = st.one_of(
    st.just(()),
    TARGET.map(lambda one: ((*one, 100),)),
    TARGET.map(lambda one: ((*one, 100),)),
    st.tuples(TARGET, TARGET).map(lambda two: ((*two[0], 30), (*two[1], 70))),
)
CONTENT = st.tuples(TARGETS, st.lists(st.sampled_from(SERVICES), max_size=2, unique=True).map(tuple))


def targets_of(content: Content) -> tuple[Target, ...]:
    return tuple(Target(model=m, version=v, alias=a, weight=w) for m, v, a, w in content[0])


def links_of(content: Content) -> tuple[FallbackEntry, ...]:
    return tuple(link(f"service:{name}") for name in content[1])


def told(service: Service) -> Content:
    targets: tuple[OTarget, ...] = tuple((t.model, t.version, t.alias, t.weight) for t in service.revision.targets)
    return targets, tuple(entry.service or "" for entry in service.revision.fallback)


class Machine(RuleBasedStateMachine):
    """Two servers, taken in turn, and the oracle."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.clock = ManualClock(AT)
        self.frozen: dict[str, tuple[Any, ...]] = {}

    def teardown(self) -> None:
        for desk in getattr(self, "desks", ()):
            desk.registry.close()

    @initialize(policy=st.sampled_from(["refuse", "deprecate-oldest"]))
    def start(self, policy: str) -> None:
        rules: dict[str, Any] = {"on_limit": policy, "max_active_versions_per_model": 3}
        self.desks = [Desk(self.database, clock=self.clock, **rules) for _ in range(2)]
        self.turns = cycle(self.desks)
        self.oracle = Oracle(limit=3, deprecate_oldest=policy == "deprecate-oldest", now=self.clock.now())
        for model in "ab":
            self.create_model(model, 1)
        for status in ("active", "draft"):
            self.create_version(0, 1, status)
        self.put_alias(1, "x", check=True, believed=True)
        self.put_alias(3, "y", check=True, believed=True)
        self.deprecate(2, force=False)
        self.create_service(0, ((("a", None, "x", 100),), ()))
        self.create_service(1, ((("a", None, None, 100),), ("s",)))

    def model_at(self, pick: int) -> str:
        """Return a model's id; rarely one that there is not."""
        known = [*sorted(self.oracle.models) * 4, "a", "b", "s"]
        return known[pick % len(known)]

    def version_at(self, pick: int, *statuses: str) -> tuple[str, str]:
        """Return model and number of a version, mostly in one of these statuses; rarely of one that there is not."""
        versions = [(model, one) for model, held in sorted(self.oracle.models.items()) for one in held.values()]
        known = [(model, one.number) for model, one in versions]
        fitting = [(model, one.number) for model, one in versions if one.status in statuses]
        known = [*fitting * 6, *known * 2, ("a", "2.0.0")]
        return known[pick % len(known)]

    def service_at(self, pick: int) -> str:
        """Return a service's id; rarely of one that there is not."""
        known = [*sorted(self.oracle.services) * 4, *SERVICES]
        return known[pick % len(known)]

    def number_at(self, model: str, pick: int) -> str:
        """Return a number that the model may get; rarely one that it had."""
        free = [number for number in NUMBERS if number not in self.oracle.used.get(model, ())]
        known = [*free * 4, *NUMBERS]
        return known[pick % len(known)]

    def both(self, expected: Callable[[], list[Entry]], command: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Do the same to the oracle and, through the next server, to the registry; compare what they say."""
        desk, before = next(self.turns), entries(self.database)
        try:
            wanted: list[Entry] | str = expected()
        except Refused as refused:
            wanted = refused.code
        said: str | None = None
        try:
            desk.do(command, *args, **kwargs)
        except SeraiError as error:
            said = error.code
        written = entries(self.database)[len(before) :]
        if isinstance(wanted, str):
            assert (said, written) == (wanted, [])
            return
        assert said is None
        assert sorted((entry.action, entry.object_id) for entry in written) == sorted(wanted)
        self.oracle.note_answers()

    # --- models, versions, aliases ---

    @rule(model=st.sampled_from(["a", "b", "s"]), pick=PICK)
    def create_model(self, model: str, pick: int) -> None:
        number = self.number_at(model, pick)
        first = a_version(model, number)
        self.both(lambda: self.oracle.create_model(model, number), releases.create_model, a_model(model), first)

    @rule(pick=PICK, force=st.sampled_from([False, False, False, True]))
    def delete_model(self, pick: int, force: bool) -> None:
        model = self.model_at(pick)
        self.both(lambda: self.oracle.delete_model(model, force), releases.delete_model, model, force=force)

    @rule(pick=PICK, number=PICK, status=st.sampled_from(["active", "active", "draft"]))
    def create_version(self, pick: int, number: int, status: str) -> None:
        model = self.model_at(pick)
        made = self.number_at(model, number)
        self.both(
            lambda: self.oracle.create_version(model, made, status),
            releases.create_version,
            model,
            made,
            {},
            status=Status(status),
        )

    @rule(pick=PICK, engine=st.sampled_from([None, "", "e"]), notes=st.sampled_from(["", "n"]))
    def edit(self, pick: int, engine: str | None, notes: str) -> None:
        name = self.version_at(pick)
        changes = {"release_notes": notes} | ({} if engine is None else {"engine": engine})
        self.both(lambda: self.oracle.edit(*name, engine, notes), releases.update_version, *name, changes)

    @rule(pick=PICK)
    def activate(self, pick: int) -> None:
        name = self.version_at(pick, "draft", "deprecated")
        self.both(lambda: self.oracle.activate(*name), releases.activate, *name)

    @rule(pick=PICK)
    def publish(self, pick: int) -> None:
        name = self.version_at(pick)
        self.both(lambda: self.oracle.publish(*name), releases.publish, *name)

    @rule(pick=PICK, force=FORCE)
    def deprecate(self, pick: int, force: bool) -> None:
        name = self.version_at(pick, "active")
        self.both(lambda: self.oracle.deprecate(*name, force), releases.deprecate, *name, force=force)

    @rule(pick=PICK, force=FORCE)
    def unpublish(self, pick: int, force: bool) -> None:
        name = self.version_at(pick)
        self.both(lambda: self.oracle.unpublish(*name, force), releases.unpublish, *name, force=force)

    @rule(pick=PICK, force=FORCE)
    def retire(self, pick: int, force: bool) -> None:
        name = self.version_at(pick, "deprecated")
        self.both(lambda: self.oracle.retire(*name, force), releases.retire, *name, force=force)

    @rule(pick=PICK, force=FORCE)
    def delete_version(self, pick: int, force: bool) -> None:
        name = self.version_at(pick)
        self.both(lambda: self.oracle.delete_version(*name, force), releases.delete_version, *name, force=force)

    @rule(pick=PICK, name=ALIASES, check=st.booleans(), believed=st.booleans())
    def put_alias(self, pick: int, name: str, check: bool, believed: bool) -> None:
        """Compare and swap, from where it points or from elsewhere; or without asking."""
        model, to = self.version_at(pick)
        expected = self.oracle.aliases.get((model, name)) if believed else "2.0.0-rc.1"
        self.both(
            lambda: self.oracle.put_alias(model, name, to, expected, check),
            releases.put_alias,
            model,
            name,
            to,
            expected_from=expected,
            check=check,
        )

    @rule(pick=PICK, name=ALIASES, force=FORCE)
    def delete_alias(self, pick: int, name: str, force: bool) -> None:
        model = self.model_at(pick)
        self.both(lambda: self.oracle.delete_alias(model, name, force), releases.delete_alias, model, name, force=force)

    # --- services ---

    @rule(pick=PICK, content=CONTENT)
    def create_service(self, pick: int, content: Content) -> None:
        service = SERVICES[pick % len(SERVICES)]
        made = a_service(service, *targets_of(content), fallback=links_of(content))
        now = self.clock.now()
        made = replace(made, created_at=now, revision=replace(made.revision, created_at=now))
        self.both(lambda: self.oracle.create_service(service, content), bindings.create_service, made)

    @rule(pick=PICK, content=CONTENT)
    def update_service(self, pick: int, content: Content) -> None:
        service = self.service_at(pick)
        changes = {"targets": targets_of(content), "fallback": links_of(content)}
        self.both(lambda: self.oracle.update_service(service, content), bindings.update_service, service, {}, changes)

    @rule(pick=PICK, version=PICK, alias=st.none() | st.none() | ALIASES)
    def switch(self, pick: int, version: int, alias: str | None) -> None:
        service, (model, number) = self.service_at(pick), self.version_at(version, "active")
        self.both(
            lambda: self.oracle.switch(service, model, None if alias else number, alias),
            bindings.switch_version,
            service,
            model=model,
            version=None if alias else number,
            alias=alias,
        )

    @rule(pick=PICK, to=st.none() | st.none() | st.integers(1, 4))
    def rollback(self, pick: int, to: int | None) -> None:
        service = self.service_at(pick)
        self.both(lambda: self.oracle.rollback(service, to), bindings.rollback, service, to=to)

    @rule(pick=PICK, published=st.booleans())
    def set_published(self, pick: int, published: bool) -> None:
        service = self.service_at(pick)
        self.both(
            lambda: self.oracle.set_published(service, published), bindings.set_published, service, published=published
        )

    @rule(pick=PICK, force=FORCE)
    def delete_service(self, pick: int, force: bool) -> None:
        service = self.service_at(pick)
        self.both(lambda: self.oracle.delete_service(service, force), bindings.delete_service, service, force=force)

    # --- time, questions, attacks ---

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.oracle.now = self.clock.now()

    @rule(service=st.sampled_from(SERVICES), ago=st.integers(0, 6))
    def ask_what_answered(self, service: str, ago: int) -> None:
        """Which version answered at time T."""
        at = self.clock.now() - timedelta(seconds=ago)
        line = binding_at(self.database.read_sync(store.bindings, service), at)
        assert (line and line.versions) == self.oracle.answered(service, at)

    @rule(model=st.sampled_from(["a", "b"]), name=ALIASES, ago=st.integers(0, 6))
    def ask_what_was_named(self, model: str, name: str, ago: int) -> None:
        """What an alias named at time T; and all its moves were kept."""
        at = self.clock.now() - timedelta(seconds=ago)
        events = self.database.read_sync(store.alias_events, model, name)
        moves = self.oracle.moves.get((model, name), [])
        assert [Move(event.epoch, event.before, event.after, event.at) for event in events] == moves
        past = [move.after for move in moves if move.at <= at]
        assert alias_at(tuple(events), at) == (past[-1] if past else None)

    @rule(pick=PICK)
    def rewrite_past_all_code(self, pick: int) -> None:
        """I1, by the database alone: SQL that rewrites what a version is fails on every immutable row."""
        model, number = self.version_at(pick)
        frozen = f"{model}@{number}" in self.frozen
        statement = "UPDATE versions SET identity = identity || ' ' WHERE model_id = :model AND version = :number"
        try:
            with self.database.engine.connect() as connection:
                touched = connection.execute(sa.text(statement), {"model": model, "number": number}).rowcount
                connection.rollback()
        except sa.exc.DBAPIError:
            assert frozen
        else:
            assert not (frozen and touched)

    # --- what always holds ---

    @invariant()
    def the_rows_are_sound(self) -> None:
        """I2 to I6, I8, I10; I7 with them: what was retired or deleted has no service left that names it."""
        if hasattr(self, "oracle"):
            check_integrity(self.database, self.desks[0].rules)

    @invariant()
    def what_is_immutable_never_changes(self) -> None:
        """I1: from the moment on which a version is immutable, what it is and its number stay for ever."""
        for version in self.database.read_sync(store.load_versions):
            name = f"{version.model_id}@{version.version}"
            identity = (version.seq, version.digest, *(getattr(version, one) for one in IDENTITY))
            if name in self.frozen:
                assert version.immutable
                assert identity == self.frozen[name]
            elif version.immutable:
                self.frozen[name] = identity

    @invariant()
    def both_servers_see_what_a_fresh_one_loads(self) -> None:
        """Whoever wrote it, and whoever looked last."""
        if hasattr(self, "oracle"):
            fresh = facts(loaded_anew(self.database, self.desks[0].rules))
            assert facts(self.desks[0].see()) == facts(self.desks[1].see()) == fresh

    @invariant()
    def the_lists_agree_with_what_is_in_memory(self) -> None:
        """I9: searching the rows finds exactly the living models, versions and services."""
        if not hasattr(self, "oracle"):
            return
        seen, read = self.desks[0].see(), self.database.read_sync
        assert read(store.find_models, limit=9, include_deprecated=True) == sorted(seen.models)
        assert read(store.find_services, limit=9) == sorted(seen.services)
        for model_id, entry in seen.models.items():
            found = read(store.find_versions, model_id, limit=9)
            assert found == [candidate.version for candidate in entry.candidates.values()]

    @invariant()
    def the_registry_is_as_the_oracle_says(self) -> None:
        if not hasattr(self, "oracle"):
            return
        seen = self.desks[1].see()
        assert {
            model_id: {
                number: (v.seq, v.status.value, v.engine, v.release_notes, v.immutable, v.is_published)
                for number, v in ((number, one.version) for number, one in entry.candidates.items())
            }
            for model_id, entry in seen.models.items()
        } == {
            model_id: {
                number: (v.seq, v.status, v.engine, v.notes, v.immutable, v.published) for number, v in versions.items()
            }
            for model_id, versions in self.oracle.models.items()
        }
        named = {(model, name): to for model, one in seen.models.items() for name, to in one.aliases.items()}
        assert named == self.oracle.aliases
        assert {
            name: (one.revision.n, told(one), one.published, one.revision.rolled_back_to)
            for name, one in seen.services.items()
        } == {
            name: (one.revision, one.content, one.published, one.rolled_back_to)
            for name, one in self.oracle.services.items()
        }


EXAMPLES = {"sqlite": 40, "postgresql": 12}


def test_no_sequence_of_changes_breaks_the_registry(
    empty_databases: Callable[[], Database], request: pytest.FixtureRequest
) -> None:
    """The registry does what the oracle says, and every invariant holds after every step."""
    dialect = request.node.callspec.params["empty_databases"]
    chosen = settings(
        max_examples=EXAMPLES[dialect],
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(lambda: Machine(empty_databases()), settings=chosen)
