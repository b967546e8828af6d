"""The core decides and never acts."""

import ast
from pathlib import Path

import pytest

import serai.registry
from serai.errors import Conflict, Forbidden, InvalidInput, NotFound, SeraiError
from serai.registry import errors

PURE = (
    "canonical",
    "cards",
    "checks",
    "decision",
    "diff",
    "errors",
    "failure",
    "governance",
    "licences",
    "lifecycle",
    "model",
    "parameters",
    "plan",
    "policy",
    "reference",
    "rules",
    "schema_diff",
    "semver",
    "service",
    "snapshot",
    "source",
    "version",
)
FOLDER = Path(serai.registry.__path__[0])
FORBIDDEN = {
    "asyncio",
    "anyio",
    "time",
    "sqlalchemy",
    "sqlite3",
    "subprocess",
    "multiprocessing",
    "os",
    "threading",
} | {
    "logging",
    "structlog",
    "pydantic",
    "fastapi",
    "httpx",
    "socket",
    "random",
}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_imports_nothing_that_acts(name: str) -> None:
    """No loop, clock, database, process, log or network, and of this project only errors and itself."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text("utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not {module.split(".")[0] for module in imported} & FORBIDDEN
    ours = {module for module in imported if module.startswith("serai")}
    assert ours <= {"serai.errors", *(f"serai.registry.{other}" for other in PURE)}


LEAVES = [leaf for leaf in vars(errors).values() if isinstance(leaf, type) and leaf.__module__ == errors.__name__]


def test_the_codes_of_the_specification() -> None:
    """Each code that the specification names belongs to the family that has its HTTP status."""
    families = {
        "VERSION_ALREADY_EXISTS": Conflict,
        "VERSION_NOT_FOUND": NotFound,
        "IMMUTABLE_VERSION": Forbidden,
        "ACTIVE_VERSION_LIMIT_EXCEEDED": Conflict,
        "INVALID_VERSION_FORMAT": InvalidInput,
        "DEPRECATED_VERSION": Conflict,
        "SERVICE_VERSION_SWITCH_ERROR": Conflict,
        "VERSION_IN_USE": Conflict,
    }
    by_code = {leaf.code: leaf for leaf in LEAVES}
    for code, family in families.items():
        assert issubclass(by_code[code], family), code


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_error_says_the_next_call(leaf: type[SeraiError]) -> None:
    """Each leaf has a code of its own and a hint."""
    assert leaf("x").hint
    assert sum(other.code == leaf.code for other in LEAVES) == 1
