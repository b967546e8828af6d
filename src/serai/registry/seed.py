"""The cards and services that ship, written into a registry that never held anything."""

from datetime import datetime

import msgspec

from serai.audit import SYSTEM
from serai.registry import store
from serai.registry.cards import load_cards, load_services
from serai.registry.registry import Change, Registry
from serai.storage.database import Connection


def seed(connection: Connection, registry: Registry, at: datetime) -> bool:
    """Write what ships, unless there is or was a model; says whether it did. A store function."""
    store.lock(connection)
    if not store.is_empty(connection):
        return False
    registry.write(connection, _seed, SYSTEM, at)
    return True


def _seed(change: Change) -> None:
    """A binding whose licence a deployment refuses is written all the same: decisions skip it and say so."""
    for card in load_cards():
        model = card.to_model(at=change.at, by=change.by)
        store.put_model(change.connection, model)
        for version in card.to_versions(at=change.at, by=change.by):
            store.put_version(change.connection, version)
        change.audit("models.seed", "model", model.id, after={"name": model.name, "task": model.task})
    for shipped in load_services():
        service = shipped.to_service(at=change.at, by=change.by)
        store.put_service(change.connection, service, new_revision=True)
        change.audit("services.seed", "service", service.id, after=msgspec.to_builtins(service))
