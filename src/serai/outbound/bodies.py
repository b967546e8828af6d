"""Bodies in bounded pieces: a compressed body is undone no further than the bound."""

import zlib
from collections.abc import Iterator

from serai.errors import UpstreamFailed

ACCEPT_ENCODING = "gzip, deflate"
PIECE_BYTES = 64 * 1024

_PLAIN = frozenset({"", "identity"})
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class UpstreamTooLarge(UpstreamFailed):
    """The answer is over the bound of the call; no more of it was read."""

    code = "UPSTREAM_TOO_LARGE"


class BodyDecoder:
    """Undo a content encoding, at most PIECE_BYTES at a time, and count.

    Bytes are counted as they arrive and as they come out: an endless run of empty blocks adds nothing
    to the second count.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        """Raises UpstreamFailed for an encoding that was not asked for."""
        encoding = encoding.strip().lower()
        if encoding not in _PLAIN | _COMPRESSED:
            raise UpstreamFailed("the answer is encoded in a way that was not asked for")
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB) if encoding in _COMPRESSED else None
        self._max_bytes = max_bytes
        # A body that compresses badly is a little longer than what it holds; twice is never honest.
        self._max_wire_bytes = max_bytes if self._inflate is None else 2 * max_bytes + 4096
        self._came = self._went = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` adds to the body. Raises UpstreamTooLarge at the bound, UpstreamFailed for nonsense."""
        self._came += len(data)
        if self._came > self._max_wire_bytes:
            raise self._too_large()
        if self._inflate is None:
            yield self._counted(data)
            return
        try:
            while data:
                if self._inflate.eof:  # gzip may be several members, one after the other
                    self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
                piece = self._inflate.decompress(data, PIECE_BYTES)
                data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
                yield self._counted(piece)
        except zlib.error as error:
            raise UpstreamFailed("the answer's compression is damaged") from error

    def finish(self) -> bytes:
        """Return what was held back. Raises UpstreamFailed for a compressed body that was cut off."""
        if self._inflate is None or not self._came:
            return b""
        rest = self._inflate.flush()
        if not self._inflate.eof:
            raise UpstreamFailed("the answer was cut off")
        return self._counted(rest)

    def _counted(self, piece: bytes) -> bytes:
        self._went += len(piece)
        if self._went > self._max_bytes:
            raise self._too_large()
        return piece

    def _too_large(self) -> UpstreamTooLarge:
        return UpstreamTooLarge(f"the answer is larger than {self._max_bytes} bytes")
