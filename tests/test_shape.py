"""The shape of the code: small modules, small functions, small seams, plain names, documents that name what exists."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "serai"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
USUAL_FUNCTION_LINES = 40
USUAL_SHARE = 0.95
MAX_SEAM_METHODS = 7
MAX_DESIGN_LINES = 120  # two pages

SHAPELESS = {"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"}
"""Names that say nothing of what a module is about, so that it grows without end."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    name: str
    size: int


def lines(node: Function) -> int:
    """Return the length of a function with its signature and docstring, without its decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield every function, method and inner function."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def seams(tree: ast.AST) -> Iterator[Measured]:
    """Yield each protocol with the number of its public methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(is_named(base, "Protocol") for base in node.bases):
            public = [entry for entry in node.body if isinstance(entry, Function) and not entry.name.startswith("_")]
            yield Measured(name=node.name, size=len(public))


def is_named(base: ast.expr, name: str) -> bool:
    """Say whether a base class is `name`, plain, dotted or with type parameters."""
    target = base.value if isinstance(base, ast.Subscript) else base
    return (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")) == name


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Return the parsed modules of the package by their path in it."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def test_modules_are_small() -> None:
    """Nobody needs to scroll far: a module is one thought."""
    sizes = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES} == {}


def test_functions_are_small(trees: dict[str, ast.Module]) -> None:
    """A function fits on a screen, and nearly all of them on half of one. Migrations are lists; they may be long."""
    found = [
        Measured(name=f"{path}:{node.name}", size=lines(node))
        for path, tree in trees.items()
        if not path.startswith("storage/migrations/versions/")
        for node in functions(tree)
    ]
    assert [function for function in found if function.size > MAX_FUNCTION_LINES] == []
    long = sorted(f"{function.name} {function.size}" for function in found if function.size > USUAL_FUNCTION_LINES)
    assert len(long) <= len(found) * (1 - USUAL_SHARE), long


def test_seams_are_small(trees: dict[str, ast.Module]) -> None:
    """A protocol that another implementation must fulfil asks for few things."""
    found = [seam for tree in trees.values() for seam in seams(tree)]
    assert found
    assert [seam for seam in found if seam.size > MAX_SEAM_METHODS] == []


def test_modules_are_named_for_what_they_are_about(trees: dict[str, ast.Module]) -> None:
    """No drawer for what has no place: in the package and in the tests."""
    paths = [*trees, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))]
    words = {path: set(re.split(r"[/._]", path)) for path in paths}
    assert {path: sorted(found & SHAPELESS) for path, found in words.items() if found & SHAPELESS} == {}


def test_every_test_says_what_it_shows() -> None:
    """The first line of a test's docstring is the behaviour."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in functions(ast.parse(path.read_text()))
        if node.name.startswith("test_") and not (ast.get_docstring(node) or "").strip()
    ]
    assert silent == []


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines or imports, and the words of its literals (table names, states)."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg | ast.alias):
            yield (node.arg if isinstance(node, ast.arg) else node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def identifiers(document: str) -> list[str]:
    """Return the names of code that a document quotes: `Dotted.names` and `CamelCase`, without arguments."""
    quoted = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", document)
    plain = [re.sub(r"\(.*\)$", "", text) for text in quoted]
    return [text for text in plain if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+|[A-Z]+[a-z]\w*", text)]


def is_known(identifier: str, known: set[str]) -> bool:
    """Say whether a name is the package's, a file's of the project, or an installed library's."""
    parts = identifier.split(".")
    if all(part in known for part in parts) or any(PACKAGE.rglob(identifier)) or (ROOT / identifier).exists():
        return True
    return len(parts) > 1 and parts[0] not in known and importlib.util.find_spec(parts[0]) is not None


def test_design_notes_are_short_and_name_what_exists(trees: dict[str, ast.Module]) -> None:
    """A DESIGN.md is two pages at most, and what it names is in the code: notes that outlive the code mislead."""
    known = {name for tree in trees.values() for name in names_in(tree)} | {"serai", "None", "True", "False"}
    known |= {part for path in trees for part in path.removesuffix(".py").split("/")}
    problems = []
    for note in sorted(PACKAGE.rglob("DESIGN.md")):
        text = note.read_text()
        place = note.relative_to(PACKAGE).as_posix()
        if len(text.splitlines()) > MAX_DESIGN_LINES:
            problems.append(f"{place} is longer than {MAX_DESIGN_LINES} lines")
        problems += [f"{place}: {name}" for name in identifiers(text) if not is_known(name, known)]
    assert problems == []


SAMPLE = '''
class Wide(Protocol[T]):
    def one(self): ...
    async def two(self): ...
    def _own(self): ...

class Plain(typing.Protocol): ...

@decorated
def long(
    a,
):
    """Say."""
    return a
'''


def test_the_measures_measure() -> None:
    """What the tests above count is what they say."""
    tree = ast.parse(SAMPLE)
    assert list(seams(tree)) == [Measured(name="Wide", size=2), Measured(name="Plain", size=0)]
    assert {node.name: lines(node) for node in functions(tree)}["long"] == 5
    text = "`a.b` and `Job` by `run(x.y)`, `jobs.claim(connection)` but not `plain text`, `ALL`, `word`, ```x.y```"
    assert identifiers(text) == ["a.b", "Job", "jobs.claim"]
    known = set(names_in(ast.parse("class Job:\n state: int\ndef claim(connection): ...\nKINDS = ('digest',)")))
    assert known >= {"Job", "state", "claim", "connection", "KINDS", "digest"}
    assert is_known("Job.state", known)
    assert is_known("asyncio.Event", known)
    assert not is_known("Job.gone", known)
    assert not is_known("Gone", known)
