"""One HTTP exchange of a call, and the next one after a redirect. Pure.

A call is a chain of hops. What may identify the caller never follows it to another origin
(scheme, host and port): of the headers only those in `_KEPT_ACROSS_ORIGINS` go along.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import urljoin

import msgspec

from serai.errors import InvalidInput, OutboundRefused
from serai.outbound.targets import Target, parse_target, refuse_odd_text

MAX_REDIRECTS = 5

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_WITH_BODY = frozenset({"PATCH", "POST", "PUT"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEPT_ACROSS_ORIGINS = frozenset(
    {"accept", "accept-encoding", "accept-language", "content-type", "if-range", "range", "user-agent"}
)
# What frames the message or steers the connection is ours to say: a caller's word could smuggle a second request.
_OURS = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII | re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundSecret:
    """A credential and the only origins that it may be sent to. Its text never shows the value."""

    name: str
    value: str = field(repr=False)
    header: str = "Authorization"
    prefix: str = "Bearer "
    origins: frozenset[str]
    """Like 'https://api.example.com' or 'http://gpu.lan:8000'; normalised on creation."""

    def __post_init__(self) -> None:
        if not _may_send(self.header):
            raise InvalidInput.at("header", "is not a header that may be set")
        if not self.value or not _HEADER_VALUE.fullmatch(self.prefix + self.value):
            raise InvalidInput.at("value", "is empty or has characters that no header can carry")
        object.__setattr__(self, "origins", frozenset(_origin(text) for text in self.origins))

    def header_for(self, target: Target) -> tuple[str, str]:
        """Return the header to send. Raises OutboundRefused unless `target` is of one of the origins."""
        if target.origin not in self.origins:
            raise OutboundRefused(
                f"the secret '{self.name}' may not be sent to {target.origin}",
                hint="An admin can add the origin to the secret.",
            )
        return self.header.lower(), self.prefix + self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One request as it will be sent, but for Host and Content-Length."""

    method: str
    target: Target
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    content: bytes | None = field(repr=False)
    redirects: int = 0

    @classmethod
    def first(
        cls,
        method: str,
        target: Target,
        *,
        defaults: Mapping[str, str],
        headers: Mapping[str, str] | None,
        content: bytes | None,
        json: object,
        secret: OutboundSecret | None,
    ) -> Self:
        """Return the hop that a call begins with. Raises OutboundRefused for what may not be sent."""
        if method not in _METHODS:
            raise OutboundRefused(f"the method is not one of {', '.join(sorted(_METHODS))}")
        if content is not None and json is not None:
            raise ValueError("give content or json, not both")
        sent = dict(defaults)
        if json is not None:
            content = msgspec.json.encode(json)
            sent["content-type"] = "application/json"
        given = _checked(headers or {})
        sent |= given
        if secret is not None:
            name, value = secret.header_for(target)
            if name in given:
                raise OutboundRefused(f"the header {name} is given twice: once as a header, once as a secret")
            sent[name] = value
        return cls(method=method, target=target, headers=sent, content=content)

    def wire_headers(self) -> list[tuple[bytes, bytes]]:
        """Return all headers of the request."""
        framing = {"host": self.target.netloc}
        if self.content is not None or self.method in _WITH_BODY:
            framing["content-length"] = str(len(self.content or b""))
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in {**framing, **self.headers}.items()]

    def redirected(self, status: int, location: str | None) -> "Hop | None":
        """Return the hop that an answer asks for, None where it asks for none.

        The method changes as in browsers (WHATWG Fetch, 4.4). Raises OutboundRefused where the redirect
        leads to what is not a plain URL or from https to http.
        """
        if status not in _REDIRECTS or location is None:
            return None
        target = _location(self.target, location)
        if self.target.scheme == "https" and target.scheme == "http":
            raise OutboundRefused("the redirect leads from https to http")
        headers = dict(self.headers)
        if target.origin != self.target.origin:
            headers = {name: value for name, value in headers.items() if name in _KEPT_ACROSS_ORIGINS}
        hop = replace(self, target=target, headers=headers, redirects=self.redirects + 1)
        if (status in (301, 302) and self.method == "POST") or (status == 303 and self.method not in ("GET", "HEAD")):
            bare = {name: value for name, value in headers.items() if not name.startswith("content-")}
            return replace(hop, method="GET", content=None, headers=bare)
        return hop


def _location(base: Target, location: str) -> Target:
    try:
        refuse_odd_text(location)
        # `urljoin` reads 'http:x' and 'http://' as relative; what has a scheme is absolute here.
        return parse_target(location if _ABSOLUTE.match(location) else urljoin(base.url, location))
    except OutboundRefused as error:
        raise OutboundRefused(f"a redirect was refused: {error.message}") from error
    except ValueError as error:
        raise OutboundRefused("a redirect was refused: the URL is not accepted") from error


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _may_send(name) or name.lower() in checked:
            raise OutboundRefused("a header may not be set, or is given twice", details={"header": name})
        if not _HEADER_VALUE.fullmatch(value):
            # The value stays out of the message: it may be a credential.
            raise OutboundRefused("a header has characters that cannot be sent", details={"header": name})
        checked[name.lower()] = value
    return checked


def _may_send(header: str) -> bool:
    lower = header.lower()
    return bool(_HEADER_NAME.fullmatch(header)) and lower not in _OURS and not lower.startswith("proxy-")


def _origin(text: str) -> str:
    try:
        target = parse_target(text)
    except OutboundRefused as error:
        raise InvalidInput.at("origins", error.message) from error
    if target.path != "/" or text.endswith(("/", "?", "#")):
        raise InvalidInput.at("origins", "an origin is written 'https://host' or 'https://host:port'")
    return target.origin
