"""`serai pull` and what follows it on the command line; what a pull refuses, and a server without any engine."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai.cli.main import main
from support.hub_server import HubServer, safetensors
from support.process import ServerProcess, environment, hears_ctrl_c
from support.pulling_server import LLAMA, WEIGHTS, PullingServer, pulling_server, tiny_repos
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

DONE, REFUSED, INTERRUPTED = 0, 1, 130
HELD_AT = 2**18

Serai = Callable[..., "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    repos: dict[str, Any] = {
        **tiny_repos(tmp_path_factory, ["llama"]),
        "acme/pickled": {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04" * 50},
        "acme/gguf": {"README.md": b"x", "model-q4.gguf": b"GGUF" + bytes(100)},
        "acme/gated": {"config.json": b"{}", WEIGHTS: safetensors(10)},
    }
    with HubServer(repos) as running:
        running.gate("acme/gated", "hf_token")
        yield running


@pytest.fixture(scope="module")
def server(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PullingServer]:
    with pulling_server(tmp_path_factory.mktemp("pull") / "home", hub) as running:
        yield running


@pytest.fixture
def serai(server: PullingServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Serai:
    """Run the command `serai` with these arguments, as the server's admin."""

    def run(*arguments: str, on: PullingServer = server) -> Outcome:
        monkeypatch.setenv("SERAI_URL", on.url)
        monkeypatch.setenv("SERAI_API_KEY", on.key)
        monkeypatch.setattr(sys, "argv", ["serai", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@contextmanager
def following(
    server: PullingServer, *arguments: str, stdout: int = subprocess.PIPE
) -> Iterator["subprocess.Popen[str]"]:
    """Run the command as a process of its own; it is gone with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serai", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(url=server.url, api_key=server.key), "TERM": "xterm", "COLUMNS": "100"},
        preexec_fn=hears_ctrl_c,  # noqa: PLW1509 - it does nothing but this
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_to(process: "subprocess.Popen[str]", stage: str) -> list[str]:
    """Return the lines that a command prints up to that of a stage."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line.rstrip("\n"))
        if line.startswith(stage):
            return seen
    raise AssertionError(f"it ended without {stage}: {seen}")


def offer(hub: HubServer, name: str) -> Any:
    """Put a repository on the hub, whose weights are held in the middle."""
    weights = f"{name}.safetensors"
    hub.push(f"acme/{name}", {"config.json": b"{}", weights: safetensors(300_000, seed=sum(name.encode()))})
    return hub.hold(weights, at=HELD_AT)


# serai pull


def test_a_pull_into_a_pipe_is_told_in_lines(server: PullingServer, hub: HubServer, serai: Serai) -> None:
    """A line for each stage without a control character, then what came of it; the model can be asked at once."""
    held = hub.hold(WEIGHTS, at=HELD_AT)
    with following(server, "pull", LLAMA, "--quantize", "no") as pulling:
        seen = read_to(pulling, "download")
        held.release.set()
        rest, complaint = pulling.communicate(timeout=120)
    assert (pulling.returncode, complaint) == (DONE, "")
    lines = [*seen, *rest.splitlines()]
    stages = [line.split()[0] for line in lines]
    order = ["resolve", "download", "verify", "register"]
    told = [stage for stage in stages if stage in order]
    assert told == [stage for stage in order if stage in told]
    assert "KiB" in seen[-1]
    assert "\x1b" not in "".join(lines)
    assert ["version", "1.0.0"] in [line.split() for line in lines]
    answered = serai("run", "llama", "hello", "--max-tokens", "4", "--temperature", "0")
    assert (answered.code, answered.err) == (DONE, "")
    assert answered.out.strip()
    assert serai("run", "llama", "hello", "--max-tokens", "4", "--temperature", "0") == answered
    gone = serai("models", "unload", "llama")
    assert (gone.code, gone.out.split()) == (DONE, ["unloaded", "llama@1.0.0"])
    assert server.http.get("/ps").json()["items"] == []


def test_a_pull_for_programs_is_events(serai: Serai) -> None:
    """A JSON object a line; the fraction never goes back; the last one holds the result."""
    told = serai("--json", "pull", LLAMA, "--quantize", "no")
    events = [json.loads(line) for line in told.out.splitlines()]
    fractions = [event["fraction"] for event in events if event.get("fraction") is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert events[-1]["type"] == "done"
    assert events[-1]["result"]["model"] == "llama"


def test_a_pull_on_a_terminal_is_a_bar(server: PullingServer, hub: HubServer) -> None:
    """Drawn while it goes on, with the bytes; full at the end."""
    held = offer(hub, "drawn")
    ours, theirs = pty.openpty()
    with following(server, "pull", "acme/drawn", "--quantize", "no", stdout=theirs) as pulling:
        os.close(theirs)
        seen = _read_until(ours, "586 KiB")
        assert "download" in seen
        assert "100 %" not in seen
        held.release.set()
        seen = _read_until(ours, "fetched_bytes")
        assert pulling.wait(60) == DONE
    os.close(ours)
    assert "100 %" in seen
    assert "━" in seen


def test_ctrl_c_leaves_the_pull_going(server: PullingServer, hub: HubServer) -> None:
    """The command ends with 130 and says how to end the job, which comes to its end by itself."""
    held = offer(hub, "left")
    with following(server, "pull", "acme/left", "--quantize", "no") as pulling:
        read_to(pulling, "download")
        assert held.reached.wait(60)
        pulling.send_signal(signal.SIGINT)
        _, complaint = pulling.communicate(timeout=60)
    assert pulling.returncode == INTERRUPTED
    assert "The pull goes on" in complaint
    job = next(word.strip("'") for word in complaint.split() if word.startswith("job_"))
    assert server.job(job)["status"] == "running"
    held.release.set()
    assert server.ended(job)["type"] == "done"
    assert server.http.get("/models/left").status_code == 200


def test_a_pull_that_nobody_waits_for_names_its_job(server: PullingServer, hub: HubServer, serai: Serai) -> None:
    """`--no-wait`; and `serai jobs cancel` ends it."""
    held = offer(hub, "cancelled")
    told = serai("--json", "pull", "acme/cancelled", "--quantize", "no", "--no-wait")
    job = json.loads(told.out)["job_id"]
    assert held.reached.wait(60)
    assert serai("jobs", "cancel", job).code == DONE
    wait_until(lambda: server.job(job)["status"] == "cancelled", seconds=60)
    held.release.set()
    assert server.http.get("/models/cancelled").status_code == 404


# What is refused


REFUSALS = {
    "acme/unknown": ("REPO_NOT_FOUND", 404, "Check the spelling"),
    "acme/gated": ("GATED_REPO", 403, "hub_token_secret"),
    "acme/pickled": ("FILES_REFUSED", 400, "allow_pickle"),
    "acme/gguf": ("UNSUPPORTED_WEIGHTS", 400, "safetensors"),
}


@pytest.mark.parametrize("repo", REFUSALS)
def test_what_cannot_be_pulled_is_told_with_the_remedy(server: PullingServer, serai: Serai, repo: str) -> None:
    """By the command, the job, and in Ollama's words, whole and streamed; no model is registered."""
    code, status, remedy = REFUSALS[repo]
    check_refusal(server, serai, repo, code, status, remedy)


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(hub: HubServer, serai: Serai, tmp_path: Path) -> None:
    """With what is missing and what to do."""
    served = dict(hub.served)
    with pulling_server(tmp_path / "home", hub, min_free_disk_bytes=10**15) as full:
        check_refusal(full, serai, LLAMA, "NOT_ENOUGH_SPACE", 503, "delete versions")
    assert dict(hub.served) == served


def test_a_hub_that_is_not_there_is_told(hub: HubServer, serai: Serai, tmp_path: Path) -> None:
    """With the ways to go on without one."""
    with pulling_server(tmp_path / "home", hub, hub_endpoint="http://127.0.0.1:9") as alone:
        told = serai("pull", LLAMA, on=alone)
    assert told.code == REFUSED
    assert "[HUB_UNREACHABLE]" in told.err
    assert "hub_endpoint" in told.err
    assert "model_roots" in told.err


def check_refusal(server: PullingServer, serai: Serai, repo: str, code: str, status: int, remedy: str) -> None:
    told = serai("pull", repo, on=server)
    assert told.code == REFUSED, told
    assert f"[{code}]" in told.err
    assert "hint: " in told.err
    assert remedy in told.err
    last = server.ended(server.pull(repo))
    assert (last["type"], last["code"]) == ("failed", code)
    assert remedy in last["hint"]
    whole = server.http.post("/api/pull", json={"model": repo, "stream": False})
    assert (whole.status_code, remedy in whole.json()["error"]) == (status, True), whole.text
    lines = server.http.post("/api/pull", json={"model": repo}).text.splitlines()
    assert remedy in json.loads(lines[-1])["error"]
    assert repo not in server.http.get("/models").text


# No engine


WITHOUT = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {"torch", "transformers", "nncf", "openvino", "openvino_genai", "openvino_tokenizers", "vllm"}

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]

from serai.cli.main import main
main()
"""
"""The server of a machine on which no engine is installed."""


def test_a_server_without_any_engine_says_what_is_missing(
    tmp_path_factory: pytest.TempPathFactory, serai: Serai, tmp_path: Path
) -> None:
    """It starts; every pull, load and chat names the package and the command that installs it; /status lists it."""
    repos = tiny_repos(tmp_path_factory, ["llama"])
    repos["acme/ir"] = {
        "config.json": repos[LLAMA]["config.json"],
        "openvino_model.xml": b"<net/>",
        "openvino_model.bin": bytes(16),
    }
    source = (sys.executable, "-c", WITHOUT)
    with HubServer(repos) as hub, pulling_server(tmp_path / "home", hub, command=source) as bare:
        engines = bare.http.get("/status").json()["engines"]
        for name, package in (("openvino-genai", "openvino_genai"), ("transformers", "torch"), ("vllm", "vllm")):
            assert not engines[name]["available"]
            assert package in engines[name]["missing"]
            assert engines[name]["install"].startswith("pip install ")
        assert bare.http.get("/health").json()["status"] == "healthy"
        check_refusal(bare, serai, LLAMA, "MISSING_EXTRA", 409, "pip install 'serai[torch]'")
        assert bare.pulled("acme/ir", name="published")["status"] == "active"
        check_asking(bare.process, "published", "pip install openvino openvino-genai openvino-tokenizers")
        shown = serai("models", "load", "published", on=bare)
        assert (shown.code, "pip install openvino" in shown.err) == (REFUSED, True)
        assert "pip install openvino" in serai("run", "published", "hello", on=bare).err


def test_safetensors_without_transformers_name_the_extra(hub: HubServer, tmp_path: Path) -> None:
    """Pulled as they are, they wait for it."""
    source = (sys.executable, "-c", WITHOUT)
    with pulling_server(tmp_path / "home", hub, command=source) as bare:
        assert bare.pulled(LLAMA, quantize="no")["status"] == "active"
        check_asking(bare.process, "llama", "pip install 'serai[torch]'")


def check_asking(process: ServerProcess, model: str, install: str) -> None:
    """Every way to ask or load the model must name the command."""
    said = [{"role": "user", "content": "hello"}]
    with process.client(timeout=120) as http:
        for path, body in {
            "/chat": {"model": model, "messages": said},
            "/v1/chat/completions": {"model": model, "messages": said, "stream": True},
            "/v1/completions": {"model": model, "prompt": "hello"},
            "/v1/responses": {"model": model, "input": "hello"},
            "/api/chat": {"model": model, "messages": said},
            "/api/generate": {"model": model, "prompt": "hello"},
            f"/models/{model}/load": {},
        }.items():
            answer = http.post(path, json=body)
            assert answer.status_code == 503, (path, answer.text)
            assert install in answer.text, (path, answer.text)


def _read_until(terminal: int, text: str) -> str:
    """Return what a terminal shows, up to `text` and what came with it."""
    seen = b""
    while text.encode() not in seen:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            piece = b""
        assert piece, seen.decode(errors="replace")
        seen += piece
    return seen.decode(errors="replace")
