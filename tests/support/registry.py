"""A registry on a database, with a clock of its own, and what the tests of it look at."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Self

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai import audit
from serai.audit import Actor, Entry
from serai.clock import ManualClock
from serai.errors import SeraiError
from serai.registry import bindings, releases
from serai.registry.model import Model
from serai.registry.registry import Registry
from serai.registry.rules import RegistryRules
from serai.registry.service import FallbackEntry, Service, Target
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.version import Status, Version, digest
from serai.storage.database import Database
from serai.storage.tables import registry as tables
from unit.registry.build import a_model, a_service, a_version

ANN = Actor(id="user_ann", address="192.0.2.7", request_id="req_1")


class Desk:
    """One server's registry; `do` runs a command as the routes do, `see` is what it knows afterwards."""

    def __init__(self, database: Database, *, clock: ManualClock | None = None, **rules: Any) -> None:
        self.database = database
        self.clock = clock or ManualClock()
        self.rules = RegistryRules(**rules)
        self.registry = Registry(database, self.rules)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.registry.close()

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def do(self, command: Callable[..., Any], *args: Any, actor: Actor = ANN, **kwargs: Any) -> Any:
        """Run one command in a transaction of its own."""
        return self.database.run_sync(self.registry.write, command, actor, self.now, *args, **kwargs)

    def see(self) -> RegistrySnapshot:
        """Return the registry as this server sees it now."""
        return self.database.read_sync(self.registry.catch_up)

    def model(self, id_: str = "m", *numbers: str, status: Status = Status.ACTIVE, **values: Any) -> Model:
        """Create a model with these versions (1.0.0 if none is named) that have these fields."""
        card = {name: values.pop(name) for name in list(values) if name not in VERSION_FIELDS}
        first, *others = numbers or ("1.0.0",)
        made: Model = self.do(
            releases.create_model, a_model(id_, **card), a_version(id_, first, **{"status": status, **values})
        )
        for number in others:
            self.do(releases.create_version, id_, number, {}, status=status)
        return made

    def service(
        self, id_: str, *targets: Target, fallback: tuple[FallbackEntry, ...] = (), **values: Any
    ) -> bindings.Written:
        """Create a service."""
        written: bindings.Written = self.do(
            bindings.create_service, a_service(id_, *targets, fallback=fallback, **values)
        )
        return written

    def version(self, name: str) -> Version:
        """Return 'model@version' as it stands."""
        model_id, _, number = name.partition("@")
        return self.see().models[model_id].candidates[number].version

    def status(self, name: str) -> str:
        return self.version(name).status.value

    def bound(self, service_id: str) -> tuple[str, ...]:
        """Return the targets of a service as references."""
        return tuple(target.reference for target in self.see().services[service_id].revision.targets)


VERSION_FIELDS = frozenset(Version.__dataclass_fields__) - {"licence", "tags", "benchmarks"}


Opener = Callable[..., Desk]


def refused(error: type[SeraiError], desk: Desk, command: Callable[..., Any], *args: Any, **kwargs: Any) -> SeraiError:
    """Assert that a command is refused with that error, and that nothing at all has changed by it."""
    before = entries(desk.database), facts(desk.see())
    with pytest.raises(error) as caught:
        desk.do(command, *args, **kwargs)
    assert (entries(desk.database), facts(desk.see())) == before
    assert facts(loaded_anew(desk.database, desk.rules)) == before[1]
    return caught.value


def facts(snapshot: RegistrySnapshot) -> dict[str, Any]:
    """Return all that a snapshot says, comparable: an empty list of candidates is the same as none."""
    return {
        "models": dict(snapshot.models),
        "names": dict(snapshot.names),
        "services": dict(snapshot.services),
        "tasks": {key: found for key, found in snapshot.tasks.items() if found},
    }


def loaded_anew(database: Database, rules: RegistryRules) -> RegistrySnapshot:
    """Return what a server that starts now would see."""
    registry = Registry(database, rules)
    try:
        return database.read_sync(registry.catch_up)
    finally:
        registry.close()


def entries(database: Database, **filters: Any) -> list[Entry]:
    """Return the audit log, the earliest entry first."""
    found: list[Entry] = database.read_sync(audit.entries, limit=100_000, **filters)
    return found[::-1]


def rows(database: Database, table: sa.Table, **where: Any) -> list[Any]:
    """Return the rows of a table, in the order of its key."""
    query = sa.select(table).filter_by(**where).order_by(*table.primary_key.columns)
    return list(database.read_sync(lambda connection: connection.execute(query).all()))


def check_integrity(database: Database, rules: RegistryRules, *, capped: bool = True) -> None:
    """Assert on the rows themselves what must hold after any sequence of changes (I2 to I6, I8, I10)."""
    snapshot = loaded_anew(database, rules)
    verdict = database.read_sync(audit.verify)
    assert verdict.ok, verdict.problem
    check_versions(database, rules, capped=capped)
    check_aliases(database)
    check_services(database, snapshot)


def check_versions(database: Database, rules: RegistryRules, *, capped: bool = True) -> None:
    """Assert: digests are those of the manifests (I2), seqs are unique (I3), the cap holds (I10)."""
    from serai.registry import store

    active: dict[str, int] = {}
    seen: dict[str, list[int]] = {}
    for version in database.read_sync(store.load_versions):
        if version.status not in (Status.DRAFT, Status.TOMBSTONE):
            assert version.digest == digest(version), version
        active[version.model_id] = active.get(version.model_id, 0) + (version.status is Status.ACTIVE)
        seen.setdefault(version.model_id, []).append(version.seq)
    assert all(sorted(seqs) == list(range(1, len(seqs) + 1)) for seqs in seen.values()), seen
    if capped:
        assert max(active.values(), default=0) <= rules.max_active_versions_per_model, active


def check_aliases(database: Database) -> None:
    """Assert: epochs go up by one, each with an event that starts where the one before ended (I4)."""
    current = {(row.model_id, row.name): row for row in rows(database, tables.aliases)}
    last: dict[tuple[str, str], Any] = {}
    for event in rows(database, tables.alias_events):
        before = last.get((event.model_id, event.name))
        assert event.epoch == (before.epoch + 1 if before else 1), event
        assert event.before == (before.after if before else None), event
        last[event.model_id, event.name] = event
    assert {key: event.after for key, event in last.items() if event.after is not None} == {
        key: row.version for key, row in current.items()
    }
    assert all(last[key].epoch == row.epoch for key, row in current.items())


def check_services(database: Database, snapshot: RegistrySnapshot) -> None:
    """Assert: nothing that a service names is gone (I5), weights make 100, chains have an end (I6)."""
    for service in snapshot.services.values():
        revision = service.revision
        shadow = () if revision.shadow is None else (revision.shadow,)
        for target in (*revision.targets, *shadow, *revision.fallback):
            if isinstance(target, FallbackEntry) and target.service is not None:
                assert target.service in snapshot.services, (service.id, target)
                continue
            candidate = snapshot.meant_by(target)
            assert candidate is not None, (service.id, target)
            assert candidate.version.status is not Status.RETIRED, (service.id, target)
        assert not revision.targets or sum(target.weight for target in revision.targets) == 100, revision
        assert not _reaches(snapshot.services, service.id), service.id
    for service_id in {row.service_id for row in rows(database, tables.revisions)}:
        numbers = [row.n for row in rows(database, tables.revisions, service_id=service_id)]
        assert numbers == list(range(1, len(numbers) + 1)), service_id
        check_history(rows(database, tables.bindings, service_id=service_id), open_=service_id in snapshot.services)


def check_history(lines: list[Any], *, open_: bool) -> None:
    """Assert that the lines of one service follow each other in time and that only the last one may be open."""
    for line, after in pairwise(lines):
        assert line.until is not None
        assert line.since <= line.until <= after.since, (line, after)
    assert (lines[-1].until is None) is open_


def _reaches(services: Mapping[str, Service], start: str) -> bool:
    pending, seen = [start], set()
    while pending:
        for entry in services[pending.pop()].revision.fallback:
            if entry.service == start:
                return True
            if entry.service is not None and entry.service not in seen:
                seen.add(entry.service)
                pending.append(entry.service)
    return False


def later(moment: datetime, seconds: float) -> datetime:
    return moment + timedelta(seconds=seconds)


def run(database: Database, statement: str, **values: Any) -> Any:
    """Run SQL past all code of ours."""

    def execute(connection: Connection) -> Any:
        return connection.execute(sa.text(statement), values).rowcount

    return database.run_sync(execute)
