"""The registry's rows: what is written comes back, what is asked for is found; on both databases."""

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry import store
from serai.registry.failure import Failure
from serai.registry.model import Alias, AliasEvent, Model
from serai.registry.parameters import Parameter
from serai.registry.semver import parse
from serai.registry.service import Binding, Condition, FallbackEntry, Health, Limits, Revision, Service, Target
from serai.registry.source import (
    Adapter,
    Benchmark,
    File,
    FileSource,
    FolderSource,
    Footprint,
    HubSource,
    PackageSource,
    RemoteSource,
)
from serai.registry.version import Status, Version, seal
from serai.storage.database import Database
from serai.storage.tables import registry as tables
from support.registry import rows, run
from unit.registry.build import AT, a_model, a_service, a_version, link, to

PERSIAN = "مدلِ «گفتگو» نسخهٔ\u200cتازه 🎭 \"'\\ %_|"
LATER = AT + timedelta(days=3, microseconds=1)
BENCHMARK = Benchmark(name="MMLU", dataset="مجموعه", metric="accuracy", value=0.1 + 0.2, unit="%")
SCHEMA = {"type": "object", "properties": {PERSIAN: {"type": ["string", "null"], "default": None, "minimum": -1e-9}}}

FULL_MODEL = Model(
    id="full",
    name=PERSIAN,
    task="image-edit",
    description=PERSIAN * 50,
    publisher=PERSIAN,
    licence="Apache-2.0",
    reference_url="https://example.org/model?a=b#c",
    lookup_names=("Qwen/Qwen3-0.6B", "other-name"),
    languages=("fa", "en"),
    domain=PERSIAN,
    tags=("enhanced", PERSIAN),
    pros=(PERSIAN,),
    cons=("slow", ""),
    benchmarks=(BENCHMARK,),
    inference_schema=SCHEMA,
    priority=-7,
    marketplaces=("digikala", "amazon"),
    active=False,
    created_at=AT,
    created_by="user_ann",
    updated_at=LATER,
    updated_by="user_bob",
)

SOURCES = [
    HubSource(repo="Qwen/Qwen3-0.6B", revision="a" * 40),
    FolderSource(root="models", path="a/b"),
    FileSource(url="https://example.org/x.safetensors", sha256="0" * 64),
    RemoteSource(endpoint="https://api.example.org/v1", model="gpt", secret="openai"),
    PackageSource(name="cutout"),
    None,
]

FULL_VERSION = Version(
    model_id="full",
    version="2.0.0-rc.1+build.5",
    seq=1,
    status=Status.DEPRECATED,
    release_notes=PERSIAN,
    tags=("a", PERSIAN),
    based_on="1.0.0",
    source=SOURCES[0],
    engine="diffusers",
    engine_options={"nested": {"list": [1, 2.5, None, True, PERSIAN]}, "big": 2**62},
    quantization="nf4",
    adapters=(Adapter(id="lora-v2", source=SOURCES[2], scale=-0.5), Adapter(id="b", source=PackageSource(name="x"))),  # type: ignore[arg-type]
    parameters={
        "num_inference_steps": Parameter(default=28, min=1, max=50),
        "guidance": Parameter(default=3.5, fixed=True),
        "sampler": Parameter(default="euler"),
        "flag": Parameter(default=True),
        "any": Parameter(),
    },
    files=(
        File(path="adapters/lora.safetensors", size=2**52, sha256="f" * 64),
        File(path="ü", size=0, sha256="1" * 64),
    ),
    allow_remote_code=True,
    allow_pickle=True,
    footprint=(Footprint(device="cuda", bytes=2**40), Footprint(device="cpu", bytes=1, measured=True)),
    memory_class="high",
    capabilities=("vision", "tools"),
    input_schema=SCHEMA,
    output_schema={},
    licence="FLUX-1-dev-non-commercial",
    commercial_use=False,
    duties=(PERSIAN,),
    benchmarks=(BENCHMARK, BENCHMARK),
    immutable=True,
    digest=None,
    published_at=AT,
    unpublished_at=LATER,
    deprecated_at=LATER,
    sunset_at=LATER + timedelta(days=30),
    deprecation_reason=PERSIAN,
    created_at=AT,
    created_by="user_ann",
    updated_at=LATER,
    updated_by="user_bob",
)

FULL_REVISION = Revision(
    service_id="full-service",
    n=1,
    targets=(Target(model="full", version="2.0.0-rc.1+build.5", weight=70), Target(model="full", alias="x", weight=30)),
    shadow=Target(model="full"),
    fallback=(
        FallbackEntry(
            model="full",
            alias="x",
            condition=Condition(
                on=(Failure.LOAD_ERROR, Failure.TIMEOUT),
                marketplaces=("digikala",),
                min_complexity=0.1,
                max_complexity=1.0,
            ),
        ),
        FallbackEntry(service="other"),
    ),
    limits=Limits(concurrency=3, timeout_s=0.5, queue_length=0),
    config={"prompt": PERSIAN, "deep": [[[]]]},
    reason=PERSIAN,
    rolled_back_to=1,
    created_at=LATER,
    created_by="user_bob",
)

FULL_SERVICE = Service(
    id="full-service",
    name=PERSIAN,
    task="image-edit",
    description=PERSIAN,
    required=("vision",),
    revision=FULL_REVISION,
    pinned=True,
    published=True,
    hardware=PERSIAN,
    benchmarks=(BENCHMARK,),
    health=Health(status="degraded", checked_at=LATER, detail=PERSIAN),
    version_updated_at=LATER,
    created_at=AT,
    created_by="user_ann",
    updated_at=LATER,
    updated_by="user_bob",
)

BARE_MODEL = a_model("bare")
BARE_VERSION = a_version("bare", status=Status.DRAFT, source=None)
BARE_SERVICE = a_service("bare-service")


def put_models(database: Database, *models: Model) -> None:
    for model in models:
        database.run_sync(store.put_model, model)


def put_versions(database: Database, *versions: Version) -> None:
    for version in versions:
        database.run_sync(store.put_version, seal(version))


def fill(database: Database, **models: list[tuple[str, Status]]) -> None:
    """Write each model with its versions, numbered in the order given."""
    for model_id, versions in models.items():
        put_models(database, a_model(model_id))
        for seq, (number, status) in enumerate(versions, start=1):
            put_versions(database, a_version(model_id, number, status=status, seq=seq))


@pytest.fixture
def database(registry_database: Database) -> Database:
    """An empty database; nobody listens to what it tells."""
    return registry_database


# --- what is written comes back ---


def test_the_full_values_have_no_field_at_its_default() -> None:
    """The round trips below mean every field: each has a value here that is not its default."""
    for full, bare in ((FULL_MODEL, BARE_MODEL), (FULL_VERSION, BARE_VERSION), (FULL_SERVICE, BARE_SERVICE)):
        same = {one.name for one in fields(full) if getattr(full, one.name) == getattr(bare, one.name)}
        assert same <= {"created_at", "seq", "created_by", "digest"}, same


@pytest.mark.parametrize("model", [FULL_MODEL, BARE_MODEL], ids=lambda model: model.id)
def test_a_model_comes_back_as_it_was_written(database: Database, model: Model) -> None:
    """Every field, in any script."""
    put_models(database, model)
    assert database.read_sync(store.load_models) == [model]
    assert database.read_sync(store.load_models, ["other", model.id]) == [model]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_a_version_comes_back_as_it_was_written(database: Database, source: Any) -> None:
    """Every field, with every kind of source."""
    put_models(database, FULL_MODEL)
    version = seal(replace(FULL_VERSION, source=source))
    put_versions(database, version)
    assert database.read_sync(store.load_versions) == [version]
    assert database.read_sync(store.load_versions, ["full"]) == [version]
    assert database.read_sync(store.find_versions, "full", limit=1) == [version]
    assert database.read_sync(store.load_versions, ["bare"]) == []


def test_a_bare_draft_comes_back_as_it_was_written(database: Database) -> None:
    """With neither source nor digest."""
    put_models(database, BARE_MODEL)
    put_versions(database, BARE_VERSION)
    assert database.read_sync(store.load_versions) == [BARE_VERSION]


@pytest.mark.parametrize("service", [FULL_SERVICE, BARE_SERVICE], ids=lambda service: service.id)
def test_a_service_comes_back_as_it_was_written(database: Database, service: Service) -> None:
    """With its current revision; the earlier ones are kept, the newest first."""
    database.run_sync(store.put_service, service, new_revision=True)
    assert database.read_sync(store.load_services) == [service]
    second = replace(service, name="second", revision=replace(service.revision, n=2, reason="again"))
    database.run_sync(store.put_service, second, new_revision=True)
    assert database.read_sync(store.load_services, [service.id]) == [second]
    assert database.read_sync(store.revisions, service.id) == [second.revision, service.revision]
    assert database.read_sync(store.last_revision, service.id) == 2


def test_an_alias_and_its_events_come_back(database: Database) -> None:
    """Moves are kept, also those of an alias that was deleted; the epoch counts on."""
    fill(database, m=[("1.0.0", Status.ACTIVE), ("2.0.0", Status.ACTIVE)])
    events = []
    for epoch, (before, after) in enumerate([(None, "1.0.0"), ("1.0.0", "2.0.0"), ("2.0.0", None)], start=1):
        event = AliasEvent(
            model_id="m", name="prod", epoch=epoch, before=before, after=after, reason=PERSIAN, at=AT, by="user_ann"
        )
        events.append(event)
        if after is None:
            database.run_sync(store.delete_alias, event)
            continue
        alias = Alias(model_id="m", name="prod", version=after, epoch=epoch, updated_at=LATER, updated_by="user_ann")
        database.run_sync(store.put_alias, alias, event)
        assert database.read_sync(store.load_aliases) == [alias]
        assert database.read_sync(store.load_aliases, ["m", "other"]) == [alias]
    assert database.read_sync(store.load_aliases) == []
    assert database.read_sync(store.alias_events, "m", "prod") == events
    assert database.read_sync(store.last_epoch, "m", "prod") == 3
    assert database.read_sync(store.last_epoch, "m", "never") == 0


def test_a_line_of_history_comes_back_and_closes_the_one_before(database: Database) -> None:
    """The latest first; only the last line is open, until the service is deleted."""
    database.run_sync(store.put_service, FULL_SERVICE, new_revision=True)
    first = Binding(
        service_id="full-service", revision=1, versions=("a@1.0.0", PERSIAN), since=AT, by="x", reason=PERSIAN
    )
    second = replace(first, versions=(), since=LATER)
    database.run_sync(store.add_binding, first)
    database.run_sync(store.add_binding, second)
    assert database.read_sync(store.bindings, "full-service") == [second, replace(first, until=LATER)]
    database.run_sync(store.bury_service, "full-service", LATER + timedelta(1))
    assert database.read_sync(store.bindings, "full-service")[0].until == LATER + timedelta(1)


def test_a_server_whose_clock_is_behind_does_not_turn_the_history_back(database: Database) -> None:
    """A line never begins before the one that it follows."""
    database.run_sync(store.put_service, FULL_SERVICE, new_revision=True)
    line = Binding(service_id="full-service", revision=1, versions=("a@1.0.0",), since=LATER)
    database.run_sync(store.add_binding, line)
    database.run_sync(store.add_binding, replace(line, since=AT))
    after, before = database.read_sync(store.bindings, "full-service")
    assert (before.since, before.until, after.since, after.until) == (LATER, LATER, LATER, None)
    database.run_sync(store.bury_service, "full-service", AT)
    assert database.read_sync(store.bindings, "full-service")[0].until == LATER


def test_a_document_of_megabytes_comes_back(database: Database) -> None:
    """A schema and options that fill the largest body."""
    big = {f"key {number}": PERSIAN * 20 for number in range(2000)}
    model = replace(FULL_MODEL, inference_schema=big)
    put_models(database, model)
    version = seal(replace(FULL_VERSION, engine_options=big, input_schema=big))
    put_versions(database, version)
    assert database.read_sync(store.load_models) == [model]
    assert database.read_sync(store.load_versions) == [version]


def test_what_no_database_can_hold_is_refused(database: Database) -> None:
    """A whole number beyond 64 bits and half a character are bad input, not a failure of the server."""
    put_models(database, BARE_MODEL)
    for options in ({"n": 2**70}, {"half": "\ud800"}):
        with pytest.raises(InvalidInput):
            put_versions(database, replace(BARE_VERSION, engine_options=options))
    assert database.read_sync(store.load_versions) == []


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\x00" not in repr(value))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXT, tags=st.lists(TEXT.filter(bool), max_size=3), options=st.dictionaries(TEXT, JSON, max_size=3))
def test_any_texts_and_documents_come_back(
    database: Database, name: str, tags: list[str], options: dict[str, Any]
) -> None:
    """Whatever is written is what is read, and a model is found by each of its tags."""
    model = a_model("any", name=name, tags=tuple(tags), inference_schema=options)
    version = seal(a_version("any", status=Status.DRAFT, engine_options=options, release_notes=name))
    put_models(database, model)
    put_versions(database, version)
    assert database.read_sync(store.load_models) == [model]
    assert database.read_sync(store.load_versions) == [version]
    for tag in tags:
        assert database.read_sync(store.find_models, limit=9, tag=tag) == ["any"]


# --- writing again, deleting, names ---


def test_a_deleted_model_leaves_its_rows_and_frees_its_names(database: Database) -> None:
    """It is not listed and its aliases are gone; its numbers are still known, and its card may come back."""
    put_models(database, FULL_MODEL)
    put_versions(database, FULL_VERSION)
    event = AliasEvent(
        model_id="full", name="x", epoch=1, before=None, after=FULL_VERSION.version, at=AT, by="user_ann"
    )
    alias = Alias(
        model_id="full", name="x", version=FULL_VERSION.version, epoch=1, updated_at=AT, updated_by="user_ann"
    )
    database.run_sync(store.put_alias, alias, event)
    database.run_sync(store.bury_model, "full", LATER)
    assert database.read_sync(store.load_models) == []
    assert database.read_sync(store.find_models, limit=9, include_deprecated=True) == []
    assert database.read_sync(store.load_aliases) == []
    assert rows(database, tables.names) == []
    assert database.read_sync(store.version_numbers, "full") == ([FULL_VERSION.version], 1)
    assert not database.read_sync(store.is_empty)
    put_models(database, replace(FULL_MODEL, name="back"))
    assert [model.name for model in database.read_sync(store.load_models)] == ["back"]


def test_a_deleted_service_leaves_its_history_and_frees_its_name(database: Database) -> None:
    """Its revisions count on when one of the same name is made."""
    database.run_sync(store.put_service, FULL_SERVICE, new_revision=True)
    database.run_sync(store.bury_service, "full-service", LATER)
    assert database.read_sync(store.load_services) == []
    assert database.read_sync(store.find_services, limit=9) == []
    assert rows(database, tables.names) == []
    assert database.read_sync(store.last_revision, "full-service") == 1
    again = replace(FULL_SERVICE, revision=replace(FULL_REVISION, n=2))
    database.run_sync(store.put_service, again, new_revision=True)
    assert database.read_sync(store.load_services) == [again]


def test_a_tombstone_is_loaded_but_not_listed(database: Database) -> None:
    """Its number stays used."""
    fill(database, m=[("1.0.0", Status.TOMBSTONE), ("1.1.0", Status.ACTIVE)])
    assert [one.version for one in database.read_sync(store.find_versions, "m", limit=9)] == ["1.1.0"]
    assert len(database.read_sync(store.load_versions)) == 2
    numbers, last = database.read_sync(store.version_numbers, "m")
    assert (sorted(numbers), last) == (["1.0.0", "1.1.0"], 2)
    assert database.read_sync(store.version_numbers, "other") == ([], 0)


def test_names_are_kept_in_lower_case_and_follow_the_card(database: Database) -> None:
    """The id and each lookup name once; a name that the card gave up is free."""
    put_models(database, a_model("m", lookup_names=("Qwen/Qwen3", "qwen/qwen3", "m")))
    assert [(row.name, row.kind, row.target_id) for row in rows(database, tables.names)] == [
        ("m", "model", "m"),
        ("qwen/qwen3", "model", "m"),
    ]
    put_models(database, a_model("m", lookup_names=("other",)))
    database.run_sync(store.put_service, a_service("s"), new_revision=True)
    database.run_sync(store.put_service, a_service("s", name="renamed"), new_revision=False)
    assert [(row.name, row.kind) for row in rows(database, tables.names)] == [
        ("m", "model"),
        ("other", "model"),
        ("s", "service"),
    ]


def test_the_database_itself_refuses_two_owners_of_a_name(database: Database) -> None:
    """Also to code that did not ask first."""
    put_models(database, a_model("m", lookup_names=("Owner/Name",)))
    with pytest.raises(sa.exc.IntegrityError):
        put_models(database, a_model("other", lookup_names=("owner/name",)))
    with pytest.raises(sa.exc.IntegrityError):
        database.run_sync(store.put_service, a_service("m"), new_revision=True)
    assert [model.id for model in database.read_sync(store.load_models)] == ["m"]


# --- what the database itself refuses ---

REWRITES = {
    "another source": "UPDATE versions SET identity = replace(identity, 'm-1.0.0', 'm-9.9.9')",
    "another number": "UPDATE versions SET version = '9.9.9'",
    "another seq": "UPDATE versions SET seq = 9",
    "made mutable": "UPDATE versions SET immutable = false",
    "made mutable and another source": "UPDATE versions SET immutable = false, identity = '{}'",
}


@pytest.mark.parametrize("statement", REWRITES.values(), ids=REWRITES)
def test_the_database_refuses_to_rewrite_an_immutable_version(database: Database, statement: str) -> None:
    """What an immutable version is cannot be changed by SQL either; its status and its notes can."""
    put_models(database, a_model("m"))
    version = seal(a_version("m", immutable=True))
    put_versions(database, version)
    with pytest.raises(sa.exc.DBAPIError, match="immutable"):
        run(database, statement)
    assert database.read_sync(store.load_versions) == [version]
    deprecated = replace(version, status=Status.DEPRECATED, release_notes="noted", tags=("t",), updated_at=LATER)
    put_versions(database, deprecated)
    assert database.read_sync(store.load_versions) == [deprecated]


@pytest.mark.parametrize("statement", list(REWRITES.values())[:3], ids=list(REWRITES)[:3])
def test_a_mutable_version_may_be_rewritten(database: Database, statement: str) -> None:
    """The refusal above is of the flag, not of the statement."""
    fill(database, m=[("1.0.0", Status.ACTIVE)])
    assert run(database, statement) == 1


@pytest.mark.parametrize("table", ["revisions", "alias_events"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET created_by = 'eve'", "DELETE FROM {}"])
def test_histories_are_append_only(database: Database, table: str, statement: str) -> None:
    """Neither changed nor cut, by SQL either."""
    fill(database, m=[("1.0.0", Status.ACTIVE)])
    database.run_sync(store.put_service, a_service("s"), new_revision=True)
    event = AliasEvent(model_id="m", name="x", epoch=1, before=None, after="1.0.0", at=AT, by="ann")
    database.run_sync(
        store.put_alias, Alias(model_id="m", name="x", version="1.0.0", epoch=1, updated_at=AT, updated_by="ann"), event
    )
    column = "created_by" if table == "revisions" else "by"
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        run(database, statement.format(table).replace("created_by", f'"{column}"'))
    assert database.read_sync(store.alias_events, "m", "x") == [event]
    assert database.read_sync(store.revisions, "s") == [a_service("s").revision]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET status = 'gone'",
        "UPDATE versions SET digest = NULL",
        "UPDATE versions SET seq = 0",
        "UPDATE versions SET seq = 1",
        "UPDATE aliases SET version = '3.0.0'",
        "UPDATE aliases SET epoch = 0",
    ],
)
def test_the_database_holds_its_own_rules(database: Database, statement: str) -> None:
    """Statuses, digests, numbers and what an alias points to, whatever code writes them."""
    fill(database, m=[("1.0.0", Status.ACTIVE), ("2.0.0", Status.ACTIVE)])
    event = AliasEvent(model_id="m", name="x", epoch=1, before=None, after="1.0.0", at=AT, by="ann")
    database.run_sync(
        store.put_alias, Alias(model_id="m", name="x", version="1.0.0", epoch=1, updated_at=AT, updated_by="ann"), event
    )
    with pytest.raises(sa.exc.IntegrityError):
        run(database, statement)


# --- what is asked for is found ---


def found(database: Database, **filters: Any) -> list[str]:
    return database.read_sync(store.find_models, **{"limit": 100, **filters})


def test_models_are_found_by_task(database: Database) -> None:
    """One task, or all."""
    put_models(database, a_model("b", task="image-edit"), a_model("a"), a_model("c"))
    assert found(database) == ["a", "b", "c"]
    assert found(database, task="image-edit") == ["b"]
    assert found(database, task="lip-sync") == []


TAGS = {
    "fast": ["plain"],
    "FAST": ["plain"],
    "fas": [],
    "%": ["percent"],
    "_": ["underscore"],
    "f%t": [],
    "f_st": [],
    "a|b": ["bar"],
    "a": ["two"],
    "|": [],
    "": [],
    "back\\slash": ["backslash"],
    "/": ["slash"],
    "ÜBER": ["umlaut"],
}


def test_a_tag_is_found_whole_and_is_no_pattern(database: Database) -> None:
    """A tag matches itself whatever the case; signs that SQL or the column use mean nothing."""
    tags = {
        "plain": ("fast", "small"),
        "percent": ("%",),
        "underscore": ("_",),
        "bar": ("a|b",),
        "two": ("a", "b"),
        "backslash": ("back\\slash",),
        "slash": ("/",),
        "umlaut": ("über",),
        "none": (),
    }
    put_models(database, *(a_model(name, tags=given) for name, given in tags.items()))
    assert {tag: found(database, tag=tag) for tag in TAGS} == TAGS


WORDS = {
    "qwen": ["q"],
    "QWEN3 chat": ["q"],
    "chat": ["p", "q"],
    "qwen absent": [],
    "گفتگو": ["p"],
    "100%": ["p"],
    "1_0": [],
    "%": ["p"],
    "  ": ["p", "q"],
    "ali/": ["q"],
}


def test_models_are_found_by_every_word(database: Database) -> None:
    """In id, name, lookup names, publisher, description, tags; whatever the case; no word is a pattern."""
    put_models(
        database,
        a_model("q", name="Chat model", lookup_names=("Ali/Qwen3-0.6B",)),
        a_model("p", name="گفتگو", description="100% CHAT"),
    )
    assert {search: found(database, search=search) for search in WORDS} == WORDS


def test_models_are_found_by_the_status_of_their_versions(database: Database) -> None:
    """With a status: models that have such a version; without: those that are not all in the past."""
    fill(
        database,
        draft=[("1.0.0", Status.DRAFT)],
        live=[("1.0.0", Status.ACTIVE), ("0.9.0", Status.DEPRECATED)],
        none=[],
        old=[("1.0.0", Status.DEPRECATED), ("0.1.0", Status.RETIRED)],
        tomb=[("1.0.0", Status.TOMBSTONE), ("2.0.0", Status.RETIRED)],
    )
    assert found(database) == ["draft", "live", "none"]
    assert found(database, include_deprecated=True) == ["draft", "live", "none", "old", "tomb"]
    for status, ids in (
        (Status.DRAFT, ["draft"]),
        (Status.ACTIVE, ["live"]),
        (Status.DEPRECATED, ["live", "old"]),
        (Status.RETIRED, ["old", "tomb"]),
    ):
        assert found(database, version_status=status) == ids
        assert found(database, version_status=status, include_deprecated=True) == ids


def test_pages_of_models_and_services_join_without_gap_or_repeat(database: Database) -> None:
    """In the order of the ids, whatever the size of a page, filters kept."""
    names = [f"n{number:02}" for number in range(11)]
    put_models(database, *(a_model(name, task="chat" if name < "n09" else "lip-sync") for name in names))
    for name in names:
        database.run_sync(store.put_service, a_service(f"s{name}"), new_revision=True)
    for find, expected in ((store.find_models, names[:9]), (store.find_services, [f"s{name}" for name in names])):
        for size in (1, 4, 11, 12):
            joined: list[str] = []
            while page := database.read_sync(find, limit=size, after=joined[-1] if joined else None, task="chat"):
                assert len(page) <= size
                joined += page
            assert joined == expected


NUMBERS = ["1.10.0", "1.9.0", "2.0.0-rc.1", "2.0.0", "1.0.0", "2.0.0-rc.1.1", "10.0.0", "1.0.0+a", "1.0.0+b", "2.0.0-1"]


def test_versions_are_listed_by_precedence_and_paged(database: Database) -> None:
    """1.10.0 is above 1.9.0 and 2.0.0-rc.1 below 2.0.0, across any pages; the database orders, not the code."""
    fill(database, m=[(number, Status.ACTIVE) for number in NUMBERS], other=[("99.0.0", Status.ACTIVE)])
    expected = sorted(NUMBERS, key=parse, reverse=True)
    assert expected.index("1.10.0") < expected.index("1.9.0")
    assert expected.index("2.0.0") < expected.index("2.0.0-rc.1")
    for size in (1, 3, 10, 11):
        joined: list[str] = []
        while page := database.read_sync(store.find_versions, "m", limit=size, after=joined[-1] if joined else None):
            joined += [version.version for version in page]
        assert joined == expected


def test_versions_are_found_by_status(database: Database) -> None:
    """One status, all, or all but the past ones."""
    fill(
        database,
        m=[("1.0.0", Status.DRAFT), ("2.0.0", Status.ACTIVE), ("3.0.0", Status.DEPRECATED), ("4.0.0", Status.RETIRED)],
    )

    def numbers(**filters: Any) -> list[str]:
        return [one.version for one in database.read_sync(store.find_versions, "m", limit=9, **filters)]

    assert numbers() == ["4.0.0", "3.0.0", "2.0.0", "1.0.0"]
    assert numbers(include_deprecated=False) == ["2.0.0", "1.0.0"]
    assert numbers(status=Status.DEPRECATED, include_deprecated=False) == ["3.0.0"]
    assert numbers(status=Status.TOMBSTONE) == []


def test_more_ids_than_one_statement_takes(database: Database) -> None:
    """Ids are asked for in portions; asking for some that do not exist is harmless."""
    put_models(database, a_model("a"), a_model("z"))
    ids = [f"x{number}" for number in range(1200)]
    assert {model.id for model in database.read_sync(store.load_models, [*ids, "a", "z"])} == {"a", "z"}
    assert database.read_sync(store.load_models, []) == []
    assert database.read_sync(store.load_services, ids) == []


def test_the_changes_since_an_entry_are_named(database: Database) -> None:
    """Models and services that the later entries of the registry name; other entries only move the end."""
    from serai.audit import SYSTEM, record

    assert database.read_sync(store.changes_since, 0) == (0, set(), set())
    for kind, name in (("model", "a"), ("version", "b@1.0.0"), ("alias", "c@x"), ("service", "s"), ("key", "k")):
        database.run_sync(record, SYSTEM, "test", kind, name, at=AT)
    assert database.read_sync(store.changes_since, 0) == (5, {"a", "b", "c"}, {"s"})
    assert database.read_sync(store.changes_since, 2) == (5, {"c"}, {"s"})
    assert database.read_sync(store.changes_since, 4) == (5, set(), set())
    assert database.read_sync(store.changes_since, 5) == (5, set(), set())


def test_a_link_and_a_target_are_what_the_builders_say() -> None:
    """The builders of these tests write what the domain reads."""
    assert to("m@:x", 30) == Target(model="m", alias="x", weight=30)
    assert link("service:s") == FallbackEntry(service="s")
