"""`serai serve` with one more kind of job: `stepping` makes a step whenever the test says so.

Run as a program with the arguments of `serai serve`. The payload names a folder; the job reports
step n when the file `n` appears in it, and is done after `steps` of them.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from serai import server, settings
from serai.events import Done, Event, Progress
from serai.jobs.runner import JobContext


class SteppingRunner:
    kind = "stepping"
    version = 1
    resource = "cpu"
    stall_s = 60.0
    cap_s = 600.0

    def check(self, payload: Mapping[str, Any]) -> None:
        assert set(payload) == {"folder", "steps"}

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        folder, steps = Path(context.payload["folder"]), context.payload["steps"]
        for step in range(1, steps + 1):
            while not (folder / str(step)).exists():  # noqa: ASYNC110 - the test is another process
                await asyncio.sleep(0.01)
            yield Progress(stage="step", done=step, total=steps)
        yield Done(result={"steps": steps})


if __name__ == "__main__":
    arguments = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))  # behind `serve`: --home H --port P
    overrides = {"home": arguments["--home"], "port": int(arguments["--port"])}
    server.run(settings.load(overrides=overrides), runners=[SteppingRunner()])
