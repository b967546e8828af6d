"""OpenVINO GenAI without a server: the loop that anybody would write around its continuous batching.

    python benchmarks/chat_cpu_direct.py FOLDER THREADS      takes an `Order` per line on stdin, answers with `Timed`

It has Serai's settings, so that what is measured is what Serai adds. Answers stay tokens.
"""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec


class Order(msgspec.Struct, kw_only=True):
    """Prompts with their template, all sent at once."""

    prompts: list[str]
    new_tokens: int


class Timed(msgspec.Struct, kw_only=True):
    """How long the whole took, and each first token; the tokens of the first answer."""

    seconds: float
    first_s: list[float]
    tokens: list[int]


def main(folder: Path, threads: int) -> None:
    from serai.engines.base import EngineSpec
    from serai.engines.language.openvino_llm_folder import read_export
    from serai.engines.language.openvino_llm_memory import plan_cache, sizes_of
    from serai.engines.language.openvino_llm_pipeline import make_pipeline, properties_of
    from serai.engines.options import OpenvinoLlmOptions
    from serai.engines.text import load_tokenizer

    options = OpenvinoLlmOptions()
    quantization = read_export(folder).quantization
    spec = EngineSpec(engine="openvino-genai", name="direct", folder=str(folder), threads=threads)
    blocks, _ = plan_cache(sizes_of(folder, options), 0, options)
    pipeline = make_pipeline(
        folder,
        properties_of(spec, options, quantization),
        blocks=blocks,
        batched_tokens=options.batched_tokens,
        has_cache=False,
    )
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    serial = 0
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        timed = carry_out(pipeline, tokenizer, order, serial)
        serial += len(order.prompts)
        sys.stdout.buffer.write(msgspec.json.encode(timed) + b"\n")
        sys.stdout.buffer.flush()


def carry_out(pipeline: Any, tokenizer: Any, order: Order, serial: int) -> Timed:
    """Answer all prompts as one batch."""
    from serai.engines.language.openvino_llm_pipeline import request_config, token_tensor
    from serai.engines.tasks import Sampling

    began = time.perf_counter()
    config = request_config(Sampling(temperature=0), max_tokens=order.new_tokens, seed=0, end_ids=frozenset())
    handles = []
    for number, prompt in enumerate(order.prompts):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        handles.append(pipeline.add_request(serial + number, token_tensor(ids), config))
    tokens: list[list[int]] = [[] for _ in handles]
    first_s = [0.0] * len(handles)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for number, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    first_s[number] = first_s[number] or time.perf_counter() - began
                    tokens[number].extend(output.generated_ids)
    seconds = time.perf_counter() - began
    if any(len(told) != order.new_tokens for told in tokens):
        raise RuntimeError(f"answers of {[len(told) for told in tokens]} tokens")
    return Timed(seconds=seconds, first_s=first_s, tokens=tokens[0])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        print(__doc__)
