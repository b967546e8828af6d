"""Which pictures are asked for, newest first, without sorting all matches of a common word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.engine import Connection

from serai.images.store.words import Term, mark
from serai.storage.tables.images import lexemes, pictures

_LISTED_PREFIX = 4
"""Letters: beginnings up to this length have lists of their own in SQLite's index; longer ones are merged."""
_MERGE_WINDOW = 2000
"""How many of the newest pictures SQLite looks through before it merges. What fills a page has many to merge."""
_FEW = 4000
"""PostgreSQL collects and sorts so many matches. Where it expects more, the newest are near, and walked to."""
_WALK = 30_000
"""How many of the newest pictures PostgreSQL walks through at most before it sorts all matches after all."""
_SURE = 4
"""Times as far as a page needs on the average; where that is not enough the matches are old, and all must be sorted."""
_ROWS = sa.text("SELECT reltuples FROM pg_class WHERE oid = CAST('pictures' AS regclass)")
_EXPECTED = sa.text(
    "EXPLAIN (FORMAT JSON) SELECT FROM pictures "
    "WHERE array_to_tsvector(string_to_array(search, ' ')) @@ CAST(:words AS tsquery)"
)

_fts = sa.table("picture_search", *(sa.column(name) for name in ("rowid", "search", "picture_search")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked; `since` and `before` bound the place, which is a time in microseconds."""

    owner_id: str | None
    terms: tuple[Term, ...]
    marks: tuple[str, ...]
    since: int | None
    before: int | None


def matches(connection: Connection, asked: Asked, limit: int) -> list[int]:
    """Return the places of the newest `limit` pictures that match, the newest first."""
    if not asked.terms and not asked.marks:
        newest = _newest(asked, limit, pictures.c.seq)
        return list(connection.execute(newest).scalars())
    found = _in_sqlite if connection.dialect.name == "sqlite" else _in_postgresql
    return found(connection, asked, limit)


def index(connection: Connection, seq: int, search: str) -> None:
    """Let the picture at `seq`, whose row was written, be found by `search`."""
    if connection.dialect.name == "sqlite":
        connection.execute(sa.insert(_fts).values(rowid=seq, search=search))


def unindex(connection: Connection, seqs: Sequence[int]) -> None:
    """Forget what the rows at `seqs`, which are about to go or to change, are found by."""
    if connection.dialect.name != "sqlite":
        return
    gone = sa.select(pictures.c.seq, pictures.c.search, sa.literal("delete")).where(pictures.c.seq.in_(seqs))
    connection.execute(sa.insert(_fts).from_select(["rowid", "search", "picture_search"], gone))


def _in_sqlite(connection: Connection, asked: Asked, limit: int) -> list[int]:
    """FTS5 goes through its lists from their ends, and stops when the page is full."""
    if any(term.is_prefix and len(term.words[-1]) > _LISTED_PREFIX for term in asked.terms):
        near = _near(connection, asked, limit, _MERGE_WINDOW)
        if len(near) == limit:
            return near
    # The words have no quotes in them.
    terms = [f'"{" ".join(term.words)}"{" *" if term.is_prefix else ""}' for term in asked.terms]
    question = " AND ".join([*(f'"{one}"' for one in asked.marks), *terms])
    is_met, place = _fts.c.picture_search.op("MATCH")(question), _fts.c.rowid
    query = sa.select(place).where(is_met, *_bounds(asked, place)).order_by(place.desc()).limit(limit)
    return list(connection.execute(query).scalars())


def _in_postgresql(connection: Connection, asked: Asked, limit: int) -> list[int]:
    """A GIN index knows no order: few matches are sorted, many are so near to each other that a walk finds a page.

    How many there are is PostgreSQL's estimate, which counts the common words when it analyzes the table.
    """
    words = _tsquery(asked)
    # A beginning is looked up in the index for all owners, however few of its pictures are theirs.
    is_prefix = any(term.is_prefix for term in asked.terms)
    counted = _tsquery(replace(asked, marks=())) if is_prefix else words
    if _expected(connection, counted) >= _FEW:
        near = _near(connection, asked, limit, _walk(connection, asked, limit))
        if len(near) == limit:
            return near
    # The planner does not know what taking a text apart costs, and might rather read the table, or all places by
    # date. The setting ends with the transaction; the sum in the bounds keeps other indexes out, and so does a
    # materialized part the order.
    connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
    is_met = lexemes(pictures.c.search).bool_op("@@")(sa.cast(words, TSQUERY))
    rows = replace(asked, marks=(), terms=tuple(term for term in asked.terms if len(term.words) > 1))
    conditions = (is_met, *_told(rows, pictures.c.search), *_bounds(asked, pictures.c.seq + 0))
    every = sa.select(pictures.c.seq).where(*conditions).cte("every").prefix_with("MATERIALIZED")
    return list(connection.execute(sa.select(every.c.seq).order_by(every.c.seq.desc()).limit(limit)).scalars())


def _expected(connection: Connection, words: str) -> float:
    """Return PostgreSQL's estimate of how many pictures match."""
    plan = connection.execute(_EXPECTED, {"words": words}).scalar_one()
    return float(plan[0]["Plan"]["Plan Rows"])


def _walk(connection: Connection, asked: Asked, limit: int) -> int:
    """Return how many of the newest pictures, of the owner if there is one, surely have a page of matches."""
    rows = float(connection.execute(_ROWS).scalar_one())
    own = None if asked.owner_id is None else mark("o", asked.owner_id)
    words = _tsquery(replace(asked, marks=tuple(one for one in asked.marks if one != own)))
    if rows <= 0 or not words:
        return _WALK
    return min(_WALK, math.ceil(_SURE * limit * rows / max(1.0, _expected(connection, words))))


def _tsquery(asked: Asked) -> str:
    words = [f"'{one}'" for one in asked.marks]
    for term in asked.terms:
        words += [f"'{word}'" for word in term.words]
        words[-1] += ":*" if term.is_prefix else ""
    return " & ".join(words)


def _near(connection: Connection, asked: Asked, limit: int, window: int) -> list[int]:
    """Return up to `limit` matches among the newest `window` pictures, by reading them."""
    recent = _newest(asked, window, pictures.c.seq, pictures.c.search).subquery("recent")
    query = sa.select(recent.c.seq).where(*_told(asked, recent.c.search)).order_by(recent.c.seq.desc()).limit(limit)
    return list(connection.execute(query).scalars())


def _told(asked: Asked, search: sa.ColumnElement[str]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions as patterns of the text itself, which has one space between its words."""
    spaced = sa.literal(" ").concat(search).concat(" ")
    patterns = [f" {one} " for one in asked.marks]
    patterns += [f" {' '.join(term.words)}{'' if term.is_prefix else ' '}" for term in asked.terms]
    return [spaced.contains(pattern, autoescape=True) for pattern in patterns]


def _newest(asked: Asked, limit: int, *columns: sa.Column[Any]) -> sa.Select[Any]:
    seq = pictures.c.seq
    return sa.select(*columns).where(*_bounds(asked, seq), *_owned(asked)).order_by(seq.desc()).limit(limit)


def _bounds(asked: Asked, place: sa.ColumnElement[int]) -> list[sa.ColumnElement[bool]]:
    since = [] if asked.since is None else [place >= asked.since]
    return since if asked.before is None else [*since, place < asked.before]


def _owned(asked: Asked) -> list[sa.ColumnElement[bool]]:
    return [] if asked.owner_id is None else [pictures.c.owner_id == asked.owner_id]
