"""A real server beside a hub on loopback, and what is pulled from it: tiny language models, and what is none."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.hub_server import HubServer
from support.llm_models import made
from support.process import ServerProcess, serving

LLAMA, QWEN3 = "tiny/llama", "tiny/qwen3"
WEIGHTS = "model.safetensors"
LONG_S = 300.0
"""For a conversion or a load on a machine that does much else."""
TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    '{{ \'<tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call><|im_end|>\n\' }}{% endif %}'
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen's: it shows the tools, and how a call is written."""


@dataclass
class PullingServer:
    """The server and its hub."""

    process: ServerProcess
    hub: HubServer
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = self.process.client(timeout=LONG_S)

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def key(self) -> str:
        return self.process.admin_key

    def pull(self, model: str, **values: Any) -> str:
        """Order a pull; return the job's id."""
        answer = self.http.post("/pull", json={"model": model, **values})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a job as they come, to its end."""
        with self.http.stream("GET", f"/jobs/{job}/events") as stream:
            assert stream.status_code == 200
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def ended(self, job: str) -> dict[str, Any]:
        """Return the last event of a job."""
        return list(self.events(job))[-1]

    def pulled(self, model: str, **values: Any) -> dict[str, Any]:
        """Pull, wait, and return the result."""
        last = self.ended(self.pull(model, **values))
        assert last["type"] == "done", last
        return dict(last["result"])

    def job(self, job: str) -> dict[str, Any]:
        return dict(self.http.get(f"/jobs/{job}").json())

    def figures(self) -> str:
        """Return /metrics."""
        return self.http.get("/metrics", headers={"accept": "text/plain"}).text


def tiny_repos(factory: pytest.TempPathFactory, families: Sequence[str] = ("llama", "qwen3")) -> dict[str, Any]:
    """Return repositories that hold tiny models as they come from a hub; Qwen's template knows tools."""
    folders = made(factory, [f"{family}/hf" for family in families])
    repos = {f"tiny/{family}": _files(folder) for family, folder in zip(families, folders, strict=True)}
    if QWEN3 in repos:
        repos[QWEN3]["chat_template.jinja"] = TOOLS_TEMPLATE.encode()
    return repos


@contextmanager
def pulling_server(home: Path, hub: HubServer, **settings: Any) -> Iterator[PullingServer]:
    """Run a server in `home` that pulls from `hub` until the block ends."""
    given = {"hub_endpoint": hub.url, "outbound_allow": "127.0.0.1", "rate_limits": "off", "worker_threads": 1}
    with serving(home, **{**given, **settings}) as process:
        server = PullingServer(process, hub)
        with server.http:
            yield server


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def endless(files: dict[str, bytes], *, context_tokens: int = 4096) -> dict[str, bytes]:
    """Return a Llama that never ends by itself: the rows of its head for the tokens that end an answer are zeros."""
    data = bytearray(files[WEIGHTS])
    length = int.from_bytes(data[:8], "little")
    tensor = json.loads(data[8 : 8 + length])["lm_head.weight"]
    start, stop = tensor["data_offsets"]
    row = (stop - start) // tensor["shape"][0]
    for token in json.loads(files["generation_config.json"])["eos_token_id"]:
        place = 8 + length + start + token * row
        data[place : place + row] = bytes(row)
    config = {**json.loads(files["config.json"]), "max_position_embeddings": context_tokens}
    return {**files, WEIGHTS: bytes(data), "config.json": json.dumps(config).encode()}
