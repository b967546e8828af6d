"""What Serai adds to an image pipeline, and what changing the adapter costs beside loading the model again.

    python benchmarks/images.py [--rounds 5] [--side 256 512] [--steps 20] [--json out/images.json]

The pipelines are those of the tests: of Stable Diffusion's architecture, small, with random weights and two adapters.
One thread each. *Bare* is the library's own call in a process of its own, the pipeline loaded, no picture encoded:
diffusers' `StableDiffusionPipeline`, and OpenVINO GenAI's `Text2ImagePipeline` on the same network. *Serai* is a call
of POST /images/generations on `serai serve` as it comes (keys, limits, durable job, events, PNG with metadata,
thumbnail, gallery, decision), from the request to the job's last event. The two are measured in turns, in every round
both; medians are shown, for each side that is asked for. What Serai adds is for the most part a time that does not
grow with the picture: the job, the file and the thumbnail are each synced to the disk, so what one sync takes here
stands first.

*Cancel*: a picture on its way is cancelled; the time from that request to the job's last event, beside one step.

*Switch*: two versions on one base that differ in their adapter, asked in turns; the time over that of asking one of
them. *Reload*: what the same change would cost if it meant loading: unload, then ask. *Memory*: what both versions
take, times what one takes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from support.llm_models import child_environment  # noqa: E402 - needs the path
from support.process import ServerProcess, serving  # noqa: E402 - needs the path

PROMPT = "a fox in the snow"
FOR_GENAI = """
import sys
from pathlib import Path
from serai.engines.quiet import quieten
quieten()
import openvino
from openvino_tokenizers import convert_tokenizer
from transformers import PreTrainedTokenizerFast
source, target = map(Path, sys.argv[1:])
tokenizer = PreTrainedTokenizerFast.from_pretrained(target / "tokenizer")
network = convert_tokenizer(tokenizer, with_detokenizer=False)
openvino.save_model(network, target / "tokenizer" / "openvino_tokenizer.xml")
steps = openvino.preprocess.PrePostProcessor(openvino.Core().read_model(source / "unet" / "openvino_model.xml"))
steps.input("timestep").tensor().set_element_type(openvino.Type.i64)
openvino.save_model(steps.build(), target / "unet" / "openvino_model.xml", compress_to_fp16=False)
"""
"""Makes the tokenizer a network and times whole numbers, as OpenVINO GenAI wants them."""
BARE_FOLDERS = {"diffusers": "diffusers", "openvino-image": "genai"}
ENGINES = ("diffusers", "openvino-image")
OVERHEAD = 1.03
"""The goal: of a picture of 20 steps."""
CANCEL_STEPS, CANCELLED_AT = 200, 3
"""A picture that is cancelled: how many steps it would have, and after which."""
CANCEL_S = 0.1
"""The goal of a cancel, beside the step that is on its way: the request, and the end of the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `goal` with its sign is what was promised."""

    name: str
    value: float
    unit: str
    goal: str = ""


def bare(engine: str, folder: str, side: int, steps: int) -> None:
    """Load a pipeline; for each line of standard input make a picture and print the seconds it took."""
    draw = _diffusers(folder) if engine == "diffusers" else _genai(folder)
    draw(side, steps, 0)
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        draw(side, steps, number)
        print(time.perf_counter() - began, flush=True)


def _diffusers(folder: str) -> Callable[[int, int, int], Any]:
    from serai.engines.quiet import quieten

    quieten()
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw(side: int, steps: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        size = {"width": side, "height": side}
        return pipeline(PROMPT, num_inference_steps=steps, generator=generator, output_type="np", **size)

    return draw


def _genai(folder: str) -> Callable[[int, int, int], Any]:
    from serai.engines.quiet import quieten

    quieten()
    import openvino_genai

    pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", INFERENCE_NUM_THREADS=1, INFERENCE_PRECISION_HINT="f32")

    def draw(side: int, steps: int, seed: int) -> Any:
        return pipeline.generate(PROMPT, width=side, height=side, num_inference_steps=steps, rng_seed=seed)

    return draw


class Bare:
    """The process of a bare pipeline."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def seconds(self) -> float:
        """Have a picture made, and return how long it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._said())

    def _said(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "ready\n" or line.replace(".", "", 1).strip().isdigit():
                return line.strip()
        raise RuntimeError("the bare pipeline ended")

    def await_ready(self) -> None:
        """Return when the pipeline is loaded and warm."""
        while self._said() != "ready":
            pass


@contextmanager
def bare_process(engine: str, folder: Path, side: int, steps: int) -> Iterator[Bare]:
    """Run `bare` in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--bare", engine, "--folder", str(folder)]
    command += ["--side", str(side), "--steps", str(steps)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=child_environment(), **pipes) as process:
        found = Bare(process)
        found.await_ready()
        yield found
        assert process.stdin is not None
        process.stdin.close()


class Serai:
    """The running server."""

    def __init__(self, process: ServerProcess) -> None:
        headers = {"authorization": f"Bearer {process.admin_key}"}
        self._http = httpx.Client(base_url=process.url, headers=headers, timeout=600, trust_env=False)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON answer. Raises RuntimeError for a refusal."""
        answer = self._http.request(method, path, json=body)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.text}")
        return answer.json() if answer.content else None

    def register(self, engine: str, adapters: tuple[str, ...]) -> None:
        """Create a model with a version for each adapter, and one without any."""
        source = {"kind": "folder", "root": "bench", "path": engine}
        common = {"source": source, "engine": engine, "licence": "Apache-2.0"}
        self.call("POST", "/models", {"id": engine, "task": "image-generation", "version": "1.0.0", **common})
        for number, name in enumerate(adapters, start=1):
            place = {"kind": "folder", "root": "bench", "path": f"loras/{name}"}
            given = {**common, "adapters": [{"id": name.split(".")[0], "scale": 1.0, "source": place}]}
            self.call("POST", f"/models/{engine}/versions", {"version": f"1.{number}.0", **given})

    def seconds(self, model: str, side: int, steps: int, seed: int) -> float:
        """Have a picture made as a job, and return the seconds from the request to its last event."""
        began = time.perf_counter()
        last = list(self._events(self._asked(model, side, steps, seed)))[-1]
        took = time.perf_counter() - began
        if last["type"] != "done":
            raise RuntimeError(str(last))
        return took

    def cancel_seconds(self, model: str, side: int) -> tuple[float, float]:
        """Cancel a picture on its way; return the seconds until its job has ended, and those of one step before."""
        accepted = self._asked(model, side, CANCEL_STEPS, 0)
        began, times = None, []
        for event in self._events(accepted):
            if event.get("stage") == "generating":
                times.append(time.perf_counter())
            if len(times) > CANCELLED_AT and began is None:
                began = time.perf_counter()
                self.call("POST", f"/jobs/{accepted['job_id']}/cancel")
        if began is None or event.get("code") != "CANCELLED":
            raise RuntimeError("the picture was not cancelled")
        return time.perf_counter() - began, (times[CANCELLED_AT] - times[0]) / CANCELLED_AT

    def _asked(self, model: str, side: int, steps: int, seed: int) -> Any:
        settings = {"width": side, "height": side, "num_inference_steps": steps, "guidance_scale": 7.5, "seed": seed}
        body = {"model": model, "prompt": PROMPT, "settings": settings, "previews": 0}
        return self.call("POST", "/images/generations", body)

    def _events(self, accepted: Any) -> Iterator[Any]:
        with self._http.stream("GET", accepted["events_url"]) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def memory(self, model: str) -> int:
        """Return the bytes of all that is loaded of a model."""
        return sum(one["bytes"] for one in self.call("GET", "/ps")["items"] if one["model"] == model)


def synced(folder: Path) -> Row:
    """Return what it takes to write a small file and have it safe on the disk that the server uses."""
    seconds = []
    for _ in range(9):
        with (folder / "synced").open("wb") as file:
            file.write(b"0" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return Row(name="one sync of this disk", value=1000 * statistics.median(seconds), unit="ms")


def overhead(server: Serai, engine: str, folder: Path, side: int, options: argparse.Namespace) -> list[Row]:
    """Return what a picture takes bare and through the server, and the ratio."""
    name, told = f"{engine}@1.0.0", f"{engine}, {side} × {side}"
    server.seconds(name, side, options.steps, 0)
    alone, served = [], []
    with bare_process(engine, folder, side, options.steps) as process:
        for number in range(options.rounds):
            alone.append(process.seconds())
            served.append(server.seconds(name, side, options.steps, number))
    bare_s, serai_s = statistics.median(alone), statistics.median(served)
    return [
        Row(name=f"{told}: bare", value=bare_s, unit="s"),
        Row(name=f"{told}: Serai", value=serai_s, unit="s"),
        Row(name=f"{told}: Serai - bare", value=1000 * (serai_s - bare_s), unit="ms"),
        Row(name=f"{told}: Serai / bare", value=serai_s / bare_s, unit="×", goal=f"≤ {OVERHEAD}"),
    ]


def cancels(server: Serai, engine: str, side: int, rounds: int) -> list[Row]:
    """Return how long a cancel takes while a picture is drawn, and how long a step does."""
    measured = [server.cancel_seconds(f"{engine}@1.0.0", side) for _ in range(rounds)]
    cancel_s, step_s = (statistics.median(one) for one in zip(*measured, strict=True))
    told, goal = f"{engine}, {side} × {side}", f"≤ {1 + CANCEL_S / step_s:.1f}: 1 step + {1000 * CANCEL_S:.0f} ms"
    return [
        Row(name=f"{told}: one step", value=1000 * step_s, unit="ms"),
        Row(name=f"{told}: cancel", value=cancel_s / step_s, unit="steps", goal=goal),
    ]


def adapters(server: Serai, engine: str, options: argparse.Namespace) -> list[Row]:
    """Return what a change of the adapter costs, what a load costs, and the memory of two versions on one base."""
    side, steps = options.side[0], options.steps
    first, second = f"{engine}@1.1.0", f"{engine}@1.2.0"
    server.seconds(first, side, steps, 0)
    one = server.memory(engine)
    server.seconds(second, side, steps, 0)
    both = server.memory(engine)
    same, changed, loaded = [], [], []
    for number in range(options.rounds):
        server.seconds(first, side, steps, number)
        same.append(server.seconds(first, side, steps, number))
        changed.append(server.seconds(second, side, steps, number))
    for number in range(max(2, options.rounds // 2)):
        server.call("POST", f"/models/{engine}/unload", {"force": True})
        loaded.append(server.seconds(first, side, steps, number))
    base = statistics.median(same)
    switch, reload = statistics.median(changed) - base, statistics.median(loaded) - base
    return [
        Row(name=f"{engine}: switch of the adapter", value=1000 * switch, unit="ms"),
        Row(name=f"{engine}: reload", value=1000 * reload, unit="ms"),
        Row(name=f"{engine}: memory of two versions / of one", value=both / one, unit="×", goal="≤ 1.05"),
    ]


def made(folder: Path) -> None:
    """Make the pipelines: for diffusers, its adapters, and the network for OpenVINO."""
    program = [sys.executable, "-m", "support.image_models", str(folder), "sd", "sd-loras"]
    subprocess.run(program, env=child_environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder / "sd").rename(folder / "diffusers")
    (folder / "sd-loras").rename(folder / "loras")
    request = {"source": str(folder / "diffusers"), "target": str(folder / "openvino-image"), "quantization": "fp32"}
    program = [sys.executable, "-m", "serai.pulls.conversion", json.dumps(request)]
    subprocess.run(program, env=child_environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    shutil.copytree(folder / "openvino-image", folder / "genai")
    program = [sys.executable, "-c", FOR_GENAI, str(folder / "openvino-image"), str(folder / "genai")]
    subprocess.run(program, env=child_environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, nargs="+", default=[256])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.folder, options.side[0], options.steps)
        return
    with tempfile.TemporaryDirectory(prefix="serai-images-") as scratch:
        folder = Path(scratch)
        made(folder)
        rows = [synced(folder)]
        settings = {"model_roots": f"bench={folder}", "worker_threads": 1, "log_level": "error"}
        with serving(folder / "home", **settings) as process:
            server = Serai(process)
            for engine in options.engines:
                server.register(engine, ("first.safetensors", "second.safetensors"))
                for side in options.side:
                    rows += overhead(server, engine, folder / BARE_FOLDERS[engine], side, options)
                    rows += cancels(server, engine, side, options.rounds)
                rows += adapters(server, engine, options)
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {row.value:10.3f} {row.unit:<5} {row.goal}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        told = {"side": options.side, "steps": options.steps, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
