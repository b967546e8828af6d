"""From which page a browser's request comes, and to which name it was sent.

A page of another site must not act in the name of whoever looks at it (CSRF), and a foreign name
that was made to point at this machine must not be answered (DNS rebinding), on loopback either.
"""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from serai.settings import Settings

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE | re.ASCII)
_MAX_PORT = 65535


def host_is_ours(host: str, settings: Settings) -> bool:
    """Say whether a Host header names this server. Any literal address does: rebinding needs a name."""
    name = _host_name(host)
    if name is None:
        return False
    allowed = {allowed.lower() for allowed in (settings.host, *settings.allowed_hosts)}
    if name in _LOOPBACK_NAMES or name in allowed:
        return True
    if settings.public_url is not None and name == urlsplit(settings.public_url).hostname:
        return True
    return _is_address(name)


def comes_from_here(connection: HTTPConnection, settings: Settings) -> bool:
    """Say whether a request comes from our own pages, or from no page at all."""
    if connection.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return False
    origin = connection.headers.get("origin")
    return origin is None or _is_own(origin, connection.headers.get("host", ""), settings)


def may_change(connection: HTTPConnection, settings: Settings) -> bool:
    """Say whether the page that a request comes from may change things: ours, or one that CORS lets in."""
    origin = connection.headers.get("origin")
    if origin is None:
        return True
    return origin in settings.cors_origins or _is_own(origin, connection.headers.get("host", ""), settings)


def _is_own(origin: str, host: str, settings: Settings) -> bool:
    if settings.public_url is not None and origin == settings.public_url:
        return True
    return host != "" and origin in (f"http://{host}", f"https://{host}")


def _host_name(host: str) -> str | None:
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        return None
    return match["name"].strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
