"""What commands print: tables for people, JSON for programs, one line and a hint for errors."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from serai.errors import ConfigurationError, SeraiError, UpstreamFailed

if TYPE_CHECKING:
    from rich.table import Table

REFUSED, UNREACHABLE, MISCONFIGURED = 1, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The options before the command."""

    url: str | None
    api_key: str | None
    as_json: bool


def options_of(context: typer.Context) -> ClientOptions:
    """Return the options that were given before the command."""
    options: ClientOptions = context.find_root().obj
    return options


def show(context: typer.Context, value: Any, columns: Sequence[str] | None = None, *, folds: str | None = None) -> None:
    """Print an answer: `{"items": …}` and lists as a table of `columns`, one object as its members.

    `folds`: the one column that gives way on a narrow terminal; without it all do.
    """
    if options_of(context).as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return
    rows = value.get("items") if isinstance(value, Mapping) and "items" in value else value
    if isinstance(rows, list):
        _print_table(rows, columns or (list(rows[0]) if rows else []), folds)
    elif isinstance(rows, Mapping):
        width = max((len(name) for name in rows), default=0)
        for name, member in rows.items():
            print(f"{name:<{width}}  {_cell(member)}")
    else:
        print(rows)


def fail(error: SeraiError) -> NoReturn:
    """Print the error and its hint, and end with the exit code of its kind."""
    print(f"serai: {error.message}", file=sys.stderr)
    if isinstance(error.details, list) and error.details and all(isinstance(one, str) for one in error.details):
        print("\n".join(f"  - {one}" for one in error.details), file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    if isinstance(error, ConfigurationError):
        sys.exit(MISCONFIGURED)
    sys.exit(UNREACHABLE if isinstance(error, UpstreamFailed) else REFUSED)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], folds: str | None = None) -> "Table":
    """Return the rows as a table of `columns`; `folds` as in `show`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=folds not in (None, column))
    for row in rows:
        made.add_row(*(Text(_cell(row.get(column))) for column in columns))
    return made


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], folds: str | None) -> None:
    from rich.console import Console

    if not rows:
        print("none")
        return
    # A pipe or a file has no width: nothing is folded there.
    Console(width=None if sys.stdout.isatty() else 10_000, highlight=False).print(table(rows, columns, folds))


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list | dict):
        return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value, ensure_ascii=False)
    return str(value)
