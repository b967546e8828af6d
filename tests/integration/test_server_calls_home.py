"""Nothing calls home: from start to stop, no process of the server looks up or reaches anything beyond loopback."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from ipaddress import ip_address
from pathlib import Path

import pytest
from PIL import Image

from corpus.audio import tone, wav
from support.process import ServerProcess, serving

HOOK = """
import json, os, site, sys
LOG, WATCHED = {log!r}, {watched!r}

def note(event, where):
    line = json.dumps([os.getpid(), sys.orig_argv[-1], event, where]) + "\\n"
    handle = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, line.encode())
    os.close(handle)

def hook(event, args):
    if event in WATCHED:
        told = [part for part in args if not hasattr(part, "fileno")]
        note(event, [list(part) if isinstance(part, tuple) else str(part or "") for part in told])

note("start", [])
sys.addaudithook(hook)
site.addsitedir({packages!r})
"""
WATCHED = (
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "socket.getnameinfo",
    "urllib.Request",
    "http.client.connect",
)
HERE = {"localhost", "127.0.0.1", "::1", ""}


def watched_python(folder: Path, log: Path) -> Path:
    """Return a Python whose every process, isolated ones too, tells `log` where it connects and what it looks up.

    An environment variable would not do: the server starts its helpers without any.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    place = next(folder.glob("lib/python*/site-packages"))
    hook = HOOK.format(log=str(log), watched=WATCHED, packages=sysconfig.get_path("purelib"))
    (place / "sitecustomize.py").write_text(hook)
    return folder / "bin" / "python"


def use(server: ServerProcess) -> None:
    """Do what starts every part of the server: pages, files of each kind, jobs, errors."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    with server.client() as client:
        for path in ("/", "/docs", "/openapi.json", "/health", "/status", "/diag", "/metrics", "/users", "/models"):
            assert client.get(path).status_code == 200, path
        for content in (picture.getvalue(), wav(tone())):
            stored = client.post("/files", content=content)
            assert stored.status_code == 201, stored.text
            assert client.get(stored.json()["content_url"]).content == content
        assert client.post("/files", content=b"<svg/>").status_code == 415
        job = client.post("/jobs", json={"kind": "digest", "payload": {"text": "x"}}).json()
        assert '"sha256"' in client.get(job["events_url"]).text
        made = client.post("/users", json={"name": "ada", "password": "correct horse"}).json()
        assert client.post("/login", json={"name": "ada", "password": "wrong horse"}).status_code == 401
        assert client.delete(f"/users/{made['id']}").status_code == 204


def is_here(where: object) -> bool:
    """Say whether an address or a name, as an audit event tells it, is of this machine: loopback or a path."""
    name = where[0] if isinstance(where, list) else where
    if isinstance(name, str) and (name in HERE or name.startswith(("/", "\0"))):
        return True
    try:
        return ip_address(str(name)).is_loopback
    except ValueError:
        return False


def test_python_code_reaches_nothing_outside(tmp_path: Path) -> None:
    """An audit hook in each Python process of the server sees no look-up and no connection but loopback's."""
    log = tmp_path / "hook.log"
    python = watched_python(tmp_path / "python", log)
    with serving(tmp_path / "home", command=(str(python), "-m", "serai")) as server:
        use(server)
        server.terminate()
        assert server.wait() == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    started = {(pid, program) for pid, program, event, _ in events if event == "start"}
    assert len(started) >= 2, "the hook must be in the server and in its helper"
    assert any(program == "serai.decode.zygote" for _, program in started)
    outside = [entry for entry in events if entry[2] != "start" and entry[3] and not is_here(entry[3][0])]
    assert outside == []


def test_the_hook_sees_what_it_is_there_for(tmp_path: Path) -> None:
    """The check of the check: look-ups and connections of an isolated Python are told."""
    log = tmp_path / "hook.log"
    python = watched_python(tmp_path / "python", log)
    program = (
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.getaddrinfo('name.invalid', 80)\n"
        "with contextlib.suppress(OSError): socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))\n"
    )
    subprocess.run([str(python), "-I", "-c", program], check=True, env={})
    events = [json.loads(line) for line in log.read_text().splitlines()]
    told = [where[0] for _, _, event, where in events if event != "start" and not is_here(where[0])]
    assert told == ["name.invalid", ["192.0.2.1", 9]]


ADDRESS = re.compile(r'sa_family=(AF_\w+)(?:.*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)")?')


def test_no_system_call_reaches_outside(tmp_path: Path) -> None:
    """The kernel's own record, of compiled libraries and every child: no address but loopback's and sockets' paths."""
    tracer = shutil.which("strace")
    if tracer is None:
        if os.environ.get("CI"):
            pytest.fail("CI skips nothing: strace is not installed")
        pytest.skip("NOT TESTED: strace is not installed")
    trace = tmp_path / "trace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    command = (tracer, "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(trace), sys.executable, "-m", "serai")
    with serving(tmp_path / "home", command=command) as server:
        use(server)
        os.kill(int((server.home / "serve.lock").read_text().split()[0]), 15)
        assert server.wait() == 0
    lines = trace.read_text(errors="replace").splitlines()
    assert len({line.split()[0] for line in lines}) >= 2, "the server and its helper must both be seen"
    outside = []
    for line in lines:
        found = ADDRESS.search(line)
        if found and not (found[1] in ("AF_UNIX", "AF_NETLINK") or (found[2] and ip_address(found[2]).is_loopback)):
            outside.append(line)
    assert outside == []
