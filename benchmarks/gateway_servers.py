"""The servers of the gateway's benchmark: the stand-in for a model, Serai and LiteLLM in front of it."""

import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from support.process import serving
from support.servers import LOOPBACK, free_port

ROOT = Path(__file__).parents[1]
LITELLM = ROOT / "out" / "venv-litellm"
_MODELS = ("mock", "mock-paced")
_PATIENCE_S = 120.0
_MOST = 1_000_000
"""The highest limits that can be set: they are on and counted, and not reached."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is asked: `cpu_s` tells the CPU seconds of all its processes so far; nothing runs for `direct`."""

    name: str
    port: int
    key: str
    cpu_s: Callable[[], float]


@contextmanager
def upstream() -> Iterator[Server]:
    """Run the stand-in."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "gateway_upstream.py"), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield Server(name="direct", port=port, key="none", cpu_s=lambda: tree_cpu_s(process.pid))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def serai(home: Path, mock: Server) -> Iterator[Server]:
    """Run `serai serve` as it comes, with two services bound to versions of the engine `remote`, and a user's key."""
    limits = ("rate_limit_per_minute", "rate_limit_per_hour", "rate_limit_tokens_per_minute")
    given: dict[str, Any] = dict.fromkeys(limits, _MOST)
    with serving(home, outbound_allow=LOOPBACK, profile="production", **given) as server:
        with server.client() as client:
            _ask(client, "PUT", "/secrets/up", value="upstream-key", origins=[f"http://{LOOPBACK}:{mock.port}"])
            for name in _MODELS:
                source = {
                    "kind": "remote",
                    "endpoint": f"http://{LOOPBACK}:{mock.port}/v1",
                    "model": name,
                    "secret": "up",
                }
                model = f"{name}-model"
                _ask(client, "POST", "/models", id=model, task="chat", version="1.0.0", licence="MIT", source=source)
                _ask(client, "POST", "/services", id=name, task="chat", model_id=model, model_version="1.0.0")
            user = _ask(client, "POST", "/users", name="caller", role="user")
            key = _ask(client, "POST", "/keys", name="caller", user_id=user["id"])["key"]
        yield Server(name="serai", port=server.port, key=key, cpu_s=lambda: tree_cpu_s(server.pid))


@contextmanager
def litellm(folder: Path, mock: Server) -> Iterator[Server]:
    """Run LiteLLM's proxy, one worker, with a master key, no database, and its log at errors."""
    install_litellm()
    key, port = "sk-benchmark", free_port()
    entries = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://{LOOPBACK}:{mock.port}/v1",
                "api_key": "upstream-key",
            },
        }
        for name in _MODELS
    ]
    config = {
        "model_list": entries,
        "general_settings": {"master_key": key},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    (folder / "litellm.yaml").write_bytes(msgspec.json.encode(config))  # JSON is YAML
    own = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    command = [str(LITELLM / "bin" / "litellm"), "--config", str(folder / "litellm.yaml"), "--host", LOOPBACK]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--num_workers", "1"],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **own, "PATH": f"{LITELLM / 'bin'}:{os.environ['PATH']}"},
        )
    try:
        _await_litellm(f"http://{LOOPBACK}:{port}", process, folder / "litellm.log")
        yield Server(name="litellm", port=port, key=key, cpu_s=lambda: tree_cpu_s(process.pid))
    finally:
        process.kill()
        process.wait()


def install_litellm() -> None:
    """Make the environment of LiteLLM if it is not there, with the newest version that the index has."""
    if not (LITELLM / "bin" / "litellm").exists():
        venv.create(LITELLM, with_pip=True)
        subprocess.run([str(LITELLM / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"], check=True)


def litellm_version() -> str:
    """Return the version that is installed."""
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    told = subprocess.run([str(LITELLM / "bin" / "python"), "-c", code], check=True, capture_output=True, text=True)
    return told.stdout.strip()


def tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its children that run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = (child for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task))
    return own + sum(tree_cpu_s(child) for child in children)


def _children(task: Path) -> list[int]:
    try:
        return [int(child) for child in (task / "children").read_text().split()]
    except FileNotFoundError:  # the thread has ended
        return []


def _ask(client: httpx.Client, method: str, path: str, **body: Any) -> Any:
    answer = client.request(method, path, json=body)
    answer.raise_for_status()
    return answer.json()


def _await_litellm(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/liveliness", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError("LiteLLM did not start: " + log.read_text(errors="replace")[-2000:])
