"""Engines ask nobody anything: a process that imports, loads and runs one looks up no name and connects nowhere."""

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 100

# Audit hooks see every look-up and connection of Python's own; children are looked for as well, because
# openvino's telemetry looks up its host in a forked one.
PROGRAM = """
import sys
told = []
WATCHED = ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto", "os.fork", "os.posix_spawn",
           "subprocess.Popen")
sys.addaudithook(lambda event, details: told.append(event) if event in WATCHED else None)
import json, threading
from array import array
from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import Array, Infer
from serai.engines.openvino_net import OpenvinoNet
import numpy as np, openvino as ov
from openvino import opset13 as op
folder = sys.argv[1]
x = op.parameter([1, 3], np.float32, name="x")
x.output(0).set_names({"x"})
ov.save_model(ov.Model([op.relu(x)], [x], "n"), folder + "/net.xml")
engine = OpenvinoNet()
engine.load(EngineSpec(engine="openvino", name="n", folder=folder, threads=1), lambda _: None)
numbers = Array(dtype="float32", shape=(1, 3), data=array("f", [1, 2, 3]).tobytes())
engine.start(Run(id=1, task=Infer(inputs={"x": numbers})))
while not (events := engine.step()):
    pass
engine.close()
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join()
telemetry = str(sys.modules.get("openvino_telemetry"))
print(json.dumps({"told": told, "event": type(events[0][1]).__name__, "telemetry": telemetry}))
"""
NAIVE = """
import json, os, sys
import openvino
print(json.dumps({"telemetry": sys.modules.get("openvino_telemetry") is not None}), flush=True)
os._exit(0)
"""


def outcome(program: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=environment,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_openvino_stays_at_home(tmp_path: Path) -> None:
    """Import, load and run: no look-up, no connection, no child process, no telemetry."""
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    assert outcome(PROGRAM, str(tmp_path), environment=home) == {"told": [], "event": "Done", "telemetry": "None"}
    assert not (tmp_path / "intel").exists()


def test_without_the_engines_care_telemetry_is_loaded(tmp_path: Path) -> None:
    """The rule above can be broken: a plain import loads the telemetry (here kept silent by the environment)."""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "CI": "true"}
    assert outcome(NAIVE, environment=environment)["telemetry"] is True
