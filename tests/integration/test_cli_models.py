"""The commands that look at models, load them and talk to them, against a running server."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai.cli.main import main
from support.process import ServerProcess, environment, hears_ctrl_c, serving
from support.waiting import wait_until

DONE, REFUSED, WRONG_USAGE, UNREACHABLE = 0, 1, 2, 3
MODELS: dict[str, dict[str, Any]] = {
    "echo": {},
    "unloadable": {"fail": "load"},
    "breaks": {"fail": "run", "fail_after": 2},
    "long": {"tokens": 100_000, "step_s": 0.01},
}
"""Each repeats its prompt; what differs is how."""

Serai = Callable[..., "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def rows(self) -> list[list[str]]:
        """Return the cells of the table without its head."""
        lines = [line for line in self.out.splitlines() if line.strip() and "──" not in line]
        return [line.split() for line in lines[1:]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("cli") / "home", rate_limits="off", worker_threads=1) as running:
        with running.client() as client:
            for id_, options in MODELS.items():
                source = {"kind": "package", "name": id_}
                card = {"id": id_, "task": "chat", "version": "1.0.0", "engine": "fake", "source": source}
                made = client.post("/models", json={**card, "licence": "MIT", "engine_options": options})
                assert made.status_code == 201, made.text
            bound = {"id": "talk", "task": "chat", "model_id": "echo", "model_version": "1.0.0"}
            assert client.post("/services", json=bound).status_code == 201
        yield running


@pytest.fixture
def serai(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Serai]:
    """Run the command `serai` with these arguments, as the server's admin; nothing stays loaded afterwards."""
    monkeypatch.setenv("SERAI_URL", server.url)
    monkeypatch.setenv("SERAI_API_KEY", server.admin_key)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["serai", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    yield run
    for name in MODELS:
        run("models", "unload", name, "--force")
        run("models", "clear-cooldown", name)


def test_nothing_loaded_is_said_in_a_word(serai: Serai) -> None:
    """And as an empty page for programs."""
    assert serai("ps") == Outcome(DONE, "none\n", "")
    assert serai("--json", "ps").json() == {"items": [], "next_cursor": None}


def test_a_model_is_loaded_listed_and_unloaded(serai: Serai) -> None:
    """By the name of a service, kept for ever, with its process; and gone again."""
    loaded = serai("--json", "models", "load", "talk", "--keep-alive", "-1")
    assert loaded.code == DONE
    pid = loaded.json()["pid"]
    assert Path(f"/proc/{pid}").exists()
    told = serai("models", "load", "echo@1.0.0", "--keep-alive", "-1")
    assert f"pid         {pid}" in told.out
    ((versions, engine, device, amount, unit, state, expires),) = serai("ps").rows()
    assert (versions, engine, device) == ("echo@1.0.0", "fake", "cpu")
    assert (unit, state, expires) == ("MiB", "ready", "never")
    assert float(amount) > 0
    assert serai("--json", "ps").json()["items"][0]["services"] == ["talk"]
    gone = serai("models", "unload", "echo")
    assert (gone.code, gone.out.split()) == (DONE, ["unloaded", "echo@1.0.0"])
    assert not Path(f"/proc/{pid}").exists()
    assert serai("--json", "models", "unload", "echo").json() == {"unloaded": []}


def test_a_model_that_answers_is_in_use(server: ServerProcess, serai: Serai) -> None:
    """It is not said to stay for ever, and unloading it by force ends the answer."""
    talking = _talk(server, "run", "long", "one two")
    try:
        assert talking.stdout is not None
        assert talking.stdout.read(5) == "User:"
        ((*_, calls, in_, use, expires),) = serai("ps").rows()
        assert (calls, in_, use, expires) == ("1", "in", "use", "-")
        assert serai("models", "unload", "long", "--force").code == DONE
        _, complaint = talking.communicate(timeout=60)
    finally:
        talking.kill()
        talking.communicate()
    assert talking.returncode == REFUSED
    assert "[MODEL_UNLOADED]" in complaint


def test_a_load_that_fails_is_told_with_what_to_do(serai: Serai) -> None:
    """Then it is left alone; `clear-cooldown` lets it be tried again."""
    first = serai("models", "load", "unloadable")
    assert (first.code, first.out) == (REFUSED, "")
    assert "[LOAD_FAILED]" in first.err
    assert "hint: " in first.err
    again = serai("models", "load", "unloadable")
    assert "[MODEL_IN_COOLDOWN]" in again.err
    assert "clear" in again.err
    assert serai("models", "clear-cooldown", "unloadable").out.split() == ["cleared", "unloadable"]
    assert "[LOAD_FAILED]" in serai("models", "load", "unloadable").err


@pytest.mark.parametrize(
    "arguments", [("models", "load"), ("models", "unload"), ("models", "clear-cooldown"), ("run",)], ids=" ".join
)
def test_a_model_that_does_not_exist_is_refused_with_a_hint(serai: Serai, arguments: tuple[str, ...]) -> None:
    """One line that names the code, and a hint."""
    told = serai(*arguments, "nobody", *(["hello"] if arguments == ("run",) else []))
    assert told.code == REFUSED
    assert "[MODEL_NOT_FOUND]" in told.err
    assert "hint: " in told.err


def test_a_prompt_is_answered(serai: Serai) -> None:
    """As text; with the system's word before it; as frames for programs."""
    assert serai("run", "echo", "one two") == Outcome(DONE, "User: one two Assistant:\n", "")
    assert serai("run", "talk", "one two", "--max-tokens", "2").out == "User: one\n"
    assert "be kind" in serai("run", "echo", "one", "--system", "be kind").out
    frames = [json.loads(line) for line in serai("--json", "run", "echo", "one two").out.splitlines()]
    assert "".join(frame["delta"].get("content", "") for frame in frames) == "User: one two Assistant:"
    assert frames[-1]["done"]
    assert frames[-1]["decision"]["model"] == "echo"


def test_what_cannot_be_asked_is_refused_before_and_by_the_server(serai: Serai) -> None:
    """A value out of bounds is wrong usage; what the server refuses names the field."""
    assert serai("run", "echo", "one", "--temperature", "9").code == WRONG_USAGE
    refused = serai("run", "echo", "one", "--seed", str(2**70))
    assert refused.code == REFUSED
    assert "seed" in refused.err


def test_an_answer_that_breaks_off_is_told_after_what_was_said(serai: Serai) -> None:
    """The words stand on stdout, the error and its hint on stderr, and the exit code says it."""
    told = serai("run", "breaks", "one two")
    assert (told.code, told.out) == (REFUSED, "User: one\n")
    assert "[ENGINE_FAILED]" in told.err
    assert "hint: " in told.err
    frames = [json.loads(line) for line in serai("--json", "run", "breaks", "one two").out.splitlines()]
    assert frames[-1]["error"]["code"] == "ENGINE_FAILED"


def test_what_is_piped_in_is_one_prompt(server: ServerProcess) -> None:
    """Lines and all; nothing is not a prompt."""
    asked = _talk(server, "run", "echo")
    out, _ = asked.communicate("one\ntwo three\n", timeout=60)
    assert (asked.returncode, out.split()) == (DONE, ["User:", "one", "two", "three", "Assistant:"])


def test_a_conversation_remembers_what_was_said(server: ServerProcess) -> None:
    """On a terminal: question, answer, question; an empty line ends it."""
    ours, theirs = pty.openpty()
    talking = _talk(server, "run", "echo", stdin=theirs)
    os.close(theirs)
    try:
        assert talking.stdout is not None
        for line in ("one", "two", ""):
            os.write(ours, f"{line}\n".encode())
        out = talking.stdout.read()
        assert talking.wait(60) == DONE
    finally:
        talking.kill()
        talking.communicate()
        os.close(ours)
    first, second = "User: one Assistant:", "User: one Assistant: User: one Assistant: User: two Assistant:"
    answers = [" ".join(piece.split()) for piece in out.split(">>>")]
    assert answers == ["", first, second, ""]


def test_ctrl_c_ends_the_answer_on_the_server_too(server: ServerProcess, serai: Serai) -> None:
    """The command ends with 130, and nothing runs on any more."""
    talking = _talk(server, "run", "long", "one two")
    try:
        assert talking.stdout is not None
        assert talking.stdout.read(5) == "User:"
        talking.send_signal(signal.SIGINT)
        _, complaint = talking.communicate(timeout=60)
    finally:
        talking.kill()
        talking.communicate()
    assert (talking.returncode, complaint) == (130, "")
    wait_until(lambda: not any(one["in_flight"] for one in serai("--json", "ps").json()["items"]), seconds=60)


def test_a_server_that_is_not_there_is_told(
    server: ServerProcess, serai: Serai, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit code for it, and what to do."""
    monkeypatch.setenv("SERAI_URL", "http://127.0.0.1:9")
    for arguments in (("ps",), ("models", "load", "echo"), ("run", "echo", "one")):
        told = serai(*arguments)
        assert told.code == UNREACHABLE, arguments
        assert "serai serve" in told.err, arguments
    monkeypatch.setenv("SERAI_URL", server.url)


def test_a_server_that_goes_away_in_the_middle_is_told(tmp_path: Path) -> None:
    """What was said stands, and the exit code is that of a server which cannot be reached."""
    with serving(tmp_path / "home", rate_limits="off", worker_threads=1) as server:
        with server.client() as client:
            source = {"kind": "package", "name": "long"}
            card = {"id": "long", "task": "chat", "version": "1.0.0", "engine": "fake", "source": source}
            client.post("/models", json={**card, "licence": "MIT", "engine_options": MODELS["long"]})
        talking = _talk(server, "run", "long", "one two")
        try:
            assert talking.stdout is not None
            assert talking.stdout.read(5) == "User:"
            server.process.kill()
            _, complaint = talking.communicate(timeout=60)
        finally:
            talking.kill()
            talking.communicate()
    assert talking.returncode == UNREACHABLE
    assert "broke the connection off" in complaint
    assert "hint: " in complaint


def _talk(server: ServerProcess, *arguments: str, stdin: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "serai", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(url=server.url, api_key=server.admin_key),
        preexec_fn=hears_ctrl_c,  # noqa: PLW1509 - it does nothing but this
    )
