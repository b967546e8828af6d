"""What Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from serai.telemetry.metrics import METRICS, Metrics


def observe(metrics: Metrics, method: str = "GET", route: str | None = "/models/{id}", status: int = 200) -> None:
    metrics.observe_request(method=method, route=route, status=status, seconds=0.02)


def test_every_metric_is_in_the_table_and_under_our_prefix() -> None:
    """The documented names are the exported names, with the same words of help."""
    page = Metrics().render()[0].decode()
    families = {family.name: family for family in read_text(page)}
    ours = {name: family for name, family in families.items() if not name.startswith(("process_", "python_"))}
    assert {name.removesuffix("_total") for name in METRICS} == set(ours)
    for name, meaning in METRICS.items():
        assert name.startswith("serai_")
        assert ours[name.removesuffix("_total")].documentation == meaning


def test_a_request_is_counted_by_method_route_and_status() -> None:
    """Two answers of a route make one series with the value 2, and their times are summed."""
    metrics = Metrics()
    observe(metrics)
    observe(metrics)
    observe(metrics, status=404)
    labels = {"method": "GET", "route": "/models/{id}"}
    sample = metrics.registry.get_sample_value
    assert sample("serai_http_requests_total", {**labels, "status": "200"}) == 2
    assert sample("serai_http_requests_total", {**labels, "status": "404"}) == 1
    assert sample("serai_http_request_seconds_count", labels) == 3
    assert sample("serai_http_request_seconds_bucket", {**labels, "le": "0.025"}) == 3
    assert sample("serai_http_request_seconds_bucket", {**labels, "le": "0.01"}) == 0


def test_clients_cannot_make_series() -> None:
    """Invented methods and paths that match no route fall into one series."""
    metrics = Metrics()
    for number in range(100):
        observe(metrics, method=f"FOO{number}", route=None, status=404)
    page = metrics.render()[0].decode()
    assert page.count("serai_http_requests_total{") == 1
    assert 'serai_http_requests_total{method="other",route="other",status="404"} 100.0' in page


def test_openmetrics_is_answered_to_who_asks_for_it() -> None:
    """The Accept header chooses between the two formats; both can be read by their parser."""
    metrics = Metrics()
    observe(metrics)
    prometheus = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.1"
    )
    for accept in (prometheus, "Application/OpenMetrics-Text", "text/html, application/openmetrics-text ; q=1"):
        page, content_type = metrics.render(accept)
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert "serai_http_requests" in {family.name for family in read_openmetrics(page.decode())}
    odd = [f"application/openmetrics-text;version={version}" for version in ("abc", "2.0.0", "9" * 5000, "")]
    for accept in (None, "", "*/*", "text/html", ";;,=,\x00", "openmetrics", *odd):
        page, content_type = metrics.render(accept)
        assert content_type.startswith("text/plain")
        assert list(read_text(page.decode()))


def test_two_servers_in_one_process_do_not_mix() -> None:
    """Nothing is registered globally, and a request of one server does not show in the other."""
    one, other = Metrics(), Metrics()
    observe(one)
    assert b"serai_http_requests_total{" in one.render()[0]
    assert b"serai_http_requests_total{" not in other.render()[0]


def test_another_part_adds_its_own_metrics() -> None:
    """A registered collector's families are on the page."""
    metrics = Metrics()
    metrics.register(Counter("serai_extra", "Something else.", registry=CollectorRegistry()))
    assert b"serai_extra_total 0.0" in metrics.render()[0]


def test_the_process_is_described() -> None:
    """Memory, processor time and the version of Python are there under their usual names."""
    page = Metrics().render()[0]
    for name in (b"process_resident_memory_bytes", b"process_cpu_seconds_total", b"process_open_fds", b"python_info"):
        assert name in page
