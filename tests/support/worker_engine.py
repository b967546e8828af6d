"""An engine that does as its tasks say, for tests of what is around engines. It needs no library.

A task is a `Fetch` whose body says what to `do`; an option of the same name says what a load does.
Importing this module starts nothing; its hook (see `listen`) is set by the tests that need it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from serai.engines.base import EngineInfo, EngineSpec, Footprint, Run
from serai.engines.tasks import Fetch
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import Done, Event, Text

NEVER = threading.Event()


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    load: str = ""
    max_runs: int = 8
    bytes: int = 0
    """Memory that it takes while it is loaded."""
    own_bytes: int | None = None
    """What it says that its allocator has."""


class ScriptedEngine:
    """Runs any number of scripts, one step each in turn."""

    def __init__(self) -> None:
        self._runs: dict[int, Mapping[str, Any]] = {}
        self._told: dict[int, int] = {}
        self._fed: dict[int, list[Any]] = {}
        self._held = bytearray()
        self._own_bytes: int | None = None

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        options = msgspec.convert(dict(spec.options), Options)
        self._own_bytes = options.own_bytes
        match options.load:
            case "hang":
                report(0.5)
                NEVER.wait()
            case "report":
                while True:
                    report(0.5)
                    NEVER.wait(0.001)
            case "raise":
                raise ValueError("a secret place: /etc/passwd")
            case "refuse":
                raise LoadFailed("It cannot be loaded.", hint="Do something else.")
            case "memory":
                raise MemoryError
            case "leave":
                os._exit(7)
        self._held = bytearray(b"x") * options.bytes
        return Footprint(bytes=options.own_bytes, max_runs=options.max_runs, facts={"pid": os.getpid()})

    def allocated_bytes(self) -> int:
        assert self._own_bytes is not None
        self._own_bytes += 1
        return self._own_bytes

    def start(self, run: Run) -> None:
        assert isinstance(run.task, Fetch)
        body = run.task.body
        if body["do"] == "refuse":
            raise InvalidInput("It is refused.")
        if body["do"] == "break_start":
            raise KeyError("broken")
        self._runs[run.id] = body
        self._told[run.id] = 0
        self._fed[run.id] = []

    def step(self) -> Sequence[tuple[int, Event]]:
        events: list[tuple[int, Event]] = []
        for run, body in tuple(self._runs.items()):
            events += [(run, event) for event in self._act(run, body)]
        for run, event in events:
            if isinstance(event, Done):
                self.cancel(run)
        return events

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        if "refuse" in message:
            raise EngineFailed("It is refused.")
        self._fed[run].append(message["say"])

    def cancel(self, run: int) -> None:
        for held in (self._runs, self._told, self._fed):
            held.pop(run, None)

    def close(self) -> None:
        self._held = bytearray()

    def _act(self, run: int, body: Mapping[str, Any]) -> Sequence[Event]:  # noqa: C901, PLR0911, PLR0912 - a table
        match body["do"]:
            case "echo":
                return [Done(result={"body": body["what"]})]
            case "give":
                return [Done(result={"body": b"y" * body["bytes"]})]
            case "count":
                return self._count(run, body["to"], body.get("batch", 1))
            case "wait":
                return []
            case "talk":
                fed, self._fed[run] = self._fed[run], []
                return [Done(result={}) if said == "end" else Text(delta=said) for said in fed]
            case "raise":
                raise RuntimeError("broken at /etc/passwd")
            case "memory":
                raise MemoryError
            case "hang" | "die":
                return self._end_badly(run, body)
            case "print":
                for _ in range(body["bytes"] // 100):
                    sys.stdout.write("x" * 99 + "\n")
                os.write(2, b"from below\n")
                return [Done(result={})]
            case "leave":
                sys.exit(3)
            case "subprocess":
                child = subprocess.Popen(["sleep", "1000"])
                return [Done(result={"pid": child.pid})]
            case "look":
                return [Done(result=_look())]
            case "unencodable":
                return [Done(result={"body": object()})]
            case "heard":
                return [Done(result={"heard": heard})]
            case "look_up":
                socket.getaddrinfo("127.0.0.1", 1)
                return [Done(result={})]
            case "import":
                __import__(body["module"])
                return [Done(result={})]
        raise AssertionError(body)

    def _end_badly(self, run: int, body: Mapping[str, Any]) -> Sequence[Event]:
        """Say so, and do it in the next step; the file `mark` is there when it is being done."""
        self._told[run] += 1
        if self._told[run] == 1:
            return [Text(delta=body["do"])]
        if body["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if "mark" in body:
            os.close(os.open(body["mark"], os.O_CREAT))
        NEVER.wait()
        raise AssertionError

    def _count(self, run: int, to: int, batch: int) -> Sequence[Event]:
        first = self._told[run]
        last = min(to, first + batch)
        self._told[run] = last
        events: list[Event] = [Text(delta=f"{number} ") for number in range(first, last)]
        return [*events, Done(result={"body": last})] if last == to else events


class StubbornEngine(ScriptedEngine):
    """Ignores the polite signal, and does not come to an end by itself."""

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return super().load(spec, report)


def _look() -> dict[str, Any]:
    """What a process sees of itself."""
    import resource

    return {
        "environment": dict(line.split("=", 1) for line in _environ()),
        "folder": str(Path.cwd()),
        "in_folder": [path.name for path in Path().iterdir()],
        "descriptors": _descriptors(),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "group": os.getpgid(0),
        "modules": sorted(sys.modules),
    }


def _descriptors() -> dict[str, str]:
    """What each open descriptor is, but for the one that looks."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = str(path.readlink())
    return found


def _environ() -> list[str]:
    """The environment as libraries see it, and what is started from here."""
    output = subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout
    return [line for line in output.split("\0") if line]


heard: list[str] = []
"""What the hook has noticed."""


def listen() -> None:
    """Note every look-up of a name, every connection beyond this machine and every process from now on."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.fork", "os.forkpty"):
            heard.append(event)
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.posix_spawn"):
            heard.append(f"{event} {arguments[:2]!r}")
        elif event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            if isinstance(address, tuple) and not str(address[0]).startswith("127."):
                heard.append(f"{event} {address!r}")

    sys.addaudithook(hook)


def _info(name: str, target: str, preload: tuple[str, ...] = ()) -> EngineInfo:
    return EngineInfo(
        name=name,
        target=target,
        summary="For tests.",
        tasks=frozenset({"fetch"}),
        device_kinds=("cpu",),
        formats=frozenset({"none"}),
        options=Options,
        preload=preload,
    )


_HERE = "support.worker_engine"
ENGINES: Mapping[str, EngineInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            _info("scripted", f"{_HERE}:ScriptedEngine", (_HERE,)),
            _info("stubborn", f"{_HERE}:StubbornEngine", (_HERE,)),
            _info("unloadable", "support.no_such_module:Engine"),
            _info("threaded", f"{_HERE}:ScriptedEngine", ("support.worker_threads",)),
            _info("broken_preload", f"{_HERE}:ScriptedEngine", ("support.no_such_module",)),
            _info("heard", f"{_HERE}:ScriptedEngine", ("support.worker_audit", "openvino")),
            _info("hanging_preload", f"{_HERE}:ScriptedEngine", ("support.worker_hanging",)),
            _info("dying_preload", f"{_HERE}:ScriptedEngine", ("support.worker_dying",)),
            EngineInfo(
                name="missing",
                target="no_such_library:Engine",
                summary="For tests.",
                tasks=frozenset({"fetch"}),
                device_kinds=("cpu",),
                formats=frozenset({"none"}),
                options=Options,
                packages=("no_such_library",),
                remedy="pip install no-such-library",
            ),
            EngineInfo(
                name="elsewhere",
                target="",
                summary="For tests.",
                tasks=frozenset({"fetch"}),
                device_kinds=("remote",),
                formats=frozenset({"none"}),
                options=Options,
            ),
        )
    }
)
