"""A server's part that pulls, put together by hand: real jobs, registry, hub and files.

Run as a program (`python -m support.pulls --database FILE --folder FOLDER --url HUB`) it is a server to kill.
"""

import argparse
import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.clock import SystemClock
from serai.errors import LoadFailed, SeraiError
from serai.hub.download import Downloads
from serai.hub.files import ModelFiles
from serai.hub.folder import FolderHub
from serai.hub.huggingface import HuggingFaceHub
from serai.hub.url import UrlHub
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.model import Job
from serai.jobs.run import Parts
from serai.jobs.runner import Resource, Runners
from serai.jobs.supervisor import Pace, Supervisor
from serai.outbound import Outbound
from serai.pulls.model import ConversionPlan, PullPolicy, Report
from serai.pulls.runner import RESOURCE, Hubs, PullRunner
from serai.registry.registry import Registry
from serai.registry.rules import RegistryRules
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.version import Version
from serai.storage.connect import open_sqlite
from serai.storage.database import Database

PLENTY = 10**12


@dataclass
class CopyingConverter:
    """Writes an IR of a kind: enough for everything but an engine. `gate` holds it, `error` makes it fail."""

    error: SeraiError | None = None
    missing: SeraiError | None = None
    gate: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    plans: list[ConversionPlan] = field(default_factory=list)

    def obstacle(self, architectures: Sequence[str], task: str = "") -> SeraiError | None:
        return self.missing

    async def convert(self, folder_in: Path, folder_out: Path, plan: ConversionPlan, report: Report) -> None:
        self.plans.append(plan)
        self.begun.set()
        report(0.5)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        weights = await asyncio.to_thread((folder_in / "model.safetensors").read_bytes)
        await asyncio.to_thread(write, folder_out, plan.quantization, weights[-1000:])


def write(folder: Path, quantization: str, weights: bytes) -> None:
    folder.mkdir()
    (folder / "openvino_model.xml").write_text(f"<?xml version='1.0'?><net name='{quantization}'/>")
    (folder / "openvino_model.bin").write_bytes(weights)
    (folder / "config.json").write_text("{}")


@dataclass
class Loaded:
    """A loader that notes what it was asked for."""

    error: LoadFailed | None = None
    versions: list[str] = field(default_factory=list)

    async def load(self, model_id: str, version: str, /) -> None:
        if self.error is not None:
            raise self.error
        self.versions.append(f"{model_id}@{version}")


@dataclass
class Puller:
    """The part, and what a test does with it."""

    database: Database
    registry: Registry
    files: ModelFiles
    converter: CopyingConverter
    loader: Loaded
    runners: Runners
    feed: Feed
    clock: SystemClock

    async def put(self, model: str, **request: Any) -> Job:
        payload = {"model": model, **request}
        new = self.runners.prepare(kind="pull", payload=payload, owner_id="user_ann", new_id=new_id)
        return await self.database.run(store.enqueue, self.clock, new)

    async def ended(self, job: Job) -> Job:
        async with asyncio.timeout(60):
            async for _ in self.feed.follow(job.id, owner_id=None, after=None):
                pass
        return await self.get(job)

    async def get(self, job: Job) -> Job:
        return await self.database.read(store.get, job.id, owner_id=None)

    async def pull(self, model: str, **request: Any) -> Job:
        """Pull and return the job when it has ended."""
        return await self.ended(await self.put(model, **request))

    async def result(self, model: str, **request: Any) -> dict[str, Any]:
        """Pull and return the result of what succeeded."""
        job = await self.pull(model, **request)
        assert job.status == "succeeded", job.error
        assert job.result is not None
        return dict(job.result)

    async def error(self, model: str, **request: Any) -> dict[str, Any]:
        """Pull and return the error of what failed."""
        job = await self.pull(model, **request)
        assert job.status == "failed", job.result
        assert job.error is not None
        return dict(job.error)

    async def see(self) -> RegistrySnapshot:
        return await self.database.read(self.registry.catch_up)

    async def version(self, name: str) -> Version:
        model_id, _, number = name.partition("@")
        return (await self.see()).models[model_id].candidates[number].version

    async def cancel(self, job: Job) -> Job:
        await self.database.run(store.cancel, self.clock, job.id, owner_id="user_ann")
        return await self.ended(job)


@asynccontextmanager
async def pulling(
    database: Database,
    folder: Path,
    url: str,
    *,
    policy: PullPolicy | None = None,
    free: int = PLENTY,
    roots: dict[str, Path] | None = None,
    concurrency: int = 2,
    **rules: Any,
) -> AsyncIterator[Puller]:
    """Run a server's part that pulls, on this database and folder, until the block ends."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        outbound = await stack.enter_async_context(Outbound(clock=clock, allow=["127.0.0.1"]))
        registry = Registry(database, RegistryRules(**rules))
        stack.callback(registry.close)
        files = ModelFiles(folder / "models", free=lambda _: free)
        converter, loader = CopyingConverter(), Loaded()
        runner = PullRunner(
            hubs=Hubs(HuggingFaceHub(outbound, address=url), FolderHub(roots or {}), UrlHub(outbound)),
            downloads=Downloads(files, clock, sleep=_no_pause),
            files=files,
            database=database,
            registry=registry,
            clock=clock,
            policy=policy or PullPolicy(),
            converter=converter,
            loader=loader,
            sleep=_no_pause,
        )
        runners = Runners([Resource(name=RESOURCE, concurrency=concurrency)], [runner])
        feed = Feed(database)
        feed.open()
        stack.callback(feed.close)
        incarnation = new_id("srv")
        parts = Parts(
            database=database,
            writes=GroupedWrites(database),
            clock=clock,
            feed=feed,
            folder=folder / incarnation,
            random=random.Random(1).random,
        )
        pace = Pace(poll_s=0.2)
        supervisor = Supervisor(runners, parts, incarnation=incarnation, is_alone=True, new_id=new_id, pace=pace)
        task = asyncio.create_task(supervisor.run())
        try:
            yield Puller(database, registry, files, converter, loader, runners, feed, clock)
        finally:
            await supervisor.stop(drain_s=0)
            async with asyncio.timeout(30):
                await task


async def _no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


async def serve(options: argparse.Namespace) -> None:
    """Run until killed."""
    database = open_sqlite(Path(options.database))
    async with pulling(database, Path(options.folder), options.url):
        os.write(1, b"ready\n")
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--database", "--folder", "--url"):
        parser.add_argument(name, required=True)
    asyncio.run(serve(parser.parse_args()))
