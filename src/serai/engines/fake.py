"""An engine without a model: it repeats what it is given, word by word, and can be told to go wrong.

Pictures are gradients that depend on all that was asked for (`fake_image`).

Deterministic: the same task on the same options gives the same events. `temperature` and penalties
change nothing, because nothing is drawn; `seed` and the answer's number say at which word it begins.
"""

import hashlib
import math
import os
import re
import signal
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from serai.clock import Clock, SystemClock
from serai.engines.base import AdapterUse, EngineSpec, Footprint, Run
from serai.engines.catalogue import check_options
from serai.engines.options import FakeOptions
from serai.engines.stepwise import Stepwise, Turns
from serai.engines.tasks import Array, Chat, Embed, Fetch, Generate, GenerateImage, Infer, Sampling
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import Done, Event, Text

_PAGE = 4096
_LOOK_S = 0.002
_REPORTS = 20
_NEVER = threading.Event()
_TYPECODES = {"float32": "f", "float64": "d"}


@dataclass(slots=True, kw_only=True)
class _Answer:
    """One answer of a run: its words, and how many of them were told."""

    words: list[str]
    sampling: Sampling
    told: int = 0
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pieces = _cut(self.words, self.sampling.stop)

    def extend(self, words: list[str]) -> None:
        self.words = self.words + words
        self.pieces = _cut(self.words, self.sampling.stop)

    @property
    def is_full(self) -> bool:
        return self.sampling.max_tokens is not None and self.told >= self.sampling.max_tokens

    @property
    def is_over(self) -> bool:
        return self.is_full or self.told >= len(self.pieces)

    def next_piece(self) -> str:
        self.told += 1
        return self.pieces[self.told - 1]


def _cut(words: list[str], stop: tuple[str, ...]) -> list[str]:
    """Return the words as pieces of text up to the first stop text, which may lie across pieces."""
    pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    if not stop:
        return pieces
    text = "".join(pieces)
    end = min((at for at in (text.find(one) for one in stop) if at >= 0), default=len(text))
    cut = []
    for piece in pieces:
        if end <= 0:
            break
        cut.append(piece[:end])
        end -= len(piece)
    return cut


class Fake(Stepwise):
    """The engine `fake`. See `FakeOptions` for what it can be told."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self._clock = clock or SystemClock()
        self._options = FakeOptions()
        self._memory = bytearray()
        self._adapters: dict[str, int] = {}
        self._answers: dict[int, list[_Answer]] = {}
        self._device = ""

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Wait, fail and take memory as the options say."""
        self._options = options = cast(FakeOptions, check_options("fake", spec.options))
        self._device = spec.device
        report(0.0)
        if options.fail == "load_crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if options.fail == "load_hang":
            _NEVER.wait()
        if options.fail == "load_oom":
            raise MemoryError
        if options.fail == "load":
            raise LoadFailed("The fake engine was told to fail its load.", hint="Take `fail` out of its options.")
        for number in range(_REPORTS if options.load_s else 0):
            _NEVER.wait(options.load_s / _REPORTS)
            report((number + 1) / _REPORTS)
        while options.load_gate and not Path(options.load_gate).exists():
            _NEVER.wait(_LOOK_S)
        self._memory = bytearray(options.bytes)
        for page in range(0, options.bytes, _PAGE):
            self._memory[page] = 1
        report(1.0)
        return Footprint(
            max_runs=options.max_runs,
            facts={"context_tokens": 1 << 20, "precision": "none", "threads": spec.threads, "device": spec.device},
        )

    def begin(self, run: Run) -> Turns:
        """Check the task and return its steps."""
        if self._options.fail == "start":
            raise EngineFailed("The fake engine was told to refuse runs.")
        if self._options.fail == "invalid":
            raise InvalidInput.at("task", "was refused, as the fake engine was told")
        for adapter in run.adapters:
            self._load_adapter(adapter)
        return self._with_failures(self._turns_of(run))

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Take `{"text": "more words"}` into every answer of the run, or `{"end": true}`, which ends them."""
        answers = self._answers.get(run)
        if answers is None:
            raise InvalidInput("Only a run that generates text takes messages.")
        if message == {"end": True}:
            for answer in answers:
                answer.pieces = answer.pieces[: answer.told]
        elif set(message) == {"text"} and isinstance(message["text"], str):
            for answer in answers:
                answer.extend(message["text"].split())
        else:
            raise InvalidInput.at("message", 'must be {"text": "…"} or {"end": true}')

    def close(self) -> None:
        """Give the memory back."""
        super().close()
        self._memory = bytearray()

    def _load_adapter(self, use: AdapterUse) -> None:
        """Read the adapter once; a run on it adds its name to each word, and its file's size to each number."""
        if use.id in self._adapters:
            return
        try:
            self._adapters[use.id] = Path(use.path).stat().st_size
        except OSError:
            raise LoadFailed(f"The file of the adapter {use.id!r} is missing.") from None

    def _with_failures(self, turns: Iterator[Event]) -> Turns:
        """Make the steps of a run, late or not at all where the options say so."""
        options = self._options
        for number, event in enumerate(turns):
            while options.step_gate and not Path(options.step_gate).exists():
                _NEVER.wait(_LOOK_S)
                yield None
            if options.step_s:
                _NEVER.wait(options.step_s)
            if options.fail and number >= options.fail_after:
                self._fail()
            yield event

    def _fail(self) -> None:
        match self._options.fail:
            case "run":
                raise EngineFailed("The fake engine was told to fail its runs.")
            case "step":
                raise RuntimeError("the fake engine was told to break")
            case "oom":
                raise MemoryError
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                _NEVER.wait()

    def _turns_of(self, run: Run) -> Iterator[Event]:
        match run.task:
            case Generate(prompt=prompt, sampling=sampling):
                return self._generate(run, prompt, sampling)
            case Chat(messages=messages, sampling=sampling):
                return self._generate(run, _last_text(messages), sampling)
            case Infer(inputs=inputs):
                outputs = {name: self._affine(one, run).document for name, one in inputs.items()}
                return iter([Done(result={"outputs": outputs})])
            case Embed(texts=texts, dimensions=dimensions):
                most = self._options.dimensions
                if dimensions is not None and dimensions > most:
                    raise InvalidInput.at("dimensions", f"must be 1 to {most}, which is what this model gives")
                return iter([_embedded(texts, most, dimensions or most)])
            case Fetch(body=body):
                return iter([Done(result={"body": dict(body)})])
            case GenerateImage():
                from serai.engines.fake_image import generate_image  # needs Pillow, which texts do without

                return generate_image(run.task, run.adapters, self._device, self._clock)

    def _generate(self, run: Run, prompt: str, sampling: Sampling) -> Iterator[Event]:
        for name in ("grammar", "logit_bias"):
            if getattr(sampling, name):
                raise InvalidInput.at(name, "is nothing that the fake engine can do")
        words = [_adapted(word, run.adapters) for word in prompt.split() or ["nothing"]]
        length = self._options.tokens or len(words)
        answers = []
        for number in range(sampling.n):
            first = ((sampling.seed or 0) + number) % len(words)
            turned = words[first:] + words[:first]
            answers.append(_Answer(words=(turned * math.ceil(length / len(words)))[:length], sampling=sampling))
        self._answers[run.id] = answers
        return self._tell(run.id, answers, words)

    def _tell(self, run: int, answers: list[_Answer], words: list[str]) -> Iterator[Event]:
        began = self._clock.monotonic()
        try:
            while not all(answer.is_over for answer in answers):
                for index, answer in enumerate(answers):
                    if not answer.is_over:
                        piece = answer.next_piece()
                        yield _text(piece, index, answer.sampling.logprobs, words)
        finally:
            self._answers.pop(run, None)
        generated = sum(answer.told for answer in answers)
        yield Done(
            result={
                "finish_reasons": ["length" if answer.is_full else "stop" for answer in answers],
                "usage": {"prompt_tokens": len(words), "completion_tokens": generated, "cached_tokens": 0},
                "timings": {"prompt_s": 0.0, "generation_s": self._clock.monotonic() - began},
            }
        )

    def _affine(self, value: Array, run: Run) -> Array:
        scale, offset = self._options.scale, self._options.offset
        offset += sum(self._adapters[use.id] * use.scale for use in run.adapters)
        if (scale, offset) == (1.0, 0.0):
            return value
        typecode = _TYPECODES.get(value.dtype)
        if typecode is None:
            raise InvalidInput.at("inputs", f"are of type {value.dtype}; float32 and float64 can be scaled")
        numbers = array(typecode)
        if len(value.data) != math.prod(value.shape) * numbers.itemsize:
            raise InvalidInput.at("inputs", "have more or fewer bytes than their shape and type say")
        numbers.frombytes(value.data)
        scaled = array(typecode, (scale * number + offset for number in numbers))
        return Array(dtype=value.dtype, shape=value.shape, data=scaled.tobytes())


def _adapted(word: str, adapters: tuple[AdapterUse, ...]) -> str:
    return "~".join((word, *(f"{use.id}:{use.scale:g}" for use in adapters)))


def _last_text(messages: tuple[Mapping[str, Any], ...]) -> str:
    """Return the text of the last message; of parts, those that are text."""
    if not messages:
        raise InvalidInput.at("messages", "must hold at least one")
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidInput.at("messages", "must have content")
    return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)


def _text(piece: str, index: int, logprobs: int | None, words: list[str]) -> Text:
    if logprobs is None:
        return Text(delta=piece, index=index)
    logprob = -math.log(len(words))
    top = [{"token": word, "logprob": logprob} for word in words[:logprobs]]
    return Text(delta=piece, index=index, logprobs=[{"token": piece, "logprob": logprob, "top": top}])


def _embedded(texts: tuple[str, ...], dimensions: int, kept: int) -> Done:
    """Return unit vectors by feature hashing: texts that share words are near each other."""
    numbers = array("f")
    tokens = 0
    for text in texts:
        vector = [0.0] * dimensions
        words = re.findall(r"\w+", text.lower()) or [text]
        tokens += len(words)
        for word in words:
            digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            vector[(digest >> 1) % dimensions] += 1.0 if digest & 1 else -1.0
        norm = math.hypot(*vector[:kept]) or 1.0
        numbers.extend(number / norm for number in vector[:kept])
    embeddings = Array(dtype="float32", shape=(len(texts), kept), data=numbers.tobytes())
    return Done(result={"embeddings": embeddings.document, "usage": {"prompt_tokens": tokens}})
