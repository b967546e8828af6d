"""Server-sent events as they come from the network, in any pieces. Pure.

The format is that of WHATWG HTML, 9.2.6; of the fields only `data` matters here. Text stays bytes: whoever
decodes an event checks its UTF-8.
"""

from collections.abc import Sequence

from serai.engines.errors import RemoteFailed

MAX_EVENT_BYTES = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Turns pieces of a stream into the data of whole events."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._bytes = 0
        self._is_first = True
        self._after_cr = False

    def feed(self, piece: bytes) -> Sequence[bytes]:
        """Return the data of the events that `piece` completes. Raises RemoteFailed for one that is too long."""
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == 0x0A:
                piece = piece[1:]
        if b"\n" not in piece and b"\r" not in piece:
            self._line.append(piece)
            self._count(len(piece))
            return ()
        lines = piece.splitlines()
        rest = b"" if piece[-1] in b"\r\n" else lines.pop()
        self._after_cr = piece[-1] == 0x0D
        if self._line:
            lines[0] = b"".join((*self._line, lines[0]))
        self._line = [rest] if rest else []
        self._count(len(rest))
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> Sequence[bytes]:
        if self._is_first:
            self._is_first = False
            lines[0] = lines[0].removeprefix(_BOM)
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data.clear()
                self._bytes = 0
            elif line.startswith(b"data:"):
                self._count(len(line))
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        return events

    def _count(self, came: int) -> None:
        self._bytes += came
        if self._bytes > self._max_event_bytes:
            raise RemoteFailed("The server behind this model sent an event that is too long.")
