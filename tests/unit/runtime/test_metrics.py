"""What Prometheus is told of the runtime."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from serai.runtime.metrics import METRICS, RuntimeMetrics
from serai.runtime.observer import Left, NoObserver
from support.runtime_stage import HELLO, A, B, staged
from support.scripted_backend import turns

pytestmark = pytest.mark.anyio


def lines(metrics: RuntimeMetrics) -> set[str]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return set(generate_latest(registry).decode().splitlines())


async def test_figures_and_events_are_told() -> None:
    """Queue, leases, bytes and budget per device as they are now; waits, loads, unloads and losses counted."""
    async with staged() as stage:
        metrics = RuntimeMetrics(stage.runtime.figures)
        stage.runtime._observer = metrics
        stage.runtime._waiters._observer = metrics
        asked, waiting = stage.ask(A), stage.ask(B, caller="bob")
        await turns()
        stage.clock.advance(3)
        stage.backend.workers[0].ready()
        (await asked.got()).run(HELLO)
        assert {
            "serai_runtime_waiting 1.0",
            "serai_runtime_leases 1.0",
            "serai_runtime_loaded 1.0",
            "serai_runtime_threads 1.0",
            "serai_runtime_cores 4.0",
            'serai_runtime_device_bytes{device="cpu"} 100.0',
            'serai_runtime_device_budget_bytes{device="cpu"} 150.0',
            'serai_runtime_wait_seconds_sum{engine="fake",outcome="granted"} 3.0',
            'serai_runtime_load_seconds_sum{engine="fake",outcome="ready"} 3.0',
        } <= lines(metrics)
        await asked.done()
        await turns()
        stage.backend.worker("b@1.0.0").ready()
        await waiting.got()
        stage.backend.worker("b@1.0.0").leave(-9)
        await turns()
        # SIGKILL asks the kernel's count in a thread: wait for what follows from it
        while stage.states():
            await turns(1)
        assert {
            'serai_runtime_unloads_total{engine="fake",reason="evicted"} 1.0',
            'serai_runtime_workers_lost_total{code="WORKER_CRASHED",engine="fake"} 1.0',
        } <= lines(metrics)


def test_every_metric_is_described() -> None:
    """The list of names is the list of what is told."""
    metrics = RuntimeMetrics()
    metrics.on_wait("fake", "granted", 1)
    metrics.on_load("fake", "ready", 1)
    metrics.on_leave("fake", Left.EVICTED)
    metrics.on_lost("fake", "WORKER_HUNG")
    told = {metric.name for metric in metrics.collect()}
    assert {name.removesuffix("_total") for name in METRICS} >= told
    silent = NoObserver()
    silent.on_wait("fake", "granted", 1)
    silent.on_load("fake", "ready", 1)
    silent.on_leave("fake", Left.EVICTED)
    silent.on_lost("fake", "WORKER_HUNG")
