"""Asking the program that tries out grammars, without waiting for it: other runs go on meanwhile."""

import select
import subprocess
import sys
from collections import OrderedDict, deque
from contextlib import suppress
from pathlib import Path

import msgspec

from serai.clock import Clock
from serai.engines.language.openvino_llm_folder import TOKENIZER
from serai.engines.tasks import Grammar
from serai.errors import InvalidInput

_MAX_KNOWN = 256
_MAX_CHARACTERS = 64 * 1024
_DEADLINE_S = 60.0
"""For an answer of the program, its start included, on a busy machine; it bounds its own CPU time."""
_CRASHED = "cannot be compiled"


class GrammarChecks:
    """What is known of grammars, and the questions that are open. The program starts with the first one."""

    def __init__(self, folder: Path, vocabulary: int, end_ids: frozenset[int], clock: Clock) -> None:
        self._folder = folder
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._clock = clock
        self._known: OrderedDict[Grammar, str] = OrderedDict()
        self._open: deque[Grammar] = deque()
        self._asked_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def is_good(self, grammar: Grammar) -> bool:
        """Say whether the grammar is known to work; if nothing is known, ask. Raises InvalidInput if it does not."""
        if not (self._folder / TOKENIZER).exists():
            raise InvalidInput.at("grammar", "needs the tokenizer as a network, which the model's folder lacks")
        if len(grammar.value) > _MAX_CHARACTERS:
            raise InvalidInput.at("grammar", f"is longer than {_MAX_CHARACTERS} characters")
        problem = self._known.get(grammar)
        if problem is None:
            if grammar not in self._open:
                self._open.append(grammar)
            return False
        self._known.move_to_end(grammar)
        if problem:
            raise InvalidInput.at("grammar", problem)
        return True

    def wait(self, seconds: float) -> None:
        """Take an answer, if one comes within the time, and ask what is open."""
        if not self._open:
            return
        if self._asked_at is None:
            self._ask()
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if ready:
            line = self._process.stdout.readline()
            self._learn(msgspec.json.decode(line)["problem"] if line else _CRASHED, is_lost=not line)
        elif self._clock.monotonic() - (self._asked_at or 0.0) > _DEADLINE_S:
            self._learn("takes too long to compile", is_lost=True)

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def _ask(self) -> None:
        """Send the first open question to the program."""
        if self._process is None:
            command = [sys.executable, "-m", __name__.replace("_grammar", "_probe")]
            command += [str(self._folder), str(self._vocabulary)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        assert self._process.stdin is not None
        question = {"grammar": self._open[0], "end_ids": sorted(self._end_ids)}
        self._asked_at = self._clock.monotonic()
        with suppress(BrokenPipeError):  # it is gone, which its output's end will tell
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")

    def _learn(self, problem: str, *, is_lost: bool) -> None:
        self._known[self._open.popleft()] = problem
        self._asked_at = None
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        if is_lost:
            self.close()
