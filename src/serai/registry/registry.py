"""The registry as the server holds it: one snapshot in memory, kept true by the audit log.

Every change of the registry is an audit entry that names what changed. So the log is the change
feed: whoever has seen it up to an entry reads what the later ones name, and is up to date. A notice
(`serai.storage.notices`) only says that it is time to look; missing one delays, and never misleads.

A change runs in one transaction that holds the registry's lock: it first catches up with the log, so
that every rule is judged on the state that it changes, on every server alike.
"""

import asyncio
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

from serai.audit import Actor, head, record
from serai.registry import store
from serai.registry.checks import bound_versions, check_promises
from serai.registry.model import Alias
from serai.registry.rules import RegistryRules
from serai.registry.service import Binding
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.version import Version
from serai.storage.database import Connection, Database
from serai.storage.notices import announce

P = ParamSpec("P")
R = TypeVar("R")

TOPIC = "registry"


@dataclass(slots=True, kw_only=True)
class Change:
    """A change under way: the state that it starts from, and what it has touched so far."""

    connection: Connection
    snapshot: RegistrySnapshot
    actor: Actor
    at: datetime
    models: set[str]
    services: set[str]
    seq: int = 0
    """The last audit entry of this change."""

    @property
    def by(self) -> str:
        return self.actor.id

    def audit(self, action: str, kind: str, object_id: str, *, before: Any = None, after: Any = None) -> None:
        """Write the entry of one changed object; it is what other servers hear of the change."""
        (self.services if kind == "service" else self.models).add(object_id.partition("@")[0])
        self.seq = record(self.connection, self.actor, action, kind, object_id, at=self.at, before=before, after=after)

    def reload(self) -> RegistrySnapshot:
        """Return the registry as this change has made it so far, and go on from there."""
        self.snapshot = refreshed(self.connection, self.snapshot, self.models, self.services)
        return self.snapshot


class Registry:
    """One per server. `current` is what decisions read; `write` is how anything changes."""

    def __init__(self, database: Database, rules: RegistryRules) -> None:
        self.rules = rules
        self._database = database
        self._lock = threading.Lock()
        self._snapshot = RegistrySnapshot.build(models=(), versions=(), rules=rules)
        self._seq = -1
        self._noticed: object = object()
        """A new one for each notice. What was read when another stood here may lack a change."""
        self._read_at: object = None
        self._made: tuple[str, RegistrySnapshot, int] | None = None
        """The last change made here: its notice, the registry after it, and its last audit entry."""
        self._refreshing = asyncio.Lock()
        self._unsubscribe = database.notices.subscribe(TOPIC, self._on_notice)

    def close(self) -> None:
        """Hear of no more changes."""
        self._unsubscribe()

    async def current(self) -> RegistrySnapshot:
        """Return the registry as it stands; reads the database only if something changed."""
        if self._read_at is not self._noticed:
            async with self._refreshing:
                noticed = self._noticed  # before reading: a notice that comes meanwhile asks for another look
                if self._read_at is not noticed:
                    await self._database.read(self.catch_up)
                    self._read_at = noticed
        return self._snapshot

    def catch_up(self, connection: Connection) -> RegistrySnapshot:
        """Return the registry as `connection` sees it, and keep it if it is the newest seen.

        For transactions that have changed nothing: what is kept must not be rolled back.
        """
        snapshot, last = self._as_seen_by(connection)
        self._keep(snapshot, last)
        return snapshot

    def write(
        self,
        connection: Connection,
        command: Callable[Concatenate[Change, P], R],
        actor: Actor,
        at: datetime,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run `command` on the registry as it stands, in the caller's transaction; a store function.

        Services whose targets mean other versions afterwards get a new line in their history.
        """
        store.lock(connection)
        before, _ = self._as_seen_by(connection)
        change = Change(connection=connection, snapshot=before, actor=actor, at=at, models=set(), services=set())
        result = command(change, *args, **kwargs)
        if change.models or change.services:
            after = change.reload()
            check_promises(before, after)
            _write_history(change, before, after)
            notice = secrets.token_hex(8)
            self._made = notice, after, change.seq
            announce(connection, TOPIC, notice)
        return result

    def _as_seen_by(self, connection: Connection) -> tuple[RegistrySnapshot, int]:
        """Return the registry, and the end of the log, as `connection` sees them."""
        with self._lock:
            snapshot, seq = self._snapshot, self._seq
        if seq >= 0:
            last, models, services = store.changes_since(connection, seq)
            return refreshed(connection, snapshot, models, services), last
        snapshot = RegistrySnapshot.build(
            models=store.load_models(connection),
            versions=store.load_versions(connection),
            aliases=store.load_aliases(connection),
            services=store.load_services(connection),
            rules=self.rules,
        )
        return snapshot, head(connection).seq

    def _keep(self, snapshot: RegistrySnapshot, last: int) -> None:
        with self._lock:
            if last > self._seq:
                self._snapshot, self._seq = snapshot, last

    def _on_notice(self, payload: str | None) -> None:
        """What was made here has committed, and need not be read again; anything else must be."""
        made = self._made
        if made is not None and made[0] == payload:
            self._keep(made[1], made[2])
        else:
            self._noticed = object()


def refreshed(
    connection: Connection, snapshot: RegistrySnapshot, models: Iterable[str], services: Iterable[str]
) -> RegistrySnapshot:
    """Return `snapshot` with these models and services read anew; what is gone from the database leaves it."""
    model_ids, service_ids = set(models), set(services)
    if model_ids:
        versions: defaultdict[str, list[Version]] = defaultdict(list)
        aliases: defaultdict[str, list[Alias]] = defaultdict(list)
        for version in store.load_versions(connection, model_ids):
            versions[version.model_id].append(version)
        for alias in store.load_aliases(connection, model_ids):
            aliases[alias.model_id].append(alias)
        found = {model.id: model for model in store.load_models(connection, model_ids)}
        for model_id in model_ids:
            model = found.get(model_id)
            if model is None:
                snapshot = snapshot.without_model(model_id)
            else:
                snapshot = snapshot.with_model(model, versions[model_id], aliases[model_id])
    if service_ids:
        living = {service.id: service for service in store.load_services(connection, service_ids)}
        for service_id in service_ids:
            service = living.get(service_id)
            snapshot = snapshot.with_service(service) if service else snapshot.without_service(service_id)
    return snapshot


def _write_history(change: Change, before: RegistrySnapshot, after: RegistrySnapshot) -> None:
    for service in after.services.values():
        earlier = before.services.get(service.id)
        meant = bound_versions(after, service.revision)
        if earlier is not None and earlier.revision.n == service.revision.n:
            if meant == bound_versions(before, earlier.revision):
                continue
            reason = "what a target means has changed"
        else:
            reason = service.revision.reason
        line = Binding(
            service_id=service.id,
            revision=service.revision.n,
            versions=meant,
            since=change.at,
            by=change.by,
            reason=reason,
        )
        store.add_binding(change.connection, line)
