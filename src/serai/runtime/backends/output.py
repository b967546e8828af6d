"""What workers print, brought into the server's log: logger `serai.models`, so many lines and no more."""

import asyncio
import contextlib
import os
from collections import Counter
from typing import Final

import msgspec
import structlog

from serai.clock import Clock
from serai.runtime.worker.reports import MARK, Report

MAX_LINES: Final = 100
MAX_REPORTS: Final = 20
WINDOW_S: Final = 60.0
"""So many lines of libraries, and so many reports of our own, are logged in so long a time; the rest is counted."""
_MAX_LINE: Final = 4000
_CHUNK: Final = 65536
_MAX_LAST_READS: Final = 32
"""A pipe holds less; more comes only from somebody who goes on writing."""

_log = structlog.get_logger("serai.models")
_decode_report = msgspec.json.Decoder(Report).decode


class Output:
    """The reading end of a pipe into which a process prints. Never lets that process wait for a log."""

    def __init__(self, descriptor: int, *, clock: Clock, model: str) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._clock = clock
        self._model = model
        self._rest = b""
        self._window = clock.monotonic()
        self._logged: Counter[bool] = Counter()
        self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)
        self._is_open = True

    def close(self) -> None:
        """Log what is there still, and forget the pipe."""
        for _ in range(_MAX_LAST_READS):
            if not self._is_open or not self._read():
                break
        self._end()

    def _read(self) -> bool:
        """Read once; return whether there may be more."""
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Of a line without end the beginning is kept.
        self._rest = self._rest[:_MAX_LINE]
        self._take(lines)
        return True

    def _end(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._take([self._rest] if self._rest else [])
        self._tell_dropped()

    def _take(self, lines: list[bytes]) -> None:
        now = self._clock.monotonic()
        if now - self._window >= WINDOW_S:
            self._tell_dropped()
            self._window = now
            self._logged.clear()
        for line in lines:
            is_report = line.startswith(MARK)
            if self._logged[is_report] >= (MAX_REPORTS if is_report else MAX_LINES):
                self._dropped += 1
                continue
            self._logged[is_report] += 1
            self._log(line[:_MAX_LINE], is_report)

    def _log(self, line: bytes, is_report: bool) -> None:
        if is_report:
            with contextlib.suppress(msgspec.MsgspecError):
                report = _decode_report(line)
                _log.error("worker_failed", model=self._model, problem=report.serai, trace=report.trace)
                return
        _log.info("worker_output", model=self._model, line=line.decode("utf-8", "replace"))

    def _tell_dropped(self) -> None:
        if self._dropped:
            _log.warning("worker_output_dropped", model=self._model, lines=self._dropped)
            self._dropped = 0
