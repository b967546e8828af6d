"""The rows of the decisions that were taken. Store functions, each run in a transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.storage.tables.registry import decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """A decision as it is kept; `document` is `Decision.document` with what became of the call."""

    id: str
    at: datetime
    service_id: str | None
    model_id: str
    version: str
    reason: str
    owner_id: str
    document: Mapping[str, Any]


def add_decisions(connection: Connection, rows: Sequence[DecisionRow]) -> None:
    """Insert the rows."""
    values = [
        {name: getattr(row, name) for name in row.__slots__} | {"document": msgspec.json.encode(row.document).decode()}
        for row in rows
    ]
    connection.execute(sa.insert(decisions), values)


def find_decision(connection: Connection, id_: str) -> DecisionRow | None:
    """Return a decision, or None."""
    row = connection.execute(sa.select(decisions).where(decisions.c.id == id_)).one_or_none()
    return None if row is None else _decision(row)


def list_decisions(
    connection: Connection, *, service_id: str | None = None, model_id: str | None = None, limit: int = 100
) -> list[DecisionRow]:
    """Return the latest decisions of a service or a model, or all, the latest first."""
    query = sa.select(decisions).order_by(decisions.c.at.desc(), decisions.c.id.desc()).limit(limit)
    if service_id is not None:
        query = query.where(decisions.c.service_id == service_id)
    if model_id is not None:
        query = query.where(decisions.c.model_id == model_id)
    return [_decision(row) for row in connection.execute(query)]


def prune_decisions(connection: Connection, before: datetime) -> int:
    """Delete the decisions of a time that nobody asks about any more; return how many there were."""
    return connection.execute(sa.delete(decisions).where(decisions.c.at < before)).rowcount


def _decision(row: sa.Row[Any]) -> DecisionRow:
    values = dict(row._mapping)
    return DecisionRow(**{**values, "document": msgspec.json.decode(values["document"])})
