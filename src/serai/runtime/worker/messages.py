"""Every message between the server and a worker.

| to the worker | when | then |
|---|---|---|
| `Load` | first, once | `Loading…`, then `Ready`; or `Exit` |
| `Run` | any time after `Ready`, at most `max_runs` at once | `Told` for each event, the last one `Done` or `Failed` |
| `Feed` | while the run goes on | nothing, or the run's `Failed` |
| `Cancel` | any time | no further `Told` of that run that was not already sent |
| `Stop` | any time, once | `Exit` |

| from the worker | what can be relied on |
|---|---|
| `Loading` | how far the load is |
| `Ready` | the engine is loaded, warm, and takes runs |
| `Told` | events of one run, in order |
| `Stats` | a sign of life while runs or a step go on, with the memory in use |
| `Exit` | the last message; one that dies without a word has none |
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from serai.engines.base import EngineSpec, Run
from serai.events import Event


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    spec: EngineSpec


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    run: Run


class Feed(msgspec.Struct, frozen=True, kw_only=True, tag="feed"):
    run: int
    message: Mapping[str, Any]


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    run: int


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    pass


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag="loading", array_like=True):
    fraction: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready", array_like=True):
    bytes: int
    """Memory in use: the device's allocator, or the process's own (PSS)."""
    max_runs: int
    facts: Mapping[str, Any]


class Told(msgspec.Struct, frozen=True, tag="event", array_like=True):
    """An event of a run."""

    run: int
    event: Event


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats", array_like=True):
    bytes: int
    runs: int
    steps: int


class Exit(msgspec.Struct, frozen=True, kw_only=True, tag="exit", array_like=True):
    """Why the worker ends: `code` '' after `Stop`, else that of an error; the other fields are the error's."""

    code: str = ""
    message: str = ""
    hint: str | None = None


ToWorker = Load | Start | Feed | Cancel | Stop
FromWorker = Loading | Ready | Told | Stats | Exit
"""Positional (`array_like`), all of them: there is a `Told` for each token, and a union has one form."""
