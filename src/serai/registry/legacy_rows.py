"""Reading single columns of a legacy row: ids, versions, times, lists. Pure.

Each function says what it makes of what is not strict; `legacy.convert` puts that into its report.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from serai.errors import InvalidInput
from serai.registry.reference import check_lookup_name, lookup_key
from serai.registry.semver import is_version
from serai.registry.source import Benchmark

Row = Mapping[str, Any]
"""A row by column, values as the driver gives them."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM = 10**11
"""A count from here on is one of milliseconds: as seconds it would lie beyond the year 5138."""
_MAX_SECONDS = 253_402_300_799
"""The last second of the year 9999."""

_LOOSE_VERSION = re.compile(
    r"[vV]?\.?\s*([0-9]{1,18})(?:\.([0-9]{1,18}))?(?:\.([0-9]{1,18}))?(?:[-._+\s]*)(.*)", re.DOTALL
)
_NO_IDENTIFIER = re.compile(r"[^0-9A-Za-z]+")
_NO_SLUG = re.compile(r"[^a-z0-9._-]+")


def text(value: object) -> str:
    """Return a column as text; '' for NULL."""
    return "" if value is None else str(value).strip()


def slug(old: str) -> str:
    """Return the id that an old one becomes; '' if nothing of it can stand in an id."""
    return _NO_SLUG.sub("-", old.lower()).strip("-._")[:128]


def lookup_name(old: str) -> str | None:
    """Return the name under which a model of that old id is still found; None if no client could write it."""
    for name in (old, lookup_key(old)):
        try:
            return check_lookup_name(name)
        except InvalidInput:
            continue
    return None


def semver(old: str) -> str:
    """Return a strict version for an old one, itself if it is strict.

    '1.0' → 1.0.0, 'v2' → 2.0.0, '01.2.3-RC 1' → 1.2.3-RC.1, '1.2.3.4' → 1.2.3+4, 'base' → 0.0.0-base,
    '' → 1.0.0: what follows three numbers orders before the release unless it is a number itself.
    """
    if is_version(old):
        return old
    match = _LOOSE_VERSION.fullmatch(old)
    if match is None:
        return f"0.0.0-{_identifiers(old)}" if _identifiers(old) else "1.0.0"
    *numbers, rest = match.groups()
    core = ".".join(str(int(number or 0)) for number in numbers)
    suffix = _identifiers(rest)
    mark = "+" if suffix.replace(".", "").isdigit() else "-"
    return f"{core}{mark}{suffix}" if suffix else core


def moment(value: object) -> datetime | None:
    """Return a time in UTC: of epoch seconds or milliseconds, an ISO text, a datetime; naive ones count as UTC.

    None for NULL and 0. Raises ValueError or TypeError for anything else.
    """
    if value in (None, "", 0):
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, str) and not value.strip().isdigit():
        return moment(datetime.fromisoformat(value.strip()))
    if not isinstance(value, int | float | Decimal | str) or isinstance(value, bool):
        raise TypeError("is not a time")
    count = float(value)
    seconds = count / 1000 if abs(count) >= _MILLISECONDS_FROM else count
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError("is not a time of this age")
    return _EPOCH + timedelta(seconds=seconds)


def flag(value: object) -> bool:
    """Return a truth value, however the database writes it."""
    return text(value).lower() in ("1", "true", "t", "yes")


def document(value: object) -> Any:
    """Return a JSON column's value, whether the driver has parsed it or not; a text that is no JSON stays a text."""
    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return text(value)


def task(value: object) -> str:
    """Return the old name of a task: of a text or of {"type": …}."""
    found = document(value)
    return text(found.get("type") if isinstance(found, Mapping) else found).lower()


def words(value: object) -> tuple[str, ...]:
    """Return every text in a column, each once: of a list, of its objects, or of a text with commas."""
    found = document(value)
    return tuple(dict.fromkeys(_texts(found.split(",") if isinstance(found, str) else found)))


def languages(value: object) -> tuple[str, ...]:
    """Return the codes in a column: of a list of texts, or of `[{"sourceLanguage", "targetLanguage", …}]`."""
    found = document(value)
    entries = found if isinstance(found, list) else [found]
    named = (
        {name: code for name, code in entry.items() if name.lower().endswith("language")}
        if isinstance(entry, Mapping)
        else entry
        for entry in entries
    )
    return tuple(dict.fromkeys(code for entry in named for code in words(entry)))


def benchmarks(value: object) -> tuple[tuple[Benchmark, ...], bool]:
    """Return the results of `[{"name", "domain", "score": [{"metricName", "score"}]}]`, and whether that was all."""
    found = document(value)
    rows: list[Benchmark] = []
    whole = found in (None, "", [], {}) or isinstance(found, list)
    for entry in found if isinstance(found, list) else ():
        scores = entry.get("score") if isinstance(entry, Mapping) else None
        whole = whole and isinstance(scores, list)
        for score in scores if isinstance(scores, list) else ():
            try:
                rows.append(_benchmark(entry, score))
            except (KeyError, TypeError, ValueError):
                whole = False
    return tuple(rows), whole


def _benchmark(entry: Mapping[str, Any], score: Mapping[str, Any]) -> Benchmark:
    name, metric = text(entry["name"]), text(score["metricName"])
    value = float(score["score"])
    if not (name and metric and abs(value) < float("inf")):
        raise ValueError("is not a result")
    return Benchmark(name=name[:500], dataset=", ".join(words(entry.get("domain"))), metric=metric[:500], value=value)


def _identifiers(rest: str) -> str:
    """Return what can stand behind a version's numbers: letters and digits, in parts, without leading zeros."""
    parts = (part for part in _NO_IDENTIFIER.split(rest) if part)
    return ".".join(str(int(part)) if part.isdigit() else part for part in parts)[:60].rstrip(".")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _texts(member)
