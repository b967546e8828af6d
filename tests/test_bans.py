"""What has hit systems like this one is not written here: each ban is in force, and each is seen to bite.

Most bans are ruff's (pyproject.toml, `banned-api` and the S rules). What ruff cannot tell is checked here:
SQL built from strings, `assert` where input is judged, and what exactly the exempt files may use.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "serai"

BANNED = {
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import marshal": "TID251",
    "import shelve": "TID251",
    "import dill": "TID251",
    "import cloudpickle": "TID251",
    "import joblib": "TID251",
    "import yaml\nyaml.load('a')": "TID251",
    "import yaml\nyaml.unsafe_load('a')": "TID251",
    "import torch\ntorch.load('a')": "TID251",
    "from torch import load": "TID251",
    "import jinja2\njinja2.Environment()": "TID251",
    "from jinja2 import Template": "TID251",
    "from jinja2.environment import Template": "TID251",
    "import requests": "TID251",
    "import aiohttp": "TID251",
    "import httpx": "TID251",
    "from httpx import AsyncClient": "TID251",
    "import httpcore": "TID251",
    "import httpx2": "TID251",
    "from httpx2 import Client": "TID251",
    "import httpcore2": "TID251",
    "import http.client": "TID251",
    "import urllib.request": "TID251",
    "from urllib import request": "TID251",
    "from urllib.request import urlopen": "TID251",
    "import urllib3": "TID251",
    "import os\nos.environ['A']": "TID251",
    "from os import environ": "TID251",
    "import os\nos.getenv('A')": "TID251",
    "import time\ntime.time()": "TID251",
    "import time as clock\nclock.monotonic()": "TID251",
    "from time import perf_counter": "TID251",
    "import time\ntime.sleep(1)": "TID251",
    "import datetime\ndatetime.datetime.now(datetime.UTC)": "TID251",
    "from datetime import datetime\ndatetime.utcnow()": "TID251",
    "from datetime import datetime\ndatetime.today()": "TID251",
    "from datetime import date\ndate.today()": "TID251",
    "import random": "TID251",
    "import uuid": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import subprocess\nsubprocess.run('ls', shell=True)": "S602",
    "import subprocess\nsubprocess.Popen('ls ' + name, shell=True)": "S602",
    "import os\nos.system('ls')": "S605",
    "import os\nos.popen('ls')": "S605",
    "import tempfile\ntempfile.mktemp()": "S306",
    "import tarfile\ntarfile.open('a').extractall()": "S202",
    "import ssl\nssl._create_unverified_context()": "S323",
    "import hashlib\nhashlib.md5(b'')": "S324",
    "import xml.etree.ElementTree as tree\ntree.parse('a')": "S314",
    "query = f\"SELECT a FROM b WHERE c = '{name}'\"": "S608",
    "try:\n    act()\nexcept Exception:\n    pass": "BLE001",
    "print('a')": "T201",
    "from datetime import datetime\ndatetime.fromtimestamp(1)": "DTZ006",
    "from .text import a": "TID252",
}

# The doors through which what is banned elsewhere is done, and what each may use.
DOORS = {
    "cli/client.py": {"httpx"},
    "cli/demo.py": {"httpx", "os.environ"},  # a client of the server that it starts with an environment of its own
    "clock.py": {"datetime.datetime.now", "time.monotonic"},
    "ids.py": {"time.time_ns"},
    "outbound/blocking.py": {"httpx2"},  # the client that the hub's library is given
    "outbound/client.py": {"httpcore"},
    "outbound/connection.py": {"httpcore"},
    "outbound/pinning.py": {"httpcore"},
    "settings/loading.py": {"os.environ"},
}

JUDGES_OF_INPUT = ("api", "auth", "decode", "outbound")
"""Packages whose checks must hold under `python -O` as well."""

MAY_BUILD_SQL = ("storage/connect.py", "storage/database.py", "storage/notices.py", "storage/migrations/")
"""Pragmas, LISTEN and DDL take no parameters; what stands in them are constants of ours."""

SQL_TEXT = {"DDL", "literal_column", "text"}
"""Functions of SQLAlchemy that take SQL; methods that take it are `exec_driver_sql` and these:"""
SQL_RUN = {"execute", "executemany", "executescript"}


def ruff(*arguments: str) -> list[dict[str, str]]:
    """Return what ruff finds, as its JSON report."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the codes that ruff, as configured for the package, reports on each snippet of BANNED."""
    folder = tmp_path_factory.mktemp("snippets")
    paths = {str(folder / f"snippet_{number}.py"): snippet for number, snippet in enumerate(BANNED)}
    for path, snippet in paths.items():
        Path(path).write_text(snippet)
    codes: dict[str, set[str]] = {snippet: set() for snippet in BANNED}
    for finding in ruff("--config", "pyproject.toml", str(folder)):
        codes[paths[finding["filename"]]].add(finding["code"])
    return codes


@pytest.mark.parametrize("snippet", BANNED)
def test_a_ban_bites(findings: dict[str, set[str]], snippet: str) -> None:
    """Ruff, configured as for the package, refuses the snippet."""
    assert BANNED[snippet] in findings[snippet]


def test_a_door_is_used_for_its_purpose_alone() -> None:
    """A file that is exempt from the banned names uses those that it is exempt for, and no other."""
    used: dict[str, set[str]] = {}
    for finding in ruff("--config", "lint.per-file-ignores = {}", "--ignore-noqa", "--select", "TID251", str(PACKAGE)):
        name = finding["message"].split("`")[1]
        used.setdefault(Path(finding["filename"]).relative_to(PACKAGE).as_posix(), set()).add(name)
    assert used == DOORS


def sql_from_strings(tree: ast.AST) -> Iterator[int]:
    """Yield the lines where SQL is not a literal: text from a variable, or a statement put together."""
    names = sqlalchemy_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function, statement = ast.unparse(node.func), node.args[0]
        method = function.rpartition(".")[2]
        takes_text = method == "exec_driver_sql" or function in names
        if (takes_text and not isinstance(statement, ast.Constant)) or (method in SQL_RUN and is_built(statement)):
            yield node.lineno


def sqlalchemy_names(tree: ast.AST) -> set[str]:
    """Return how a module calls the functions of SQLAlchemy that take SQL: `sa.text`, `text`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] == "sqlalchemy"]
            names |= {f"{module}.{name}" for module in modules for name in SQL_TEXT}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlalchemy":
            names |= {alias.asname or alias.name for alias in node.names if alias.name in SQL_TEXT}
    return names


def is_built(value: ast.expr) -> bool:
    """Say whether the expression puts a string together: f-string, operator or format()."""
    formatted = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "format"
    return formatted or isinstance(value, ast.JoinedStr | ast.BinOp)


@pytest.mark.parametrize(
    "snippet",
    [
        'sa.text(f"SELECT {name}")',
        'text("SELECT " + name)',
        "sql(query)",
        'sqlalchemy.text(f"{query}")',
        'sa.text("SELECT %s" % name)',
        'sa.text("SELECT {}".format(name))',
        "sa.text(query)",
        "sa.literal_column(name)",
        "connection.exec_driver_sql(query)",
        'cursor.execute(f"SELECT {name}")',
        'cursor.execute("SELECT " + name)',
        'cursor.executescript("SELECT {}".format(name))',
    ],
)
def test_sql_put_together_is_found(snippet: str) -> None:
    """The check sees every way to put a value into SQL."""
    imports = "import sqlalchemy; import sqlalchemy as sa; from sqlalchemy import text, text as sql\n"
    assert list(sql_from_strings(ast.parse(imports + snippet))) == [2]


@pytest.mark.parametrize(
    "snippet",
    [
        'import sqlalchemy as sa\nsa.text("SELECT :name")',
        "row.text(value)",
        "connection.execute(sa.select(t).where(t.c.a == name))",
        'cursor.execute("BEGIN")',
    ],
)
def test_sql_with_parameters_is_left_alone(snippet: str) -> None:
    """Literals and statements of SQLAlchemy are the way to write it."""
    assert list(sql_from_strings(ast.parse(snippet))) == []


def test_no_sql_is_put_together() -> None:
    """Values reach a database as parameters; the exempt files hold constants of ours."""
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}:{line}"
        for path in PACKAGE.rglob("*.py")
        for line in sql_from_strings(ast.parse(path.read_text()))
    }
    assert {place for place in found if not place.startswith(MAY_BUILD_SQL)} == set()


def test_input_is_not_judged_by_assert() -> None:
    """`python -O` removes asserts, so nothing that guards a way in or out may be one."""
    found = [
        f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
        for package in JUDGES_OF_INPUT
        for path in sorted((PACKAGE / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_every_exception_to_a_rule_says_why() -> None:
    """Beside a `noqa`, and beside each rule that the configuration leaves out, stands the reason."""
    silent = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"#\s*(ruff:\s*)?noqa\b", line)
        and not re.search(r"noqa: [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*\W+\w", line)
    ]
    lists = re.findall(
        r"^(?:ignore|\"tests/\*\") = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(lists) == 2
    silent += [line for block in lists for line in block.splitlines() if not re.search(r'",\s+# \w', line)]
    assert silent == []
