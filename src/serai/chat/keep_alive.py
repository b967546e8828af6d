"""How long a model stays loaded after an answer, as callers say it in every dialect."""

import re

from serai.errors import InvalidInput

KeepAlive = int | float | str | None

_DURATION = re.compile(r"(?P<seconds>-?\d+)|(?P<sign>-?)(?P<parts>(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+)", re.ASCII)
_MAX_DURATION_CHARACTERS = 32
MAX_KEEP_ALIVE_S = 366 * 86400
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_of(value: KeepAlive) -> float | None:
    """Return the seconds of a number or of a duration as Go writes it ('10m', '1h30m'); -1 for ever: negative ones."""
    if value is None:
        return None
    seconds = _duration(value) if isinstance(value, str) else float(value)
    if seconds > MAX_KEEP_ALIVE_S:
        raise InvalidInput.at("keep_alive", "must be at most a year; -1 means for ever")
    return -1.0 if seconds < 0 else seconds


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text) if len(text) <= _MAX_DURATION_CHARACTERS else None
    if match is None:
        raise InvalidInput.at("keep_alive", "must be seconds or a duration such as 10m, 1h30m or -1")
    if match["seconds"] is not None:
        return float(match["seconds"])
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", match["parts"])
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return -seconds if match["sign"] else seconds
