"""HTTP/1.1 as bytes: what is one answer, where it ends, and what is refused."""

import pytest

from serai.outbound.http1 import MAX_FRAMING_BYTES, AnswerParser, NotHttp, request_head

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def answered(*pieces: bytes, has_no_body: bool = False) -> AnswerParser:
    parser = AnswerParser()
    parser.expect(has_no_body=has_no_body)
    for piece in pieces:
        parser.feed(piece)
    return parser


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("raw", "body", "is_followed"),
    [
        (OK + b"Content-Length: 2\r\n\r\nok", b"ok", True),
        (OK + b"content-length: 0\r\n\r\n", b"", True),
        (CHUNKED + b"1\r\no\r\n1;x=y\r\nk\r\n0\r\ntrailer: t\r\n\r\n", b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b"", True),
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok", b"ok", True),
    ],
)
def test_an_answer_is_whole_in_any_pieces(raw: bytes, body: bytes, is_followed: bool, step: int) -> None:
    """And says whether another may follow on the connection."""
    parser = answered(*(raw[at : at + step] for at in range(0, len(raw), step)))
    assert (parser.is_over, parser.is_followed, parser.take(), parser.take()) == (True, is_followed, body, b"")
    assert all(name not in (b"trailer", b"a") for name, _ in parser.headers)


def test_answers_follow_one_another() -> None:
    """Nothing of one is left in the next."""
    parser = answered(OK + b"a: b\r\ncontent-length: 2\r\n\r\nok")
    parser.expect()
    parser.feed(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
    assert (parser.status, parser.headers, parser.take()) == (404, [(b"content-length", b"0")], b"")


@pytest.mark.parametrize("more", [b"x", OK, b"\r\nHTTP/1.1 200 OK\r\n"])
@pytest.mark.parametrize("is_late", [True, False])
def test_what_comes_behind_an_answer_costs_the_connection(more: bytes, is_late: bool) -> None:
    """It is nobody's; the answer itself stands."""
    raw = OK + b"content-length: 2\r\n\r\nok"
    parser = answered(raw, more) if is_late else answered(raw + more)
    assert (parser.is_over, parser.is_followed, parser.take()) == (True, False, b"ok")


def test_an_answer_to_head_has_no_body() -> None:
    """Whatever length it tells; the connection is not used again."""
    parser = answered(OK + b"content-length: 5\r\n\r\n", has_no_body=True)
    assert (parser.is_over, parser.is_followed) == (True, False)


@pytest.mark.parametrize("head", [b"\r\n", b"transfer-encoding: gzip\r\n\r\n"])
def test_a_body_without_a_length_ends_with_the_connection(head: bytes) -> None:
    """And only such a one does."""
    parser = answered(OK + head, b"ok")
    assert not parser.is_over
    parser.end()
    assert (parser.is_over, parser.is_followed, parser.take()) == (True, False, b"ok")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        OK + b"a: b\r\n",
        OK + b"content-length: 5\r\n\r\nok",
        OK + b"connection: close\r\ncontent-length: 5\r\n\r\nok",
        OK + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_none(raw: bytes) -> None:
    """Also where the server said that it closes the connection."""
    parser = answered(raw)
    with pytest.raises(NotHttp):
        parser.end()


@pytest.mark.parametrize(
    "raw",
    [
        b"junk\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"RTSP/2.0 200 OK\r\n\r\n",
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok",
        OK + b"content-length: -2\r\n\r\nok",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        OK + b"a : b\r\n\r\n",
        OK + b"a: b\r\n c\r\n\r\n",
        OK + b"a: b\x00c\r\n\r\n",
        b"HTTP/1.1 200 OK\na: b\n\n",
        CHUNKED + b"2\nok\n0\n\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nraw",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    """Lengths that contradict each other, odd spaces and line ends, other protocols."""
    with pytest.raises(NotHttp):
        answered(raw)


@pytest.mark.parametrize(
    "endless", [OK + b"a: b\r\n" * 40_000, b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, CHUNKED + b"1;" + b"x" * 200_000]
)
def test_what_surrounds_a_body_is_bounded(endless: bytes) -> None:
    """An endless head, interim answers or chunk extensions end the call."""
    assert len(endless) > MAX_FRAMING_BYTES
    with pytest.raises(NotHttp):
        answered(*(endless[at : at + 65536] for at in range(0, len(endless), 65536)))


@pytest.mark.parametrize("part", [b"a\r\nb", b"a\nb", b"a\rb", b"a\x00b"])
def test_a_request_is_one_request(part: bytes) -> None:
    """A line break in any part of its head is refused."""
    assert request_head(b"GET", b"/", [(b"host", b"h")]) == b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
    for method, target, name, value in ((part, b"/", b"n", b"v"), (b"G", part, b"n", b"v"), (b"G", b"/", part, b"v")):
        with pytest.raises(NotHttp):
            request_head(method, target, [(name, value)])
    with pytest.raises(NotHttp):
        request_head(b"G", b"/", [(b"n", part)])
