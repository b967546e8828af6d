"""The commands of the registry, each against one running server: tables, JSON, rehearsals, refusals."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai.cli.main import main
from support.process import ServerProcess, serving

_NUMBERS = itertools.count()


@dataclass
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def rows(self) -> list[list[str]]:
        """Return the cells of the tables, the heads too."""
        lines = [line for line in self.out.splitlines() if line.strip() and "──" not in line]
        return [line.split() for line in lines]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("cli") / "home", rate_limits="off") as running:
        yield running


@pytest.fixture
def serai(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command `serai` with these arguments, as the server's admin."""
    monkeypatch.setenv("SERAI_URL", server.url)
    monkeypatch.setenv("SERAI_API_KEY", server.admin_key)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["serai", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def model(serai: Callable[..., Outcome]) -> str:
    """A model of this test alone, with the version 1.0.0."""
    name = f"m{next(_NUMBERS)}"
    source = f'source={{"kind": "package", "name": "{name}"}}'
    assert serai("models", "create", name, "--task", "chat", "--version", "1.0.0", "--set", source).code == 0
    return name


@pytest.fixture
def service(serai: Callable[..., Outcome], model: str) -> str:
    """A service bound to 1.0.0 of `model`, which has 1.1.0 as well."""
    name = f"s{next(_NUMBERS)}"
    assert serai("versions", "create", model, "1.1.0", "--notes", "better").code == 0
    assert serai("services", "create", name, "--task", "chat", "--model", f"{model}@1.0.0").code == 0
    return name


def test_a_model_is_made_shown_changed_listed_and_removed(serai: Callable[..., Outcome]) -> None:
    """The whole life of a card, by options and --set."""
    made = serai("models", "create", "card", "--task", "chat", "--version", "1.0.0", "--tag", "a", "--tag", "b")
    assert made.code == 0
    assert ["1.0.0", "active", "no", "no", "no_source"] in made.rows()
    changed = serai("models", "update", "card", "--name", "The card", "--set", "priority=7", "--set", "domain=law")
    assert (changed.code, "The card" in changed.out) == (0, True)
    shown = serai("--json", "models", "show", "card", "--version", "1.0.0").json()
    assert (shown["name"], shown["priority"], shown["domain"], shown["tags"]) == ("The card", 7, "law", ["a", "b"])
    assert shown["version"]["version"] == "1.0.0"
    assert ["card", "chat", "1.0.0", "1", "-", "-", "7", "yes"] in serai("models", "list", "--search", "card").rows()
    assert serai("models", "delete", "card").out == "deleted  card\n"
    gone = serai("models", "show", "card")
    assert (gone.code, "[MODEL_NOT_FOUND]" in gone.err, gone.err.count("hint: ")) == (1, True, 1)


def test_a_draft_says_what_makes_it_answer(serai: Callable[..., Outcome]) -> None:
    """The next command, which works as it stands there; none for what answers; `--publish` does both at once."""
    draft = serai("models", "create", "sketch", "--task", "chat", "--version", "1.0.0", "--set", "version_status=draft")
    assert (draft.code, draft.out.splitlines()[-1]) == (0, "  serai versions publish sketch 1.0.0")
    published = serai(*draft.out.splitlines()[-1].split()[1:])
    assert ["1.0.0", "active", "yes", "yes", "no_source", "-"] in published.rows()
    further = serai("versions", "create", "sketch", "1.1.0", "--status", "draft")
    assert further.out.splitlines()[-1] == "  serai versions publish sketch 1.1.0"
    ready = serai("versions", "create", "sketch", "1.2.0", "--status", "draft", "--publish")
    assert (["1.2.0", "active", "yes", "yes", "no_source", "-"] in ready.rows(), "Next" in ready.out) == (True, False)
    once = ("--task", "chat", "--version", "1.0.0", "--set", "version_status=draft", "--publish")
    made = serai("models", "create", "at-once", *once)
    assert (["1.0.0", "active", "yes", "yes", "no_source"] in made.rows(), "Next" in made.out) == (True, False)
    assert serai("models", "create", "never", *once, "--dry-run").code == 2
    assert serai("models", "show", "never").code == 1


def test_a_list_goes_over_pages_and_says_when_it_stops(serai: Callable[..., Outcome]) -> None:
    """--limit is a bound of the lines, not of the server's pages."""
    for number in range(3):
        assert serai("models", "create", f"paged-{number}", "--task", "embedding", "--version", "1.0.0").code == 0
    short = serai("models", "list", "--task", "embedding", "--limit", "2")
    assert (len(short.rows()), "more than 2" in short.err) == (3, True)
    full = serai("--json", "models", "list", "--task", "embedding", "--limit", "1000")
    assert ([one["id"] for one in full.json()["items"]], full.err) == ([f"paged-{n}" for n in range(3)], "")


def test_a_card_may_come_from_a_file(serai: Callable[..., Outcome], tmp_path: Path) -> None:
    """--file holds the API's fields; what is given as an option as well goes first."""
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"id": "filed", "task": "chat", "version": "0.1.0", "pros": ["small"]}))
    made = serai("--json", "models", "create", "--file", str(card), "--version", "0.2.0").json()
    assert (made["id"], made["default_version"], made["pros"]) == ("filed", "0.2.0", ["small"])


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is not JSON"), ("[1]", "must hold one JSON object"), (None, "No such file")]
)
def test_a_file_that_is_no_card_is_refused_before_the_server_is_asked(
    serai: Callable[..., Outcome], tmp_path: Path, text: str | None, told: str
) -> None:
    """Wrong usage: exit code 2, and which option it was."""
    card = tmp_path / "card.json"
    if text is not None:
        card.write_text(text)
    refused = serai("models", "create", "x", "--file", str(card))
    assert refused.code == 2
    assert told in " ".join(refused.err.split())
    assert serai("models", "update", "x", "--set", "priority").code == 2


def test_the_life_of_a_version(serai: Callable[..., Outcome], model: str) -> None:
    """Draft, active, published, deprecated, active again, retired, gone: each command, each line of its table."""
    made = serai("versions", "create", model, "1.1.0", "--status", "draft", "--notes", "line one\nline two")
    assert ["1.1.0", "draft", "no", "no", "ready", "line", "one…"] in made.rows()
    steps = [
        (("activate",), ["1.1.0", "active", "no", "no"]),
        (("publish",), ["1.1.0", "active", "yes", "yes"]),
        (("unpublish",), ["1.1.0", "active", "no", "yes"]),
        (("deprecate", "--reason", "old", "--sunset-at", "2099-01-01T00:00:00Z"), ["1.1.0", "deprecated", "no", "yes"]),
        (("activate",), ["1.1.0", "active", "no", "yes"]),
        (("deprecate",), ["1.1.0", "deprecated", "no", "yes"]),
        (("retire",), ["1.1.0", "retired", "no", "yes"]),
    ]
    for (verb, *options), line in steps:
        done = serai("versions", verb, model, "1.1.0", *options)
        assert line in [row[:4] for row in done.rows()], (verb, done)
    assert [row[0] for row in serai("versions", "list", model).rows()] == ["version", "1.1.0", "1.0.0"]
    assert [row[0] for row in serai("versions", "list", model, "--status", "retired").rows()] == ["version", "1.1.0"]
    assert "line two" in serai("versions", "show", model, "1.1.0").out
    assert serai("versions", "delete", model, "1.1.0").out == f"deleted  {model}@1.1.0\n"
    assert "[VERSION_ALREADY_EXISTS]" in serai("versions", "create", model, "1.1.0").err


def test_an_immutable_version_changes_its_notes_alone(serai: Callable[..., Outcome], model: str) -> None:
    """What it is stays; the refusal names the fields."""
    assert serai("versions", "publish", model, "1.0.0").code == 0
    assert "more" in serai("versions", "update", model, "1.0.0", "--notes", "more").out
    refused = serai("versions", "update", model, "1.0.0", "--set", "engine=fake")
    assert (refused.code, "  - engine\n" in refused.err, "[IMMUTABLE_VERSION]" in refused.err) == (1, True, True)


def test_a_diff_names_what_differs_and_what_may_break(serai: Callable[..., Outcome], model: str) -> None:
    """Fields, options, parameters and sentences; two equal versions are the same thing."""
    assert serai("versions", "update", model, "1.0.0", "--set", 'capabilities=["tools"]').code == 0
    changes = ("--set", "engine=fake", "--set", 'engine_options={"speed": 2}', "--set", "capabilities=[]")
    assert serai("versions", "create", model, "2.0.0", *changes).code == 0
    found = serai("versions", "diff", model, "1.0.0", "2.0.0")
    assert ["engine", "-", "fake"] in found.rows()
    assert ["option", "speed", "-", "2"] in found.rows()
    assert "They are not the same thing." in found.out
    assert "May break: It can no longer do tools." in found.out
    assert serai("versions", "create", model, "2.0.1").code == 0
    assert serai("versions", "diff", model, "2.0.0", "2.0.1").out.endswith("They are the same thing.\n")
    assert serai("--json", "versions", "diff", model, "1.0.0", "2.0.0").json()["identical"] is False


def test_what_is_used_is_refused_with_the_services_and_impact_lists_them(
    serai: Callable[..., Outcome], model: str, service: str
) -> None:
    """The refusal names each service; --force is the admin's word."""
    assert serai("aliases", "set", model, "stable", "1.0.0").code == 0
    told = serai("versions", "impact", model, "1.0.0")
    assert [service, f"{model}@1.0.0", "target", "no"] in told.rows()
    assert "aliases: stable" in told.out
    refused = serai("versions", "deprecate", model, "1.0.0")
    assert (refused.code, f"  - {service}\n" in refused.err, "[VERSION_IN_USE]" in refused.err) == (1, True, True)
    assert serai("versions", "deprecate", model, "1.0.0", "--force").code == 0
    assert serai("--json", "versions", "impact", model, "1.0.0").json()["services"] == [service]


def test_an_alias_moves_only_from_where_it_is_expected(serai: Callable[..., Outcome], model: str) -> None:
    """Compare and swap, its history, and where it pointed at a time."""
    assert serai("versions", "create", model, "1.1.0").code == 0
    assert "[ALIAS_MOVED]" in serai("aliases", "set", model, "live", "1.0.0", "--expected-from", "1.1.0").err
    first = serai("aliases", "set", model, "live", "1.0.0", "--expected-from", "none", "--reason", "launch")
    assert first.out == f"{model}@live → 1.0.0 (move 1)\n"
    assert "[ALIAS_MOVED]" in serai("aliases", "set", model, "live", "1.1.0", "--expected-from", "none").err
    assert serai("aliases", "set", model, "live", "1.1.0", "--expected-from", "1.0.0").code == 0
    history = serai("--json", "aliases", "show", model, "live").json()
    assert [(event["before"], event["after"]) for event in history["events"]] == [("1.0.0", "1.1.0"), (None, "1.0.0")]
    then = history["events"][1]["at"]
    assert serai("aliases", "show", model, "live", "--at", then).out == f"{model}@live → 1.0.0\n"
    assert ["live", "1.1.0"] in serai("aliases", "show", model).rows()
    assert "launch" in serai("aliases", "show", model, "live").out
    assert serai("aliases", "delete", model, "live").out == f"deleted  {model}@live\n"
    assert serai("aliases", "show", model, "live").out.startswith(f"{model}@live → nothing\n")


def test_a_service_is_switched_and_rolled_back(serai: Callable[..., Outcome], model: str, service: str) -> None:
    """Each state is a line of the history, which answers for a time as well."""
    assert [service, "chat", f"{model}@1.1.0"] in [r[:3] for r in serai("services", "switch", service, "1.1.0").rows()]
    back = serai("services", "rollback", service, "--reason", "worse")
    assert [service, "chat", f"{model}@1.0.0"] in [row[:3] for row in back.rows()]
    told = serai("--json", "services", "history", service).json()
    assert [line["versions"] for line in told["answered"]] == [[f"{model}@{v}.0"] for v in ("1.0", "1.1", "1.0")]
    then = told["answered"][1]["since"]
    lines = serai("services", "history", service, "--at", then).rows()
    assert [row[2] for row in lines if row[0].startswith("20")] == [f"{model}@1.1.0"]
    assert "worse" in serai("services", "history", service).out
    assert serai("services", "rollback", service, "--to", "2").code == 0
    assert serai("aliases", "set", model, "live", "1.0.0").code == 0
    assert f"{model}@live" in serai("services", "switch", service, "--alias", "live").out
    assert "[NOTHING_TO_ROLL_BACK]" in serai("services", "rollback", service, "--to", "99").err


def test_a_service_with_a_split_and_a_chain(serai: Callable[..., Outcome], model: str, service: str) -> None:
    """Shares by number or alias, links to models and services, in the table as they were given."""
    assert serai("aliases", "set", model, "next", "1.1.0").code == 0
    shares = ("--split", f"{model}@1.0.0=90", "--split", f"{model}@next=10")
    updated = serai("services", "update", service, *shares, "--fallback", model, "--reason", "canary")
    assert (updated.code, updated.err) == (0, "")
    assert f"{model}@1.0.0 90 %, {model}@next 10 %" in updated.out
    other = f"{service}-other"
    made = serai("services", "create", other, "--task", "chat", "--model", model, "--fallback", f"service:{service}")
    assert f"service:{service}" in made.out
    assert ["fallback", model] in serai("services", "show", service).rows()
    listing = serai("services", "list", "--task", "chat")
    assert {service, other} <= {row[0] for row in listing.rows()}
    assert f"  - {other}\n" in serai("services", "delete", service).err
    assert serai("services", "delete", other).out == f"deleted  {other}\n"
    for wrong in (f"{model}@1.0.0", "=100", f"{model}=many"):
        assert serai("services", "update", service, "--split", wrong).code == 2


def test_explain_speaks_in_sentences(serai: Callable[..., Outcome], model: str, service: str) -> None:
    """Who answers and why, a line each; and the caller's own choice first."""
    told = serai("services", "explain", service)
    assert told.out.splitlines()[0] == f"{model}@1.0.0 answers: it is the binding of {service}."
    assert "Reason: bound." in told.out
    chosen = serai("services", "explain", service, "--model", f"{model}@1.1.0")
    assert "Reason: user_choice." in chosen.out
    assert serai("--json", "services", "explain", service, "--fast").json()["reason"] == "auto_policy"
    unknown = serai("services", "explain", service, "--model", "nobody")
    assert "Warning: The explicit choice 'nobody' was not used" in unknown.out


def test_a_service_is_published(serai: Callable[..., Outcome], model: str, service: str) -> None:
    """The table says so, and its version cannot change while it is."""
    assert [service, "chat", f"{model}@1.0.0", "-", "yes", "no"] in serai("services", "publish", service).rows()
    assert "[IMMUTABLE_VERSION]" in serai("versions", "update", model, "1.0.0", "--set", "engine=fake").err
    assert [service, "chat", f"{model}@1.0.0", "-", "no", "no"] in serai("services", "unpublish", service).rows()


def test_every_change_can_be_rehearsed(serai: Callable[..., Outcome], model: str, service: str) -> None:
    """--dry-run prints what would happen, as sentences or JSON, and nothing happens: the audit log stands still."""
    assert serai("aliases", "set", model, "live", "1.0.0").code == 0
    assert serai("versions", "create", model, "0.9.0", "--status", "draft").code == 0
    assert serai("versions", "create", model, "0.8.0").code == 0
    assert serai("versions", "deprecate", model, "0.8.0").code == 0
    assert serai("versions", "publish", model, "1.1.0").code == 0
    assert serai("services", "switch", service, "1.1.0").code == 0
    head = serai("audit", "head").out
    changes = {
        ("models", "create", "new", "--task", "chat", "--version", "1.0.0"): "models.create new",
        ("models", "update", model, "--name", "other"): f"models.update {model}",
        ("models", "delete", model, "--force"): f"models.delete {model}",
        ("versions", "create", model, "3.0.0"): f"versions.create {model}@3.0.0",
        ("versions", "update", model, "1.0.0", "--notes", "x"): f"versions.update {model}@1.0.0",
        ("versions", "deprecate", model, "1.0.0"): f"versions.deprecate {model}@1.0.0",
        ("versions", "activate", model, "0.9.0"): f"versions.activate {model}@0.9.0",
        ("versions", "publish", model, "1.0.0"): f"versions.publish {model}@1.0.0",
        ("versions", "unpublish", model, "1.1.0", "--force"): f"versions.unpublish {model}@1.1.0",
        ("versions", "retire", model, "0.8.0"): f"versions.retire {model}@0.8.0",
        ("versions", "delete", model, "0.8.0"): f"versions.delete {model}@0.8.0",
        ("aliases", "set", model, "live", "1.1.0"): f"aliases.put {model}@live",
        ("aliases", "delete", model, "live"): f"aliases.delete {model}@live",
        ("services", "create", "new", "--task", "chat", "--model", model): "services.create new",
        ("services", "update", service, "--set", "hardware=two cores"): f"services.update {service}",
        ("services", "switch", service, "1.0.0"): f"services.switch {service}",
        ("services", "rollback", service): f"services.rollback {service}",
        ("services", "publish", service): f"services.publish {service}",
        ("services", "delete", service): f"services.delete {service}",
    }
    for arguments, told in changes.items():
        rehearsed = serai(*arguments, "--dry-run")
        assert rehearsed.code == 0, (arguments, rehearsed.err)
        first, *lines = rehearsed.out.splitlines()
        assert first == "Nothing was changed. This would happen:"
        assert told in lines, (arguments, lines)
    as_json = serai("--json", "models", "update", model, "--name", "other", "--dry-run").json()
    assert (as_json["dry_run"], as_json["changes"][0]["after"]["name"]) == (True, "other")
    renamed = serai("models", "update", model, "--name", "other", "--dry-run")
    assert f"  name: {model} → other" in renamed.out
    idle = serai("services", "unpublish", service, "--dry-run")
    assert idle.out == "Nothing was changed. Nothing would happen.\n"
    assert serai("audit", "head").out == head


def test_a_rehearsal_refuses_what_the_change_would(serai: Callable[..., Outcome], model: str, service: str) -> None:
    """With the same code, so that it can be asked beforehand."""
    refused = serai("versions", "delete", model, "1.0.0", "--dry-run")
    assert (refused.code, "[VERSION_IN_USE]" in refused.err) == (1, True)
