"""Rows for every table that a database has, whatever its revision, made from what the database says of itself."""

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.storage.backup import _tables

_ATTEMPTS = 500
Rows = dict[str, list[dict[str, Any]]]


def contents(connection: Connection) -> Rows:
    """Return all rows of all tables; times as microseconds."""
    return {
        table.name: [dict(row) for row in connection.execute(sa.select(table).order_by(*order)).mappings()]
        for table, order in _tables(connection)
    }


def fill(connection: Connection, count: int = 4) -> None:
    """Insert `count` rows into every table, that hold its foreign keys, its checks and its unique columns.

    What a check wants is found by trying: nullable columns are left out or not, and texts that a
    check lists are taken from it, until the database takes the row. Raises AssertionError for a table
    whose checks no such row meets; then this needs to learn more.
    """
    inspector = sa.inspect(connection)
    chance = random.Random(1)
    done: Rows = {}
    for table, _ in _tables(connection):
        keys = inspector.get_foreign_keys(table.name)
        columns = inspector.get_columns(table.name)
        choices = _choices(inspector, table)
        rows = done[table.name] = []
        for number in range(1, count + 1):
            for _ in range(_ATTEMPTS):
                row = {
                    column["name"]: None
                    if column["nullable"] and chance.random() < 0.5
                    else chance.choice(choices.get(column["name"], [_value(table, column["name"], number)]))
                    for column in columns
                }
                for key in keys:
                    row.update(_pointing(key, done[key["referred_table"]], number, row))
                if _insert(connection, table, row):
                    rows.append(row)
                    break
            else:
                raise AssertionError(f"no row that was tried meets the checks of {table.name}; teach {__name__} more")


def _insert(connection: Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(table).values(row))
    except sa.exc.IntegrityError:
        return False
    return True


def _value(table: sa.Table, column: str, number: int) -> Any:
    type_ = table.c[column].type
    if isinstance(type_, sa.Boolean):
        return number % 2 == 0
    if isinstance(type_, sa.Integer):
        return number
    if isinstance(type_, sa.Float | sa.Numeric):
        return number + 0.5
    if isinstance(type_, sa.LargeBinary):
        return bytes([0, 255, number])
    if isinstance(type_, sa.JSON):
        return {"number": number, "list": [1, 2.5, None, True, "نمونه\u200cای", {"$base64": "AA=="}]}
    if column.endswith(("digest", "hash")):
        return hashlib.sha256(f"{table.name}.{column}.{number}".encode()).hexdigest()
    return f"{table.name}.{column}.{number} «نمونه\u200cای» \"'\\"


def _choices(inspector: sa.Inspector, table: sa.Table) -> dict[str, list[str]]:
    """Return, for columns that a check compares with texts, those texts."""
    found: dict[str, list[str]] = {}
    for check in inspector.get_check_constraints(table.name):
        texts = re.findall(r"'([^']*)'", check["sqltext"])
        for column in table.c:
            if texts and isinstance(column.type, sa.String) and re.search(rf"\b{column.name}\b", check["sqltext"]):
                found.setdefault(column.name, []).extend(texts)
    return found


def _pointing(key: Any, parents: list[dict[str, Any]], number: int, row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of the columns of a foreign key; a nullable one that was left out stays so."""
    parent = parents[(number - 1) % len(parents)] if parents else None
    for column, referred in zip(key["constrained_columns"], key["referred_columns"], strict=True):
        if row[column] is not None:
            yield column, None if parent is None else parent[referred]
