"""Importing from the service that this one replaces: both kinds of source into both kinds of target."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from serai import audit
from serai.cli.main import main
from serai.errors import InvalidInput, SeraiError
from serai.registry import store
from serai.registry.checks import impact
from serai.registry.errors import ImportRefused
from serai.registry.legacy import Choices, Note, import_legacy
from serai.registry.registry import Registry
from serai.registry.rules import RegistryRules
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.version import Status
from serai.storage.database import Database
from serai.storage.legacy import read_legacy
from support.legacy import LegacyDatabase
from support.rows import contents

AT = datetime(2026, 1, 1, tzinfo=UTC)
SUBMITTED = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
SOURCES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
MakeSource = Callable[..., LegacyDatabase]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSource:
    """Make the old service's database, empty, before (or after) it learned of versions."""

    def make(*, versions: bool = False) -> LegacyDatabase:
        if request.param == "sqlite":
            return LegacyDatabase(tmp_path / "old.db", versions=versions)
        server = request.getfixturevalue("postgres_server")
        name = f"old_{tmp_path.parent.name}_{tmp_path.name}".lower().replace("-", "_")
        return LegacyDatabase(server.create(name[-60:]), versions=versions)

    return make


def take_over(database: Database, old: LegacyDatabase, choices: Choices | None = None, **rules: Any) -> list[Note]:
    registry = Registry(database, RegistryRules(**rules))
    try:
        rows = read_legacy(old.source)
        return list(database.run_sync(import_legacy, registry, rows, choices or Choices(), AT))
    finally:
        registry.close()


def seen(database: Database, **rules: Any) -> RegistrySnapshot:
    registry = Registry(database, RegistryRules(**rules))
    try:
        return database.read_sync(registry.catch_up)
    finally:
        registry.close()


def test_every_service_gets_the_version_its_model_had(source: MakeSource, database: Database) -> None:
    """Before versions: one version in the model's row, in many spellings, and services that name the model."""
    old = source()
    old.model("plain", "1.2.3")
    old.model("loose", "v2")
    old.service("one", "plain")
    old.service("two", "loose", is_published=True, hardware_description="one T4")
    notes = take_over(database, old)
    now = seen(database)
    assert {s.id: s.binding.reference for s in now.services.values() if s.binding} == {
        "one": "plain@1.2.3",
        "two": "loose@2.0.0",
    }
    two = now.services["two"]
    assert (two.published, two.hardware, two.revision.reason) == (True, "one T4", "imported")
    assert Note(kind="model", id="loose", note="its version 'v2' is 2.0.0 now") in notes
    assert Note(kind="service", id="two", note="answers with loose@2.0.0") in notes
    assert impact(now, "plain", "1.2.3").services == ("one",)


def test_a_model_keeps_what_was_said_of_it(source: MakeSource, database: Database) -> None:
    """The card, the id as a lookup name, and the times in UTC whether they were seconds or milliseconds."""
    old = source()
    old.model(
        "Owner/My-Model",
        "1.0",
        name="My model",
        description="It speaks.",
        task={"type": "tts"},
        languages=[{"sourceLanguage": "fa"}],
        license="MIT",
        domain=["news", "law"],
        ref_url="https://example.com/m",
        submitter={"name": "Ada", "aboutMe": "…"},
        inference_endpoint={"schema": {"type": "object"}, "callbackUrl": "http://10.0.0.1"},
        submitted_on=1_700_000_000_000,
        updated_on=1_700_000_060,
        is_published=True,
        published_at=1_700_000_030,
    )
    take_over(database, old)
    entry = seen(database).find_model("owner/my-model")
    assert entry is not None
    model, (candidate,) = entry.model, entry.candidates.values()
    assert (model.id, model.name, model.task, model.lookup_names) == (
        "owner-my-model",
        "My model",
        "text-to-speech",
        ("Owner/My-Model",),
    )
    assert (model.licence, model.domain, model.languages, model.publisher) == ("MIT", "news, law", ("fa",), "Ada")
    assert (model.reference_url, model.inference_schema) == ("https://example.com/m", {"type": "object"})
    assert (model.created_at, model.updated_at) == (SUBMITTED, SUBMITTED.replace(minute=14))
    version = candidate.version
    assert (version.version, version.status, version.immutable) == ("1.0.0", Status.ACTIVE, True)
    assert version.published_at == SUBMITTED.replace(second=50)


def test_after_versions_each_row_is_a_version(source: MakeSource, database: Database) -> None:
    """Statuses, notes and bindings come along; a service keeps a deprecated version, as it had it."""
    old = source(versions=True)
    old.model("m", "1.0", version_status="deprecated", release_notes="first", submitted_on=1_600_000_000)
    old.model("m", "1.10", release_notes="third", is_immutable=True, submitted_on=1_700_000_000, name="The newest")
    old.model("m", "1.9", release_notes="second", submitted_on=1_650_000_000)
    old.service("s", "m", model_version="1.0", version_updated_at=1_700_000_000)
    old.service("t", "m", model_version="1.10")
    take_over(database, old)
    now = seen(database)
    entry = now.models["m"]
    assert entry.model.name == "The newest"
    told = {
        v.version: (v.seq, v.status.value, v.release_notes, v.immutable)
        for v in (one.version for one in entry.candidates.values())
    }
    assert told == {
        "1.0.0": (1, "deprecated", "first", False),
        "1.9.0": (2, "active", "second", False),
        "1.10.0": (3, "active", "third", True),
    }
    assert (entry.default.version.version if entry.default else None) == "1.10.0"
    assert now.services["s"].version_updated_at == SUBMITTED
    assert now.services["s"].revision.targets[0].version == "1.0.0"


def test_it_is_audited_and_in_the_history(source: MakeSource, database: Database) -> None:
    """One entry for each model and service, in a chain that holds, and a first line of each service's history."""
    old = source()
    old.model("m", "1.0.0")
    old.service("s", "m")
    take_over(database, old)
    entries = database.read_sync(audit.entries, limit=10)
    assert [(e.action, e.object_id) for e in entries] == [("services.import", "s"), ("models.import", "m")]
    assert database.read_sync(audit.verify).ok
    (line,) = database.read_sync(store.bindings, "s")
    assert (line.versions, line.since, line.reason) == (("m@1.0.0",), AT, "imported")


def a_collision(old: LegacyDatabase) -> None:
    old.model("a/b", "1")
    old.model("a-b", "1")


def a_service_like_a_model(old: LegacyDatabase) -> None:
    old.model("m", "1")
    old.service("M", "m")


def an_unknown_task(old: LegacyDatabase) -> None:
    old.model("m", "1", task={"type": "nmt"})


def no_possible_id(old: LegacyDatabase) -> None:
    old.model("مدل", "1")


def an_orphan(old: LegacyDatabase) -> None:
    old.service("s", "gone", model_version="1.0.0")


def twice_one_version(old: LegacyDatabase) -> None:
    old.model("m", "1.0")
    old.model("m", "1.0.0")


def a_version_that_is_not_there(old: LegacyDatabase) -> None:
    old.model("m", "1.0")
    old.service("s", "m", model_version="2.0")


def too_many_active(old: LegacyDatabase) -> None:
    for number in range(6):
        old.model("m", f"1.{number}")


def a_strange_status(old: LegacyDatabase) -> None:
    old.model("m", "1.0", version_status="paused")


@pytest.mark.parametrize(
    ("fill", "versions", "told"),
    [
        (a_collision, False, "2 models would all get the id 'a-b'."),
        (a_service_like_a_model, False, "The service 'm' has the name of a model that is imported with it."),
        (an_unknown_task, False, "The model 'm' has the task 'nmt'; choose one of chat, "),
        (no_possible_id, False, "The model id 'مدل' leaves nothing that may be an id here; choose one."),
        (an_orphan, True, "The service 's' names the model 'gone', which is not there."),
        (twice_one_version, True, "The model 'm' has 2 versions that would all be 1.0.0."),
        (a_version_that_is_not_there, True, "The service 's' names the version '2.0'; its model has 1.0.0."),
        (too_many_active, True, "The model 'm' has 6 active versions; at most 5 are allowed here."),
        (a_strange_status, True, "The version '1.0' of 'm' has the status 'paused'."),
    ],
)
def test_what_cannot_be_taken_over_refuses_all_of_it(
    source: MakeSource, database: Database, fill: Callable[[LegacyDatabase], None], versions: bool, told: str
) -> None:
    """Nothing half-made, and the reason in words, beside a model that would have been fine."""
    old = source(versions=versions)
    old.model("fine", "1.0.0")
    fill(old)
    before = database.read_sync(contents)
    with pytest.raises(ImportRefused) as refusal:
        take_over(database, old)
    assert any(str(one).startswith(told) for one in refusal.value.details or ()), refusal.value.details
    assert database.read_sync(contents) == before


def test_every_reason_is_told_at_once(source: MakeSource, database: Database) -> None:
    """So that one look is enough to say what is to become of each."""
    old = source()
    an_unknown_task(old)
    no_possible_id(old)
    a_collision(old)
    with pytest.raises(ImportRefused, match="3 thing") as refusal:
        take_over(database, old)
    assert len(refusal.value.details or ()) == 3


def test_what_is_here_already_is_not_overwritten(source: MakeSource, database: Database) -> None:
    """A second import of the same rows is refused, name by name, and changes nothing."""
    old = source()
    old.model("m", "1.0.0")
    old.service("s", "m")
    take_over(database, old)
    before = database.read_sync(contents)
    with pytest.raises(ImportRefused) as refusal:
        take_over(database, old)
    assert list(refusal.value.details or ()) == [
        "There is a model 'm' already.",
        "The model 'm' had 1.0.0 here, and no number is used again.",
        "There is a service 's' already.",
    ]
    assert database.read_sync(contents) == before


def test_the_operator_says_what_the_rows_do_not(source: MakeSource, database: Database) -> None:
    """Tasks and ids by their old names get everything in that was refused."""
    old = source()
    old.model("مدل", "1", task={"type": "nmt"})
    old.service("m", "مدل")
    choices = Choices(tasks={"nmt": "chat"}, models={"مدل": "m"}, services={"m": "m-service"})
    notes = take_over(database, old, choices)
    now = seen(database)
    assert now.models["m"].model.task == "chat"
    assert {service.id for service in now.services.values()} == {"m-service"}
    assert "its task 'nmt' is chat here" in [note.note for note in notes]
    assert "was 'm'; callers must use the new id" in [note.note for note in notes]


def test_a_licence_that_is_not_allowed_here_refuses_the_binding(source: MakeSource, database: Database) -> None:
    """On a commercial server as anywhere else: a service may not be bound to what may not be used."""
    old = source()
    old.model("m", "1.0.0", license="CC-BY-NC-4.0")
    old.service("s", "m")
    with pytest.raises(ImportRefused) as refusal:
        take_over(database, old, deployment="commercial")
    assert "licence" in str(refusal.value.details)


def test_endpoints_and_keys_stay_where_they_are(source: MakeSource, database: Database) -> None:
    """No secret and no inner address is copied; the report names the columns."""
    old = source()
    old.model("m", "1.0.0")
    old.service("s", "m", endpoint="http://inner-host:8000", api_key="hunter2")
    notes = take_over(database, old)

    def everything(connection: Connection) -> str:
        return repr(contents(connection))

    assert "hunter2" not in database.read_sync(everything)
    assert "inner-host" not in database.read_sync(everything)
    left = "not taken over from the table services: api_key, endpoint, health_status"
    assert left in [note.note for note in notes]


def test_a_strange_time_is_left_out_and_told(source: MakeSource, database: Database) -> None:
    """It does not stop the import, and no other time is made of it."""
    old = source()
    old.model("m", "1.0.0", submitted_on=-7)
    notes = take_over(database, old)
    assert seen(database).models["m"].model.created_at == AT
    assert Note(kind="any", id="m", note="its submitted_on -7 is no time and was left out") in notes


def test_reading_leaves_the_source_alone(source: MakeSource, database: Database) -> None:
    """A second reading finds the same, and SQLite's file is not touched."""
    old = source()
    old.model("m", "1.0.0")
    path = Path(old.source)
    before = path.read_bytes() if path.is_file() else b""
    first = read_legacy(old.source)
    take_over(database, old)
    assert read_legacy(old.source) == first
    assert (path.read_bytes() if path.is_file() else b"") == before


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DROP TABLE services", "has no table 'services'"),
        ("ALTER TABLE models RENAME COLUMN version TO release", "has no column 'version'"),
    ],
)
def test_another_database_is_refused(source: MakeSource, statement: str, told: str) -> None:
    """By what it lacks."""
    old = source()
    old.execute(statement)
    with pytest.raises(InvalidInput, match=told):
        read_legacy(old.source)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder, some other file, a server that is not there."""
    (tmp_path / "text").write_text("not a database")
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    for source in (tmp_path / "missing", tmp_path, tmp_path / "text", nowhere):
        with pytest.raises(SeraiError, match="import from"):
            read_legacy(str(source))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["serai", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_rehearses_imports_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a home that never saw a server: what ships is seeded as well; --dry-run writes no model."""
    old = LegacyDatabase(tmp_path / "old.db", versions=False)
    old.model("bert", "v2", task={"type": "nmt"})
    old.service("search", "bert")
    command = ("db", "import-legacy", old.source, "--home", str(tmp_path / "home"))
    assert run(monkeypatch, *command) == 1
    assert "  - The model 'bert' has the task 'nmt'" in capsys.readouterr().err
    assert run(monkeypatch, *command, "--task", "nmt") == 2
    command += ("--task", "nmt=embedding")
    assert run(monkeypatch, *command, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "its version 'v2' is 2.0.0 now" in told
    assert told.endswith("Nothing was changed; 1 models and 1 services can be imported.\n")
    assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().out.endswith("Imported 1 models and 1 services.\n")
    assert run(monkeypatch, *command) == 1
    assert "There is a model 'bert' already." in capsys.readouterr().err
