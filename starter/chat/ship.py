"""Puts the trained model into the package: OpenVINO's form at 8 bits, and the card that the registry ships with.

python -m starter.chat.ship
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "serai"
FOLDER = PACKAGE / "starters" / "starter-chat"
CARD = PACKAGE / "registry" / "cards" / "starter-chat.toml"
MOST_BYTES = 12 * 10**6


def main() -> None:
    """Convert, copy, and write the card; refuses a model that is too large to ship."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        request = {"source": str(HERE / "out"), "target": str(made), "quantization": "int8"}
        subprocess.run([sys.executable, "-m", "serai.pulls.conversion", json.dumps(request)], check=True)
        size = sum(path.stat().st_size for path in made.iterdir())
        if size > MOST_BYTES:
            raise SystemExit(f"{size} bytes are more than the {MOST_BYTES} that may ship")
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.copytree(made, FOLDER)
    CARD.write_text(card(json.loads((HERE / "card.json").read_text("utf-8"))), "utf-8")
    print(f"{FOLDER}: {size} bytes")


def card(told: Mapping[str, Any]) -> str:
    """Return the registry's card from what the training and the evaluation say."""
    version = told["version"]
    lines = ["# Written by starter/chat/ship.py from card.json and the files that ship.", "[model]"]
    lines += [f"{name} = {_toml(value)}" for name, value in told["model"].items()]
    lines += ["", "[[versions]]", f'version = "{version["version"]}"']
    lines += [f"release_notes = {_toml(version['architecture'])}"]
    lines += ['source = { kind = "package", name = "starter-chat" }', 'engine = "openvino-genai"']
    lines += ['quantization = "int8"', 'memory_class = "low"', f"capabilities = {_toml(version['capabilities'])}"]
    lines += [f'licence = "{version["licence"]}"', "files = ["]
    lines += [f"  {_toml(entry)}," for entry in _files()]
    lines += ["]", "benchmarks = ["]
    lines += [f"  {_toml(entry)}," for entry in _benchmarks(told["evaluation"])]
    lines += ["]", "", "[versions.parameters]"]
    lines += [f"{name} = {_toml(value)}" for name, value in version["parameters"].items()]
    return "\n".join(lines) + "\n"


def _benchmarks(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each set of questions that was put to the model."""
    return [
        {
            "name": f"starter/chat: {name.replace('_', ' ')}",
            "dataset": f"{figures['questions']} questions",
            "metric": "share answered rightly",
            "value": figures["share"],
        }
        for name, figures in evaluation.items()
        if isinstance(figures, Mapping) and "share" in figures
    ]


def _files() -> list[dict[str, Any]]:
    found = sorted(path for path in FOLDER.iterdir() if path.is_file())
    return [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in found
    ]


def _toml(value: Any) -> str:
    """Return a value of JSON as TOML: the same, but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
