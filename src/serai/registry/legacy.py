"""Taking over the models and services of the service that this one replaces.

There a model had one version in a column and a service named a model; later the version became part
of the key, and a service named it too. Either way every service gets the version its model had.

Endpoints and API keys are not taken over: which weights a version has, or which remote server with
which secret, is for an admin to say.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

import msgspec

from serai.audit import SYSTEM
from serai.errors import SeraiError
from serai.registry import checks, store
from serai.registry.errors import NameCollision, VersionAlreadyExists
from serai.registry.legacy_conversion import Choices, Import, ImportedModel, Note, convert, refused
from serai.registry.reference import lookup_key
from serai.registry.registry import Change, Registry
from serai.registry.service import Service
from serai.storage.database import Connection
from serai.storage.legacy import LegacyRows

__all__ = ["Choices", "Note", "import_legacy"]


def import_legacy(
    connection: Connection, registry: Registry, rows: LegacyRows, choices: Choices, at: datetime
) -> tuple[Note, ...]:
    """Write all of it or nothing, with an audit entry for each model and service; returns the report.

    A store function. Raises ImportRefused with every reason.
    """
    return registry.write(connection, _import, SYSTEM, at, rows, choices)


def _import(change: Change, rows: LegacyRows, choices: Choices) -> tuple[Note, ...]:
    wanted = convert(rows.models, rows.services, choices, change.snapshot.rules, at=change.at, by=change.by)
    _run(_name_checks(change, wanted))
    for one in wanted.models:
        _put_model(change, one)
    snapshot = change.reload()
    # A service is bound already, so it may keep a version that is deprecated.
    _run(partial(checks.check_service, snapshot, service, before=service) for service in wanted.services)
    for service in wanted.services:
        _put_service(change, service)
    return wanted.notes


def _run(wanted: Iterable[Callable[[], object]]) -> None:
    """Raise ImportRefused with what every check that fails says."""
    problems = []
    for check in wanted:
        try:
            check()
        except SeraiError as error:
            problems.append(error.message)
    if problems:
        raise refused(problems)


def _name_checks(change: Change, wanted: Import) -> Iterator[Callable[[], object]]:
    for one in wanted.models:
        yield partial(checks.check_new_model, change.snapshot, one.model)
        yield partial(_check_unused_numbers, change, one)
    models = (one.model for one in wanted.models)
    arriving = {lookup_key(name) for model in models for name in (model.id, *model.lookup_names)}
    for service in wanted.services:
        yield partial(checks.check_new_service, change.snapshot, service.id)
        yield partial(_check_apart, service, arriving)


def _check_unused_numbers(change: Change, one: ImportedModel) -> None:
    used, _ = store.version_numbers(change.connection, one.model.id)
    again = sorted(set(used) & {version.version for version in one.versions})
    if again:
        numbers = ", ".join(again)
        raise VersionAlreadyExists(f"The model {one.model.id!r} had {numbers} here, and no number is used again.")


def _check_apart(service: Service, names: set[str]) -> None:
    if service.id in names:
        raise NameCollision(f"The service {service.id!r} has the name of a model that is imported with it.")


def _put_model(change: Change, one: ImportedModel) -> None:
    _, last = store.version_numbers(change.connection, one.model.id)
    store.put_model(change.connection, one.model)
    for version in one.versions:
        store.put_version(change.connection, replace(version, seq=last + version.seq))
    versions = [{"version": version.version, "status": version.status.value} for version in one.versions]
    after = {**msgspec.to_builtins(one.model), "versions": versions}
    change.audit("models.import", "model", one.model.id, after=after)


def _put_service(change: Change, service: Service) -> None:
    n = store.last_revision(change.connection, service.id) + 1
    numbered = replace(service, revision=replace(service.revision, n=n))
    store.put_service(change.connection, numbered, new_revision=True)
    change.audit("services.import", "service", service.id, after=msgspec.to_builtins(numbered))
