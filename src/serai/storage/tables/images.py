"""The gallery: a row for each picture, and what makes its search fast on either database.

`seq` is the moment of making in microseconds, moved on until it is alone: the order of all lists. `search`
holds words in lower case with one space between, made by the store: those of the prompt, and marks for
what else is asked for (owner, model, tags). On SQLite a full text index of it has `seq` as its rowid, so
that the newest matches come first without sorting; the store keeps it, in the transaction of the row, for
SQLite before 3.42 lets no trigger do so where `trusted_schema` is off. On PostgreSQL it is a GIN index.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    Table,
    Text,
    event,
    func,
    literal_column,
    text,
)
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from serai.storage.tables.base import Instant, Json, metadata


def lexemes(search: ColumnElement[str]) -> ColumnElement[object]:
    """Return the words of `search` as PostgreSQL's tsvector; nothing is parsed or stemmed there."""
    return func.array_to_tsvector(func.string_to_array(search, literal_column("' '")))


pictures = Table(
    "pictures",
    metadata,
    # INTEGER, word for word, makes it the rowid on SQLite.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("decision", Json, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("negative_prompt", Text, nullable=False),
    Column("settings", Json, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("format", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("thumb_digest", Text, nullable=False),
    Column("thumb_size", BigInteger, nullable=False),
    Column("generation_ms", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("tags", Json, nullable=False),
    Column("is_favourite", Boolean, nullable=False),
    Column("search", Text, nullable=False),
    CheckConstraint("format IN ('png', 'jpeg', 'webp')", name="format"),
    Index("uq_pictures_id", "id", unique=True),
    Index("uq_pictures_job_id", "job_id", "position", unique=True),
    Index("ix_pictures_owner_id", "owner_id", "seq"),
    Index(  # what retention may remove
        "ix_pictures_unmarked", "seq", sqlite_where=text("is_favourite = 0"), postgresql_where=text("NOT is_favourite")
    ),
)

Index(
    "ix_pictures_search",
    lexemes(pictures.c.search),
    postgresql_using="gin",
    postgresql_with={"fastupdate": "off"},  # a list of what is not yet indexed would be read by every search
).ddl_if(dialect="postgresql")


@event.listens_for(pictures, "after_create")
def _add_search(_: object, connection: Connection, **__: object) -> None:
    if connection.dialect.name == "sqlite":
        # The words are clean already, so that nothing but the spaces divides them. Prefixes of these lengths
        # have lists of their own: merging the lists of all words that begin so would take seconds.
        connection.execute(
            text(
                "CREATE VIRTUAL TABLE picture_search USING fts5("
                "search, content='pictures', content_rowid='seq', tokenize='ascii', prefix='2 3 4')"
            )
        )


@event.listens_for(pictures, "after_drop")
def _drop_search(_: object, connection: Connection, **__: object) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(text("DROP TABLE picture_search"))
