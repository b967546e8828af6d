"""Pictures in the database. A picture holds its two blobs; lists and searches tell the newest first."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from serai.audit import Actor, record
from serai.errors import InvalidInput, NotFound
from serai.images.model import Picture
from serai.images.store.matching import Asked, index, matches, unindex
from serai.images.store.words import mark, terms_of, words_of
from serai.storage import links
from serai.storage.blobs import Blob
from serai.storage.tables.base import to_microseconds
from serai.storage.tables.blobs import blob_links
from serai.storage.tables.images import pictures

Place: TypeAlias = int
"""Where a page ended: hand it in as the cursor of the next."""

MAX_PAGE = 200
MAX_TAGS = 32
MAX_TAG_LENGTH = 64
_NAMES = tuple(field.name for field in fields(Picture))
_SHOWN = tuple(pictures.c[name] for name in _NAMES)


class PictureNotFound(NotFound):
    code = "PICTURE_NOT_FOUND"
    default_hint = "GET /images lists yours."


def add(connection: Connection, added: Sequence[Picture], now: datetime) -> None:
    """Insert pictures whose blobs are stored already; one whose id is known stays as it is."""
    ids = [picture.id for picture in added]
    known = set(connection.execute(sa.select(pictures.c.id).where(pictures.c.id.in_(ids))).scalars())
    for picture in added:
        if picture.id in known:
            continue
        for digest, size in ((picture.digest, picture.size), (picture.thumb_digest, picture.thumb_size)):
            links.record(connection, Blob(digest=digest, size=size), now)
            links.link(connection, holder=picture.id, digest=digest, owner_id=picture.owner_id)
        _insert(connection, picture)


def get(connection: Connection, picture_id: str, owner_id: str | None) -> Picture:
    """Return the picture; of `owner_id` alone unless that is None. Raises PictureNotFound."""
    return _get(connection, picture_id, owner_id, lock=False)


def of_job(connection: Connection, job_id: str, owner_id: str | None) -> list[Picture]:
    """Return the pictures of a job in the order of their seeds."""
    query = sa.select(*_SHOWN).where(pictures.c.job_id == job_id, *_owned(owner_id))
    return [_picture(row) for row in connection.execute(query.order_by(pictures.c.position))]


def search(
    connection: Connection,
    *,
    owner_id: str | None,
    text: str | None = None,
    model: str | None = None,
    tag: str | None = None,
    favourite: bool | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: Place | None = None,
    limit: int = 50,
) -> tuple[list[Picture], Place | None]:
    """Return a page of the pictures that meet all that is given, the newest first, and the place of the next page.

    `text`: see `words.terms_of`; one without any word (`!?`) finds nothing, a blank one is none.
    `since` is included, `until` is not. Raises InvalidInput.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput.at("limit", f"must be between 1 and {MAX_PAGE}")
    terms = terms_of(text or "")
    if text is not None and text.strip() and not terms:
        return [], None
    ends = [] if until is None else [to_microseconds(until)]
    asked = Asked(
        owner_id=owner_id,
        terms=terms,
        marks=_marks(owner_id, model, tag, favourite, is_searched=bool(terms)),
        since=None if since is None else to_microseconds(since),
        before=min(ends if cursor is None else [*ends, cursor], default=None),
    )
    found = matches(connection, asked, limit + 1)
    query = sa.select(*_SHOWN).where(pictures.c.seq.in_(found[:limit]), *_owned(owner_id))
    page = [_picture(row) for row in connection.execute(query.order_by(pictures.c.seq.desc()))]
    return page, found[limit - 1] if len(found) > limit else None


def change(
    connection: Connection,
    picture_id: str,
    owner_id: str | None,
    *,
    tags: Sequence[str] | None,
    is_favourite: bool | None,
    actor: Actor,
    at: datetime,
) -> Picture:
    """Set what is not None and return the picture. Raises PictureNotFound, InvalidInput."""
    before = _get(connection, picture_id, owner_id, lock=True)
    after = replace(
        before,
        tags=before.tags if tags is None else _checked(tags),
        is_favourite=before.is_favourite if is_favourite is None else is_favourite,
    )
    if after == before:
        return before
    seq, search = _seq(connection, picture_id), _searched(after)
    unindex(connection, [seq])
    values = {"tags": list(after.tags), "is_favourite": after.is_favourite, "search": search}
    connection.execute(sa.update(pictures).where(pictures.c.seq == seq).values(values))
    index(connection, seq, search)
    record(
        connection, actor, "images.change", "image", picture_id, at=at, before=_audited(before), after=_audited(after)
    )
    return after


def remove(connection: Connection, picture_id: str, owner_id: str | None, actor: Actor, at: datetime) -> None:
    """Remove the picture; the collector removes its blobs when nothing else holds them. Raises PictureNotFound."""
    before = _get(connection, picture_id, owner_id, lock=True)
    _delete(connection, {_seq(connection, picture_id): picture_id})
    record(connection, actor, "images.remove", "image", picture_id, at=at, before=_audited(before))


def prune(connection: Connection, before: datetime, limit: int = 500) -> int:
    """Remove up to `limit` pictures made before `before`, the oldest first, no favourite; return how many."""
    query = sa.select(pictures.c.seq, pictures.c.id).where(
        ~pictures.c.is_favourite, pictures.c.seq < to_microseconds(before)
    )
    rows = connection.execute(query.order_by(pictures.c.seq).limit(limit).with_for_update()).all()
    _delete(connection, {row.seq: row.id for row in rows})
    return len(rows)


def _seq(connection: Connection, picture_id: str) -> int:
    return int(connection.execute(sa.select(pictures.c.seq).where(pictures.c.id == picture_id)).scalar_one())


def _delete(connection: Connection, ids: Mapping[int, str]) -> None:
    """Delete the rows, by their places, and their holds on blobs."""
    unindex(connection, list(ids))
    connection.execute(sa.delete(pictures).where(pictures.c.seq.in_(ids)))
    connection.execute(sa.delete(blob_links).where(blob_links.c.holder.in_(ids.values())))


def _get(connection: Connection, picture_id: str, owner_id: str | None, *, lock: bool) -> Picture:
    query = sa.select(*_SHOWN).where(pictures.c.id == picture_id, *_owned(owner_id))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise PictureNotFound("There is no such picture.")
    return _picture(row)


def _owned(owner_id: str | None) -> list[sa.ColumnElement[bool]]:
    return [] if owner_id is None else [pictures.c.owner_id == owner_id]


def _insert(connection: Connection, picture: Picture) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(pictures).on_conflict_do_nothing(index_elements=["seq"]).returning(pictures.c.seq)
    row = row_of(picture)
    while connection.execute(statement, row).first() is None:  # another one was made in the same microsecond
        row["seq"] += 1
    index(connection, row["seq"], row["search"])


def row_of(picture: Picture) -> dict[str, Any]:
    """Return the values of the picture's row, at the place that its time gives it."""
    row = {name: getattr(picture, name) for name in _NAMES}
    row |= {"decision": dict(picture.decision), "settings": dict(picture.settings), "tags": list(picture.tags)}
    return row | {"seq": to_microseconds(picture.created_at), "search": _searched(picture)}


def _picture(row: Row[Any]) -> Picture:
    values = dict(row._mapping)
    return Picture(**values | {"tags": tuple(values["tags"])})


def _searched(picture: Picture) -> str:
    marks = [_owner_mark(picture.owner_id), mark("m", picture.model), _favourite_mark(picture.is_favourite)]
    return " ".join([*marks, *(mark("t", tag) for tag in picture.tags), *words_of(picture.prompt)])


def _marks(
    owner_id: str | None, model: str | None, tag: str | None, favourite: bool | None, *, is_searched: bool
) -> tuple[str, ...]:
    """Return what is asked for besides words. The owner alone needs no mark: their pictures have an index."""
    marks = [] if model is None else [mark("m", model)]
    marks += [] if tag is None else [mark("t", tag)]
    marks += [] if favourite is None else [_favourite_mark(favourite)]
    return (*marks, _owner_mark(owner_id)) if owner_id is not None and (marks or is_searched) else tuple(marks)


def _owner_mark(owner_id: str) -> str:
    return mark("o", owner_id)


def _favourite_mark(is_favourite: bool, /) -> str:
    return "§f" if is_favourite else "§n"


def _checked(tags: Sequence[str]) -> tuple[str, ...]:
    """Return the tags, each once, in their order. Raises InvalidInput."""
    told = tuple(dict.fromkeys(tag.strip() for tag in tags))
    if len(told) > MAX_TAGS:
        raise InvalidInput.at("tags", f"are more than {MAX_TAGS}")
    if not all(1 <= len(tag) <= MAX_TAG_LENGTH for tag in told):
        raise InvalidInput.at("tags", f"have between 1 and {MAX_TAG_LENGTH} characters each")
    return told


def _audited(picture: Picture) -> dict[str, Any]:
    """Return what the audit log may show: prompts stay out of it."""
    names = ("owner_id", "digest", "model", "version", "format", "size", "is_favourite")
    return {name: getattr(picture, name) for name in names} | {"tags": list(picture.tags)}
