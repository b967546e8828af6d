"""HTTP/1.1 as bytes: the head of a request, and the answer to it. Pure; the parser is llhttp (library: httptools).

What is sent has one meaning only, and what comes is read strictly: an answer that two readers could
take for two different ones is refused.
"""

from collections.abc import Iterable

import httptools

MAX_FRAMING_BYTES = 128 * 1024
"""Bytes of heads, chunk sizes and trailers that may come before a byte of the body does."""

_INTERIM = range(100, 200)
_VERSIONS = ("1.0", "1.1")


class NotHttp(ValueError):
    """What came cannot be read as an answer, or what is to be sent would be more than one request."""


def request_head(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the head of a request with its empty line. Raises NotHttp for a line break in any part of it."""
    lines = [b"%b %b HTTP/1.1" % (method, target), *(b"%b: %b" % header for header in headers)]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\x00" in head:
        raise NotHttp("a request's head has a line break in it")
    return head + b"\r\n\r\n"


class AnswerParser:
    """Reads the answers of one connection, one after the other; interim ones (1xx) are left out.

    `expect` one, then `feed` it what comes, or `end` it where the connection does.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_over = False
        self.is_followed = False
        """Whether another answer can come on the same connection, and nothing has come of it yet."""
        self._has_no_body = False
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._framing_bytes = 0
        self._ends_with_connection = False

    def expect(self, *, has_no_body: bool = False) -> None:
        """Begin with the next answer. `has_no_body`: it answers HEAD, so that its length is that of another one."""
        self.status, self.headers, self._body, self._framing_bytes = 0, [], [], 0
        self.has_head = self.is_over = self.is_followed = self._ends_with_connection = False
        self._has_no_body = has_no_body

    def feed(self, data: bytes) -> None:
        """Take what came. Raises NotHttp."""
        if self.is_over:
            self.is_followed = False
            return
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.is_followed = False
            if not self.is_over:  # what comes behind a whole answer is nobody's
                raise NotHttp("the answer is not HTTP") from error
        if self._framing_bytes > MAX_FRAMING_BYTES and not self.is_over:
            raise NotHttp("the answer has too much around its body")

    def end(self) -> None:
        """Take the end of the connection. Raises NotHttp where the answer was not whole."""
        self.is_followed = False
        if not self.is_over and not self._ends_with_connection:
            raise NotHttp("the connection was closed before the answer was whole")
        self.is_over = True

    def take(self) -> bytes:
        """Return what has come of the body since the last time."""
        body, self._body = self._body, []
        return body[0] if len(body) == 1 else b"".join(body)

    # What the parser tells

    def on_message_begin(self) -> None:
        self.is_followed = False  # of one that is expected it is said anew at its head

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # a trailer is dropped
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_over:
            return
        if self._parser.get_http_version() not in _VERSIONS:
            raise NotHttp("the answer is of another version")
        status = self._parser.get_status_code()
        if status in _INTERIM:
            self.headers = []
            return
        self.status, self.has_head = status, True
        self._ends_with_connection = not _says_length(self.headers)
        self.is_followed = self._parser.should_keep_alive() and not self._has_no_body
        self.is_over = self._has_no_body

    def on_body(self, body: bytes) -> None:
        if not self.is_over:
            self._framing_bytes = 0
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_over = True


def _says_length(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Say whether the end of a body can be told from a connection that broke off."""
    told = {name.lower(): value for name, value in headers}
    last_coding = told.get(b"transfer-encoding", b"").rpartition(b",")[2].strip().lower()
    return b"content-length" in told or last_coding == b"chunked"
