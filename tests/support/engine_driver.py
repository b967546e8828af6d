"""An engine in a process of its own, driven from a test: the test process stays light, and starts no threads.

The child steps when there are runs, and says every event. `Driver` asks it one thing at a time.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Self

import msgspec

from serai.engines.base import AdapterUse, EngineSpec, Footprint, Run
from serai.engines.tasks import AnyTask, Generate, Sampling
from serai.errors import SeraiError
from serai.events import Done, Event, Failed, Text
from support.llm_models import child_environment

DEADLINE_S = 300.0


class EngineError(Exception):
    """What the engine raised: `code` and `message` of a SeraiError, or the name of another exception."""

    def __init__(self, code: str, message: str, details: Any = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.details = code, message, details


class Driver:
    """The engine `target` ('module:class') in a child process."""

    def __init__(self, target: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-m", "support.engine_driver", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**child_environment(), **environment},
        )
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(30)
        self._reader.join(30)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def load(self, folder: Path, **fields: Any) -> Footprint:
        name = fields.pop("engine")
        spec = EngineSpec(engine=name, name="tiny@1.0.0", folder=str(folder), **fields)
        return msgspec.convert(self.ask("load", spec=msgspec.to_builtins(spec)), Footprint)

    def start(self, prompt: str, *, adapters: Sequence[AdapterUse] = (), **fields: Any) -> int:
        """Start a run and return its id. Fields of `Generate` and of `Sampling`."""
        names = {name: fields.pop(name) for name in ("has_special_tokens", "cache_key") if name in fields}
        task = Generate(prompt=prompt, sampling=Sampling(**fields), **names)
        return self.begin(task, adapters=adapters)

    def begin(self, task: AnyTask, *, adapters: Sequence[AdapterUse] = ()) -> int:
        """Start a run of any task and return its id."""
        self._next += 1
        run = Run(id=self._next, task=task, adapters=tuple(adapters))
        self.ask("start", run=json.loads(msgspec.json.encode(run)))
        return self._next

    def step(self) -> list[tuple[int, Event]]:
        return msgspec.convert(self.ask("step"), list[tuple[int, Event]])

    def cancel(self, run: int) -> None:
        self.ask("cancel", run=run)

    def look(self, path: str) -> Any:
        """Return an attribute of the engine: 'a.b.c', where a last part with () is called."""
        return self.ask("look", path=path)

    def finish(self, *runs: int) -> dict[int, "Outcome"]:
        """Step until these runs are over; return what each came to."""
        outcomes = {run: Outcome() for run in runs}
        while any(outcome.final is None for outcome in outcomes.values()):
            for run, event in self.step():
                if run in outcomes:
                    outcomes[run].add(event)
        return outcomes

    def answer(self, prompt: str, **fields: Any) -> "Outcome":
        run = self.start(prompt, **fields)
        return self.finish(run)[run]

    def ask(self, what: str, **fields: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": what, **fields}) + "\n")
        self._process.stdin.flush()
        try:
            answer = json.loads(self._lines.get(timeout=DEADLINE_S) or "null")
        except Empty:
            raise TimeoutError(f"the engine did not answer {what!r}") from None
        if answer is None:
            raise EngineError("GONE", f"the process ended with {self._process.wait(30)}")
        if "code" in answer:
            raise EngineError(answer["code"], answer["message"], answer.get("details"))
        return answer["value"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print, too
                self._lines.put(line)
        self._lines.put("")


class Outcome:
    """The events of a run."""

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.final: Done | Failed | None = None

    def add(self, event: Event) -> None:
        assert self.final is None, "an event after the last one"
        if isinstance(event, Text):
            self.texts.append(event)
        elif isinstance(event, Done | Failed):
            self.final = event

    def text(self, index: int = 0) -> str:
        return "".join(event.delta for event in self.texts if event.index == index)

    @property
    def result(self) -> Mapping[str, Any]:
        assert isinstance(self.final, Done), self.final
        return self.final.result

    @property
    def reason(self) -> str:
        return str(self.result["finish_reasons"][0])

    @property
    def usage(self) -> Mapping[str, int]:
        usage: Mapping[str, int] = self.result["usage"]
        return usage


def _serve(target: str) -> None:
    """Answer one line with one line."""
    module, _, name = target.partition(":")
    engine = getattr(import_module(module), name)()
    for line in sys.stdin:
        message = json.loads(line)
        try:
            value = _do(engine, message)
            answer = {"value": msgspec.to_builtins(value)}
        except SeraiError as error:
            answer = {"code": error.code, "message": error.message, "details": error.details}
        except Exception as error:  # noqa: BLE001 - the test is told, whatever it is
            answer = {"code": type(error).__name__, "message": str(error)}
        sys.stdout.write("\n" + json.dumps(answer) + "\n")
        sys.stdout.flush()


def _do(engine: Any, message: dict[str, Any]) -> Any:
    match message.pop("ask"):
        case "load":
            return engine.load(msgspec.convert(message["spec"], EngineSpec), lambda _fraction: None)
        case "start":
            run = msgspec.json.decode(json.dumps(message["run"]).encode(), type=Run)
            return engine.start(run)
        case "step":
            return list(engine.step())
        case "cancel":
            return engine.cancel(message["run"])
        case "look":
            return _look(engine, message["path"])


def _look(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = getattr(value, part.removesuffix("()"))
        if part.endswith("()"):
            value = value()
    return value


if __name__ == "__main__":
    _serve(sys.argv[1])
