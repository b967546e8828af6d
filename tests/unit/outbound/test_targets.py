"""Targets: no spelling of a place that is not public passes."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import ConfigurationError, OutboundRefused
from serai.outbound.targets import AddressPolicy, Target, is_public, parse_target

NOTHING_ALLOWED = AddressPolicy.allowing(())

NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
    "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.9", "192.0.0.192", "192.0.2.1",
    "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:20::1", "2001:db8::1", "2002:7f00:1::",
    "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8"]


def accepted(url: str, policy: AddressPolicy = NOTHING_ALLOWED) -> Target | None:
    """Return what `url` was read as, None where it was refused."""
    try:
        target = parse_target(url)
        policy.check(target)
    except OutboundRefused:
        return None
    return target


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_special_addresses_are_not_public(text: str) -> None:
    """Every special range is refused, whatever this Python's own tables say of it."""
    assert not is_public(ip_address(text))
    host = f"[{text}]" if ":" in text else text
    assert accepted(f"http://{host}/") is None


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_public(text: str) -> None:
    """The neighbours of the special ranges, and plain public addresses, are reached."""
    assert is_public(ip_address(text))
    host = f"[{text}]" if ":" in text else text
    assert accepted(f"http://{host}/") is not None


@settings(deadline=None)
@given(st.ip_addresses())
def test_public_is_never_wider_than_global(address: IPv4Address | IPv6Address) -> None:
    """What `ipaddress` calls not global is never public."""
    if not address.is_global:
        assert not is_public(address)


def ipv4_texts(address: IPv4Address) -> list[str]:
    """Return the ways to write an IPv4 address that some parser or resolver is known to read."""
    number, parts = int(address), address.packed
    a, b, c, d = parts
    return [
        str(address),
        f"{address}.",
        str(number),
        hex(number),
        hex(number).upper(),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        ".".join(hex(part) for part in parts),
        ".".join(f"0{part:o}" for part in parts),
        ".".join(f"{part:03d}" for part in parts),
        f"0x{a:x}.{b}.0{c:o}.{d}",
        str(address).replace(".", "。"),
        str(address).replace(".", "%2e"),
        "".join(chr(ord(digit) + 0xFEE0) if digit.isdigit() else digit for digit in str(address)),
        "".join(chr(ord(digit) - ord("0") + 0x660) if digit.isdigit() else digit for digit in str(address)),
        f"user:password@{address}",
        f"public.test@{address}",
        f"public.test\\@{address}",
        f" {address}",
        f"{address}\t",
    ]


def embedded_texts(address: IPv4Address) -> list[str]:
    """Return the IPv6 forms that carry an IPv4 address within them."""
    high, low = int(address) >> 16, int(address) & 0xFFFF
    return [
        f"[::ffff:{address}]",
        f"[::ffff:{high:x}:{low:x}]",
        f"[0:0:0:0:0:FFFF:{high:x}:{low:x}]",
        f"[::ffff:0:{address}]",
        f"[::{address}]",
        f"[64:ff9b::{address}]",
        f"[2002:{high:x}:{low:x}::1]",
        f"[2001:0:{high:x}:{low:x}::]",
        f"[2001::{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}]",
        f"[64:ff9b:1::{address}]",
    ]


@settings(deadline=None)
@given(st.ip_addresses(v=4).filter(lambda address: not address.is_global))
def test_no_spelling_of_an_ipv4_address_that_is_not_global_is_accepted(address: IPv4Address) -> None:
    """However it is written or embedded, an IPv4 address that is not global is refused without DNS."""
    for text in ipv4_texts(address) + embedded_texts(address):
        assert accepted(f"http://{text}/") is None, text


@settings(deadline=None)
@given(st.ip_addresses(v=6))
def test_no_ipv6_address_that_is_not_global_is_accepted(address: IPv6Address) -> None:
    """Long, short, upper-case or with a zone: what is accepted is global and names the same address."""
    for text in (str(address), address.exploded, str(address).upper()):
        target = accepted(f"http://[{text}]:8080/")
        assert target is None or (target.address == address and address.is_global)
    assert accepted(f"http://[{address}%25lo]/") is None


HOST_CHARACTERS = st.sampled_from("0123456789abcdefx.-_:[]%@#/?\\ \t０１２７①②⓪。．lohst\u0660\u00ad\u2100\u212a")


@settings(deadline=None)
@given(st.text(HOST_CHARACTERS, min_size=1, max_size=24))
def test_what_is_accepted_as_a_name_is_no_address_to_the_resolver(host: str) -> None:
    """A host that passes as a name is one that the C library does not read as an address, and parses stably."""
    target = accepted(f"http://{host}/")
    if target is None:
        return
    assert parse_target(target.url) == target
    if target.address is None:
        with pytest.raises(OSError, match="illegal IP address"):
            socket.inet_aton(target.host)
    else:
        assert target.address.is_global


@pytest.mark.parametrize(
    "url",
    [
        "", "http", "http:", "http://", "http:///path", "http:example.com", "//example.com/", "example.com",
        "file:///etc/passwd", "gopher://example.com/", "data:text/plain,hello", "ftp://example.com/",
        "javascript:alert(1)", "ws://example.com/", "unix:///run/x.sock", "jar:http://example.com!/",
        "http://user@example.com/", "http://user:secret@example.com/", "http://@example.com/", "http://a@b@c/",
        "http://example.com:0/", "http://example.com:65536/", "http://example.com:99999/", "http://example.com:-1/",
        "http://example.com:80:80/", "http://example.com:8o/", "http://example.com:８０/",
        " http://example.com/", "http://example.com/\n", "http://exa mple.com/", "http://example.com/a b",
        "http://example.com\\@evil.test/", "http:\\\\example.com/", "http://example.com/\x00", "http://exam\u200bple.com/",
        "http://example.com/\ud800", "http://[::1", "http://::1/", "http://[::1]x/", "http://[fe80::1%25eth0]/",
        "http://[v1.x]/", "http://a..b/", "http://.a/", "http://example.com../", "http://-a.test/", "http://a-.test/",
        "http://exa%6dple.com/", "http://1.2.3/", "http://1.2.3.4.5/", "http://256.1.1.1/", "http://0x7f000001/",
        f"http://{'a' * 64}.test/", f"http://{'a.' * 127}test/", f"http://example.com/{'a' * 8192}",
        "http\u017f://example.com/", "http://localhost/", "http://LOCALHOST./", "http://a.localhost/",
    ],
)  # fmt: skip
def test_odd_urls_are_refused(url: str) -> None:
    """Other schemes, user names, impossible ports, and every odd way to write a host are refused."""
    assert accepted(url) is None


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("HTTP://EXAMPLE.com", "http://example.com/"),
        ("https://example.com.:443/x#part", "https://example.com/x"),
        ("http://example.com:?q=1", "http://example.com/?q=1"),
        ("https://example.com:8443/a%20b?c=%2F", "https://example.com:8443/a%20b?c=%2F"),
        ("http://b\u00fccher.example/\u00fc?q=\u00e4", "http://xn--bcher-kva.example/%C3%BC?q=%C3%A4"),
        ("http://\uff45xample.com/", "http://example.com/"),
        ("http://model_1.example/", "http://model_1.example/"),
        ("http://[2606:4700:0:0::1111]:80/", "http://[2606:4700::1111]/"),
    ],
)
def test_good_urls_are_normalised(url: str, normalised: str) -> None:
    """Scheme, host, default port and fragment have one spelling; the path is kept."""
    target = accepted(url)
    assert target is not None
    assert target.url == normalised
    assert target.url.startswith(target.origin + "/")


def test_only_what_is_named_is_allowed() -> None:
    """A named host, address or network is reached although it is not public; its neighbours are not."""
    policy = AddressPolicy.allowing(["Minio.LAN.", "localhost", "127.0.0.2", "10.1.0.0/16", "fd00::/8"])
    for url in ("http://localhost/", "http://127.0.0.2/", "http://10.1.255.1/", "http://[fd00::1]/"):
        assert accepted(url, policy) is not None, url
    for url in ("http://127.0.0.1/", "http://10.2.0.1/", "http://a.localhost/", "http://[::ffff:10.1.0.1]/"):
        assert accepted(url, policy) is None, url
    policy.check_address("minio.lan", ip_address("192.168.7.7"))
    with pytest.raises(OutboundRefused):
        policy.check_address("other.lan", ip_address("192.168.7.7"))


@pytest.mark.parametrize("entry", ["", "*", "http://minio.lan", "10.1.2.3/16", "minio.lan:9000", "0x7f.1", "a b"])
def test_an_entry_that_names_nothing_stops_the_start(entry: str) -> None:
    """A wildcard, a URL, a port or a network with host bits is a configuration error that shows the entry."""
    with pytest.raises(ConfigurationError, match="outbound_allow"):
        AddressPolicy.allowing([entry])
