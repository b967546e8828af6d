"""Language models by transformers, on any device: the reference, and what runs where nothing faster does.

Answers share one batch per mix of adapters. A step takes in one waiting prompt and computes one token for
every answer; correct first, and faster for several than one after another.
"""

import gc
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from serai.clock import Clock, SystemClock
from serai.engines.base import EngineSpec, Footprint, Run
from serai.engines.language.openvino_llm_folder import ModelConfig, end_ids, read_as
from serai.engines.language.prompts import Prompts, wait_for_any
from serai.engines.options import TransformersOptions
from serai.engines.quiet import quieten
from serai.engines.tasks import Generate, Sampling
from serai.engines.text import (
    Answer,
    DrawnToken,
    FastTokenizer,
    Timings,
    answer_bound,
    load_tokenizer,
    usage_of,
)
from serai.errors import InvalidInput, LoadFailed
from serai.events import Done, Event, Failed, Text

quieten()
import torch  # noqa: E402 - what the fork server is to have imported
import transformers  # noqa: E402 - after quieten

from serai.engines.language.transformers_llm_adapters import Adapters, Mix  # noqa: E402 - after quieten
from serai.engines.language.transformers_llm_batch import Batch  # noqa: E402 - after quieten
from serai.engines.language.transformers_llm_sampling import draw_token  # noqa: E402 - after quieten
from serai.engines.torch_device import take_device  # noqa: E402 - after quieten

_SEED_BITS = 63
_UNKNOWN_CONTEXT = 2048
_IDLE_WAIT_S = 0.05


@dataclass(slots=True, kw_only=True)
class _Generation:
    """A run and its answers."""

    prompt: list[int]
    sampling: Sampling
    mix: Mix
    answers: list[Answer]
    timings: Timings


@dataclass(slots=True, kw_only=True)
class _Row:
    """An answer in a batch, or waiting for it."""

    run: int
    generation: _Generation
    answer: Answer
    generator: torch.Generator


@dataclass(slots=True, kw_only=True)
class _Group:
    """The rows that compute with one mix of adapters."""

    batch: Batch
    rows: list[_Row] = field(default_factory=list)


class TransformersLlm:
    """The engine `transformers`. See `TransformersOptions` for what can be set."""

    def __init__(self, clock: Clock | None = None, draw_seed: Callable[[], int] | None = None) -> None:
        self._clock = clock or SystemClock()
        self._draw_seed = draw_seed or (lambda: secrets.randbits(_SEED_BITS))
        self._device = "cpu"
        self._ends: frozenset[int] = frozenset()
        self._vocabulary = 0
        self._context = 0
        self._runs: dict[int, _Generation] = {}
        self._encoding: dict[int, tuple[Run, Sampling, Future[list[int]]]] = {}
        self._waiting: list[_Row] = []
        self._groups: dict[Mix, _Group] = {}
        self._model: Any = None
        self._tokenizer: FastTokenizer
        self._prompts: Prompts
        self._adapters: Adapters

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read safetensors onto the device and make one answer."""
        from serai.engines.catalogue import check_options

        options = cast(TransformersOptions, check_options("transformers", spec.options))
        folder = Path(spec.folder)
        self._device = spec.device
        take_device(spec)
        config = read_as(folder / "config.json", ModelConfig)
        self._ends, self._vocabulary = end_ids(folder, config), config.vocab_size
        self._context = options.context_tokens or config.context_tokens or _UNKNOWN_CONTEXT
        if config.context_tokens:
            self._context = min(self._context, config.context_tokens)
        self._tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
        self._prompts = Prompts(self._tokenizer, vocabulary=self._vocabulary, context_tokens=self._context)
        report(0.1)
        self._model = _load_model(folder, spec, options)
        self._adapters = Adapters(self._model)
        report(0.9)
        Batch(self._model, self._device).join([0, 0])
        report(1.0)
        is_cuda = self._device.startswith("cuda")
        return Footprint(
            bytes=torch.cuda.memory_allocated(self._device) if is_cuda else None,
            max_runs=options.max_runs,
            facts={
                "context_tokens": self._context,
                "precision": "nf4" if options.load_in_4bit else str(self._model.dtype).removeprefix("torch."),
                "threads": spec.threads,
                "device": spec.device,
                "transformers": transformers.__version__,
                "torch": str(torch.__version__),
            },
        )

    def start(self, run: Run) -> None:
        """Check the task and let its answers wait for the batch. Raises InvalidInput, LoadFailed for an adapter."""
        task = run.task
        if not isinstance(task, Generate):
            raise InvalidInput("A language model runs tasks of the kind 'generate' alone.")
        sampling = task.sampling
        if sampling.grammar is not None:
            raise InvalidInput.at("grammar", "cannot be followed by the engine transformers")
        for token in sampling.logit_bias:
            if not 0 <= token < self._vocabulary:
                raise InvalidInput.at("logit_bias", f"names the token {token}, which the model does not have")
        prompt = self._prompts.begin(task.prompt, has_special_tokens=task.has_special_tokens)
        self._adapters.prepare(run.adapters)
        if prompt.done():
            self._begin(run, prompt.result(), sampling)
        else:
            self._encoding[run.id] = (run, sampling, prompt)

    def step(self) -> Sequence[tuple[int, Event]]:
        """Take in one waiting prompt, and compute a token for every answer in a batch before it."""
        events: list[tuple[int, Event]] = []
        try:
            for mix, group in tuple(self._groups.items()):
                if group.rows:
                    self._adapters.switch(mix)
                    logits = group.batch.step([row.answer.tokens[-1] for row in group.rows])
                    events.extend(self._take(group, list(group.rows), logits))
            events.extend(self._admit())
            if self._waiting:
                events.extend(self._join(self._waiting.pop(0)))
        except torch.OutOfMemoryError:
            raise MemoryError from None
        return events

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Refuse the message: the prompt is the whole input."""
        raise InvalidInput("This model takes nothing while it answers.")

    def cancel(self, run: int) -> None:
        """Take the run's rows out of the batch, at once."""
        self._encoding.pop(run, None)
        if self._runs.pop(run, None) is None:
            return
        self._waiting = [row for row in self._waiting if row.run != run]
        for mix, group in tuple(self._groups.items()):
            self._remove(mix, group, [row for row in group.rows if row.run == run])

    def close(self) -> None:
        """Drop what goes on, and the model."""
        for run in (*self._runs, *self._encoding):
            self.cancel(run)
        self._prompts.close()
        self._model = None
        gc.collect()

    def _admit(self) -> Iterator[tuple[int, Event]]:
        """Begin the runs whose long prompt is encoded by now; tell those whose prompt has turned out wrong."""
        if self._encoding and not self._runs:
            wait_for_any([prompt for _, _, prompt in self._encoding.values()], _IDLE_WAIT_S)
        for number, (run, sampling, prompt) in tuple(self._encoding.items()):
            if prompt.done():
                del self._encoding[number]
                try:
                    self._begin(run, prompt.result(), sampling)
                except InvalidInput as error:
                    yield number, Failed.of(error)

    def _begin(self, run: Run, prompt: list[int], sampling: Sampling) -> None:
        bound = answer_bound(prompt_tokens=len(prompt), context_tokens=self._context, max_tokens=sampling.max_tokens)
        seed = self._draw_seed() if sampling.seed is None else sampling.seed
        generation = _Generation(
            prompt=prompt, sampling=sampling, mix=run.adapters, answers=[], timings=Timings(self._clock.monotonic())
        )
        for index in range(sampling.n):
            answer = Answer(
                index=index,
                decode=self._decode,
                stops=sampling.stop,
                end_ids=self._ends,
                max_tokens=bound,
                has_logprobs=sampling.logprobs is not None,
            )
            generation.answers.append(answer)
            generator = torch.Generator().manual_seed((seed + index) % (1 << _SEED_BITS))
            self._waiting.append(_Row(run=run.id, generation=generation, answer=answer, generator=generator))
        self._runs[run.id] = generation

    def _join(self, row: _Row) -> Iterator[tuple[int, Event]]:
        """Compute a prompt and the first token of its answer."""
        mix = row.generation.mix
        self._adapters.switch(mix)
        group = self._groups.setdefault(mix, _Group(batch=Batch(self._model, self._device)))
        logits = group.batch.join(row.generation.prompt)
        group.rows.append(row)
        yield from self._take(group, [row], logits[None])

    def _take(self, group: _Group, rows: list[_Row], logits: torch.Tensor) -> Iterator[tuple[int, Event]]:
        """Draw a token for each row; rows whose answer is over leave the batch, and runs with them."""
        for row, scores in zip(rows, logits, strict=True):
            generation = row.generation
            drawn: DrawnToken = draw_token(
                scores,
                generation.sampling,
                prompt=generation.prompt,
                drawn=row.answer.tokens,
                generator=row.generator,
            )
            if generation.timings.first is None:
                generation.timings.first = self._clock.monotonic()
            text: Text | None = row.answer.push(drawn)
            if text is not None:
                yield row.run, text
        over = [row for row in rows if row.answer.finish_reason]
        if not over:
            return
        self._remove(over[0].generation.mix, group, over)
        for run in dict.fromkeys(row.run for row in over):
            if all(answer.finish_reason for answer in self._runs[run].answers):
                yield run, self._done(self._runs.pop(run))

    def _remove(self, mix: Mix, group: _Group, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        group.batch.leave([number for number, row in enumerate(group.rows) if row in rows])
        group.rows = [row for row in group.rows if row not in rows]
        if not group.rows:
            del self._groups[mix]

    def _done(self, generation: _Generation) -> Done:
        return Done(
            result={
                "finish_reasons": [answer.finish_reason for answer in generation.answers],
                "usage": usage_of(len(generation.prompt), generation.answers, 0),
                "timings": generation.timings.result(self._clock.monotonic()),
            }
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _load_model(folder: Path, spec: EngineSpec, options: TransformersOptions) -> Any:
    """Return the model on its device. Raises LoadFailed, MemoryError."""
    is_cuda = spec.device.startswith("cuda")
    dtype = options.dtype or ("bfloat16" if is_cuda else "float32")
    arguments: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if options.load_in_4bit:
        if not is_cuda:
            raise LoadFailed("4-bit loading by bitsandbytes needs CUDA.", hint="On CPUs use the engine openvino-genai.")
        if find_spec("bitsandbytes") is None:
            raise LoadFailed("4-bit loading needs bitsandbytes.", hint="pip install bitsandbytes")
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call, unused-ignore]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    if is_cuda:
        arguments["device_map"] = {"": spec.device}
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=spec.allow_remote_code,
            attn_implementation="sdpa",
            **arguments,
        )
    except torch.OutOfMemoryError:
        raise MemoryError from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).replace(str(folder), "the model's folder").strip().split("\n", 1)[0][:300]
        raise LoadFailed(f"transformers cannot load the model: {reason}") from None
    return model.eval()
