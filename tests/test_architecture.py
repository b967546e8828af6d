"""The layers and the further contracts of pyproject.toml hold, and each of them can be broken."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import serai

ROOT = Path(__file__).parents[1]
PACKAGE = Path(serai.__file__).parent
CONFIGURATION = str(ROOT / "pyproject.toml")

# One import per contract that it must refuse: the module, and what it must not import.
VIOLATIONS = {
    "layers": ("storage/database.py", "import serai.registry"),
    "exhaustive": ("newcomer/__init__.py", ""),
    "dialects": ("api/openai/__init__.py", "import serai.api.native"),
    "sql": ("registry/policy_rows.py", "import sqlalchemy"),
    "http": ("registry/web.py", "import starlette"),
    "heavy": ("telemetry/gpu.py", "import torch"),
    "pure": ("registry/semver.py", "import serai.errors, time"),
}
NAMES = {
    "exhaustive": "A module imports only from layers below it",
    "layers": "A module imports only from layers below it",
    "dialects": "The dialects of the API do not know each other",
    "sql": "SQL only in storage and in stores",
    "http": "HTTP frameworks only in the API",
    "heavy": "Heavy libraries only in engines",
    "pure": "What decides does not act",
}

# What no server process may hold: it belongs to workers, to children, or to commands.
NEVER_IN_THE_SERVER = {
    "accelerate", "alembic", "av", "cv2", "diffusers", "jinja2", "numpy", "onnx", "onnxruntime", "openvino", "peft",
    "PIL", "ray", "scipy", "torch", "transformers", "vllm",
}  # fmt: skip


def test_every_contract_is_kept() -> None:
    """The package obeys its layers and contracts; the captured output says which import breaks one."""
    assert lint_imports(config_filename=CONFIGURATION, no_cache=True, no_logo=True) == EXIT_STATUS_SUCCESS


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a package of the same modules as ours, all of them empty."""
    folder = tmp_path_factory.mktemp("skeleton")
    for source in PACKAGE.rglob("*.py"):
        copy = folder / "serai" / source.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return folder


def lint(folder: Path) -> str:
    """Return the report on the package `serai` in `folder`, white space as single spaces."""
    program = "from importlinter.cli import lint_imports_command as run; run()"
    arguments = ["--config", CONFIGURATION, "--no-cache", "--no-logo"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_the_bare_skeleton_keeps_every_contract(skeleton: Path) -> None:
    """What the next test finds is the violation, not the skeleton."""
    assert "0 broken" in lint(skeleton)


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_violation_is_reported(skeleton: Path, contract: str) -> None:
    """One wrong import breaks its contract, and no other."""
    place, violation = VIOLATIONS[contract]
    module = skeleton / "serai" / place
    existed = module.exists()
    module.parent.mkdir(exist_ok=True)
    module.write_text(violation)
    report = lint(skeleton)
    module.write_text("")
    if not existed:
        module.unlink()
        if not any(module.parent.iterdir()):
            module.parent.rmdir()
    assert re.search(rf"{NAMES[contract]}[^.]*? BROKEN", report)
    assert " 1 broken" in report


def loaded(module: str) -> set[str]:
    """Return the names of the modules that are loaded after the import of `module` in a fresh process."""
    program = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_application_loads_no_heavy_library() -> None:
    """The server process starts within a second, and holds no decoder and no model library."""
    modules = loaded("serai.app")
    assert "fastapi" in modules
    assert modules & NEVER_IN_THE_SERVER == set()


def test_the_command_line_loads_little() -> None:
    """`serai --help` needs neither the server nor its libraries: counted, since time varies by machine."""
    modules = loaded("serai.cli.main")
    assert modules & (NEVER_IN_THE_SERVER | {"fastapi", "pydantic", "sqlalchemy", "httpx", "serai.app"}) == set()
    assert len(modules) < 250  # 0.07 s; the server has about 1,000


def test_the_context_of_a_request_is_light() -> None:
    """What every part may import pulls in no logging library."""
    assert "structlog" not in loaded("serai.telemetry.context")
