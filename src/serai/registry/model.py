"""The card of a model, and the aliases that name its versions.

A model is a family with one task. What is technical belongs to its versions (`version.Version`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serai.errors import InvalidInput
from serai.registry.reference import check_id, check_lookup_name
from serai.registry.source import Benchmark

TASKS = (
    "chat",
    "embedding",
    "image-generation",
    "image-edit",
    "background-removal",
    "text-to-speech",
    "speech-to-text",
    "lip-sync",
    "face-detection",
)
"""The tasks that a service or model can have; seeing is a capability of a chat model, not a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One card.

    `priority` and `marketplaces` are read by the automatic choice: the highest goes first, and no
    marketplace at all means every one.
    """

    id: str
    name: str
    task: str
    description: str = ""
    publisher: str = ""
    licence: str = ""
    reference_url: str | None = None
    lookup_names: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    domain: str = ""
    tags: tuple[str, ...] = ()
    pros: tuple[str, ...] = ()
    cons: tuple[str, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    inference_schema: Mapping[str, Any] | None = None
    priority: int = 0
    marketplaces: tuple[str, ...] = ()
    active: bool = True
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A movable name of one version. `epoch` starts at 1 and grows by one with each move."""

    model_id: str
    name: str
    version: str
    epoch: int
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasEvent:
    """One move of an alias. `before` is None where it was made, `after` None where it was deleted."""

    model_id: str
    name: str
    epoch: int
    before: str | None
    after: str | None
    reason: str = ""
    at: datetime
    by: str


def check_model(model: Model) -> None:
    """Refuse a card that could not be kept: its id, names and task. Raises InvalidInput."""
    check_id(model.id)
    check_task(model.task)
    for name in model.lookup_names:
        check_lookup_name(name)
    if not model.name.strip():
        raise InvalidInput.at("name", "must not be empty")


def check_task(task: str) -> str:
    """Return `task` if it is one of `TASKS`. Raises InvalidInput."""
    if task not in TASKS:
        raise InvalidInput.at("task", f"must be one of {', '.join(TASKS)}, not {task!r}")
    return task


def alias_at(events: tuple[AliasEvent, ...], at: datetime) -> str | None:
    """Return the version that an alias pointed to at a time, from its events in any order."""
    past = [event for event in events if event.at <= at]
    return max(past, key=lambda event: event.epoch).after if past else None
