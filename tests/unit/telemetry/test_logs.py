"""Log lines, from the call to the file."""

import asyncio
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from serai.auth.credentials import new_key
from serai.errors import ConfigurationError
from serai.telemetry import logs
from serai.telemetry.context import bind_request

Lines = Callable[[str], list[dict[str, Any]]]
KEY = new_key()
log = structlog.get_logger("serai.test")


@pytest.fixture(autouse=True)
def _loggers_are_heard() -> None:
    """Another test's tool may have configured `logging` in a way that switches off every logger there was."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    configured, configuration = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    yield
    logs.reset()
    structlog.reset_defaults()
    if configured:
        structlog.configure(**configuration)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "logs"


def configure(folder: Path | None = None, **changes: Any) -> None:
    logs.configure(**{"level": "info", "style": "json", "folder": folder, "max_bytes": 0, "backups": 0, **changes})


def written(folder: Path, name: str = "app") -> list[dict[str, Any]]:
    """Return the lines of a file after everything that was logged has reached it."""
    logs.reset()
    return [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]


def test_a_line_is_json_with_time_level_logger_and_fields(folder: Path) -> None:
    """What was logged can be read back, with a moment in UTC."""
    configure(folder)
    log.warning("version_switched", service="chat", weights=[50, 50])
    (line,) = written(folder)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "serai.test",
        "event": "version_switched",
        "service": "chat",
        "weights": [50, 50],
    }


def test_the_standard_library_takes_the_same_way(folder: Path) -> None:
    """A library's line has the same form, and its message holds no secret either."""
    configure(folder)
    logging.getLogger("uvicorn.error").info("Uvicorn on %s with %s", "127.0.0.1", KEY)
    (line,) = written(folder)
    assert (line["logger"], line["level"]) == ("uvicorn.error", "info")
    assert line["event"] == "Uvicorn on 127.0.0.1 with sk-serai-***"


def test_every_line_of_a_request_carries_its_id_and_caller(folder: Path) -> None:
    """Ours and the library's, inside the block and in threads that it starts; not outside."""
    configure(folder)
    with bind_request("req_1", caller="user_1"):
        log.info("inside")
        logging.getLogger("library").info("inside too")
        asyncio.run(asyncio.to_thread(log.info, "in a thread"))
    log.info("outside")
    lines = written(folder)
    assert [(line.get("request_id"), line.get("caller")) for line in lines] == [("req_1", "user_1")] * 3 + [
        (None, None)
    ]


def test_a_planted_secret_reaches_no_file_and_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a field, a message, a nested value, an exception's text or its cause: stars everywhere."""
    for style in ("json", "console"):
        configure(folder, style=style, level="debug")
        log.info("a", key=KEY, headers={"authorization": "hunter22"}, password="hunter22")
        log.info(f"b {KEY}")  # noqa: G004 - the worst way to log it
        log.info("c %s", KEY)
        logging.getLogger("library").error("d %s", {"Authorization": f"Bearer {KEY}"})
        try:
            try:
                raise ValueError(f"password=hunter22 {KEY}")
            except ValueError as error:
                raise RuntimeError(f"token={KEY}") from error
        except RuntimeError:
            log.exception("e")
            logging.getLogger("library").exception("f")
        logs.reset()
    shown = "".join(path.read_text() for path in folder.iterdir()) + capsys.readouterr().err
    assert shown.count("RuntimeError") >= 8
    assert "sk-serai-***" in shown
    assert KEY not in shown
    assert "hunter22" not in shown


def test_an_exception_is_told_with_its_trace_and_without_locals(folder: Path) -> None:
    """The trace names the error; values of variables are not in it."""
    configure(folder)
    local = "value of a variable"
    try:
        raise KeyError("missing")
    except KeyError as error:
        log.error("failed", exc_info=error, size=len(local))
    (line,) = written(folder, "errors")
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith("KeyError: 'missing'\n")
    assert local not in line["exception"]


def test_the_end_of_a_very_long_trace_is_kept(folder: Path) -> None:
    """The line stays bounded, and the name of the error is in it."""
    configure(folder)
    error = RuntimeError("\n".join(["x" * 100] * 10_000))
    log.error("failed", exc_info=error)
    log.error("failed", exc_info=ExceptionGroup("all", [error, ValueError("the last")]))
    lines = written(folder)
    assert all(1000 < len(line["exception"]) < 40_000 for line in lines)
    assert "the last" in lines[1]["exception"]


def test_no_value_forges_a_line_or_drives_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal every value stays on its own line, its control characters shown as text."""
    configure(style="console")
    forged = "x\n2026-01-01 [info     ] forged\r\x1b[31m\x9b31m\u2028\u202eevil"
    log.info(forged, name=forged, nested={"a": forged})
    logging.getLogger("library").info(forged)
    log.error("failed", exc_info=ValueError(forged))
    logs.reset()
    rows = capsys.readouterr().err.split("\n")
    assert [row for row in rows if "forged" in row and "[info" not in row[:50] and not row.startswith("    ")] == []
    assert len([row for row in rows if row and not row.startswith("    ")]) == 3
    assert not [c for row in rows for c in row if not c.isprintable()]


def test_the_console_is_coloured_only_on_a_terminal(tmp_path: Path) -> None:
    """A pipe gets plain text, a terminal gets colours."""
    program = (
        "import structlog; from serai.telemetry import logs\n"
        "logs.configure(level='info', style='console', folder=None, max_bytes=0, backups=0)\n"
        "structlog.get_logger('a').info('hello')"
    )
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert "hello" in piped.stderr
    assert "\x1b" not in piped.stderr
    ours, theirs = os.openpty()
    subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True)
    os.close(theirs)
    assert b"\x1b[" in os.read(ours, 4096)
    os.close(ours)


def test_lines_that_wait_are_written_at_exit(folder: Path) -> None:
    """A program that ends without `reset` loses nothing that it logged."""
    program = (
        "import sys, structlog; from pathlib import Path; from serai.telemetry import logs\n"
        "logs.configure(level='info', style='json', folder=Path(sys.argv[1]), max_bytes=0, backups=0)\n"
        "for number in range(500): structlog.get_logger('a').info('hello')"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, check=True)
    assert len(written(folder)) == 500


def test_a_full_disk_costs_lines_and_ends_nothing(folder: Path) -> None:
    """What is logged while nothing can be written may be lost; once there is room lines are written again."""
    program = (
        "import logging, resource, sys, time; from pathlib import Path; from serai.telemetry.logs import configure\n"
        "folder = Path(sys.argv[1])\n"
        "configure(level='info', style='json', folder=folder, max_bytes=0, backups=0)\n"
        "log, none = logging.getLogger('x'), resource.RLIM_INFINITY\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, none))\n"
        "for number in range(500):\n"
        "    log.info('line %s', number)\n"
        "while (folder / 'app.log').stat().st_size < 4096:\n"
        "    time.sleep(0.01)\n"
        "time.sleep(0.1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))\n"
        "log.info('the last line')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, check=True, text=True, timeout=60
    )
    assert "Lines could not be written." in done.stderr or "File too large" in done.stderr
    assert "the last line" in (folder / "app.log").read_text("utf-8")


def test_each_file_has_its_share(folder: Path) -> None:
    """All lines in app, errors in errors, what concerns models in models."""
    configure(folder)
    log.info("a")
    log.error("b")
    structlog.get_logger("serai.runtime.scheduler").info("c")
    structlog.get_logger("serai.runtimes").info("d")
    shares = {name: [line["event"] for line in written(folder, name)] for name in ("app", "errors", "models")}
    assert shares == {"app": ["a", "b", "c", "d"], "errors": ["b"], "models": ["c"]}


def test_files_are_rotated_and_private(folder: Path) -> None:
    """A full file gives way, old ones go, and nobody else can read any of them."""
    folder.mkdir(parents=True, mode=0o755)
    (folder / "app.log").touch(mode=0o644)
    configure(folder, max_bytes=2000, backups=2)
    for number in range(100):
        log.info("filling", number=number)
    logs.reset()
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["app.log", "app.log.1", "app.log.2", "errors.log", "models.log"]
    assert all((folder / name).stat().st_size <= 2000 for name in files)
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in files} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert written(folder)[-1]["number"] == 99


def test_below_the_level_nothing_is_written(folder: Path) -> None:
    """The level holds for our loggers and for the library's; chatty libraries must warn to be heard."""
    configure(folder, level="info")
    log.debug("a")
    logging.getLogger("library").debug("b")
    logging.getLogger("httpx").info("GET https://example.com/?key=1")
    logging.getLogger("httpx").warning("c")
    assert [line["event"] for line in written(folder)] == ["c"]


def test_the_access_log_of_uvicorn_is_off(folder: Path) -> None:
    """It would hold raw paths and queries; the server's own middleware logs requests."""
    configure(folder)
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "127.0.0.1", "GET", "/?token=1", "1.1", 200)
    assert written(folder) == []


def test_a_warning_of_python_becomes_a_line(folder: Path) -> None:
    """What `warnings` would print to stderr is a line like any other."""
    configure(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("going away", DeprecationWarning, stacklevel=1)
    (line,) = written(folder)
    assert line["logger"] == "py.warnings"
    assert "going away" in line["event"]


def test_a_call_with_wrong_arguments_still_gives_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Placeholders that do not fit, an unprintable value or odd fields cost no line and no noise."""
    configure(folder)
    (handler,) = logging.getLogger().handlers[-1:]  # not the logger: pytest's own handler would raise
    handler.handle(logging.LogRecord("library", logging.INFO, "", 0, "%d items", ("many",), None))
    log.info("odd", value=object, level="mine", surrogate="\ud800", number=float("nan"))
    log.info(None)
    assert [line["event"] for line in written(folder)] == ["%d items (its arguments do not fit)", "odd", None]
    assert "Logging error" not in capsys.readouterr().err


def test_a_writer_that_hangs_costs_lines_but_no_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While nothing can be written, logging goes on at once; afterwards lines say how many were lost."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "app.log")
    reading_end = os.open(folder / "app.log", os.O_RDONLY | os.O_NONBLOCK)
    configure(folder)
    for _ in range(12_000):  # the queue holds 10,000, the pipe about 700
        log.info("waiting")
    os.set_blocking(reading_end, True)
    with os.fdopen(reading_end) as lines:
        received = [json.loads(next(lines)) for _ in range(2000)]
        log.info("after")
        while received[-1]["event"] != "after":
            received.append(json.loads(next(lines)))
        logs.reset()
    assert sum(line.get("lines_lost", 0) for line in received) == 12_001 - len(received) > 0
    assert "Logging error" not in capsys.readouterr().err


def test_reset_leaves_logging_as_it_was(folder: Path) -> None:
    """Levels, handlers and structlog are what they were, and no thread is left."""

    def state() -> object:
        loggers = [logging.getLogger(name) for name in (None, "uvicorn", "uvicorn.access", "httpx", "sqlalchemy")]
        standard = [(each.level, each.handlers[:], each.propagate) for each in loggers]
        return standard, threading.active_count(), structlog.is_configured(), structlog.get_config()

    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    before = state()
    configure(folder)
    configure(folder, level="debug")
    assert state() != before
    logs.reset()
    logs.reset()
    assert state() == before
    structlog.reset_defaults()
    before = state()
    configure(folder)
    logs.reset()
    assert state() == before


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """The error names no path, and nothing is left configured."""
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(ConfigurationError, match="log files") as caught:
        configure(tmp_path / "logs")
    assert str(tmp_path) not in str(caught.value)
    assert not structlog.is_configured()


def test_an_unknown_level_is_refused(folder: Path) -> None:
    """A level that does not exist is an error, not a default."""
    with pytest.raises(KeyError):
        configure(folder, level="loud")
