"""The two pages about versions: what they print is what is printed, and their tables are the code's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serai.api.errors import STATUS
from serai.registry import errors
from serai.registry.lifecycle import MOVES
from serai.registry.version import Status
from serai.settings import Settings
from support.process import environment, serving
from support.tree import all_errors

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to" / "versioning.md"
QUICK = ROOT / "docs" / "reference" / "versioning-quick.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def diagram() -> str:
    """Return the states as Mermaid draws them."""
    lines = ["stateDiagram-v2", "    [*] --> draft", "    [*] --> active"]
    for before in Status:
        lines += [f"    {before} --> {after}" for after in Status if after in MOVES[before]]
    return "\n".join(lines) + "\n"


def test_the_diagram_is_the_table_of_moves() -> None:
    """Every move that there is, and no other; if not, the message is the text to put there."""
    drawn = [text for language, text in BLOCK.findall(HOW_TO.read_text("utf-8")) if language == "mermaid"]
    assert drawn == [diagram()], diagram()


def test_the_quick_table_of_moves_is_the_table_of_moves() -> None:
    """Deleting apart, which the sentence below it tells of all."""
    page = QUICK.read_text("utf-8")
    for before in (Status.DRAFT, Status.ACTIVE, Status.DEPRECATED, Status.RETIRED):
        after = ", ".join(one for one in Status if one in MOVES[before] and one is not Status.TOMBSTONE)
        assert re.search(rf"^\| {before} \| {after} ?\| ", page, re.MULTILINE), before
        assert Status.TOMBSTONE in MOVES[before]


def test_every_code_of_the_registry_is_explained_with_its_status() -> None:
    """In the table of the long page; the short one has none that the long one has not."""
    told: dict[str, int] = {}
    for codes, status in re.findall(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \| (\d+) \|", HOW_TO.read_text(), re.MULTILINE):
        told.update({code: int(status) for code in re.findall(r"[A-Z_]+", codes)})
    families = {
        kind.code: next(STATUS[base] for base in kind.__mro__ if base in STATUS)
        for kind in all_errors()
        if kind.__module__ == errors.__name__
    }
    assert told == families
    short = re.findall(r"`([A-Z_]{8,})` \| (\d+)", QUICK.read_text("utf-8"))
    assert short
    assert {code: int(status) for code, status in short}.items() <= told.items()


def test_the_settings_have_the_defaults_that_the_page_tells() -> None:
    """Each row of the table: the name, its default, its variable."""
    rows = re.findall(r"^\| `(\w+)` \| `?([\w-]+)`? \| `(\w+)` \|$", HOW_TO.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 7
    for name, default, variable in rows:
        assert str(Settings.model_fields[name].default).lower() == default.lower(), name
        assert variable == f"SERAI_{name.upper()}"


def matches(expected: str, printed: str) -> bool:
    """Say whether a text was printed as a page shows it: '…' stands for anything, blank space at ends for none."""
    lines = [line.rstrip() for line in expected.strip().splitlines()]
    pattern = "\n".join(re.escape(line) for line in lines)
    pattern = re.sub(r"^…$", "(?:.|\n)*", pattern, flags=re.MULTILINE).replace("…", ".*")
    got = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, got) is not None


def test_the_comparison_can_fail() -> None:
    """Anything where the dots are, and nothing else anywhere."""
    assert matches("a\n…\nd …\n", "a  \nb\nc\nd and e\n")
    assert not matches("a\n…\nd\n", "a\nb\nc\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("a.c\n", "abc\n")


@pytest.mark.parametrize("page", [HOW_TO, QUICK], ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_is_printed(page: Path, tmp_path: Path) -> None:
    """Its commands in order in one shell; a block of text after one of commands is what they print."""
    found = [
        (language, text) for language, text in BLOCK.findall(page.read_text("utf-8")) if language in ("sh", "text")
    ]
    commands = [text for language, text in found if language == "sh" and "import-legacy" not in text]
    script = 'set -eu\ncurl() { command curl --silent --show-error --fail "$@"; }\n'
    script += "".join(f"echo '@@@'\n{text}\n" for text in commands)
    with serving(tmp_path / ".serai") as server:
        folder = Path(sys.executable).parent
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        variables = {**environment(port=str(server.port)), "HOME": str(tmp_path), "PATH": path}
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n{script.replace('http://127.0.0.1:8713', server.url)}"],
            capture_output=True, text=True, env=variables, check=False, timeout=100, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    printed = done.stdout.split("@@@\n")[1:]
    assert len(printed) == len(commands)
    for place, (language, text) in enumerate(found):
        if language == "text":
            got = printed[commands.index(found[place - 1][1])]
            assert matches(text, got), f"{page.name} shows:\n{text}\nbut this is printed:\n{got}"
