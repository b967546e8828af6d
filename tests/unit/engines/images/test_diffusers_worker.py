"""The engine `diffusers` in a real worker process: forked after its libraries were imported, and silent."""

import json
import subprocess
import sys

import anyio
import pytest

from serai.clock import SystemClock
from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import GenerateImage
from serai.events import Done, Media, Progress
from serai.runtime.backends.local import LocalBackend
from serai.runtime.worker.messages import Cancel, Start
from support.image_models import SIDE, made
from support.llm_models import child_environment
from support.workers import Heard

pytestmark = pytest.mark.timeout(600)

PROGRAM = """
import json, os, sys

found, started = [], []
def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        found.append([event, repr(arguments[:2])])
    if event in ("os.fork", "os.posix_spawn", "subprocess.Popen"):
        started.append(event)
sys.addaudithook(hook)

from serai.engines.images.diffusers_image import DiffusersImage
import torch
threads = len(os.listdir("/proc/self/task"))
has_cuda = torch.cuda.is_initialized()

from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import GenerateImage
engine = DiffusersImage()
engine.load(EngineSpec(engine="diffusers", name="tiny", folder=sys.argv[1]), lambda fraction: None)
task = GenerateImage(prompt="a", width=64, height=64, steps=1, guidance_scale=2.0, seed=1)
engine.start(Run(id=1, task=task))
while not any(type(event).__name__ == "Done" for _, event in engine.step()):
    pass
engine.close()
print(json.dumps({"found": found, "started": started, "threads": threads, "cuda": has_cuda}))
"""


def test_importing_and_drawing_disturb_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The import starts no thread and no CUDA, so a fork is sound; no host is looked up, no process started."""
    (folder,) = made(tmp_path_factory, ["sd"])
    environment = {name: value for name, value in child_environment().items() if name not in {"CI", "HF_HUB_OFFLINE"}}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"found": [], "started": [], "threads": 1, "cuda": False}


class Patient(Heard):
    """Waits as long as libraries take to be imported on a busy machine."""

    async def until(self, condition):  # type: ignore[no-untyped-def]
        with anyio.fail_after(400):
            while not (found := condition()):
                self.messages += await self.worker.receive()
        return found


@pytest.mark.anyio
async def test_a_run_goes_through_a_worker(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load, progress, picture and end arrive; a cancelled run is silent, and the next one is as the first."""
    (folder,) = made(tmp_path_factory, ["sd"])
    task = GenerateImage(
        prompt="a fox", width=SIDE, height=SIDE, steps=3, guidance_scale=4.0, seed=1, reproducible=True
    )
    backend = LocalBackend(clock=SystemClock(), environment={"OMP_NUM_THREADS": "1"})
    try:
        spec = EngineSpec(engine="diffusers", name="tiny@1", folder=str(folder), threads=1)
        heard = Patient(await backend.spawn(spec))
        ready = await heard.ready()
        assert ready.facts["pipeline"] == "StableDiffusionPipeline"
        assert ready.bytes > 0
        assert ready.max_runs == 4
        long = GenerateImage(prompt="a fox", width=SIDE, height=SIDE, steps=500, guidance_scale=4.0, seed=1)
        heard.worker.send(Start(run=Run(id=1, task=long)))
        await heard.until(lambda: heard.events(1))
        heard.worker.send(Cancel(run=1))
        pictures = []
        for number in (2, 3):
            heard.worker.send(Start(run=Run(id=number, task=task)))
            assert isinstance(await heard.end(number), Done)
            events = heard.events(number)
            assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3]
            pictures += [event.data for event in events if isinstance(event, Media)]
        assert len(pictures) == 2
        assert pictures[0] == pictures[1]
        assert pictures[0].startswith(b"P6\n64 64\n255\n")
        assert not any(isinstance(event, Done) for event in heard.events(1))
    finally:
        await backend.close()
