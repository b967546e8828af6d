"""What a worker tells its operator beside the channel: lines on its standard error, for models.log."""

import sys
import traceback

import msgspec

MARK = b'{"serai":'
"""How a line begins that is a `Report`; every other line is what a library wrote."""
_MAX_TRACE = 3500
"""Characters of a traceback that are kept, the last ones: a whole line is below PIPE_BUF, and so comes in one piece."""


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something went wrong; `trace` is the end of the traceback, empty where there is none."""

    serai: str
    """What went wrong."""
    trace: str = ""


def trace_of(error: BaseException) -> str:
    """Return the traceback without locals, cut to whole lines at its beginning."""
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= _MAX_TRACE else text[-_MAX_TRACE:].partition("\n")[2]


def write(report: Report) -> None:
    """Write the report to standard error, as one line."""
    sys.stderr.write(msgspec.json.encode(report).decode() + "\n")
    sys.stderr.flush()
