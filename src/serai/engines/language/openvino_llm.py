"""Language models by OpenVINO GenAI: one continuous batch for all runs, on CPUs.

What its batching loop does not do for us is done here (the measurements behind each are in the
architecture's notes): it takes no wrong input gracefully (ids, grammars, sizes are checked before), draws the
same without a seed, cuts stop texts by whole tokens, and shares cached prefixes between everybody. One thread
calls; a step that raises leaves the pipeline unusable, so it is let through and ends the process.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from serai.clock import Clock, SystemClock
from serai.engines.base import EngineSpec, Footprint, Run
from serai.engines.grammar_check import compact_grammar
from serai.engines.language.openvino_llm_folder import (
    MODEL,
    Export,
    ModelConfig,
    end_ids,
    read_as,
    read_export,
)
from serai.engines.language.openvino_llm_grammar import GrammarChecks
from serai.engines.language.openvino_llm_memory import plan_cache, sizes_of
from serai.engines.language.openvino_llm_pipeline import (
    make_pipeline,
    properties_of,
    request_config,
    token_tensor,
    with_grammar,
)
from serai.engines.language.openvino_llm_salt import BLOCK_TOKENS, CachedPrefixes, Salt
from serai.engines.language.prompts import Prompts, wait_for_any
from serai.engines.options import OpenvinoLlmOptions
from serai.engines.quiet import quieten
from serai.engines.tasks import Generate, Grammar, Sampling
from serai.engines.text import (
    Answer,
    DrawnToken,
    FastTokenizer,
    Timings,
    answer_bound,
    load_tokenizer,
    usage_of,
)
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import Done, Event, Failed

quieten()
import openvino  # noqa: E402 - what the fork server is to have imported
import openvino_genai as genai  # noqa: E402 - after quieten

_WARM_TOKENS = 40
_SEED_BITS = 63
_IDLE_WAIT_S = 0.05


@dataclass(slots=True, kw_only=True)
class _Pipeline:
    """One pipeline, and the blocks of its cache that answers are in."""

    target: Any
    blocks: int
    salt: Salt | None = None
    cached: CachedPrefixes | None = None

    def step(self) -> None:
        if self.target.has_non_finished_requests():
            self.target.step()


@dataclass(slots=True, kw_only=True)
class _Generation:
    """A run: one request of the pipeline for each of its answers."""

    pipeline: _Pipeline
    prompt: list[int]
    answers: list[Answer]
    timings: Timings
    cached_tokens: int
    handles: dict[int, Any] = field(default_factory=dict)
    """By the answer's number, those that go on. A handle that is dropped is cancelled."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A run that is about to begin: when its prompt is encoded and its grammar, if it has one, was tried out."""

    task: Generate
    prompt: "Future[list[int]]"
    grammar: Grammar | None


class OpenvinoLlm:
    """The engine `openvino-genai`. See `OpenvinoLlmOptions` for what can be set."""

    def __init__(self, clock: Clock | None = None, draw_seed: Callable[[], int] | None = None) -> None:
        self._clock = clock or SystemClock()
        self._draw_seed = draw_seed or (lambda: secrets.randbits(_SEED_BITS))
        self._options = OpenvinoLlmOptions()
        self._folder = Path()
        self._properties: Mapping[str, Any] = {}
        self._export = Export()
        self._ends: frozenset[int] = frozenset()
        self._context = 0
        self._requests = 0
        self._runs: dict[int, _Generation] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._tokenizer: FastTokenizer
        self._grammars: GrammarChecks
        self._prompts: Prompts
        self._main: _Pipeline
        self._plain: _Pipeline | None = None

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read the folder, compile the network, and make one answer, for the first step compiles more."""
        from serai.engines.catalogue import check_options

        self._options = options = cast(OpenvinoLlmOptions, check_options("openvino-genai", spec.options))
        self._folder = folder = Path(spec.folder)
        if not (folder / MODEL).exists():
            raise LoadFailed(f"The model's folder holds no {MODEL}.", hint="Pull it with quantize=auto.")
        config = read_as(folder / "config.json", ModelConfig)
        self._export, self._ends = read_export(folder), end_ids(folder, config)
        self._tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
        self._grammars = GrammarChecks(folder, config.vocab_size, self._ends, self._clock)
        self._properties = properties_of(spec, options, self._export.quantization or spec.quantization)
        report(0.1)
        precision = str(self._properties["INFERENCE_PRECISION_HINT"])
        blocks, has_cache = plan_cache(sizes_of(folder, options), spec.memory_bytes, options)
        longest = options.context_tokens or config.context_tokens or blocks * BLOCK_TOKENS
        self._context = min(longest, (blocks - 1) * BLOCK_TOKENS)
        self._prompts = Prompts(self._tokenizer, vocabulary=config.vocab_size, context_tokens=self._context)
        try:
            self._main = self._make(blocks, has_cache=has_cache)
        except RuntimeError as error:
            raise LoadFailed(f"OpenVINO cannot load the model: {_last_line(error)}") from None
        report(0.8)
        self._warm_up()
        report(1.0)
        return Footprint(max_runs=options.max_runs, facts=self._facts(spec, precision, blocks))

    def start(self, run: Run) -> None:
        """Check the task and give its answers to the batch. Raises InvalidInput."""
        task = run.task
        if not isinstance(task, Generate):
            raise InvalidInput("A language model runs tasks of the kind 'generate' alone.")
        if run.adapters:
            raise InvalidInput.at("adapters", "cannot be used with OpenVINO GenAI", hint="Use the engine transformers.")
        sampling = task.sampling
        self._refuse(sampling)
        prompt = self._prompts.begin(task.prompt, has_special_tokens=task.has_special_tokens)
        waiting = _Waiting(task=task, prompt=prompt, grammar=compact_grammar(sampling.grammar))
        if self._may_begin(waiting):
            self._runs[run.id] = self._begin(waiting)
        else:
            self._waiting[run.id] = waiting

    def step(self) -> Sequence[tuple[int, Event]]:
        """Compute one step of the batch: a token for every answer that has its prompt behind it."""
        self._main.step()
        if self._plain is not None:
            self._plain.step()
        events: list[tuple[int, Event]] = []
        for run in tuple(self._runs):
            events.extend((run, event) for event in self._collect(run))
        self._settle()
        events.extend(self._admit())
        return events

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Refuse the message: the prompt is the whole input."""
        raise InvalidInput("This model takes nothing while it answers.")

    def cancel(self, run: int) -> None:
        """Drop the run's requests; the next step, or this one if it was the last run, frees their blocks."""
        self._waiting.pop(run, None)
        generation = self._runs.pop(run, None)
        if generation is None:
            return
        for handle in generation.handles.values():
            handle.cancel()
        generation.handles.clear()
        self._settle()

    def close(self) -> None:
        """Drop what goes on."""
        for run in (*self._runs, *self._waiting):
            self.cancel(run)
        self._grammars.close()
        self._prompts.close()

    def _make(self, blocks: int, *, has_cache: bool) -> _Pipeline:
        target = make_pipeline(
            self._folder,
            self._properties,
            blocks=blocks,
            batched_tokens=self._options.batched_tokens,
            has_cache=has_cache,
        )
        if not has_cache:
            return _Pipeline(target=target, blocks=blocks)
        return _Pipeline(target=target, blocks=blocks, salt=Salt(self._export.salt_bits), cached=CachedPrefixes(blocks))

    def _warm_up(self) -> None:
        config = request_config(Sampling(temperature=0), max_tokens=2, seed=0, end_ids=frozenset())
        count = max(1, min(_WARM_TOKENS, self._context - 2))
        handle = self._main.target.add_request(self._next_request(), token_tensor([0] * count), config)
        while self._main.target.has_non_finished_requests():
            self._main.target.step()
        del handle

    def _facts(self, spec: EngineSpec, precision: str, blocks: int) -> dict[str, Any]:
        return {
            "context_tokens": self._context,
            "cache_tokens": blocks * BLOCK_TOKENS,
            "precision": precision,
            "quantization": self._export.quantization or spec.quantization,
            "prefix_cache": self._main.salt is not None,
            "threads": spec.threads,
            "device": spec.device,
            "openvino": openvino.__version__.split("-")[0],
            "openvino_genai": genai.__version__.split("-")[0],
        }

    def _refuse(self, sampling: Sampling) -> None:
        """Refuse by its name what this engine cannot do."""
        if sampling.n > self._options.max_runs:
            raise InvalidInput.at("n", f"may be at most {self._options.max_runs} with this model as it is loaded")
        if sampling.logprobs:
            raise InvalidInput.at("top_logprobs", "cannot be told by OpenVINO GenAI: only those of the tokens drawn")
        if sampling.logit_bias:
            raise InvalidInput.at("logit_bias", "cannot be applied by OpenVINO GenAI")
        if not self._export.has_raw_penalties:
            for name in ("presence_penalty", "frequency_penalty"):
                if getattr(sampling, name):
                    raise InvalidInput.at(name, "does the reverse with this model in OpenVINO GenAI")

    def _admit(self) -> Iterator[tuple[int, Event]]:
        """Begin the runs that can; tell those whose prompt or grammar has turned out wrong."""
        if not self._waiting:
            return
        encoding = [waiting.prompt for waiting in self._waiting.values() if not waiting.prompt.done()]
        patience = 0.0 if self._runs else _IDLE_WAIT_S
        if len(encoding) == len(self._waiting):
            wait_for_any(encoding, patience)
            patience = 0.0
        self._grammars.wait(patience)
        for run, waiting in tuple(self._waiting.items()):
            try:
                if self._may_begin(waiting):
                    self._runs[run] = self._begin(waiting)
                    del self._waiting[run]
            except InvalidInput as error:
                del self._waiting[run]
                yield run, Failed.of(error)

    def _may_begin(self, waiting: _Waiting) -> bool:
        """Say whether nothing is to be waited for. Raises InvalidInput for a grammar that does not work."""
        is_good = waiting.grammar is None or self._grammars.is_good(waiting.grammar)
        return is_good and waiting.prompt.done()

    def _begin(self, waiting: "_Waiting") -> _Generation:
        task, prompt, grammar = waiting.task, waiting.prompt.result(), waiting.grammar
        sampling = task.sampling
        bound = answer_bound(prompt_tokens=len(prompt), context_tokens=self._context, max_tokens=sampling.max_tokens)
        pipeline = self._pipeline_for(sampling)
        marked = pipeline.salt.mark(prompt, task.cache_key) if pipeline.salt else prompt
        seed = self._draw_seed() if sampling.seed is None else sampling.seed
        answers = [self._answer(index, sampling, bound) for index in range(sampling.n)]
        generation = _Generation(
            pipeline=pipeline,
            prompt=marked,
            answers=answers,
            timings=Timings(began=self._clock.monotonic()),
            cached_tokens=pipeline.cached.count(marked) if pipeline.cached else 0,
        )
        configs = [
            request_config(sampling, max_tokens=bound, seed=(seed + index) % (1 << _SEED_BITS), end_ids=self._ends)
            for index in range(sampling.n)
        ]
        for index, config in enumerate(configs):
            settings = config if grammar is None else with_grammar(config, grammar.kind, grammar.value)
            if pipeline.cached:
                pipeline.cached.occupy(len(marked) + bound)
            generation.handles[index] = self._add(pipeline, marked, settings)
        return generation

    def _add(self, pipeline: _Pipeline, ids: list[int], config: Any) -> Any:
        """Return the handle of a new request. Raises InvalidInput: what GenAI refuses here does no harm."""
        try:
            return pipeline.target.add_request(self._next_request(), token_tensor(ids), config)
        except RuntimeError as error:
            raise InvalidInput(f"OpenVINO GenAI refuses the request: {_last_line(error)}") from None

    def _answer(self, index: int, sampling: Sampling, bound: int) -> Answer:
        return Answer(
            index=index,
            decode=self._decode,
            stops=sampling.stop,
            end_ids=self._ends,
            max_tokens=bound,
            has_logprobs=sampling.logprobs is not None,
        )

    def _pipeline_for(self, sampling: Sampling) -> _Pipeline:
        """Return the pipeline that can do it.

        GenAI's repetition penalty looks up the prompt's ids among the logits and breaks at marked ones.
        So these runs have a pipeline without a cache, which is made for the first of them.
        """
        if sampling.repetition_penalty == 1.0 or self._main.salt is None:
            return self._main
        if self._plain is None:
            needed = self._context // BLOCK_TOKENS + 1
            self._plain = self._make(max(needed, self._main.blocks // 4), has_cache=False)
        return self._plain

    def _collect(self, run: int) -> Iterator[Event]:
        """Yield what is new in a run. The last event is `Done`, or `Failed` where GenAI gave the run up."""
        generation = self._runs[run]
        for index, handle in tuple(generation.handles.items()):
            answer = generation.answers[index]
            yield from self._read(generation, handle, answer)
            if not answer.finish_reason and handle.get_status() == genai.GenerationStatus.IGNORED:
                self._drop(run)
                yield Failed.of(EngineFailed("The model's cache had no room for the run."))
                return
            if answer.finish_reason:
                handle.cancel()
                del generation.handles[index]
                self._keep(generation, answer)
        if not generation.handles:
            del self._runs[run]
            yield self._done(generation)

    def _read(self, generation: _Generation, handle: Any, answer: Answer) -> Iterator[Event]:
        while handle.can_read():
            for output in handle.read().values():
                if generation.timings.first is None and output.generated_ids:
                    generation.timings.first = self._clock.monotonic()
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    text = answer.push(DrawnToken(id=token, logprob=logprob))
                    if text is not None:
                        yield text
        is_over = handle.get_status() == genai.GenerationStatus.FINISHED
        if is_over and not answer.finish_reason:  # a grammar has come to its end
            text = answer.finish("stop")
            if text is not None:
                yield text

    def _keep(self, generation: _Generation, answer: Answer) -> None:
        if generation.pipeline.cached:
            generation.pipeline.cached.keep([*generation.prompt, *answer.tokens])

    def _done(self, generation: _Generation) -> Done:
        return Done(
            result={
                "finish_reasons": [answer.finish_reason for answer in generation.answers],
                "usage": usage_of(len(generation.prompt), generation.answers, generation.cached_tokens),
                "timings": generation.timings.result(self._clock.monotonic()),
            }
        )

    def _drop(self, run: int) -> None:
        for handle in self._runs.pop(run).handles.values():
            handle.cancel()

    def _settle(self) -> None:
        """Let the pipelines see what was cancelled, when nobody is going to step them for other reasons."""
        if self._runs:
            return
        for pipeline in (self._main, self._plain):
            while pipeline is not None and pipeline.target.has_non_finished_requests():
                pipeline.target.step()

    def _next_request(self) -> int:
        """Return an id that was never used: GenAI takes one twice and then breaks."""
        self._requests += 1
        return self._requests

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it does not say why"
