"""Which Host is ours, and which page may change something: the tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from serai.api.origin import comes_from_here, host_is_ours, may_change
from serai.settings import Settings

PLAIN = Settings()
OPEN = Settings(
    host="0.0.0.0",
    public_url="https://serai.example",
    allowed_hosts=["Alias.example"],
    cors_origins=["https://app.example", "http://localhost:5173"],
)


def connection(**headers: str) -> HTTPConnection:
    given_ = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": given_})


@pytest.mark.parametrize(
    ("host", "plain", "opened"),
    [
        ("localhost", True, True),
        ("LocalHost:8713", True, True),
        ("127.0.0.1:8713", True, True),
        ("[::1]:8713", True, True),
        ("[::1]", True, True),
        ("192.168.1.5:8713", True, True),  # an address cannot be rebound
        ("[fe80::1]:80", True, True),
        ("0.0.0.0:8713", True, True),
        ("serai.example", False, True),
        ("serai.example:443", False, True),
        ("SERAI.EXAMPLE", False, True),
        ("alias.example", False, True),
        ("ALIAS.example:1", False, True),
        ("evil.example", False, False),
        ("serai.example.evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("evil-localhost", False, False),
        ("localhost.", False, False),
        ("", False, False),
        (":8713", False, False),
        ("localhost:port", False, False),
        ("localhost:99999", False, False),
        ("localhost:8713/admin", False, False),
        ("localhost?x", False, False),
        ("localhost#x", False, False),
        ("localhost\\evil", False, False),
        ("localhost evil.example", False, False),
        ("user@localhost", False, False),
        ("user:pw@localhost", False, False),
        ("evil.example@localhost", False, False),
        ("[::1", False, False),
        ("[localhost]", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("2130706433", False, False),  # 127.0.0.1 as one number: browsers write it out, so nobody honest sends it
        ("0x7f.1", False, False),
        ("127.1", False, False),
        ("☃", False, False),
    ],
)
def test_the_host_table(host: str, plain: bool, opened: bool) -> None:
    """Names are ours by the settings; addresses always; what is not a plain host with a port never."""
    assert host_is_ours(host, PLAIN) is plain
    assert host_is_ours(host, OPEN) is opened


@pytest.mark.parametrize(
    ("origin", "plain", "opened"),
    [
        (None, True, True),
        ("http://127.0.0.1:8713", True, True),
        ("https://127.0.0.1:8713", True, True),
        ("http://127.0.0.1", False, False),
        ("http://127.0.0.1:3000", False, False),
        ("https://serai.example", False, True),
        ("http://serai.example", False, False),
        ("https://serai.example:444", False, False),
        ("https://serai.example.evil.example", False, False),
        ("https://app.example", False, True),
        ("https://app.example/", False, False),
        ("https://app.example.evil.example", False, False),
        ("http://app.example", False, False),
        ("http://localhost:5173", False, True),
        ("http://localhost", False, False),
        ("null", False, False),
        ("", False, False),
        ("*", False, False),
        ("file://", False, False),
        ("https://evil.example", False, False),
    ],
)
def test_the_origin_table(origin: str | None, plain: bool, opened: bool) -> None:
    """A change comes from no page, from ours, or from one that was let in: compared whole, never by a part."""
    headers = {"host": "127.0.0.1:8713", **({} if origin is None else {"origin": origin})}
    assert may_change(connection(**headers), PLAIN) is plain
    assert may_change(connection(**headers), OPEN) is opened


@pytest.mark.parametrize(
    ("site", "origin", "ours"),
    [
        (None, None, True),
        ("none", None, True),
        ("same-origin", None, True),
        ("same-origin", "http://127.0.0.1:8713", True),
        ("cross-site", None, False),
        ("same-site", None, False),
        ("cross-site", "http://127.0.0.1:8713", False),
        (None, "https://evil.example", False),
        (None, "null", False),
        (None, "https://app.example", False),  # let in by CORS, but the session's cookie is not for it
    ],
)
def test_the_cookie_table(site: str | None, origin: str | None, ours: bool) -> None:
    """A cookie counts only for our own pages; where the browser says so, it is believed against itself."""
    headers = {"host": "127.0.0.1:8713"}
    if site is not None:
        headers["sec_fetch_site"] = site
    if origin is not None:
        headers["origin"] = origin
    assert comes_from_here(connection(**headers), OPEN) is ours


@given(st.text(st.characters(codec="latin-1"), max_size=30))
def test_no_header_makes_it_crash(text: str) -> None:
    """Whatever stands in Host and Origin, the answer is yes or no; an origin is only ever equal to a known one."""
    assert host_is_ours(text, OPEN) in (True, False)
    if may_change(connection(host="127.0.0.1:8713", origin=text), OPEN):
        assert text in {*OPEN.cors_origins, OPEN.public_url, "http://127.0.0.1:8713", "https://127.0.0.1:8713"}
