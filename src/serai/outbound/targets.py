"""What a URL points at, and whether the server may go there. Pure: no DNS, no sockets.

There is one parser. The request is built from the parts that it returns and the text is never
parsed again, so no second parser can read the same URL differently. Any port from 1 to 65535 is
accepted: the guard is about addresses.
"""

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.parse import quote

import idna

from serai.errors import ConfigurationError, OutboundRefused

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_URL_CHARS = 8192
_REMEMBERED = 256
"""Hosts whose text was read and need not be read again; where they lead is checked each time."""
DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[^/?#@:\[\]]+)(?::(?P<port>[0-9]{0,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# The C library and browsers read a host whose last label is a number as IPv4, in decimal, octal or hex.
_NUMERIC_END = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$")

# `is_global` differs between Python versions and counts some of these as public, so they are named here.
_REFUSED_IPV4 = (
    IPv4Network("100.64.0.0/10"),  # shared address space, RFC 6598
    IPv4Network("168.63.129.16/32"),  # Azure's platform endpoint: a public number, reachable only from inside
    IPv4Network("192.0.0.0/24"),  # protocol assignments, RFC 6890; a cloud's metadata service lives here
    IPv4Network("192.88.99.0/24"),  # 6to4 relay, RFC 7526
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that was ever given out for public use, RFC 4291
_REFUSED_IPV6 = (
    IPv6Network("2001::/23"),  # protocol assignments with Teredo, which embeds IPv4
    IPv6Network("2002::/16"),  # 6to4, which embeds IPv4
    IPv6Network("3fff::/20"),  # documentation, RFC 9637
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052; the last 32 bits are the IPv4 address that is reached

_HINT = "An admin can add the host name or the network to 'outbound_allow'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parsed and normalised http or https URL, without its fragment."""

    scheme: str
    host: str
    """Lower-case ASCII name without a trailing dot, or an IP address in its shortest text, without brackets."""
    port: int
    path: str
    """Path and query as they are sent; begins with '/'."""

    @property
    def address(self) -> IPAddress | None:
        """The address, where the host is one; None for a name."""
        return _address(self.host)

    @property
    def netloc(self) -> str:
        """What the Host header says: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def url(self) -> str:
        return self.origin + self.path


@lru_cache(maxsize=_REMEMBERED)
def _address(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def parse_target(url: str) -> Target:
    """Return what `url` points at. Raises OutboundRefused for whatever is not a plain http(s) URL."""
    refuse_odd_text(url)
    found = _URL.fullmatch(url)
    if found is None:
        raise OutboundRefused(
            "the URL is not accepted", hint="Give an http or https URL with a host and no user name or password."
        )
    scheme = found["scheme"].lower()
    port = int(found["port"] or DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65535:
        raise OutboundRefused("the URL's port is not between 1 and 65535")
    path = quote((found["path"] or "/") + (found["query"] or ""), safe=string.punctuation)
    return Target(scheme=scheme, host=normalise_host(found["host"]), port=port, path=path)


def refuse_odd_text(url: str) -> None:
    """Raise OutboundRefused for characters that URL parsers are known to read differently, and for length."""
    if len(url) > MAX_URL_CHARS:
        raise OutboundRefused(f"the URL is longer than {MAX_URL_CHARS} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        raise OutboundRefused("the URL has a space, a backslash or an invisible character in it")


@lru_cache(maxsize=_REMEMBERED)
def normalise_host(text: str) -> str:
    """Return the host in the form of `Target.host`. Raises OutboundRefused where it is not a host.

    IPv4 only as four decimal numbers: the short, octal and hexadecimal forms are refused, not guessed.
    """
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        # UTS 46 is what browsers do; what it maps to (digits, dots) is judged below like any other text.
        ascii_text = text if text.isascii() else idna.encode(text, uts46=True).decode("ascii")
        host = ascii_text.lower().removesuffix(".")
        if _NUMERIC_END.search(host):
            return str(IPv4Address(host))
    except ValueError as error:
        raise OutboundRefused("the URL's host is not a valid name or address") from error
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise OutboundRefused("the URL's host is not a valid name or address")
    return host


def is_public(address: IPAddress) -> bool:
    """Return whether `address` belongs to the public internet, also through the IPv4 address that it embeds."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        refused = any(address in network for network in _REFUSED_IPV6)
        return address in _GLOBAL_UNICAST and address.is_global and not refused
    refused = address.is_multicast or any(address in network for network in _REFUSED_IPV4)
    return address.is_global and not refused


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """Public addresses only, and what an admin has named besides."""

    names: frozenset[str]
    networks: tuple[IPNetwork, ...]

    @classmethod
    def allowing(cls, entries: Iterable[str]) -> Self:
        """Read host names ('minio.lan'), addresses and networks ('10.1.0.0/16'). Raises ConfigurationError."""
        names: set[str] = set()
        networks: list[IPNetwork] = []
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                names.add(_allowed_name(entry))
        return cls(names=frozenset(names), networks=tuple(networks))

    def check(self, target: Target) -> None:
        """Raise OutboundRefused where no DNS is needed to know that `target` is out of bounds."""
        address = target.address
        if address is not None:
            self.check_address(target.host, address)
        elif target.host not in self.names and (target.host == "localhost" or target.host.endswith(".localhost")):
            raise OutboundRefused("the URL does not lead to a public address", hint=_HINT)

    def check_address(self, host: str, address: IPAddress) -> None:
        """Raise OutboundRefused unless a connection to `host` may go to `address`."""
        named = host in self.names or any(address in network for network in self.networks)
        if not named and not is_public(address):
            raise OutboundRefused("the URL does not lead to a public address", hint=_HINT)


def _allowed_name(entry: str) -> str:
    try:
        return normalise_host(entry)
    except OutboundRefused as error:
        raise ConfigurationError(
            f"outbound_allow = {entry!r} is not allowed: write a host name, an address or a network like '10.1.0.0/16'."
        ) from error
