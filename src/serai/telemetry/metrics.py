"""What Prometheus reads at /metrics. Every label has few values: routes are templates, never paths."""

from functools import cache
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

METRICS: Final = MappingProxyType(
    {
        "serai_http_requests_total": "Requests that were answered, by method, route template and status.",
        "serai_http_request_seconds": "Time from the request's first byte to the answer's last, by method and route.",
        "serai_http_requests_in_flight": "Requests that are being answered.",
        "serai_rate_limited_total": "Requests that a rate limit refused, by the limit's scope.",
        "serai_auth_failures_total": "Requests whose proof of who calls was refused, by reason.",
        "serai_cache_hits_total": "Look-ups that the cache answered, by kind of entry.",
        "serai_cache_misses_total": "Look-ups that the cache could not answer, by kind of entry.",
        "serai_database_transaction_seconds": "Time of a transaction with its wait for a connection, by read or write.",
    }
)
"""Name and meaning of every metric here; besides, there are the usual `process_…` and `python_info`."""

OTHER: Final = "other"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# A health check takes a millisecond, an answer of a model minutes.
_REQUEST_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TRANSACTION_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = self._counter("serai_http_requests_total", "method", "route", "status")
        self._request_seconds = self._histogram("serai_http_request_seconds", _REQUEST_SECONDS, "method", "route")
        # To ask for a series by its labels costs more than to count in it.
        self._request = cache(lambda method, route, status: self._requests.labels(method, route, str(status)))
        self._seconds = cache(self._request_seconds.labels)
        name = "serai_http_requests_in_flight"
        self.requests_in_flight = Gauge(name, METRICS[name], registry=self.registry)
        self.rate_limited = self._counter("serai_rate_limited_total", "scope")
        self.auth_failures = self._counter("serai_auth_failures_total", "reason")
        self.cache_hits = self._counter("serai_cache_hits_total", "cache")
        self.cache_misses = self._counter("serai_cache_misses_total", "cache")
        self.transaction_seconds = self._histogram("serai_database_transaction_seconds", _TRANSACTION_SECONDS, "mode")
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def observe_request(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count an answered request. `route` is the template that matched (`/models/{id}`), None if none did."""
        known_method = method if method in _METHODS else OTHER  # a client may invent methods without end
        known_route = route if route is not None else OTHER
        self._request(known_method, known_route, status).inc()
        self._seconds(known_method, known_route).observe(seconds)

    def register(self, collector: Collector) -> None:
        """Add another part's metrics; `collect()` runs while /metrics is answered and must not block."""
        self.registry.register(collector)

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """Return the page and its content type: OpenMetrics if `accept` (the header) asks for it, else plain text.

        Reads /proc and walks every series: call it in a thread.
        """
        if _wants_openmetrics(accept or ""):
            return openmetrics.generate_latest(self.registry), openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(name, METRICS[name], labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, METRICS[name], labels, registry=self.registry, buckets=buckets)


def _wants_openmetrics(accept: str) -> bool:
    """Say whether an Accept header, well-formed or not, names the version that is written here, or none."""
    for offer in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in offer.split(";"))
        versions = [part for part in parameters if part.startswith("version=")]
        if kind == "application/openmetrics-text" and versions in ([], ["version=1.0.0"]):
            return True
    return False
