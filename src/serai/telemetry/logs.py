"""Log lines: structlog and the standard library's loggers take one way, to the console and to files.

    log = structlog.get_logger(__name__)
    log.info("version_switched", service=service.id, version=version.label)

A line is made where it is logged (with the request's id and caller, secrets as stars) and written by
a thread, so that a slow disk or terminal never holds up the event loop. Prompts, pictures and what
models answer are not logged. Files, in JSON lines: `app.log` has everything, `errors.log` what is
an error, `models.log` what concerns models in memory. One process writes a folder of logs.
"""

import atexit
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any, Final, Literal, cast

import structlog

from serai.errors import ConfigurationError
from serai.telemetry.context import current_caller, current_request_id
from serai.telemetry.redaction import Plain, redact, redact_text

Level = Literal["debug", "info", "warning", "error"]
Line = dict[str, Plain]

MODEL_LOGGERS: Final = ("serai.engines", "serai.models", "serai.pulls", "serai.runtime", "serai.serving")
_QUEUE_LENGTH: Final = 10_000
_GATHERED_S: Final = 0.01
_MAX_TRACE: Final = 32_768
"""Characters of a traceback that are kept: the last ones, which name the error."""
_BARE: Final = vars(logging.makeLogRecord({}))
_OURS: Final = frozenset({"timestamp", "level", "logger", "event", "exc_info", "stack_info"})

# Loggers that say too much at their own level: every URL, every statement, every selector.
_QUIET: Final = ("asyncio", "httpcore", "httpx", "multipart", "PIL", "python_multipart", "sqlalchemy", "urllib3")
_UVICORN: Final = ("uvicorn", "uvicorn.error", "uvicorn.access")

_undo = ExitStack()


def configure(
    *, level: Level, style: Literal["json", "console"], folder: Path | None, max_bytes: int, backups: int
) -> None:
    """Send what is logged at `level` and above to stderr in `style` and, if given, to files in `folder`.

    A file is rotated at `max_bytes` (0: never), keeping `backups` old ones. May be called again.
    Raises ConfigurationError where the folder cannot be written.
    """
    reset()
    number = logging.getLevelNamesMapping()[level.upper()]
    try:
        handlers = [_console(style), *(_files(folder, max_bytes, backups) if folder else ())]
    except OSError as error:
        _undo.close()
        raise ConfigurationError(f"The log files cannot be opened: {error.strerror}.", hint="Check `home`.") from error
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_LENGTH)
    listener = _Writer(lines, *handlers)
    listener.start()
    _undo.callback(listener.stop)
    _take_over_standard_loggers(_Maker(lines), number)
    _undo.callback(_restore_structlog, structlog.get_config() if structlog.is_configured() else None)
    structlog.configure(
        processors=[_to_standard_logger],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a module's logger must follow a later configure()
    )
    atexit.register(reset)
    _undo.callback(atexit.unregister, reset)


def reset() -> None:
    """Write what waits to be written and undo `configure`."""
    _undo.close()


class _Maker(QueueHandler):
    """Turns a record into a line, where it was logged, and hands it to the writer's thread.

    A full queue (the disk hangs) loses lines rather than block; the next line says how many.
    """

    def __init__(self, lines: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(lines)
        self._lost = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        line = _line(record)
        if self._lost:
            line["lines_lost"] = self._lost
        made = logging.LogRecord.__new__(logging.LogRecord)  # whose __init__ would look up the time and the thread
        made.__dict__.update(_BARE, name=record.name, levelno=record.levelno, levelname=record.levelname, msg=line)
        return made

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            super().enqueue(record)
        except queue.Full:
            self._lost += 1
        else:
            self._lost = 0


class _Writer(QueueListener):
    """Writes lines that come within a moment together: waking this thread for each would hold up the event loop."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord | None]", *handlers: logging.Handler) -> None:
        super().__init__(lines, *handlers, respect_handler_level=True)
        self._lines = lines
        self._is_stopping = threading.Event()

    def dequeue(self, block: bool) -> logging.LogRecord:
        if not self._lines.empty():
            return super().dequeue(block)
        for handler in self.handlers:
            if isinstance(handler, _PrivateFile):  # a terminal has its lines already
                handler.flush()
        line = super().dequeue(block)
        self._is_stopping.wait(_GATHERED_S)
        return line

    def enqueue_sentinel(self) -> None:
        self._is_stopping.set()
        cast("queue.Queue[None]", self.queue).put(None)  # waits for room, where the base class would raise


class _Formatter(logging.Formatter):
    def __init__(self, render: Callable[[Line], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        return self._render(cast(Line, record.msg))


class _PrivateFile(RotatingFileHandler):
    """A rotating file that only the server's own user can read. Lines reach it with `flush`.

    How large it is, is counted: the base class asks the system, and makes each line twice, for every line.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n"
            size = len(line.encode())
            if self.maxBytes and self._size + size >= self.maxBytes:
                self.doRollover()
            cast("TextIOWrapper", self.stream).write(line)
            self._size += size
        except Exception:  # noqa: BLE001 - as every handler: what cannot be written is told on stderr
            self.handleError(record)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):  # the disk is full: what waits is tried again with the next lines
            self.handleError(logging.makeLogRecord({"msg": "Lines could not be written."}))

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(descriptor, 0o600)
        self._size = os.fstat(descriptor).st_size
        return os.fdopen(descriptor, "a", encoding="utf-8")


def _line(record: logging.LogRecord) -> Line:
    """Return the line for a record of structlog (a dict as its message) or of the standard library."""
    fields: dict[str, Any] = dict(record.msg) if isinstance(record.msg, dict) else {"event": _message(record)}
    line: Line = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": redact(fields.get("event")),
    }
    request_id, caller = current_request_id(), current_caller()
    if request_id is not None:
        line["request_id"] = request_id
    if caller is not None:
        line["caller"] = caller
    for name, value in fields.items():
        if name not in _OURS:
            line[name] = redact(value, name)
    trace = _trace(record.exc_info or fields.get("exc_info"))
    if trace:
        if len(trace) > _MAX_TRACE:
            trace = trace[-_MAX_TRACE:].partition("\n")[2]  # whole rows: half a secret would not be recognised
        line["exception"] = redact_text(trace, _MAX_TRACE)
    return line


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a library's wrong placeholders must not cost the line
        return f"{record.msg} (its arguments do not fit)"


def _trace(exc_info: object) -> str:
    """Return the traceback of what `exc_info` stands for (True: the current exception), without locals."""
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""


def _to_standard_logger(_: object, __: str, fields: MutableMapping[str, Any]) -> tuple[tuple[Any], dict[str, Any]]:
    return (fields,), {}


def _console(style: Literal["json", "console"]) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(_as_json if style == "json" else _for_people(colors=sys.stderr.isatty())))
    return handler


def _files(folder: Path, max_bytes: int, backups: int) -> list[logging.Handler]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    handlers: dict[str, logging.Handler] = {}
    for name in ("app", "errors", "models"):
        handlers[name] = _PrivateFile(folder / f"{name}.log", maxBytes=max_bytes, backupCount=backups)
        handlers[name].setFormatter(_Formatter(_as_json))
        _undo.callback(handlers[name].close)
    handlers["errors"].setLevel(logging.ERROR)
    handlers["models"].addFilter(_concerns_models)
    return list(handlers.values())


def _concerns_models(record: logging.LogRecord) -> bool:
    return any(record.name == name or record.name.startswith(f"{name}.") for name in MODEL_LOGGERS)


def _take_over_standard_loggers(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    _undo.callback(root.setLevel, root.level)
    root.setLevel(level)
    root.addHandler(handler)
    _undo.callback(root.removeHandler, handler)
    for name in ("_srcfile", "logThreads", "logMultiprocessing", "logProcesses"):
        # Where a line was logged is not told, and so not looked up (the way of the library's HOWTO, "Optimization").
        _undo.callback(setattr, logging, name, getattr(logging, name))
        setattr(logging, name, None)
    for name in (*_QUIET, *_UVICORN):
        logger = logging.getLogger(name)
        _undo.callback(_restore, logger, logger.level, logger.handlers[:], logger.propagate)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # requests are logged by the server's own middleware
        logger.setLevel(max(level, logging.WARNING) if name in _QUIET else logging.NOTSET)
    logging.captureWarnings(True)
    _undo.callback(logging.captureWarnings, False)


def _restore(logger: logging.Logger, level: int, handlers: list[logging.Handler], propagate: bool) -> None:
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logger.propagate = propagate


def _restore_structlog(configuration: dict[str, Any] | None) -> None:
    structlog.reset_defaults()
    if configuration is not None:
        structlog.configure(**configuration)


_json = structlog.processors.JSONRenderer()


def _as_json(line: Line) -> str:
    return str(_json(None, "", dict(line)))


def _for_people(*, colors: bool) -> Callable[[Line], str]:
    """Return what writes a line for a terminal. No value can start a line of its own or send an escape code."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, repr_native_str=True, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def render(line: Line) -> str:
        trace = str(line.get("exception", ""))
        shown = {name: value for name, value in line.items() if name != "exception"}
        shown["event"] = _printable(str(line["event"]))
        rows = (f"    {_printable(row)}" for row in trace.split("\n") if row)
        return "\n".join([renderer(None, "", shown), *rows])

    return render


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
