"""Language models by vLLM: its own scheduler and kernels, on CUDA. What it does well is left to it.

Text, stop texts and finish reasons are made here, as for the other engines. The environment of the process
is to hold VLLM_ENABLE_V1_MULTIPROCESSING=0 (one process, so that ending it ends all) and VLLM_NO_USAGE_STATS=1.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from serai.clock import Clock, SystemClock
from serai.engines.base import AdapterUse, EngineSpec, Footprint, Run
from serai.engines.grammar_check import checked_grammar
from serai.engines.language.openvino_llm_folder import ModelConfig, end_ids, read_as
from serai.engines.options import VllmOptions
from serai.engines.quiet import quieten_transformers
from serai.engines.tasks import Generate, Grammar, Sampling
from serai.engines.text import (
    Answer,
    DrawnToken,
    FastTokenizer,
    Timings,
    answer_bound,
    encode,
    load_tokenizer,
    usage_of,
)
from serai.errors import InvalidInput, LoadFailed
from serai.events import Done, Event

_SEED_BITS = 63
_MAX_LOGPROBS = 20


@dataclass(slots=True, kw_only=True)
class _Generation:
    """A run: one request of vLLM for each of its answers."""

    prompt: list[int]
    answers: list[Answer]
    timings: Timings
    top_logprobs: int
    cached_tokens: int = 0
    open: set[int] = field(default_factory=set)
    """Numbers of the answers that go on."""


class VllmLlm:
    """The engine `vllm`. See `VllmOptions` for what can be set."""

    def __init__(self, clock: Clock | None = None, draw_seed: Callable[[], int] | None = None) -> None:
        self._clock = clock or SystemClock()
        self._draw_seed = draw_seed or (lambda: secrets.randbits(_SEED_BITS))
        self._ends: frozenset[int] = frozenset()
        self._vocabulary = 0
        self._context = 0
        self._runs: dict[int, _Generation] = {}
        self._adapters: dict[str, Any] = {}
        self._max_adapters = 0
        self._engine: Any = None
        self._tokenizer: FastTokenizer

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Start vLLM on the folder; it warms itself up."""
        import torch

        from serai.engines.catalogue import check_options

        options = cast(VllmOptions, check_options("vllm", spec.options))
        folder = Path(spec.folder)
        config = read_as(folder / "config.json", ModelConfig)
        self._ends, self._vocabulary = end_ids(folder, config), config.vocab_size
        self._tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
        self._max_adapters = options.max_adapters
        report(0.05)
        self._engine = _start(spec, options)
        self._context = int(self._engine.model_config.max_model_len)
        report(1.0)
        return Footprint(
            bytes=torch.cuda.memory_reserved(spec.device),
            max_runs=options.max_runs,
            facts={
                "context_tokens": self._context,
                "precision": str(self._engine.model_config.dtype).removeprefix("torch."),
                "prefix_cache": True,
                "device": spec.device,
                "vllm": _vllm_version(),
            },
        )

    def start(self, run: Run) -> None:
        """Check the task and hand its answers to vLLM. Raises InvalidInput."""
        task = run.task
        if not isinstance(task, Generate):
            raise InvalidInput("A language model runs tasks of the kind 'generate' alone.")
        sampling = task.sampling
        if (sampling.logprobs or 0) > _MAX_LOGPROBS:
            raise InvalidInput.at("top_logprobs", f"may be at most {_MAX_LOGPROBS}")
        prompt = encode(
            self._tokenizer, task.prompt, has_special_tokens=task.has_special_tokens, vocabulary=self._vocabulary
        )
        bound = answer_bound(prompt_tokens=len(prompt), context_tokens=self._context, max_tokens=sampling.max_tokens)
        adapter = self._adapter(run.adapters)
        grammar = checked_grammar(sampling.grammar)
        answers = [self._answer(index, sampling, bound) for index in range(sampling.n)]
        generation = _Generation(
            prompt=prompt,
            answers=answers,
            timings=Timings(self._clock.monotonic()),
            top_logprobs=sampling.logprobs or 0,
        )
        seed = self._draw_seed() if sampling.seed is None else sampling.seed
        # A salt is a must: without one vLLM shares prefixes among all that have none.
        salted = {"prompt_token_ids": prompt, "cache_salt": task.cache_key or f"run-{run.id}"}
        self._runs[run.id] = generation
        for index in range(sampling.n):
            parameters = _parameters(sampling, (seed + index) % (1 << _SEED_BITS), bound, self._ends, grammar)
            try:
                self._engine.add_request(_name(run.id, index), salted, parameters, lora_request=adapter)
            except ValueError as error:
                self.cancel(run.id)
                raise InvalidInput(f"vLLM refuses the request: {str(error)[:300]}") from None
            generation.open.add(index)

    def step(self) -> Sequence[tuple[int, Event]]:
        """Let vLLM compute one step."""
        if not self._runs:
            return ()
        events: list[tuple[int, Event]] = []
        for output in self._engine.step():
            run, index = (int(part) for part in output.request_id.split("-"))
            if run in self._runs and index in self._runs[run].open:
                events.extend((run, event) for event in self._take(run, index, output))
        return events

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Refuse the message: the prompt is the whole input."""
        raise InvalidInput("This model takes nothing while it answers.")

    def cancel(self, run: int) -> None:
        """Abort the run's requests, which frees their blocks at once."""
        generation = self._runs.pop(run, None)
        if generation is not None and generation.open:
            self._engine.abort_request([_name(run, index) for index in generation.open])

    def close(self) -> None:
        """Drop what goes on, and vLLM's own processes, if it has any."""
        for run in tuple(self._runs):
            self.cancel(run)
        core = getattr(self._engine, "engine_core", None)
        self._engine = None
        if core is not None:
            core.shutdown()

    def _take(self, run: int, index: int, output: Any) -> Iterator[Event]:
        """Yield what is new in one answer, and `Done` if it was the last."""
        generation = self._runs[run]
        answer, completion = generation.answers[index], output.outputs[0]
        if generation.timings.first is None and completion.token_ids:
            generation.timings.first = self._clock.monotonic()
        generation.cached_tokens = max(generation.cached_tokens, output.num_cached_tokens or 0)
        for place, token in enumerate(completion.token_ids):
            likely = completion.logprobs[place] if completion.logprobs else None
            text = answer.push(_drawn(token, likely, generation.top_logprobs))
            if text is not None:
                yield text
        if output.finished and not answer.finish_reason:
            text = answer.finish("length" if completion.finish_reason == "length" else "stop")
            if text is not None:
                yield text
        if not answer.finish_reason:
            return
        generation.open.discard(index)
        if not output.finished:
            self._engine.abort_request([_name(run, index)])
        if not generation.open:
            del self._runs[run]
            yield self._done(generation)

    def _done(self, generation: _Generation) -> Done:
        return Done(
            result={
                "finish_reasons": [answer.finish_reason for answer in generation.answers],
                "usage": usage_of(len(generation.prompt), generation.answers, generation.cached_tokens),
                "timings": generation.timings.result(self._clock.monotonic()),
            }
        )

    def _answer(self, index: int, sampling: Sampling, bound: int) -> Answer:
        return Answer(
            index=index,
            decode=lambda ids: self._tokenizer.decode(ids, skip_special_tokens=True),
            stops=sampling.stop,
            end_ids=self._ends,
            max_tokens=bound,
            has_logprobs=sampling.logprobs is not None,
        )

    def _adapter(self, mix: tuple[AdapterUse, ...]) -> Any:
        """Return vLLM's description of the adapter. Raises InvalidInput for what it cannot do."""
        if not mix:
            return None
        if len(mix) > 1 or mix[0].scale != 1.0 or not self._max_adapters:
            raise InvalidInput.at("adapters", "may be one, of scale 1, where max_adapters allows any")
        from vllm.lora.request import LoRARequest

        use = mix[0]
        if use.id not in self._adapters:
            path = Path(use.path)
            number = len(self._adapters) + 1
            folder = path if path.is_dir() else path.parent
            self._adapters[use.id] = LoRARequest(lora_name=use.id, lora_int_id=number, lora_path=str(folder))
        return self._adapters[use.id]


def _start(spec: EngineSpec, options: VllmOptions) -> Any:
    """Return vLLM's engine. Raises LoadFailed, MemoryError."""
    import torch

    quieten_transformers()
    from vllm import EngineArgs
    from vllm.usage import usage_lib
    from vllm.v1.engine.llm_engine import LLMEngine

    usage_lib._USAGE_STATS_ENABLED = False  # noqa: SLF001 - otherwise it reports to its makers
    share = options.memory_fraction
    if spec.memory_bytes:
        share = min(0.95, spec.memory_bytes / torch.cuda.get_device_properties(spec.device).total_memory)
    torch.cuda.set_device(spec.device)
    try:
        arguments = EngineArgs(
            model=spec.folder,
            tokenizer=spec.folder,
            dtype=options.dtype,
            load_format="safetensors",
            trust_remote_code=spec.allow_remote_code,
            max_model_len=options.context_tokens or None,
            max_num_seqs=options.max_runs,
            gpu_memory_utilization=share,
            enable_prefix_caching=True,
            enforce_eager=options.enforce_eager,
            enable_lora=options.max_adapters > 0,
            max_loras=max(1, options.max_adapters),
            max_lora_rank=options.max_lora_rank,
            disable_log_stats=True,
        )
        return LLMEngine.from_engine_args(arguments)
    except torch.OutOfMemoryError:
        raise MemoryError from None
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).replace(spec.folder, "the model's folder").strip().split("\n", 1)[0][:300]
        raise LoadFailed(f"vLLM cannot load the model: {reason}") from None


def _parameters(sampling: Sampling, seed: int, bound: int, ends: frozenset[int], grammar: Grammar | None) -> Any:
    """Return vLLM's settings for one answer. Raises InvalidInput for what they do not allow."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    structured = None
    if grammar is not None:
        name = "regex" if grammar.kind == "regex" else "grammar"
        structured = StructuredOutputsParams(**{name: grammar.value})
    try:
        return SamplingParams(
            max_tokens=bound,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=seed,
            stop_token_ids=sorted(ends),
            logprobs=sampling.logprobs,
            logit_bias=dict(sampling.logit_bias) or None,
            structured_outputs=structured,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
    except ValueError as error:
        raise InvalidInput.at("sampling", f"is not possible: {str(error)[:300]}") from None


def _drawn(token: int, likely: Mapping[int, Any] | None, top: int) -> DrawnToken:
    """Return the token with what vLLM tells of its likelihood: the drawn one's, and that of the best."""
    if likely is None:
        return DrawnToken(id=token)
    best = sorted(likely.items(), key=lambda entry: int(entry[1].rank))[:top]
    return DrawnToken(id=token, logprob=likely[token].logprob, top=[(other, one.logprob) for other, one in best])


def _name(run: int, index: int) -> str:
    return f"{run}-{index}"


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)
