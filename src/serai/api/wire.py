"""What the wire types of the native API share: strictness and pages."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from serai.errors import InvalidInput

Item = TypeVar("Item")
Row = TypeVar("Row")

MAX_PAGE = 200

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items of a page.")]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _as_moment(value: object) -> object:
    """Refuse what the library would take for seconds since 1970."""
    if isinstance(value, str) and _MOMENT.match(value):
        return value
    raise ValueError("is no time; write it as in 2026-01-31T12:00:00Z")


_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", re.ASCII)
Moment = Annotated[AwareDatetime, BeforeValidator(_as_moment)]
"""A time that a client gives: RFC 3339, with its zone."""


class Wire(BaseModel):
    """A body or an answer: unknown members are refused, types are not coerced (`"3"` is no number)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, from_attributes=True)


class Problem(Wire):
    """What went wrong. `code` is stable; `details` is for programs."""

    code: str
    message: str
    hint: str | None
    request_id: str | None
    details: Any


class ErrorOut(Wire):
    """The one form of every error."""

    error: Problem


class OpenaiProblem(Wire):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenaiErrorOut(BaseModel):
    """An error as OpenAI's clients read it; some hold what was made so far besides."""

    error: OpenaiProblem


class OllamaErrorOut(BaseModel):
    """An error as Ollama's clients read it."""

    error: str


class Page(Wire, Generic[Item]):
    """A page of a list; `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None


def page_of(rows: Sequence[Row], limit: int, show: Callable[[Row], Item], key: Callable[[Row], str]) -> Page[Item]:
    """Return the page of `rows`, of which one more than `limit` was asked for; `key` gives the place in the order."""
    shown = rows[:limit]
    cursor = token_of(key(shown[-1])) if len(rows) > limit else None
    return Page(items=[show(row) for row in shown], next_cursor=cursor)


def place_of(cursor: str | None) -> str | None:
    """Return what `page_of` put into a cursor. Raises InvalidInput for anything else."""
    if cursor is None:
        return None
    try:
        place = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise InvalidInput.at("cursor", "is not a cursor of this list") from None
    if "\x00" in place:
        raise InvalidInput.at("cursor", "is not a cursor of this list")
    return place


def number_of(cursor: str | None) -> int | None:
    """Return the number in a cursor of a list that is ordered by numbers below 2^63. Raises InvalidInput."""
    place = place_of(cursor)
    if place is None:
        return None
    if not (place.isascii() and place.isdigit() and int(place[:20]) < 2**63 and len(place) < 20):
        raise InvalidInput.at("cursor", "is not a cursor of this list")
    return int(place)


def token_of(place: str) -> str:
    """Return the cursor that `place_of` reads."""
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")
