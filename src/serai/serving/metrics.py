"""What serving counts, for Prometheus. Labels are words of fixed lists; no service, model or owner is among them."""

from collections.abc import Callable, Iterator
from functools import cache
from types import MappingProxyType
from typing import Final

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

METRICS: Final = MappingProxyType(
    {
        "serai_decisions_total": "Calls of models that ended, by the reason of the choice and by outcome.",
        "serai_fallbacks_total": "Candidates that did not answer so that the next was tried, by failure.",
        "serai_engine_fallbacks_total": "Engines that could not load a model so that the next was tried, by engine.",
        "serai_first_output_seconds": "Time from a call to its first output, by outcome.",
        "serai_decisions_dropped_total": "Decisions that could not be stored.",
        "serai_calls_in_flight": "Calls of models that go on, waiting ones included.",
        "serai_circuits_open": "Versions that are left alone because they failed again and again.",
    }
)
"""Name and meaning of every metric here."""

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)


class ServingMetrics(Collector):
    """Counts; `in_flight` and `circuits` are asked when somebody reads."""

    def __init__(self) -> None:
        self.decisions = _counter("serai_decisions_total", "reason", "outcome")
        self.fallbacks = _counter("serai_fallbacks_total", "failure")
        self.engine_fallbacks = _counter("serai_engine_fallbacks_total", "engine")
        self.dropped = _counter("serai_decisions_dropped_total")
        name = "serai_first_output_seconds"
        self.first_output = Histogram(name, METRICS[name], ["outcome"], buckets=_SECONDS, registry=None)
        # To ask for a series by its labels costs more than to count in it.
        self._decisions = cache(lambda reason, outcome: self.decisions.labels(reason=reason, outcome=outcome))
        self._first_output = cache(lambda outcome: self.first_output.labels(outcome=outcome))
        self.in_flight: Callable[[], int] = int
        self.circuits: Callable[[], int] = int

    def count_call(self, reason: str, outcome: str, first_output_s: float | None) -> None:
        """Count a call that ended, and the seconds to its first output if there was one."""
        self._decisions(reason, outcome).inc()
        if first_output_s is not None:
            self._first_output(outcome).observe(first_output_s)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, from memory."""
        for counted in (self.decisions, self.fallbacks, self.engine_fallbacks, self.first_output, self.dropped):
            yield from counted.collect()
        for name, value in (("serai_calls_in_flight", self.in_flight()), ("serai_circuits_open", self.circuits())):
            yield GaugeMetricFamily(name, METRICS[name], value=value)


def _counter(name: str, *labels: str) -> Counter:
    return Counter(name, METRICS[name], labels, registry=None)
