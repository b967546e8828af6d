"""The engine `openvino-image` in a worker of its own, as the server runs it."""

from pathlib import Path

import anyio
import pytest

from serai.clock import SystemClock
from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import GenerateImage
from serai.events import Done, Failed, Media, Progress
from serai.runtime.backends.local import LocalBackend
from serai.runtime.worker.messages import Cancel, Loading, Start
from support.image_ir import image_ir
from support.workers import Heard

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]
TASK = GenerateImage(
    prompt="a fox", width=64, height=64, steps=3, guidance_scale=4, seed=5, reproducible=True, preview_steps=1
)
PATIENCE_S = 300


async def test_a_worker_draws(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It tells how far the load is, then steps, previews and a picture; a cancelled run says nothing more."""
    folder: Path = await anyio.to_thread.run_sync(image_ir, tmp_path_factory)
    backend = LocalBackend(clock=SystemClock(), environment={})
    try:
        with anyio.fail_after(PATIENCE_S):
            spec = EngineSpec(engine="openvino-image", name="tiny@1", folder=str(folder), threads=1)
            heard = Heard(await backend.spawn(spec))
            ready = await heard.ready()
            fractions = [one.fraction for one in heard.messages if isinstance(one, Loading)]
            assert fractions == sorted(fractions)
            assert fractions[-1] == 1.0
            assert ready.max_runs == 8
            assert ready.facts["pipeline"] == "StableDiffusionPipeline"
            assert ready.bytes > 50 * 2**20
            long = GenerateImage(prompt="x", width=64, height=64, steps=900, guidance_scale=4, seed=1)
            heard.worker.send(Start(run=Run(id=1, task=long)))
            await heard.until(lambda: [event for event in heard.events(1) if isinstance(event, Progress)])
            heard.worker.send(Cancel(run=1))
            heard.worker.send(Start(run=Run(id=2, task=TASK)))
            last = await heard.end(2)
        assert isinstance(last, Done), last
        assert not [event for event in heard.events(1) if isinstance(event, Done | Failed)]
        kinds = [event.name for event in heard.events(2) if isinstance(event, Media)]
        assert kinds == ["preview", "preview", "picture"]
        (picture,) = (event for event in heard.events(2) if isinstance(event, Media) and event.name == "picture")
        assert picture.data.startswith(b"P6\n64 64\n255\n")
        assert len(picture.data) == len(b"P6\n64 64\n255\n") + 64 * 64 * 3
    finally:
        await backend.close()
