"""Puts the trained pipeline into the package: OpenVINO's form at 8 bits, its styles, and the registry's card.

python -m starter.image.ship
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serai.pulls.conversion.pipelines import export_pipeline

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "serai"
NAME = "starter-image"
STARTERS = PACKAGE / "starters"
CARD = PACKAGE / "registry" / "cards" / f"{NAME}.toml"
STYLES = ("outline", "pastel")
MOST_BYTES = 14 * 10**6
QUANTIZATION = "int8"
METRICS = {
    "right": "share drawn rightly",
    "hollow_in_colour": "share in the style and colour",
    "named_colour_without": "share with the colour, no negative prompt",
    "named_colour_with": "share with the colour that the negative prompt names",
}


def main() -> None:
    """Convert and copy, or only write the card anew; refuses a model that is too large to ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card-alone", action="store_true", help="after an evaluation of what ships")
    options = parser.parse_args()
    if not options.card_alone:
        convert(HERE / "out")
    CARD.write_text(card(json.loads((HERE / "card.json").read_text("utf-8")), evaluation()), "utf-8")
    print(f"{sum(entry['size'] for name in _folders() for entry in _files(name))} bytes")


def convert(out: Path) -> None:
    """Write the folders of the pipeline and of its styles."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        export_pipeline(out / "pipeline", made, quantization=QUANTIZATION, report=lambda stage, share: None)
        for config in made.glob("*/config.json"):
            forget_origin(config)
        folders = {NAME: made, **{f"{NAME}-{style}": out / f"{NAME}-{style}" for style in STYLES}}
        size = sum(path.stat().st_size for folder in folders.values() for path in folder.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise SystemExit(f"{size} bytes are more than the {MOST_BYTES} that may ship")
        for name, folder in folders.items():
            shutil.rmtree(STARTERS / name, ignore_errors=True)
            shutil.copytree(folder, STARTERS / name, copy_function=shutil.copyfile)


def forget_origin(config: Path) -> None:
    """Remove from a configuration the folder that it was read from, which is nobody else's."""
    told = json.loads(config.read_text("utf-8"))
    told.pop("_name_or_path", None)
    config.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def evaluation() -> Mapping[str, Any]:
    """Return the figures of what ships, or nothing before it was evaluated."""
    path = HERE / "evaluation.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def card(told: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Return the registry's card from what is told of the model, the files that ship and the figures."""
    version = told["version"]
    adapters = [
        {"id": style, "scale": 0.0, "source": {"kind": "package", "name": f"{NAME}-{style}"}} for style in STYLES
    ]
    lines = ["# Written by starter/image/ship.py from card.json, evaluation.json and the files that ship.", "[model]"]
    lines += [f"{name} = {_toml(value)}" for name, value in told["model"].items()]
    lines += ["", "[[versions]]", f'version = "{version["version"]}"']
    lines += [f"release_notes = {_toml(version['architecture'])}"]
    lines += [f'source = {{ kind = "package", name = "{NAME}" }}', 'engine = "openvino-image"']
    lines += [f'quantization = "{QUANTIZATION}"', 'memory_class = "low"', "adapters = ["]
    lines += [f"  {_toml(entry)}," for entry in adapters]
    lines += ["]", f"capabilities = {_toml(version['capabilities'])}"]
    lines += [f'licence = "{version["licence"]}"', "files = ["]
    lines += [f"  {_toml(entry)}," for entry in _files(NAME)]
    lines += ["]", "benchmarks = ["]
    lines += [f"  {_toml(entry)}," for entry in _benchmarks(figures)]
    lines += ["]", "", "[versions.parameters]"]
    lines += [f"{name} = {_toml(value)}" for name, value in version["parameters"].items()]
    return "\n".join(lines) + "\n"


def _benchmarks(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"starter/image: {name}",
            "dataset": f"{row['pictures']} pictures",
            "metric": METRICS[metric],
            "value": value,
        }
        for name, row in figures.items()
        if isinstance(row, Mapping)
        for metric, value in row.items()
        if metric in METRICS
    ]


def _folders() -> tuple[str, ...]:
    return (NAME, *(f"{NAME}-{style}" for style in STYLES))


def _files(name: str) -> list[dict[str, Any]]:
    folder = STARTERS / name
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
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
