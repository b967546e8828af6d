"""No library calls home: not at its import, not while it loads, converts or runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.llm_models import child_environment, made

PROGRAM = """
import json, os, sys

found = []
def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        found.append([event, repr(arguments[:2])])
sys.addaudithook(hook)
started = []
sys.addaudithook(lambda event, arguments: started.append(event) if event in ("os.fork", "os.posix_spawn") else None)

from pathlib import Path
from serai.engines.quiet import quieten
quieten()
from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import Generate, Sampling
from serai.engines.language.openvino_llm import OpenvinoLlm
from serai.engines.language.transformers_llm import TransformersLlm
from serai.pulls.conversion.export import convert

source, network, target = map(Path, sys.argv[1:])
convert(source, target, quantization="int8", report=lambda stage, fraction: None)
for kind, name, folder in ((OpenvinoLlm, "openvino-genai", network), (TransformersLlm, "transformers", source)):
    engine = kind()
    engine.load(EngineSpec(engine=name, name="tiny", folder=str(folder)), lambda fraction: None)
    engine.start(Run(id=1, task=Generate(prompt="Hello", sampling=Sampling(max_tokens=3))))
    while not any(type(event).__name__ == "Done" for _, event in engine.step()):
        pass
    engine.close()
import threading
print(json.dumps({"found": found, "started": started, "telemetry": "openvino_telemetry.main" in sys.modules}))
"""


@pytest.mark.timeout(600)
def test_nothing_is_looked_up_and_no_child_is_started(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Importing, converting, loading and answering with both engines opens no connection and starts no process."""
    source, network = made(tmp_path_factory, ["llama/hf", "llama/fp32"])
    environment = {name: value for name, value in child_environment().items() if name not in {"CI", "HF_HUB_OFFLINE"}}
    command = [sys.executable, "-c", PROGRAM, str(source), str(network), str(tmp_path / "target")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"found": [], "started": [], "telemetry": False}
