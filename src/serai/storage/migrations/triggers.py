"""Triggers that a table needs on both databases, for use in migrations."""

from alembic import op


def append_only(table: str) -> None:
    """Let the database itself refuse every UPDATE and DELETE of `table`."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
    )


def drop_append_only(table: str) -> None:
    """Undo `append_only`."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(f"DROP TRIGGER {table}_no_{verb}")
        return
    op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
    op.execute(f"DROP FUNCTION {table}_append_only()")


def frozen(table: str, flag: str, columns: tuple[str, ...]) -> None:
    """Let the database itself refuse changes of `columns`, and of the flag, in rows whose boolean `flag` is set."""
    changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in columns)
    if op.get_bind().dialect.name == "sqlite":
        changed = changed.replace("IS DISTINCT FROM", "IS NOT")  # SQLite has the standard's words from 3.39 only
        op.execute(
            f"CREATE TRIGGER {table}_frozen BEFORE UPDATE ON {table} WHEN OLD.{flag} AND ({changed} OR NOT NEW.{flag}) "
            f"BEGIN SELECT RAISE(ABORT, 'this row of {table} is immutable'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_frozen() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'this row of {table} is immutable'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_frozen BEFORE UPDATE ON {table} FOR EACH ROW "
        f"WHEN (OLD.{flag} AND ({changed} OR NOT NEW.{flag})) EXECUTE FUNCTION {table}_frozen()"
    )


def drop_frozen(table: str) -> None:
    """Undo `frozen`."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP TRIGGER {table}_frozen")
        return
    op.execute(f"DROP TRIGGER {table}_frozen ON {table}")
    op.execute(f"DROP FUNCTION {table}_frozen()")
