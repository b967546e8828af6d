"""The queue's figures for Prometheus: read from the database now and then, told from memory."""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serai.jobs.store import KindFigures

METRICS: Final = MappingProxyType(
    {
        "serai_jobs_queued": "Jobs that wait, by kind.",
        "serai_jobs_running": "Jobs that run, on all servers, by kind.",
        "serai_jobs_oldest_queued_seconds": "Age of the job that waits longest, by kind.",
        "serai_jobs_wait_seconds": "Mean time from enqueue to first start, lately, by kind.",
        "serai_jobs_open_attempts": "Attempts that the queued and running jobs have used, by kind.",
    }
)
"""Name and meaning of every metric here."""


class JobMetrics(Collector):
    """Tells the figures of the last `update`."""

    def __init__(self) -> None:
        self.figures: Sequence[KindFigures] = ()
        """Those of the last `update`."""

    def update(self, figures: Sequence[KindFigures]) -> None:
        """Take new figures (`store.figures`)."""
        self.figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; nothing is asked of the database."""
        columns = ("queued", "running", "oldest_queued_s", "mean_wait_s", "open_attempts")
        for (name, text), column in zip(METRICS.items(), columns, strict=True):
            family = GaugeMetricFamily(name, text, labels=["kind"])
            for figures in self.figures:
                family.add_metric([figures.kind], getattr(figures, column))
            yield family
