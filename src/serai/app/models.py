"""What runs models: workers, the runtime, serving."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import serai
from serai.app.ground import Ground
from serai.auth.limits import Limiter
from serai.chat.chats import Chats
from serai.chat.embeddings import Embedder
from serai.chat.kept_responses import KeptResponses
from serai.chat.pictures import Pictures
from serai.chat.rendering.renderer import Renderer
from serai.chat.sessions import Sessions
from serai.engines.catalogue import CATALOGUE, FAKE
from serai.engines.remote.engine import RemoteEngine
from serai.engines.remote.secrets import RemoteSecrets
from serai.errors import ConfigurationError
from serai.runtime import hardware
from serai.runtime.backends.local import LocalBackend
from serai.runtime.footprints import DatabaseFootprints
from serai.runtime.metrics import RuntimeMetrics
from serai.runtime.model import Device, DeviceKind, Limits
from serai.runtime.runtime import Pace, Runtime
from serai.serving.circuit import Circuits
from serai.serving.course import CourseParts
from serai.serving.metrics import ServingMetrics
from serai.serving.placer import Placer
from serai.serving.placing import Machine
from serai.serving.recorder import DecisionRecorder
from serai.serving.serving import Books, Serving
from serai.serving.standing import Standing
from serai.serving.weights import LocalWeights
from serai.settings import Settings

PACKAGED = Path(serai.__file__).parent / "starters"
"""The weights that ship with the package, a folder each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What answers with models."""

    runtime: Runtime
    devices: tuple[Device, ...]
    threads: int
    """CPU threads of one model."""
    serving: Serving
    chats: Chats
    embedder: Embedder
    sessions: Sessions
    kept_responses: KeptResponses


async def open_models(ground: Ground, limiter: Limiter) -> Models:
    """Open what answers with models; the first load starts the first process."""
    settings, clock = ground.settings, ground.clock
    weights = LocalWeights(package=PACKAGED, pulled=settings.models_folder / "versions", roots=settings.model_roots)
    devices = await asyncio.to_thread(_devices, settings)
    machine = _machine(settings, devices)
    runtime = await _open_runtime(ground, devices)
    serving = _open_serving(ground, runtime, Placer(machine, weights))
    renderer = Renderer(clock=clock)
    ground.stack.push_async_callback(renderer.aclose)
    chats = Chats(
        serving=serving,
        weights=weights,
        render=renderer.render,
        pictures=Pictures(ground.outbound, ground.decoder),
        limiter=limiter,
        clock=clock,
        new_id=ground.new_id,
        timeout_s=settings.request_timeout_s,
    )
    return Models(
        runtime=runtime,
        devices=devices,
        threads=machine.threads,
        serving=serving,
        chats=chats,
        embedder=Embedder(serving, limiter),
        sessions=Sessions(ground.database, clock, ground.new_id),
        kept_responses=KeptResponses(clock),
    )


def _open_serving(ground: Ground, runtime: Runtime, placer: Placer) -> Serving:
    database, clock = ground.database, ground.clock
    counts = ServingMetrics()
    ground.metrics.register(counts)
    remote_secrets = RemoteSecrets(lambda name: database.read(ground.secrets.reveal, name), clock=clock)
    parts = CourseParts(
        runtime=runtime,
        remote=RemoteEngine(ground.outbound, clock=clock),
        reveal=remote_secrets.get,
        placer=placer,
        standing=Standing(runtime, Circuits()),
        clock=clock,
        metrics=counts,
    )
    recorder = DecisionRecorder(database, on_dropped=counts.dropped.inc)
    serving = Serving(ground.registry, parts, Books(recorder=recorder, new_id=ground.new_id))
    ground.stack.push_async_callback(serving.close)
    return serving


async def _open_runtime(ground: Ground, devices: Sequence[Device]) -> Runtime:
    settings, clock, stack = ground.settings, ground.clock, ground.stack
    footprints = DatabaseFootprints(ground.database, clock)
    await footprints.open()
    stack.push_async_callback(footprints.close)
    backend = LocalBackend(clock=clock, environment=settings.worker_environment)
    stack.push_async_callback(backend.close)
    counts = RuntimeMetrics()
    runtime = Runtime(
        backend=backend,
        devices=devices,
        limits=Limits(
            cores=hardware.usable_cores(),
            max_waiting=settings.max_waiting_requests,
            max_waiting_per_caller=settings.max_waiting_requests_per_key,
            keep_alive_s=settings.keep_alive_s,
        ),
        clock=clock,
        new_id=ground.new_id,
        footprints=footprints,
        observer=counts,
        pace=Pace(load_timeout_s=settings.load_timeout_s, silence_s=settings.worker_silence_s),
    )
    counts.figures = runtime.figures
    ground.metrics.register(counts)
    stack.push_async_callback(runtime.close)
    return runtime


def _devices(settings: Settings) -> tuple[Device, ...]:
    """Return the devices of this machine, with the budgets that the settings give them."""
    found = hardware.devices(
        cpu_share=settings.cpu_memory_share, card_share=settings.gpu_memory_share, cards=hardware.find_cards()
    )
    if settings.cpu_memory_bytes is None:
        return found
    if settings.cpu_memory_bytes == 0:
        raise ConfigurationError("cpu_memory_bytes is 0: no model could be loaded.", hint="Leave it out, or raise it.")
    return tuple(
        replace(device, budget=settings.cpu_memory_bytes) if device.kind is DeviceKind.CPU else device
        for device in found
    )


def _machine(settings: Settings, devices: Sequence[Device]) -> Machine:
    cores = hardware.usable_cores()
    missing: dict[str, tuple[str, ...]] = {name: info.missing for name, info in CATALOGUE.items() if info.missing}
    if settings.profile == "production":
        missing[FAKE] = ("the profile development",)  # it fails, waits and takes memory as it is told
    return Machine(
        device_kinds=frozenset(device.kind.value for device in devices),
        threads=min(settings.worker_threads or max(1, cores // 2), cores),
        missing=missing,
    )
