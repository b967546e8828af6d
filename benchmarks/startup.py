"""How soon the server is ready, and what it costs to have it idle.

    python benchmarks/startup.py [--runs 5] [--json FILE]

Each run starts `serai serve` as a process of its own in a temporary home: once in a fresh one (which
makes the database and the first key) and then again in the same. Ready is the first 200 of /ready;
idle is the resident memory (RSS) of the process and its children, a second later, with nothing asked.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import httpx  # noqa: E402 - keeps the imports together

from support.memory import resident  # noqa: E402 - needs the path
from support.process import serving  # noqa: E402 - needs the path

READY_S, IDLE_MIB = 2.0, 120.0
"""What the server promises on the machine that it is developed on: two cores, no GPU."""
MIB = 2**20


def measure(home: Path) -> dict[str, float]:
    """Start, wait until it is ready, let it be for a second, weigh it, stop it."""
    started = time.perf_counter()
    with serving(home, log_level="error") as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.005)
            ready = time.perf_counter() - started
        time.sleep(1)
        idle = resident(server.pid, shared_in_full=True) / MIB
        began = time.perf_counter()
        server.terminate()
        server.wait()
        return {"ready_s": ready, "idle_mib": idle, "stop_s": time.perf_counter() - began}


def command_line() -> float:
    """Return the seconds of `serai --help`, which must not load the server."""
    import subprocess

    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "serai", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "startup.json")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"first start": [], "start again": []}
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="serai-startup-") as folder:
            for found in runs.values():
                found.append(measure(Path(folder) / "home"))
    table = {kind: {name: [run[name] for run in found] for name in found[0]} for kind, found in runs.items()}
    print(f"{'':14}{'median':>10}{'best':>10}{'worst':>10}")
    for kind, figures in table.items():
        print(kind)
        for name, values in figures.items():
            print(f"  {name:12}{statistics.median(values):10.2f}{min(values):10.2f}{max(values):10.2f}")
    told: dict[str, Any] = {"runs": table, "help_s": min(command_line() for _ in range(options.runs))}
    print(f"serai --help: {told['help_s']:.2f} s at best")
    again = {name: statistics.median(values) for name, values in table["start again"].items()}
    for name, figure, bound in (("ready_s", again["ready_s"], READY_S), ("idle_mib", again["idle_mib"], IDLE_MIB)):
        print(f"{name} {figure:.2f}, promised below {bound:g}: {'kept' if figure < bound else 'NOT KEPT'}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
