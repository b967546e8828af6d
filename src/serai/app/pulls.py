"""What fetches models: the hubs, the folder of weights, the conversion, the job that puts them together."""

import asyncio
from datetime import timedelta

from serai.app.ground import Ground
from serai.app.models import Models
from serai.auth.secrets import SecretNotFound
from serai.clock import Clock
from serai.hub.download import Downloads
from serai.hub.files import ModelFiles
from serai.hub.folder import FolderHub
from serai.hub.huggingface import HuggingFaceHub
from serai.hub.url import UrlHub
from serai.jobs.runner import Resource
from serai.outbound import OutboundSecret
from serai.pulls.converting import ChildConverter
from serai.pulls.model import PullPolicy
from serai.pulls.runner import RESOURCE, Hubs, PullRunner
from serai.registry.registry import Registry
from serai.runtime.model import Device, DeviceKind
from serai.settings import Settings


def open_pulls(ground: Ground, models: Models) -> tuple[PullRunner, ModelFiles]:
    """Return the runner of the jobs that pull, and the folder of the weights."""
    settings, clock = ground.settings, ground.clock
    files = ModelFiles(settings.models_folder)
    hubs = Hubs(
        HuggingFaceHub(
            ground.outbound,
            address=settings.hub_endpoint,
            find_secret=lambda: _hub_token(ground),
            cache_folder=settings.hub_cache_path,
        ),
        FolderHub(settings.model_roots),
        UrlHub(ground.outbound),
    )
    downloads = Downloads(
        files, clock, connections=settings.pull_connections, min_free_bytes=settings.min_free_disk_bytes
    )
    runner = PullRunner(
        hubs=hubs,
        downloads=downloads,
        files=files,
        database=ground.database,
        registry=ground.registry,
        clock=clock,
        policy=_policy(settings, models.devices),
        converter=ChildConverter(models.runtime, threads=models.threads, scratch=ground.home.folder("conversions")),
        loader=_Loader(models, settings.load_timeout_s),
    )
    return runner, files


def pull_resource(settings: Settings) -> Resource:
    """Return what pulls compete for."""
    return Resource(name=RESOURCE, concurrency=settings.max_concurrent_pulls, max_queued=settings.job_max_queued)


async def sweep(files: ModelFiles, registry: Registry, clock: Clock, settings: Settings) -> None:
    """Remove what abandoned pulls and deleted versions left on the disk."""
    snapshot = await registry.current()

    def is_named(model_id: str, number: str) -> bool:
        entry = snapshot.models.get(model_id)
        return entry is not None and number in entry.candidates

    await asyncio.to_thread(files.sweep, clock.now() - timedelta(days=settings.pull_partial_days), is_named)


class _Loader:
    """Loads what was pulled, where the pull asks for it."""

    def __init__(self, models: Models, timeout_s: float) -> None:
        self._models = models
        self._timeout_s = timeout_s

    async def load(self, model_id: str, version: str, /) -> None:
        await self._models.serving.preload(f"{model_id}@{version}", timeout_s=self._timeout_s)


async def _hub_token(ground: Ground) -> OutboundSecret | None:
    """Return the token for the hub, if an admin has put one among the secrets."""
    try:
        secret = await ground.database.read(ground.secrets.reveal, ground.settings.hub_token_secret)
    except SecretNotFound:
        return None
    return OutboundSecret(name=secret.name, value=secret.value, origins=secret.origins)


def _policy(settings: Settings, devices: tuple[Device, ...]) -> PullPolicy:
    """Return for which device models are chosen: the largest card where there is one, else the processor."""
    best = max(devices, key=lambda device: (device.kind is DeviceKind.CUDA, device.budget))
    return PullPolicy(
        device="cuda" if best.kind is DeviceKind.CUDA else "cpu",
        budget_bytes=best.budget,
        q4_threshold_bytes=settings.q4_threshold_bytes,
    )
