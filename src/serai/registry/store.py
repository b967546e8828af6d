"""The registry's rows: loading them as values, writing values as rows. Nothing here decides anything."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from serai.registry.canonical import canonical_json
from serai.registry.model import Alias, AliasEvent, Model
from serai.registry.reference import lookup_key
from serai.registry.semver import sort_key
from serai.registry.service import Binding, Revision, Service
from serai.registry.version import IDENTITY, Status, Version
from serai.storage.locks import Lock, hold
from serai.storage.tables import registry as tables
from serai.storage.tables.log import audit

T = TypeVar("T")

KINDS = ("model", "version", "alias", "service")
"""The kinds of object in the audit log whose changes are changes of the registry."""

_BATCH = 500


@dataclass(frozen=True, slots=True)
class _Queries:
    """Made once, because making a statement takes longer than SQLite takes to run it."""

    all: sa.Select[Any]
    one: sa.Select[Any]


def _queries(query: sa.Select[Any], key: sa.ColumnElement[Any]) -> _Queries:
    return _Queries(query.execution_options(yield_per=_BATCH), query.where(key == sa.bindparam("of_id")))


_CURRENT = sa.and_(
    tables.revisions.c.service_id == tables.services.c.id,
    tables.revisions.c.n == tables.services.c.current_revision,
)
_MODELS = _queries(sa.select(tables.models).where(tables.models.c.deleted_at.is_(None)), tables.models.c.id)
_VERSIONS = _queries(sa.select(tables.versions), tables.versions.c.model_id)
_ALIASES = _queries(sa.select(tables.aliases), tables.aliases.c.model_id)
_SERVICES = _queries(
    sa.select(tables.services, tables.revisions.c.document.label("revision"))
    .join(tables.revisions, _CURRENT)
    .where(tables.services.c.deleted_at.is_(None)),
    tables.services.c.id,
)
_NUMBERS = sa.select(tables.versions.c.version, tables.versions.c.seq).where(
    tables.versions.c.model_id == sa.bindparam("of_id")
)


def _has_version(*statuses: Status) -> sa.ColumnElement[bool]:
    versions = tables.versions.c
    return sa.exists().where(versions.model_id == tables.models.c.id, versions.status.in_([s.value for s in statuses]))


_NOT_ONLY_OLD = sa.or_(~_has_version(Status.DEPRECATED, Status.RETIRED), _has_version(Status.DRAFT, Status.ACTIVE))
_LAST_ENTRY = sa.select(sa.func.max(audit.c.seq))
_CHANGED = (
    sa.select(audit.c.object_kind, audit.c.object_id)
    .where(audit.c.seq > sa.bindparam("after"), audit.c.seq <= sa.bindparam("last"), audit.c.object_kind.in_(KINDS))
    .distinct()
)
_FORGET_NAMES = sa.delete(tables.names).where(
    tables.names.c.kind == sa.bindparam("of_kind"), tables.names.c.target_id == sa.bindparam("of_id")
)


def _names_of(table: sa.Table) -> frozenset[str]:
    """Return the names of the columns as plain strings: msgspec takes no subclass of str for a key."""
    return frozenset(str(column.name) for column in table.c)


_MODEL_COLUMNS = _names_of(tables.models) - {"tags", "search", "document"}
_VERSION_COLUMNS = _names_of(tables.versions) - {"sort_key", "identity", "document"}
_SERVICE_COLUMNS = _names_of(tables.services) - {"current_revision", "document"}


def lock(connection: Connection) -> None:
    """Let one change of the registry run at a time; SQLite's writers are serial already."""
    hold(connection, Lock.REGISTRY)


def changes_since(connection: Connection, seq: int) -> tuple[int, set[str], set[str]]:
    """Return the audit log's end, and the ids of models and of services that changed after entry `seq`."""
    last = connection.execute(_LAST_ENTRY).scalar_one() or 0
    if last == seq:
        return last, set(), set()
    models: set[str] = set()
    services: set[str] = set()
    for kind, object_id in connection.execute(_CHANGED, {"after": seq, "last": last}):
        (services if kind == "service" else models).add(object_id.partition("@")[0])
    return last, models, services


def load_models(connection: Connection, ids: Iterable[str] | None = None) -> list[Model]:
    """Return the living models, of `ids` or all."""
    return [_model(row) for row in _of(connection, _MODELS, ids)]


def load_versions(connection: Connection, model_ids: Iterable[str] | None = None) -> list[Version]:
    """Return the versions of some models or of all, tombstones too."""
    return [_version(row) for row in _of(connection, _VERSIONS, model_ids)]


def load_aliases(connection: Connection, model_ids: Iterable[str] | None = None) -> list[Alias]:
    """Return the aliases of some models or of all."""
    return [Alias(**row._mapping) for row in _of(connection, _ALIASES, model_ids)]


def load_services(connection: Connection, ids: Iterable[str] | None = None) -> list[Service]:
    """Return the living services with their current revisions, of `ids` or all."""
    return [_service(row) for row in _of(connection, _SERVICES, ids)]


def version_numbers(connection: Connection, model_id: str) -> tuple[list[str], int]:
    """Return every number that a model ever used, and its greatest seq (0: none)."""
    found = connection.execute(_NUMBERS, {"of_id": model_id}).all()
    return [row.version for row in found], max((row.seq for row in found), default=0)


def put_model(connection: Connection, model: Model) -> None:
    """Insert or replace the card; a card that was deleted comes back."""
    values = {name: getattr(model, name) for name in _MODEL_COLUMNS - {"deleted_at"}}
    texts = (model.id, model.name, *model.lookup_names, model.publisher, model.description, *model.tags, model.domain)
    values["tags"] = "".join(f"|{_tag_key(tag)}" for tag in model.tags) + "|"
    values["search"] = " ".join(texts).lower()
    values["document"] = _document(model, _MODEL_COLUMNS)
    _put(connection, tables.models, {**values, "deleted_at": None})
    _put_names(connection, "model", model.id, {lookup_key(name) for name in (model.id, *model.lookup_names)})


def bury_model(connection: Connection, model_id: str, at: datetime) -> None:
    """Mark the card deleted, drop its aliases, free its names."""
    connection.execute(sa.update(tables.models).where(tables.models.c.id == model_id).values(deleted_at=at))
    connection.execute(sa.delete(tables.aliases).where(tables.aliases.c.model_id == model_id))
    connection.execute(_FORGET_NAMES, {"of_kind": "model", "of_id": model_id})


def put_version(connection: Connection, version: Version) -> None:
    """Insert or replace the version. The database refuses a change of what an immutable one is."""
    values = {name: getattr(version, name) for name in _VERSION_COLUMNS}
    values["status"] = version.status.value
    values["sort_key"] = sort_key(version.version)
    values["identity"] = canonical_json(
        {name: msgspec.to_builtins(getattr(version, name)) for name in IDENTITY}
    ).decode()
    values["document"] = _document(version, _VERSION_COLUMNS | frozenset(IDENTITY))
    _put(connection, tables.versions, values)


def put_alias(connection: Connection, alias: Alias, event: AliasEvent) -> None:
    """Insert or move the alias, with the event that says so."""
    values = {column.name: getattr(alias, column.name) for column in tables.aliases.c}
    _put(connection, tables.aliases, values)
    _add_alias_event(connection, event)


def delete_alias(connection: Connection, event: AliasEvent) -> None:
    """Remove the alias, with the event that says so."""
    where = {"model_id": event.model_id, "name": event.name}
    connection.execute(sa.delete(tables.aliases).filter_by(**where))
    _add_alias_event(connection, event)


def alias_events(connection: Connection, model_id: str, name: str) -> list[AliasEvent]:
    """Return every move of an alias, the earliest first; of one that was deleted, too."""
    query = sa.select(tables.alias_events).filter_by(model_id=model_id, name=name).order_by(tables.alias_events.c.epoch)
    return [AliasEvent(**row._mapping) for row in connection.execute(query)]


def last_epoch(connection: Connection, model_id: str, name: str) -> int:
    """Return the epoch of the alias's last move, 0 if it never existed."""
    query = sa.select(sa.func.max(tables.alias_events.c.epoch)).filter_by(model_id=model_id, name=name)
    return connection.execute(query).scalar_one() or 0


def put_service(connection: Connection, service: Service, *, new_revision: bool) -> None:
    """Insert or replace the service, and insert its revision if that is new."""
    values = {name: getattr(service, name) for name in _SERVICE_COLUMNS - {"deleted_at"}}
    values["current_revision"] = service.revision.n
    values["document"] = _document(service, _SERVICE_COLUMNS | {"revision"})
    _put(connection, tables.services, {**values, "deleted_at": None})
    if new_revision:
        revision = service.revision
        connection.execute(
            sa.insert(tables.revisions).values(
                service_id=service.id,
                n=revision.n,
                document=msgspec.json.encode(revision).decode(),
                created_at=revision.created_at,
                created_by=revision.created_by,
            )
        )
    _put_names(connection, "service", service.id, {service.id})


def bury_service(connection: Connection, service_id: str, at: datetime) -> None:
    """Mark the service deleted, close its history, free its name."""
    connection.execute(sa.update(tables.services).where(tables.services.c.id == service_id).values(deleted_at=at))
    since = tables.bindings.c.since
    end = sa.case((since > at, since), else_=sa.literal(at, since.type))
    connection.execute(sa.update(tables.bindings).filter_by(service_id=service_id, until=None).values(until=end))
    connection.execute(_FORGET_NAMES, {"of_kind": "service", "of_id": service_id})


def revisions(connection: Connection, service_id: str) -> list[Revision]:
    """Return every revision of a service, the newest first."""
    query = (
        sa.select(tables.revisions.c.document).filter_by(service_id=service_id).order_by(tables.revisions.c.n.desc())
    )
    return [msgspec.json.decode(text, type=Revision) for text in connection.execute(query).scalars()]


def last_revision(connection: Connection, service_id: str) -> int:
    """Return the greatest number of a revision that the service ever had, 0 if it never existed."""
    query = sa.select(sa.func.max(tables.revisions.c.n)).filter_by(service_id=service_id)
    return connection.execute(query).scalar_one() or 0


def bindings(connection: Connection, service_id: str) -> list[Binding]:
    """Return the history of a service, the latest line first."""
    query = sa.select(tables.bindings).filter_by(service_id=service_id).order_by(tables.bindings.c.seq.desc())
    return [_binding(row) for row in connection.execute(query)]


def add_binding(connection: Connection, binding: Binding) -> None:
    """Close the open line of the service, and begin this one; where clocks differ, not before the one it follows."""
    mine = tables.bindings.c.service_id == binding.service_id
    seqs, sinces = sa.func.max(tables.bindings.c.seq), sa.func.max(tables.bindings.c.since)
    last, latest = connection.execute(sa.select(seqs, sinces).where(mine)).one()
    since = max(binding.since, latest or binding.since)
    connection.execute(sa.update(tables.bindings).where(mine, tables.bindings.c.until.is_(None)).values(until=since))
    connection.execute(
        sa.insert(tables.bindings).values(
            service_id=binding.service_id,
            seq=(last or 0) + 1,
            revision=binding.revision,
            versions=msgspec.json.encode(binding.versions).decode(),
            since=since,
            until=binding.until,
            by=binding.by,
            reason=binding.reason,
        )
    )


def find_models(
    connection: Connection,
    *,
    limit: int,
    after: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    search: str | None = None,
    version_status: Status | None = None,
    include_deprecated: bool = False,
) -> list[str]:
    """Return the ids of at most `limit` living models behind `after`, in the order of their ids.

    A tag matches whatever its case. Without `include_deprecated`, models that have nothing but deprecated and
    retired versions are left out.
    """
    models = tables.models.c
    query = sa.select(models.id).where(models.deleted_at.is_(None)).order_by(models.id).limit(limit)
    if after is not None:
        query = query.where(models.id > after)
    if task is not None:
        query = query.where(models.task == task)
    if tag is not None:
        query = query.where(models.tags.contains(f"|{_tag_key(tag)}|", autoescape=True))
    for word in (search or "").lower().split():
        query = query.where(models.search.contains(word, autoescape=True))
    if version_status is not None:
        query = query.where(_has_version(version_status))
    elif not include_deprecated:
        query = query.where(_NOT_ONLY_OLD)
    return list(connection.execute(query).scalars())


def find_versions(
    connection: Connection,
    model_id: str,
    *,
    limit: int,
    after: str | None = None,
    status: Status | None = None,
    include_deprecated: bool = True,
) -> list[Version]:
    """Return at most `limit` versions of a model, the newest by precedence first, behind the number `after`."""
    versions = tables.versions.c
    query = sa.select(tables.versions).where(versions.model_id == model_id, versions.status != Status.TOMBSTONE.value)
    query = query.order_by(versions.sort_key.desc()).limit(limit)
    if after is not None:
        query = query.where(versions.sort_key < sort_key(after))
    if status is not None:
        query = query.where(versions.status == status.value)
    elif not include_deprecated:
        query = query.where(versions.status.in_([Status.DRAFT.value, Status.ACTIVE.value]))
    return [_version(row) for row in connection.execute(query)]


def find_services(
    connection: Connection, *, limit: int, after: str | None = None, task: str | None = None
) -> list[str]:
    """Return the ids of at most `limit` living services behind `after`, in the order of their ids."""
    services = tables.services.c
    query = sa.select(services.id).where(services.deleted_at.is_(None)).order_by(services.id).limit(limit)
    if after is not None:
        query = query.where(services.id > after)
    if task is not None:
        query = query.where(services.task == task)
    return list(connection.execute(query).scalars())


def is_empty(connection: Connection) -> bool:
    """Say whether there never was a model."""
    return connection.execute(sa.select(tables.models.c.id).limit(1)).first() is None


def _tag_key(tag: str) -> str:
    """Return the form of a tag in the column, in which '|' stands between tags alone."""
    return tag.lower().replace("\\", "\\\\").replace("|", "\\p")


def _put_names(connection: Connection, kind: str, target_id: str, owned: set[str]) -> None:
    connection.execute(_FORGET_NAMES, {"of_kind": kind, "of_id": target_id})
    rows = [{"name": name, "kind": kind, "target_id": target_id} for name in sorted(owned)]
    connection.execute(sa.insert(tables.names), rows)


def _of(connection: Connection, queries: _Queries, ids: Iterable[str] | None) -> Iterable[Row[Any]]:
    if ids is None:
        yield from connection.execute(queries.all)
        return
    for of_id in sorted(set(ids)):
        yield from connection.execute(queries.one, {"of_id": of_id})


@cache
def _upsert(table: sa.Table, dialect: str) -> Any:
    """Return the statement that inserts a row, or replaces all of the one that has its key."""
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    rest = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=rest)


def _put(connection: Connection, table: sa.Table, row: Mapping[str, Any]) -> None:
    connection.execute(_upsert(table, connection.dialect.name), row)


def _add_alias_event(connection: Connection, event: AliasEvent) -> None:
    row = {column.name: getattr(event, column.name) for column in tables.alias_events.c}
    connection.execute(sa.insert(tables.alias_events), row)


def _document(value: Any, left_out: frozenset[str] | set[str]) -> str:
    members = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in left_out}
    return msgspec.json.encode(members).decode()


def _decode(row: Row[Any], columns: Sequence[str] | frozenset[str], texts: Sequence[str], kind: type[T]) -> T:
    members: dict[str, Any] = {name: getattr(row, name) for name in columns}
    for text in texts:
        members.update(msgspec.json.decode(getattr(row, text)))
    return msgspec.convert(members, kind)


def _model(row: Row[Any]) -> Model:
    return _decode(row, _MODEL_COLUMNS - {"deleted_at"}, ("document",), Model)


def _version(row: Row[Any]) -> Version:
    return _decode(row, _VERSION_COLUMNS, ("identity", "document"), Version)


def _service(row: Row[Any]) -> Service:
    members: dict[str, Any] = {name: getattr(row, name) for name in _SERVICE_COLUMNS - {"deleted_at"}}
    members.update(msgspec.json.decode(row.document), revision=msgspec.json.decode(row.revision))
    return msgspec.convert(members, Service)


def _binding(row: Row[Any]) -> Binding:
    members = dict(row._mapping)
    del members["seq"]
    return Binding(**{**members, "versions": tuple(msgspec.json.decode(row.versions))})
