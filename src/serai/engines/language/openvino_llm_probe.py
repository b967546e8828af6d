"""The program that tries out grammars, where they can do no harm: in a process that may crash.

    python -m serai.engines.language.openvino_llm_probe FOLDER VOCABULARY

GenAI compiles a grammar within a step. A wrong one breaks the whole pipeline, some crash the process, and some
take all the memory there is. So each new grammar first draws one token here, from a network of one layer with
the model's vocabulary. One `Question` per line in, one `Verdict` per line out.
"""

import os
import re
import resource
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from serai.engines.grammar_check import check_ebnf
from serai.engines.language.openvino_llm_folder import MODEL
from serai.engines.language.openvino_llm_pipeline import make_pipeline, request_config, token_tensor, with_grammar
from serai.engines.quiet import quieten
from serai.engines.tasks import Grammar, Sampling
from serai.errors import InvalidInput

quieten()
import numpy as np  # noqa: E402 - after quieten
import openvino  # noqa: E402 - after quieten
from openvino import opset13 as op  # noqa: E402 - after quieten

_SIZE = 16
_BLOCKS = 4
_CPU_S = 5
"""The process is ended by the kernel if a grammar takes longer to compile."""
_MAX_COMPILE_S = 1.0
"""CPU seconds after which a grammar is too complex: the model's own process compiles it once more, and others wait."""
_EXTRA_BYTES = 1 << 30
_KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_INPUTS = ("input_ids", "attention_mask", "position_ids")


class Question(msgspec.Struct, frozen=True):
    """A grammar to try, and the tokens that end an answer."""

    grammar: Grammar
    end_ids: frozenset[int]


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with the grammar: '' if nothing is."""

    problem: str


def main() -> None:
    """Answer questions until there are no more."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the libraries print is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    probe = Probe(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin.buffer:
        question = msgspec.json.decode(line, type=Question)
        output.write(msgspec.json.encode(Verdict(probe.problem(question))) + b"\n")


class Probe:
    """A pipeline around the smallest network, made anew when a grammar has broken it."""

    def __init__(self, model: Path, vocabulary: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._pipeline: Any = None
        self._requests = 0

    def problem(self, question: Question) -> str:
        """Return what is wrong with a grammar, '' if it can be used."""
        if self._pipeline is None:
            self._pipeline = self._make()
        before = _bound_resources()
        try:
            if question.grammar.kind == "ebnf":
                check_ebnf(question.grammar.value)
            self._draw(question)
        except InvalidInput as error:
            return error.message.removeprefix("grammar: ")
        except (RuntimeError, MemoryError) as error:
            self._pipeline = None
            return _reason(error)
        return "is too complex" if _cpu_seconds() - before > _MAX_COMPILE_S else ""

    def _make(self) -> Any:
        """Return a new pipeline. Its folder is gone at once, so that nothing is left however this process ends."""
        properties = {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False, "sampler_num_threads": 1}
        with TemporaryDirectory(prefix="serai-grammar-") as scratch:
            folder = make_folder(self._model, self._vocabulary, Path(scratch))
            return make_pipeline(folder, properties, blocks=_BLOCKS, batched_tokens=32, has_cache=False)

    def _draw(self, question: Question) -> None:
        config = request_config(Sampling(temperature=0), max_tokens=1, seed=0, end_ids=question.end_ids)
        self._requests += 1
        settings = with_grammar(config, question.grammar.kind, question.grammar.value)
        request = self._pipeline.add_request(self._requests, token_tensor([0, 0]), settings)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        del request


def make_folder(model: Path, vocabulary: int, folder: Path) -> Path:
    """Put the smallest network and a model's tokenizer into a folder, and return it."""
    for path in model.iterdir():
        if path.name in _KEPT or path.stem in {"openvino_tokenizer", "openvino_detokenizer"}:
            shutil.copyfile(path, folder / path.name)
    openvino.save_model(smallest_network(vocabulary), folder / MODEL)
    return folder


def _bound_resources() -> float:
    """Allow this process a few more CPU seconds and a bit more memory; return the CPU seconds used so far."""
    used = _cpu_seconds()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + _CPU_S, resource.RLIM_INFINITY))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bytes_ = pages * resource.getpagesize() + _EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, resource.RLIM_INFINITY))
    return used


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def smallest_network(vocabulary: int) -> Any:
    """Return a stateful causal network of one attention layer, all its logits equal: (batch, tokens, vocabulary)."""
    ids, mask, positions = (op.parameter([-1, -1], np.int64, name=name) for name in _INPUTS)
    beam = op.parameter([-1], np.int32, name="beam_idx")
    zero, table = op.constant(0, dtype=np.int64), op.constant(np.zeros((vocabulary, _SIZE), dtype=np.float32))
    places = op.gather(op.constant(np.zeros((8, _SIZE), dtype=np.float32)), op.multiply(positions, zero), zero)
    hidden = op.add(op.gather(table, ids, zero), places)
    heads = op.transpose(op.reshape(hidden, [0, 0, 1, _SIZE], special_zero=True), [0, 2, 1, 3])
    batch = op.gather(op.shape_of(ids), op.constant([0], dtype=np.int64), zero)
    empty = op.broadcast(op.constant(0.0, dtype=np.float32), op.concat([batch, op.constant([1, 0, _SIZE])], axis=0))
    states, sinks = [], []
    for kind in ("key", "value"):
        shape = openvino.PartialShape([-1, 1, -1, _SIZE])
        info = openvino.op.util.VariableInfo()
        info.data_shape, info.data_type, info.variable_id = shape, openvino.Type.f32, f"past.{kind}"
        variable = openvino.op.util.Variable(info)
        past = op.gather(openvino.op.read_value(empty, variable), beam, zero)
        states.append(op.concat([past, heads], axis=2))
        sinks.append(openvino.op.assign(states[-1], variable))
    allowed = op.unsqueeze(op.unsqueeze(op.convert(mask, np.float32), zero), zero)
    scores = op.multiply(allowed, op.constant(0.0, dtype=np.float32))
    seen = op.scaled_dot_product_attention(heads, states[0], states[1], scores)
    flat = op.reshape(op.transpose(seen, [0, 2, 1, 3]), [0, 0, _SIZE], special_zero=True)
    logits = op.matmul(flat, table, transpose_a=False, transpose_b=True)
    return _named(openvino.Model([op.result(logits)], sinks, [ids, mask, positions, beam], "probe"))


def _named(network: Any) -> Any:
    for port, name in zip(network.inputs, (*_INPUTS, "beam_idx"), strict=True):
        port.get_tensor().set_names({name})
    network.outputs[0].get_tensor().set_names({"logits"})
    return network


def _reason(error: Exception) -> str:
    """Return what the compiler says, without where in its source it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    said = re.sub(r"^\[[\d:]+\]\s+\S+?:\d+:\s*", "", lines[0]) if lines else ""
    return f"is not valid: {said[:300] or 'it cannot be compiled'}"


if __name__ == "__main__":
    main()
