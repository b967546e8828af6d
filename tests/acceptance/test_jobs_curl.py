"""A job's events, followed with the real curl, through a restart of the server."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.process import ServerProcess, serving

pytestmark = pytest.mark.fault

PROGRAM = Path(__file__).parents[1] / "support" / "stepping_server.py"
COMMAND = (sys.executable, str(PROGRAM))


def curl(server: ServerProcess, path: str, *arguments: str) -> "subprocess.Popen[str]":
    key = f"authorization: Bearer {server.admin_key}"
    command = ["curl", "-sN", "-H", key, *arguments, server.url + path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read_until(following: "subprocess.Popen[str]", text: str) -> str:
    """Read what curl prints until a line holds `text`."""
    assert following.stdout is not None
    seen = ""
    for line in following.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the stream ended without {text!r}: {seen}")


def ids(stream: str) -> list[int]:
    return [int(number) for number in re.findall(r"^id: (\d+)$", stream, re.MULTILINE)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_curl_follows_a_job_through_a_restart(tmp_path: Path, how: signal.Signals) -> None:
    """The stream goes on behind the last id that curl saw, without a gap or a repeat, to the one end."""
    home, steps = tmp_path / "home", tmp_path / "steps"
    steps.mkdir()
    (steps / "1").touch()
    body = json.dumps({"kind": "stepping", "payload": {"folder": str(steps), "steps": 3}})
    with serving(home, command=COMMAND) as first:
        post = curl(first, "/jobs", "-H", "content-type: application/json", "-d", body)
        job = json.loads(post.communicate(timeout=30)[0])
        following = curl(first, job["events_url"])
        seen = read_until(following, '"done":1')
        seen += read_until(following, "id: ") if "id: " not in seen.rsplit('"done":1', 1)[0] else ""
        first.process.send_signal(how)
        first.wait()
        rest = following.communicate(timeout=30)[0]
        before = ids(seen + rest)
    assert before == list(range(1, len(before) + 1))
    (steps / "2").touch()
    (steps / "3").touch()
    with serving(home, command=COMMAND) as second:
        resumed = curl(second, job["events_url"], "-H", f"last-event-id: {before[-1]}")
        after = resumed.communicate(timeout=60)[0]
        shown = curl(second, job["status_url"]).communicate(timeout=30)[0]
    assert ids(after) == list(range(before[-1] + 1, before[-1] + 1 + len(ids(after))))
    assert (seen + rest + after).count("event: done") == 1
    assert json.loads(shown)["result"] == {"steps": 3}
    assert json.loads(shown)["attempts"] == (2 if how is signal.SIGKILL else 1)  # a shutdown is no attempt
