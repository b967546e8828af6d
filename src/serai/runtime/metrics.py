"""The runtime's figures for Prometheus. The only labels are engines, devices, outcomes and codes: few values each."""

from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Final

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serai.runtime.observer import Figures, Left

METRICS: Final = MappingProxyType(
    {
        "serai_runtime_waiting": "Requests that wait for a lease.",
        "serai_runtime_leases": "Leases in flight.",
        "serai_runtime_loaded": "Units in memory, in whatever state.",
        "serai_runtime_device_bytes": "Memory in use by models, by device.",
        "serai_runtime_device_budget_bytes": "Memory that models may use, by device.",
        "serai_runtime_threads": "CPU threads of the units on which leases run.",
        "serai_runtime_cores": "CPU threads that may run at once.",
        "serai_runtime_wait_seconds": "Time that a request waited for its lease, by engine and outcome.",
        "serai_runtime_load_seconds": "Time of a load, by engine and outcome.",
        "serai_runtime_unloads_total": "Units that were told to leave memory, by engine and reason.",
        "serai_runtime_workers_lost_total": "Loaded workers that were lost, by engine and code of the error.",
    }
)
"""Name and meaning of every metric here."""

# A granted lease of a loaded model takes a millisecond, one behind a queue and a large load many minutes.
_WAIT_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LOAD_SECONDS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RuntimeMetrics(Collector):
    """Counts as an `Observer`, and asks for the figures of the moment when it is collected, from any thread."""

    def __init__(self, figures: Callable[[], Figures] | None = None) -> None:
        self.figures = figures
        """`Runtime.figures`; set after the runtime is made, because that takes its observer."""
        self._wait = _histogram("serai_runtime_wait_seconds", _WAIT_SECONDS, "engine", "outcome")
        self._load = _histogram("serai_runtime_load_seconds", _LOAD_SECONDS, "engine", "outcome")
        self._left = _counter("serai_runtime_unloads_total", "engine", "reason")
        self._lost = _counter("serai_runtime_workers_lost_total", "engine", "code")

    def on_wait(self, engine: str, outcome: str, seconds: float) -> None:
        self._wait.labels(engine=engine, outcome=outcome).observe(seconds)

    def on_load(self, engine: str, outcome: str, seconds: float) -> None:
        self._load.labels(engine=engine, outcome=outcome).observe(seconds)

    def on_leave(self, engine: str, why: Left) -> None:
        self._left.labels(engine=engine, reason=why.value).inc()

    def on_lost(self, engine: str, code: str) -> None:
        self._lost.labels(engine=engine, code=code).inc()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; nothing is asked of a worker or the database."""
        for metric in (self._wait, self._load, self._left, self._lost):
            yield from metric.collect()
        if self.figures is not None:
            yield from _gauges(self.figures())


def _gauges(figures: Figures) -> Iterator[Metric]:
    single = {
        "serai_runtime_waiting": figures.waiting,
        "serai_runtime_leases": figures.leases,
        "serai_runtime_loaded": figures.loaded,
        "serai_runtime_threads": figures.threads,
        "serai_runtime_cores": figures.cores,
    }
    for name, value in single.items():
        yield GaugeMetricFamily(name, METRICS[name], value=value)
    by_device = {
        "serai_runtime_device_bytes": figures.bytes,
        "serai_runtime_device_budget_bytes": figures.budgets,
    }
    for name, values in by_device.items():
        family = GaugeMetricFamily(name, METRICS[name], labels=["device"])
        for device, size in values.items():
            family.add_metric([device], size)
        yield family


def _counter(name: str, *labels: str) -> Counter:
    return Counter(name, METRICS[name], labels, registry=None)


def _histogram(name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, METRICS[name], labels, registry=None, buckets=buckets)
