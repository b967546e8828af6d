"""Legacy rows as values of this registry. Pure.

What is not strict there is made strict here, and every such step is a line of the report. What
cannot be taken over as it is is a reason to refuse, and all reasons are told at once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from serai.errors import InvalidInput
from serai.registry import legacy_rows as read
from serai.registry.errors import ImportRefused
from serai.registry.legacy_rows import Row
from serai.registry.model import TASKS, Model, check_model
from serai.registry.reference import check_id
from serai.registry.rules import RegistryRules
from serai.registry.semver import parse
from serai.registry.service import Revision, Service, Target, check_shape
from serai.registry.version import Status, Version, seal

KNOWN_TASKS: Mapping[str, str] = {
    "asr": "speech-to-text",
    "tts": "text-to-speech",
    "llm": "chat",
    **{name: name for name in TASKS},
}
"""What the old names of tasks are here; for others the operator must say."""

_STATUSES = {"": Status.ACTIVE, "active": Status.ACTIVE, "deprecated": Status.DEPRECATED}
_CREATED, _UPDATED = ("created_at", "submitted_on", "published_on"), ("updated_at", "updated_on")
_COMMON = {"id", "model_id", "name", "description", "created_at", "updated_at", "is_published", "published_at"}
_TAKEN: Mapping[str, frozenset[str]] = {
    "models": frozenset(
        {
            *("version", "version_status", "release_notes", "is_immutable", "task", "languages", "license", "licence"),
            *("domain", "ref_url", "submitter", "inference_endpoint", "benchmarks", "submitted_on", "updated_on"),
            *(_COMMON | {"unpublished_at"}),
        }
    ),
    "services": frozenset(
        {
            *("service_id", "model_version", "version_updated_at", "service_description", "hardware_description"),
            *(_COMMON | {"published_on", "unpublished_at"}),
        }
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line of the report."""

    kind: str
    id: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the operator says where the rows do not: tasks by old name, ids by old id."""

    tasks: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """One model with its versions, the earliest release first."""

    model: Model
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What is to be written, and what is to be said of it."""

    models: tuple[ImportedModel, ...]
    services: tuple[Service, ...]
    notes: tuple[Note, ...]


def convert(
    models: Iterable[Row], services: Iterable[Row], choices: Choices, rules: RegistryRules, *, at: datetime, by: str
) -> Import:
    """Return the rows of both tables as values. Raises ImportRefused with every reason."""
    conversion = _Conversion(choices, rules, at, by)
    converted = conversion.run(tuple(models), tuple(services))
    if conversion.problems:
        raise refused(conversion.problems)
    return converted


def refused(problems: list[str]) -> ImportRefused:
    """Return the error for these reasons."""
    return ImportRefused(f"Nothing was imported: {len(problems)} thing(s) stand in the way.", details=problems)


class _Conversion:
    """One conversion: the report so far, and what stands in the way. A value with a problem is still made."""

    def __init__(self, choices: Choices, rules: RegistryRules, at: datetime, by: str) -> None:
        self.problems: list[str] = []
        self._notes: list[Note] = []
        self._choices, self._rules, self._at, self._by = choices, rules, at, by

    def run(self, models: tuple[Row, ...], services: tuple[Row, ...]) -> Import:
        rows_of: dict[str, list[Row]] = {}
        for row in models:
            rows_of.setdefault(read.text(row["model_id"]), []).append(row)
        made = {old: self._imported(old, rows) for old, rows in rows_of.items()}
        bound = [service for row in services if (service := self._service(row, made)) is not None]
        self._check_names("models", (one.model.id for one in made.values()))
        self._check_names("services", (service.id for service in bound))
        self._tell_the_rest(models, services)
        return Import(models=tuple(made.values()), services=tuple(bound), notes=tuple(self._notes))

    def _imported(self, old: str, rows: list[Row]) -> ImportedModel:
        model_id = self._id("model", old, self._choices.models)
        versions = [self._version(model_id, row) for row in rows]
        for number, count in Counter(version.version for version in versions).items():
            if count > 1:
                self.problems.append(f"The model {old!r} has {count} versions that would all be {number}.")
        active = sum(version.status is Status.ACTIVE for version in versions)
        most = self._rules.max_active_versions_per_model
        if active > most:
            self.problems.append(f"The model {old!r} has {active} active versions; at most {most} are allowed here.")
        newest = max(zip(versions, rows, strict=True), key=lambda pair: parse(pair[0].version))[1]
        model = self._model(old, model_id, newest)
        versions.sort(key=lambda version: (version.created_at, parse(version.version)))
        self._note("model", model_id, "has " + ", ".join(f"{one.version} ({one.status})" for one in versions))
        numbered = (replace(version, seq=seq) for seq, version in enumerate(versions, start=1))
        return ImportedModel(model=model, versions=tuple(numbered))

    def _model(self, old: str, model_id: str, row: Row) -> Model:
        names: tuple[str, ...] = ()
        if old != model_id:
            kept = read.lookup_name(old)
            names = () if kept is None else (kept,)
            told = "cannot be written as a name any more" if kept is None else "is still a name of it"
            self._note("model", model_id, f"was {old!r}, which {told}")
        endpoint = read.document(row.get("inference_endpoint"))
        schema = endpoint.get("schema") if isinstance(endpoint, Mapping) else None
        results, whole = read.benchmarks(row.get("benchmarks"))
        if not whole:
            self._note("model", model_id, "some of its benchmarks are not of a form that can be taken over")
        url = read.text(row.get("ref_url"))
        submitter = read.document(row.get("submitter"))
        model = Model(
            id=model_id,
            name=read.text(row.get("name")) or old,
            task=self._task(model_id, row.get("task")),
            description=read.text(row.get("description")),
            publisher=read.text(submitter.get("name")) if isinstance(submitter, Mapping) else read.text(submitter),
            licence=_licence(row),
            reference_url=url if url.startswith(("http://", "https://")) else None,
            lookup_names=names,
            languages=read.languages(row.get("languages")),
            domain=", ".join(read.words(row.get("domain"))),
            benchmarks=results,
            inference_schema=schema if isinstance(schema, Mapping) else None,
            **self._stamps(model_id, row),
        )
        if model_id:
            self._check(old, lambda: check_model(model))
        return model

    def _version(self, model_id: str, row: Row) -> Version:
        old = read.text(row["version"])
        number = read.semver(old)
        if number != old:
            self._note("model", model_id, f"its version {old!r} is {number} now")
        status = _STATUSES.get(read.text(row.get("version_status")).lower())
        if status is None:
            self.problems.append(f"The version {old!r} of {model_id!r} has the status {row['version_status']!r}.")
        stamps = self._stamps(model_id, row)
        published = read.flag(row.get("is_published"))
        published_at = self._moment(model_id, row, "published_at") or (stamps["created_at"] if published else None)
        return seal(
            Version(
                model_id=model_id,
                version=number,
                seq=1,
                status=status or Status.ACTIVE,
                release_notes=read.text(row.get("release_notes")),
                licence=_licence(row),
                immutable=read.flag(row.get("is_immutable")) or (published and self._rules.enable_version_immutability),
                published_at=published_at,
                unpublished_at=None if published else self._moment(model_id, row, "unpublished_at"),
                deprecated_at=stamps["updated_at"] if status is Status.DEPRECATED else None,
                **stamps,
            )
        )

    def _service(self, row: Row, made: Mapping[str, ImportedModel]) -> Service | None:
        old, model = read.text(row["service_id"]), read.text(row["model_id"])
        service_id = self._id("service", old, self._choices.services)
        one = made.get(model)
        if one is None:
            self.problems.append(f"The service {old!r} names the model {model!r}, which is not there.")
            return None
        number = self._bound_version(old, one, read.text(row.get("model_version")))
        target = Target(model=one.model.id, version=number)
        stamps = self._stamps(service_id, row)
        revision = Revision(
            service_id=service_id,
            n=1,
            targets=(target,),
            reason="imported",
            created_at=self._at,
            created_by=self._by,
        )
        service = Service(
            id=service_id,
            name=read.text(row.get("name")) or old,
            task=one.model.task,
            description=read.text(row.get("service_description") or row.get("description")),
            hardware=read.text(row.get("hardware_description")),
            revision=revision,
            published=read.flag(row.get("is_published")),
            version_updated_at=self._moment(service_id, row, "version_updated_at") or stamps["updated_at"],
            **stamps,
        )
        if service_id:
            self._check(old, lambda: check_shape(service))
        if old != service_id:
            self._note("service", service_id, f"was {old!r}; callers must use the new id")
        self._note("service", service_id, f"answers with {target.reference}")
        return service

    def _bound_version(self, service: str, one: ImportedModel, named: str) -> str | None:
        """Return the version that the service's model had: the one it names, or the only one there is."""
        numbers = [version.version for version in one.versions]
        if not named and len(numbers) == 1:
            return numbers[0]
        number = read.semver(named) if named else ""
        if number not in numbers:
            what = f"the version {named!r}" if named else "no version"
            self.problems.append(f"The service {service!r} names {what}; its model has {', '.join(numbers)}.")
            return None
        return number

    def _id(self, kind: str, old: str, chosen: Mapping[str, str]) -> str:
        new = chosen.get(old) or read.slug(old)
        try:
            return check_id(new)
        except InvalidInput:
            self.problems.append(f"The {kind} id {old!r} leaves nothing that may be an id here; choose one.")
            return new

    def _task(self, model_id: str, value: Any) -> str:
        old = read.task(value)
        new = self._choices.tasks.get(old) or KNOWN_TASKS.get(old)
        if new is None:
            self.problems.append(f"The model {model_id!r} has the task {old!r}; choose one of {', '.join(TASKS)}.")
            return TASKS[0]
        if new != old:
            self._note("model", model_id, f"its task {old!r} is {new} here")
        return new

    def _stamps(self, of: str, row: Row) -> dict[str, Any]:
        created = next((at for name in _CREATED if (at := self._moment(of, row, name))), self._at)
        updated = next((at for name in _UPDATED if (at := self._moment(of, row, name))), created)
        return {"created_at": created, "created_by": self._by, "updated_at": updated, "updated_by": self._by}

    def _moment(self, of: str, row: Row, column: str) -> datetime | None:
        try:
            return read.moment(row.get(column))
        except (TypeError, ValueError):
            self._note("any", of, f"its {column} {row[column]!r} is no time and was left out")
            return None

    def _check(self, old: str, check: Any) -> None:
        try:
            check()
        except InvalidInput as error:
            self.problems.append(f"{old!r}: {error.message}")

    def _check_names(self, kind: str, ids: Iterable[str]) -> None:
        for new, count in Counter(ids).items():
            if new and count > 1:
                self.problems.append(f"{count} {kind} would all get the id {new!r}.")

    def _tell_the_rest(self, models: tuple[Row, ...], services: tuple[Row, ...]) -> None:
        self._note("all", "-", "times without a zone were taken as UTC")
        self._note("all", "-", "no version has a source of weights yet: PATCH /models/{id}/versions/{version} sets it")
        for table, rows in (("models", models), ("services", services)):
            left = sorted({column for row in rows for column in row} - _TAKEN[table])
            if left:
                self._note("all", "-", f"not taken over from the table {table}: {', '.join(left)}")

    def _note(self, kind: str, of: str, note: str) -> None:
        self._notes.append(Note(kind=kind, id=of, note=note))


def _licence(row: Row) -> str:
    return read.text(row.get("license") or row.get("licence"))
