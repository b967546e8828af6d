"""The reference says what the code does: nothing is missing in it, and nothing in it is stale."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structlog
import typer

from serai.api.access import SecuredRoute
from serai.app import create_app
from serai.cli.main import app as command_line
from serai.settings import Settings, load
from support.api import running
from support.tree import all_errors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The program that writes the reference."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # dataclasses look their module up
    logging = structlog.get_config()
    spec.loader.exec_module(module)
    yield module
    structlog.configure(**logging)
    del sys.modules["generate"]


@pytest.fixture(scope="module")
def written(generate: ModuleType) -> dict[str, str]:
    """What it would write now."""
    files: dict[str, str] = generate.everything()
    return files


def test_nothing_is_stale(written: dict[str, str], generate: ModuleType) -> None:
    """Every generated file is what the code says; if not, the message is the command to run."""
    stale = [name for name, text in written.items() if (ROOT / name).read_text("utf-8") != text]
    assert stale == [], f"run: {generate.COMMAND}"


def test_every_setting_is_there(written: dict[str, str]) -> None:
    """In the table and in the example file, with its variable."""
    for name in Settings.model_fields:
        assert f"\n| `{name}` | " in written["docs/reference/settings.md"]
        assert re.search(rf"^#( \()?{name}\b", written["serai.toml.example"], re.MULTILINE), name
        if name != "secrets":
            for text in (written["docs/reference/settings.md"], written["serai.toml.example"]):
                assert re.search(rf"\bSERAI_{name.upper()}\b", text), name


def test_every_error_is_there(written: dict[str, str]) -> None:
    """The codes that the source has are those of the classes as they are when they run, with their statuses."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|", written["docs/reference/errors.md"], re.MULTILINE)
    assert sorted(rows) == sorted(kind.code for kind in all_errors())


def test_every_route_is_there(written: dict[str, str], tmp_path: Path) -> None:
    """Each with its role, under its scope."""
    page = written["docs/reference/api.md"]
    under = dict(re.findall(r"^## Scope `(\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for route in create_app(Settings(home=tmp_path)).routes:
        assert isinstance(route, SecuredRoute)
        access = "public" if route.access is None else route.access.label
        for method in route.methods or ():
            assert f"\n| `{method} {route.path}` | {access} | " in under[route.scope]


@pytest.mark.anyio
async def test_every_metric_is_there(written: dict[str, str], tmp_path: Path) -> None:
    """What /metrics of a running server tells, and nothing else."""
    async with running(tmp_path / "home") as server:
        page = (await server.admin.get("/metrics")).text
    told = {name for name in re.findall(r"^# TYPE (serai_\w+) ", page, re.MULTILINE) if not name.endswith("_created")}
    listed = set(re.findall(r"^\| `(serai_\w+)` \|", written["docs/reference/metrics.md"], re.MULTILINE))
    assert told == listed


def test_every_command_is_there(written: dict[str, str], generate: ModuleType) -> None:
    """With every option that it has."""
    page = written["docs/reference/cli.md"]
    for path, command in generate.commands(typer.main.get_command(command_line)):
        heading = " ".join(("serai", *path))
        part = re.search(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
        assert part, heading
        for parameter in command.params:
            for option in parameter.opts:
                assert option.lower() in part[1].lower(), f"{heading} {option}"


def test_the_example_file_is_a_settings_file(written: dict[str, str], tmp_path: Path) -> None:
    """As it is it changes nothing; with every line uncommented each value is allowed, and is the default."""
    plain, full = tmp_path / "plain.toml", tmp_path / "full.toml"
    plain.write_text(written["serai.toml.example"], "utf-8")
    full.write_text(re.sub(r"^#(?=\w)", "", written["serai.toml.example"], flags=re.MULTILINE), "utf-8")
    defaults = load({}, plain)
    assert defaults == Settings()
    loaded = load({}, full)
    assert len([line for line in full.read_text("utf-8").splitlines() if re.match(r"\w+ = ", line)]) >= 40
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            assert getattr(loaded, name) == getattr(defaults, name), name
        elif field.examples:
            assert str(getattr(loaded, name)) == str(field.examples[0])


def test_the_check_finds_what_was_changed(
    generate: ModuleType,
    written: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--check` names the files that differ and the command, and writes nothing; without it they are written."""
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "everything", lambda: written)
    assert generate.run(["--check"]) == 1
    assert not list(tmp_path.iterdir())
    assert generate.run([]) == 0
    assert generate.run(["--check"]) == 0
    (tmp_path / "docs/reference/cli.md").write_text("changed")
    capsys.readouterr()
    assert generate.run(["--check"]) == 1
    assert capsys.readouterr().err == f"not what the code says: docs/reference/cli.md; run '{generate.COMMAND}'\n"
    assert generate.run(["--chekc"]) == 2
