"""What the documents tell a reader to type works: commands parse, calls are answered, links lead somewhere."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from serai.api.access import SecuredRoute
from serai.app import create_app
from serai.cli.main import app as command_line
from serai.settings import Settings
from support.process import ServerProcess, environment, serving

ROOT = Path(__file__).parents[2]
MEANT = ("SERAI_SECRET_", "SERAI_PROT")
"""Variables that documents name and no setting has: named secrets, and the example of a typing error."""
ADDRESS = "http://127.0.0.1:8713"
LANGUAGES = ("sh", "python", "json", "toml", "text", "mermaid")
RUNNABLE = ("curl", "serai", "export", "cat")
PRELUDE = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail "$@"; }\nexport -f curl\n'


@dataclass(frozen=True)
class Block:
    """A block of code in a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a block of `sh`: lines joined where they go on, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

    @property
    def is_runnable(self) -> bool:
        """Whether all of it can run against a server that runs already."""
        return all(can_run(command) for command in self.commands())


def can_run(command: str) -> bool:
    """Say whether a command is a call of a running server, and needs nothing else."""
    first = command.split(maxsplit=1)[0]
    assigned = re.match(r"\w+=\$\((\w+)", command)
    word = assigned[1] if assigned else first
    return word in RUNNABLE and not re.search(r"\bserai (serve|demo)\b|db (upgrade|downgrade|import-legacy)\b", command)


def documents() -> list[Path]:
    """Return every document of the project."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document."""
    text = path.read_text("utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(str(path.relative_to(ROOT)), text[: found.start()].count("\n") + 1, found[1], found[2])


ALL = [block for path in documents() for block in blocks(path)]


def serai_lines(block: Block) -> Iterator[list[str]]:
    """Yield the arguments of every `serai …` in a block, inside substitutions and behind variables too."""
    for command in block.commands():
        for found in re.finditer(r"(?:^|[\s(|;&])serai ([^()|;&<>]*)", command.replace("$(", " ( ")):
            yield shlex.split(found[1])


def parse(arguments: list[str]) -> None:
    """Parse a command line as `serai` would, and run nothing. Raises what typer raises for wrong usage."""
    command: Any = typer.main.get_command(command_line)
    name = "serai"
    while True:
        context = command.make_context(name, list(arguments), resilient_parsing=arguments == ["--version"])
        rest = [*context._protected_args, *context.args]
        if not hasattr(command, "commands"):
            assert not rest, f"too many: {rest}"
            return
        if arguments == ["--version"]:
            return
        name, command, arguments = command.resolve_command(context, rest)


@pytest.mark.parametrize(
    "block", [block for block in ALL if block.language == "sh"], ids=lambda b: f"{b.document}:{b.line}"
)
def test_every_command_line_parses(block: Block) -> None:
    """Each `serai …` in a block of sh names a command that there is, with options that it has."""
    for arguments in serai_lines(block):
        parse(arguments)


def test_a_command_line_that_is_wrong_is_noticed() -> None:
    """What the test above asks can be answered with no."""
    parse(["keys", "create", "a", "--role", "user"])
    for words in ("kyes list", "keys create", "keys create a --rol user", "keys list a"):
        with pytest.raises(Exception, match=r"(?i)no such|missing|unexpected|got"):
            parse(words.split())
    text = "x=$(serai keys list) | serai db backup \\\n a\n# serai nothing\nA=1 serai jobs list > b"
    lines = list(serai_lines(Block("a", 1, "sh", text)))
    assert lines == [["keys", "list"], ["db", "backup", "a"], ["jobs", "list"]]


def test_every_block_with_a_call_can_be_run() -> None:
    """A curl that stands beside what cannot run here would not be checked: it has a block of its own."""
    mixed = [str(block) for block in ALL if "curl " in block.text and not block.is_runnable]
    assert mixed == []


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose home is ~/.serai, as the documents have it."""
    with serving(tmp_path / ".serai") as server:
        yield server


def environment_of(server: ServerProcess) -> dict[str, str]:
    """Return the environment of somebody who sits at that server's machine."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**environment(port=str(server.port)), "HOME": str(server.home.parent), "PATH": path}


def run(server: ServerProcess, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a program in a folder of the test, and return what it did."""
    folder = server.home.parent / "work"
    folder.mkdir(exist_ok=True)
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(picture, "PNG")
    (folder / "photo.png").write_bytes(picture.getvalue())
    return subprocess.run(
        command, cwd=folder, env=environment_of(server), capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="NOT TESTED: curl is not installed (apt install curl)")
@pytest.mark.parametrize("document", sorted({b.document for b in ALL if b.language == "sh" and "curl " in b.text}))
def test_what_a_document_tells_to_type_works(document: str, beside: ServerProcess) -> None:
    """Its blocks, one after the other in one shell, against a real server: all succeed, and every curl gets 2xx."""
    chosen = [block for block in ALL if block.document == document and block.language == "sh" and block.is_runnable]
    script = PRELUDE + "".join(f"echo '@ line {block.line}' >&2\n{block.text}" for block in chosen)
    done = run(beside, ["bash", "-c", script.replace(ADDRESS, beside.url)])
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"


def test_a_refused_call_in_a_document_is_noticed(beside: ServerProcess) -> None:
    """What the test above asks can be answered with no."""
    assert run(beside, ["bash", "-c", f"{PRELUDE}curl {beside.url}/live"]).returncode == 0
    assert run(beside, ["bash", "-c", f"{PRELUDE}curl {beside.url}/users\necho went on"]).returncode != 0
    assert run(beside, ["bash", "-c", f"{PRELUDE}serai keys create\necho went on"]).returncode != 0


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "python"], ids=str)
def test_every_program_runs(block: Block, beside: ServerProcess) -> None:
    """Blocks of python run as they stand, with the address and the key in the environment, without a warning."""
    source = f"import os\nos.environ['SERAI_API_KEY'] = {beside.admin_key!r}\n{block.text.replace(ADDRESS, beside.url)}"
    done = run(beside, [sys.executable, "-W", "error", "-c", source])
    assert done.returncode == 0, done.stderr


def test_blocks_have_languages_that_are_checked() -> None:
    """A fence without a language, or with another, would be checked by nobody."""
    odd = {f"{b.document}:{b.line} {b.language}" for b in ALL if b.language not in LANGUAGES}
    assert odd == set()


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_there_are(path: Path) -> None:
    """Links between documents, and the headings that they name."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings], target


def test_the_public_routes_are_those_that_are_listed(tmp_path: Path) -> None:
    """The table in the explanation of security is the whole list of what answers without a key."""
    page = (ROOT / "docs" / "explanation" / "security.md").read_text("utf-8")
    routes = [route for route in create_app(Settings(home=tmp_path)).routes if isinstance(route, SecuredRoute)]
    public = {f"{method} {route.path}" for route in routes if route.access is None for method in route.methods or ()}
    assert set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", page, re.MULTILINE)) == public


def test_the_settings_that_documents_name_exist() -> None:
    """Each SERAI_… variable in a document is one that the server or the command line reads."""
    known = {f"SERAI_{name.upper()}" for name in Settings.model_fields} | {"SERAI_CONFIG", "SERAI_URL", "SERAI_API_KEY"}
    for path in documents():
        for name in set(re.findall(r"\bSERAI_[A-Z][A-Z_]*\b", path.read_text("utf-8"))):
            assert name.removesuffix("_FILE") in known or name.startswith(MEANT), f"{path.name}: {name}"
