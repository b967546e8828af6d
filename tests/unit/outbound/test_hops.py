"""Hops: what is sent, what a redirect changes, and what stays behind."""

import dataclasses

import pytest

from serai.errors import InvalidInput, OutboundRefused
from serai.outbound import OutboundSecret
from serai.outbound.hops import Hop
from serai.outbound.targets import parse_target

HERE = "https://api.example.com/v1/x?y=1"
DEFAULTS = {"accept": "*/*", "accept-encoding": "gzip", "user-agent": "serai"}


def first(
    method: str = "GET",
    url: str = HERE,
    *,
    headers: dict[str, str] | None = None,
    content: bytes | None = None,
    json: object = None,
    secret: OutboundSecret | None = None,
) -> Hop:
    target = parse_target(url)
    return Hop.first(
        method, target, defaults=DEFAULTS, headers=headers, content=content, json=json, secret=secret
    )  # fmt: skip


def secret(**changes: object) -> OutboundSecret:
    given = {"name": "openai", "value": "planted-canary", "origins": frozenset({"https://api.example.com"})} | changes
    return OutboundSecret(**given)  # type: ignore[arg-type]


def test_a_secret_goes_to_its_origins_only() -> None:
    """Scheme, host and port must all be the same; default ports and case are normalised."""
    bound = secret(origins=frozenset({"HTTPS://API.example.com:443", "http://gpu.lan:8000"}))
    assert bound.origins == {"https://api.example.com", "http://gpu.lan:8000"}
    assert first(secret=bound).headers["authorization"] == "Bearer planted-canary"
    for url in ("http://api.example.com/", "https://api.example.com:444/", "https://example.com/", "http://gpu.lan/"):
        with pytest.raises(OutboundRefused) as refused:
            first(url=url, secret=bound)
        assert "planted-canary" not in f"{refused.value!r} {refused.value.hint}"


def test_a_secret_never_shows_its_value() -> None:
    """Neither the secret nor a hop that carries it has the value in its text, nor has a refused value's error."""
    bound = secret()
    hop = first(secret=bound, content=b"private words", method="POST")
    for text in (repr(bound), str(bound), f"{bound}", repr(hop), repr([hop, bound])):
        assert "planted-canary" not in text
        assert "private words" not in text
    with pytest.raises(InvalidInput) as refused:
        secret(value="planted-canary\nX-Injected: 1")
    assert "planted-canary" not in f"{refused.value!r} {refused.value.details}"
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "changes",
    [
        {"value": ""},
        {"value": "tail\n"},
        {"value": "caf\u00e9"},
        {"header": "Host"},
        {"header": "Proxy-Authorization"},
        {"header": "X Y"},
        {"header": ""},
        {"origins": frozenset({"https://api.example.com/v1"})},
        {"origins": frozenset({"https://*.example.com"})},
        {"origins": frozenset({"api.example.com"})},
        {"origins": frozenset({"https://user@api.example.com"})},
    ],
)
def test_a_secret_that_cannot_be_sent_safely_is_refused(changes: dict[str, object]) -> None:
    """Values that no header can carry, framing headers, and origins with a path or wildcard are refused."""
    with pytest.raises(InvalidInput):
        secret(**changes)


def test_a_secret_has_its_own_header() -> None:
    """A key header without prefix is sent as it is, and not together with one of the caller's."""
    bound = secret(header="x-api-key", prefix="")
    assert first(secret=bound).headers["x-api-key"] == "planted-canary"
    with pytest.raises(OutboundRefused, match="twice"):
        first(secret=bound, headers={"X-API-Key": "other"})


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.test"},
        {"content-length": "0"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "close"},
        {"Proxy-Authorization": "Basic eA=="},
        {"X-A": "b\r\nX-B: c"},
        {"X-A": "b\x00"},
        {"X-A": " b"},
        {"X-A": "\u00e9"},
        {"X-A\r\nX-B": "c"},
        {"X-A:": "c"},
        {"X-A": "b", "x-a": "c"},
    ],
)
def test_headers_that_frame_or_smuggle_are_refused(headers: dict[str, str]) -> None:
    """Framing headers, doubled headers, and values or names with control characters are refused."""
    with pytest.raises(OutboundRefused):
        first(headers=headers)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "GET /x", ""])
def test_other_methods_are_refused(method: str) -> None:
    """Only the seven usual methods are sent, spelled as HTTP spells them."""
    with pytest.raises(OutboundRefused):
        first(method)


def test_the_wire_headers_frame_the_request() -> None:
    """Host is the target's, the length is the content's, json brings its type, a caller's Accept wins."""
    hop = first("POST", "http://[2606:4700::1]:8080/", json={"a": 1}, headers={"Accept": "text/plain"})
    sent = dict(hop.wire_headers())
    assert sent[b"host"] == b"[2606:4700::1]:8080"
    assert sent[b"content-length"] == b"7"
    assert sent[b"content-type"] == b"application/json"
    assert sent[b"accept"] == b"text/plain"
    assert dict(first("POST").wire_headers())[b"content-length"] == b"0"
    assert b"content-length" not in dict(first().wire_headers())


def test_content_and_json_together_are_an_error() -> None:
    """A call has one body."""
    with pytest.raises(ValueError, match="not both"):
        first("POST", content=b"", json={})


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"), (307, "POST", "POST"), (308, "POST", "POST"),
        (301, "PUT", "PUT"), (302, "DELETE", "DELETE"), (303, "PUT", "GET"), (303, "DELETE", "GET"),
        (301, "GET", "GET"), (302, "HEAD", "HEAD"), (303, "HEAD", "HEAD"), (307, "PATCH", "PATCH"),
    ],
)  # fmt: skip
def test_the_method_changes_as_in_browsers(status: int, method: str, then: str) -> None:
    """301, 302 and 303 turn POST into GET without its body; 303 turns all but HEAD; 307 and 308 keep both."""
    body = b"x" if method in ("POST", "PUT", "PATCH") else None
    hop = first(method, headers={"Content-Type": "text/plain"}, content=body).redirected(status, "/next")
    assert hop is not None
    assert hop.method == then
    assert hop.content == (body if then == method else None)
    assert ("content-type" in hop.headers) == (then == method)
    assert hop.target.url == "https://api.example.com/next"
    assert hop.redirects == 1


@pytest.mark.parametrize(("status", "location"), [(200, "/x"), (300, "/x"), (304, "/x"), (302, None), (404, "/x")])
def test_other_answers_are_no_redirect(status: int, location: str | None) -> None:
    """A status that is no redirect, or a redirect without a place, ends the call."""
    assert first().redirected(status, location) is None


CREDENTIALS = {
    "Authorization": "Basic eA==", "Cookie": "s=1", "X-Api-Key": "k", "Api-Key": "k", "X-Goog-Api-Key": "k",
    "X-Custom-Token": "k", "Referer": "https://api.example.com/private",
}  # fmt: skip


@pytest.mark.parametrize(
    "location", ["https://evil.test/", "//evil.test/", "https://api.example.com:8443/", "https://sub.api.example.com/"]
)
def test_credentials_stay_behind_when_the_origin_changes(location: str) -> None:
    """Of the caller's headers only the harmless, known ones go to another origin; coming back restores nothing."""
    hop = first(headers={**CREDENTIALS, "Range": "bytes=5-"}, secret=secret(header="X-Secret")).redirected(
        302, location
    )
    assert hop is not None
    assert set(hop.headers) == {"accept", "accept-encoding", "user-agent", "range"}
    back = hop.redirected(302, HERE)
    assert back is not None
    assert set(back.headers) == {"accept", "accept-encoding", "user-agent", "range"}


def test_credentials_follow_within_the_origin() -> None:
    """A redirect to the same scheme, host and port keeps every header."""
    hop = first(headers=CREDENTIALS)
    for location in ("/other", "other", "?q", "https://API.example.com:443/other"):
        following = hop.redirected(302, location)
        assert following is not None
        assert following.headers == hop.headers


def test_an_upgrade_to_https_is_followed_and_a_downgrade_is_not() -> None:
    """http to https is a change of origin; https to http is refused even on the same host."""
    upgraded = first(url="http://api.example.com/", headers=CREDENTIALS).redirected(301, HERE)
    assert upgraded is not None
    assert "authorization" not in upgraded.headers
    with pytest.raises(OutboundRefused, match="https to http"):
        first().redirected(301, "http://api.example.com/")


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "gopher://evil.test/", "data:text/html,x", "javascript:alert(1)", "ftp://evil.test/",
        "https://user:pw@evil.test/", "https://evil.test\\@api.example.com/", "\\\\evil.test/", "https://evil.test:0/",
        "https://[::1/", "https://", "https:", "https:x", "http:///x",
        "https://0x7f.1/", "/a\tb", "/a, /b", "java\tscript:x", "\u2028",
    ],
)  # fmt: skip
def test_redirects_to_what_is_no_plain_url_are_refused(location: str) -> None:
    """Each place passes the same parser as the first URL; the error does not name it."""
    with pytest.raises(OutboundRefused) as refused:
        first().redirected(302, location)
    assert location not in refused.value.message


def test_a_hop_is_a_value() -> None:
    """A redirect makes a new hop and leaves the old one as it was."""
    hop = first("POST", content=b"x")
    before = dataclasses.asdict(hop)
    hop.redirected(303, "https://evil.test/")
    assert dataclasses.asdict(hop) == before
