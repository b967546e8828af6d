"""What it costs to reach a model through Serai, beside LiteLLM's proxy in front of the same model and the model alone.

    python benchmarks/gateway.py [--rounds 3] [--calls 1000] [--words 500] [--only serai] [--json FILE]

`serai serve` runs as it comes, with keys, limits, metering, decisions and its log on, and calls the model through
the engine `remote`; LiteLLM's proxy (the newest, in an environment of its own under out/) runs with one worker, a
master key, without a database and with its log at errors. The model is a stand-in that takes no time. Server,
model and client are a process each. In every round each measurement is made on one server after the other:

- the time of a call with an answer of 8 words that is not streamed, one call after the other; what a gateway adds
  to the time of the same call to the model itself;
- such calls per second of the server's CPU time (all its processes), 16 and 64 at once;
- streamed chunks per second of CPU time, 16 streams whose words come as fast as they are taken, and 64 whose words
  come one by one, 50 in a second (`paced`): there each chunk wakes the server.

Medians of the rounds are shown. `engine` figures, without the server around it: gateway_engine.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from gateway_client import Order, Outcome  # noqa: E402 - needs the path
from gateway_servers import Server, litellm, litellm_version, serai, upstream  # noqa: E402 - needs the path

PEER_RATIO, ADDED_MS, CHUNKS = 10.0, 1.0, 20_000.0
"""The goals: calls per core, times LiteLLM's; milliseconds added to a call; streamed chunks per core."""
PACED_WORDS = 100


class Client:
    """The client's process."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def carry_out(self, order: Order) -> Outcome:
        """Return what came of an order. Raises RuntimeError for a call that failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        outcome = msgspec.json.decode(self._process.stdout.readline(), type=Outcome)
        if outcome.failed:
            raise RuntimeError(f"{outcome.failed} calls failed: {outcome.example}")
        return outcome


@contextmanager
def client() -> Iterator[Client]:
    """Run the client."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gateway_client.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Client(process)
        assert process.stdin is not None
        process.stdin.close()


def latencies(asks: Client, server: Server, calls: int) -> dict[str, float]:
    """Return the milliseconds of calls, one after the other."""
    times = asks.carry_out(Order(port=server.port, key=server.key, model="mock", calls=calls)).times_ms
    return {"p50_ms": statistics.median(times), "p95_ms": statistics.quantiles(times, n=20)[18]}


def calls_per_core(asks: Client, server: Server, calls: int, at_once: int) -> dict[str, float]:
    """Return calls per second of the server's CPU time."""
    order = Order(port=server.port, key=server.key, model="mock", calls=calls, at_once=at_once)
    outcome, spent = _spending(asks, server, order)
    made = calls + at_once  # with those that are not counted
    return {f"calls_per_core_{at_once}": made / spent, f"calls_per_s_{at_once}": calls / outcome.seconds}


def chunks_per_core(asks: Client, server: Server, words: int, *, paced: bool) -> dict[str, float]:
    """Return streamed chunks per second of the server's CPU time."""
    at_once, name = (64, "paced") if paced else (16, "fast")
    order = Order(
        port=server.port,
        key=server.key,
        model="mock-paced" if paced else "mock",
        calls=at_once,
        at_once=at_once,
        words=PACED_WORDS if paced else words,
        stream=True,
    )
    outcome, spent = _spending(asks, server, order)
    if outcome.events < at_once * order.words:
        raise RuntimeError(f"{server.name} lost chunks: {outcome.events}")
    return {f"chunks_per_core_{name}": 2 * outcome.events / spent}  # each stream is made twice, and counted once


def _spending(asks: Client, server: Server, order: Order) -> tuple[Outcome, float]:
    """Return what came of an order, and the CPU seconds that the server spent on it."""
    before = server.cpu_s()
    outcome = asks.carry_out(order)
    return outcome, max(server.cpu_s() - before, 0.01)  # the system counts in hundredths


def measure(asks: Client, servers: list[Server], calls: int, words: int) -> dict[str, dict[str, float]]:
    """Return one round."""
    found: dict[str, dict[str, float]] = {server.name: {} for server in servers}
    for server in servers:
        found[server.name] |= latencies(asks, server, calls)
    for at_once in (16, 64):
        for server in servers:
            found[server.name] |= calls_per_core(asks, server, calls, at_once)
    for paced in (False, True):
        for server in servers:
            found[server.name] |= chunks_per_core(asks, server, words, paced=paced)
    direct = found["direct"]
    for server in servers[1:]:
        for name in ("p50_ms", "p95_ms"):
            found[server.name][f"added_{name}"] = found[server.name][name] - direct[name]
    return found


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure, by server."""
    return {
        server: {name: statistics.median(each[server][name] for each in rounds) for name in figures}
        for server, figures in rounds[0].items()
    }


def show(table: dict[str, dict[str, float]]) -> None:
    """Print the figures, the ratios and the goals."""
    ours, peer = table["serai"], table.get("litellm", {})
    print(f"{'':24}" + "".join(f"{name:>12}" for name in table) + f"{'ratio':>10}")
    for name in ours:
        figures = (f"{of[name]:12,.2f}" if name in of else f"{'':12}" for of in table.values())
        ratio = f"{ours[name] / peer[name]:10.2f}" if name in peer else ""
        print(f"{name:24}" + "".join(figures) + ratio)
    compared = ("calls_per_core_16", "calls_per_core_64") if peer else ()
    goals = [
        ("added_p50_ms", ours["added_p50_ms"], ADDED_MS, True),
        *((f"{name}, ratio", ours[name] / peer[name], PEER_RATIO, False) for name in compared),
        ("chunks_per_core_fast", ours["chunks_per_core_fast"], CHUNKS, False),
    ]
    for told, figure, bound, is_most in goals:
        kept = figure <= bound if is_most else figure >= bound
        print(f"{told}: {figure:,.2f}, goal {'≤' if is_most else '≥'} {bound:,.0f}: {'kept' if kept else 'NOT KEPT'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--words", type=int, default=500)
    parser.add_argument("--only", choices=["serai"], help="leave LiteLLM out")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "gateway.json")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serai-gateway-")))
        direct = stack.enter_context(upstream())
        servers = [direct, stack.enter_context(serai(folder / "home", direct))]
        if options.only is None:
            servers.append(stack.enter_context(litellm(folder, direct)))
        asks = stack.enter_context(client())
        measure(asks, servers, 100, 100)  # warms everything up
        rounds = [measure(asks, servers, options.calls, options.words) for _ in range(options.rounds)]
    table = medians(rounds)
    show(table)
    told: dict[str, Any] = {"medians": table, "rounds": rounds}
    if options.only is None:
        told["litellm"] = litellm_version()
        print(f"LiteLLM {told['litellm']}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
