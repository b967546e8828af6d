"""The cards that ship: what the model selector can tell before anything was pulled.

No weights ship with them. A version whose weights must be fetched is therefore a **draft**: nothing
may claim that it could answer. Its card (what it is good and bad at, what it needs, what its licence
allows, the commit it is pinned to) is complete, and a pull completes the draft with its files and
makes it active. An active version with no files would be a promise that the first call breaks, and
would have to change after the fact, which an active version never does.

One TOML file per model below `cards/`, and `services.toml`; an unknown key stops the loading.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from importlib import resources
from typing import Any, TypeVar

import msgspec

from serai.errors import ConfigurationError, SeraiError
from serai.registry.model import Model, check_model
from serai.registry.parameters import Parameter
from serai.registry.service import FallbackEntry, Limits, Revision, Service, Target, check_shape
from serai.registry.source import Adapter, Availability, Benchmark, File, Footprint, Source
from serai.registry.version import MemoryClass, Status, Version, check_version, seal

SERVICES = "services.toml"
T = TypeVar("T")


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a card's file."""


class ModelCard(_Document, frozen=True, kw_only=True):
    """The table `[model]`: `model.Model` without its times."""

    id: str
    name: str
    task: str
    description: str
    publisher: str
    licence: str
    reference_url: str | None = None
    """None for what was made here."""
    lookup_names: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    domain: str = ""
    tags: tuple[str, ...] = ()
    pros: tuple[str, ...]
    cons: tuple[str, ...]
    benchmarks: tuple[Benchmark, ...] = ()
    priority: int = 0
    marketplaces: tuple[str, ...] = ()


class VersionCard(_Document, frozen=True, kw_only=True):
    """One `[[versions]]`: what is known of a version before its files are here."""

    version: str
    release_notes: str
    source: Source
    engine: str = ""
    engine_options: dict[str, Any] = {}
    quantization: str = "none"
    adapters: tuple[Adapter, ...] = ()
    parameters: dict[str, Parameter] = {}
    files: tuple[File, ...] = ()
    footprint: tuple[Footprint, ...] = ()
    memory_class: MemoryClass
    capabilities: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    licence: str
    duties: tuple[str, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()


class Card(_Document, frozen=True, kw_only=True):
    """One file: a model and its versions, oldest first."""

    model: ModelCard
    versions: tuple[VersionCard, ...]

    def to_model(self, *, at: datetime, by: str) -> Model:
        """Return the row of the card. Raises InvalidInput."""
        values = {name: getattr(self.model, name) for name in self.model.__struct_fields__}
        model = Model(**values, created_at=at, created_by=by, updated_at=at, updated_by=by)
        check_model(model)
        return model

    def to_versions(self, *, at: datetime, by: str) -> tuple[Version, ...]:
        """Return the rows of the versions, numbered from 1. Raises InvalidInput, InvalidVersionFormat."""
        return tuple(self._to_version(seq, card, at, by) for seq, card in enumerate(self.versions, start=1))

    def _to_version(self, seq: int, card: VersionCard, at: datetime, by: str) -> Version:
        values = {name: getattr(card, name) for name in card.__struct_fields__}
        draft = Version(
            **values,
            model_id=self.model.id,
            seq=seq,
            status=Status.DRAFT,
            created_at=at,
            created_by=by,
            updated_at=at,
            updated_by=by,
        )
        check_version(draft)
        ready = draft.availability is Availability.READY
        return seal(replace(draft, status=Status.ACTIVE)) if ready else draft


class ServiceCard(_Document, frozen=True, kw_only=True):
    """One `[[services]]`: `service.Service` without its times and history."""

    id: str
    name: str
    task: str
    description: str
    required: tuple[str, ...] = ()
    targets: tuple[Target, ...]
    fallback: tuple[FallbackEntry, ...] = ()
    limits: Limits = Limits()
    hardware: str = ""
    pinned: bool = False
    published: bool = True

    def to_service(self, *, at: datetime, by: str) -> Service:
        """Return the row of the service with its first revision. Raises InvalidInput, InvalidSplit."""
        revision = Revision(
            service_id=self.id,
            n=1,
            targets=self.targets,
            fallback=self.fallback,
            limits=self.limits,
            reason="shipped",
            created_at=at,
            created_by=by,
        )
        service = Service(
            id=self.id,
            name=self.name,
            task=self.task,
            description=self.description,
            required=self.required,
            revision=revision,
            pinned=self.pinned,
            published=self.published,
            hardware=self.hardware,
            created_at=at,
            created_by=by,
            updated_at=at,
            updated_by=by,
        )
        check_shape(service)
        return service


class _Services(_Document, frozen=True, kw_only=True):
    services: tuple[ServiceCard, ...]


def load_cards() -> list[Card]:
    """Return the cards that ship, by file name. Raises ConfigurationError that names file and key."""
    return [parse_card(text, name) for name, text in _texts() if name != SERVICES]


def load_services() -> list[ServiceCard]:
    """Return the services that ship. Raises ConfigurationError that names file and key."""
    texts = dict(_texts())
    return list(_decode(texts[SERVICES], SERVICES, _Services).services)


def parse_card(text: str, name: str) -> Card:
    """Return the card that a TOML text holds; `name` is for the message. Raises ConfigurationError."""
    return _decode(text, name, Card)


def _texts() -> Iterator[tuple[str, str]]:
    folder = resources.files("serai.registry") / "cards"
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.name.endswith(".toml"):
            yield entry.name, entry.read_text("utf-8")


def _decode(text: str, name: str, kind: type[T]) -> T:
    try:
        return msgspec.toml.decode(text, type=kind)
    except (msgspec.DecodeError, ValueError, SeraiError) as error:
        raise ConfigurationError(f"{name} is not a card: {error}") from error
