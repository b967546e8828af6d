"""The bombs of the corpus, uploaded to a real server that has two gibibytes of address space."""

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from corpus.audio import AUDIO
from corpus.images import IMAGES
from corpus.specimen import Specimen
from corpus.video import VIDEO
from support.memory import resident
from support.process import ServerProcess, serving
from support.scrub import check_error

pytestmark = pytest.mark.fault

MIB = 2**20
LIMITED = (
    "import os, resource, sys;"
    "resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30));"
    "os.execv(sys.executable, [sys.executable, '-m', 'serai', *sys.argv[1:]])"
)
REFUSED_S = 10.0
HEALTH_P50_S, HEALTH_P99_S = 0.2, 1.0
"""Figures of a quiet machine are about 5 ms and 50 ms; the tests share two cores with whatever else runs."""
GROWTH_BYTES = 200 * MIB

LATER = {"flac-hour", "flac-hour-unsaid", "mp4-4k-1000-frames", "mkv-4k-1000-frames"}
"""Long or large only once they are decoded, which an upload is not: kept or refused, as soon as the others."""
SCANS = "jpeg-3000-scans"

BOMBS = [
    one
    for one in (*IMAGES, *AUDIO, *VIDEO)
    if one.expectation in ("too_large", "rejected") and (one.name != SCANS or one in IMAGES)
]


@dataclass
class Watch:
    """What was seen of the server while something else went on."""

    health_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def p99(self) -> float:
        return statistics.quantiles(self.health_s, n=100)[98]


@contextmanager
def watched(server: ServerProcess) -> Iterator[Watch]:
    """Ask for /health again and again, and add up the memory of the server and all its children."""
    watch, over = Watch(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            while not over.wait(0.01):
                started = time.monotonic()
                assert client.get("/health").status_code == 200
                watch.health_s.append(time.monotonic() - started)
                watch.peak_bytes = max(watch.peak_bytes, resident(server.pid))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join(60)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server under the limit, whose longest sound or video is ten minutes and whose decoder has three seconds."""
    home = tmp_path_factory.mktemp("limited") / "home"
    command = (sys.executable, "-c", LIMITED)
    with serving(home, command=command, max_media_seconds=600, decode_timeout_s=3, rate_limits="off") as server:
        with server.client() as client:  # the helper process starts with the first file
            assert client.post("/files", content=IMAGES[0].build()).status_code == 201
        yield server


def upload(server: ServerProcess, bomb: Specimen) -> tuple[httpx.Response, float]:
    """Return the answer and the seconds that it took."""
    content = bomb.build()
    with server.client(timeout=60) as client:
        started = time.monotonic()
        answer = client.post("/files", content=content)
        seconds = time.monotonic() - started
    assert answer.status_code < 500, (bomb.name, answer.text)
    if answer.status_code >= 400:
        check_error(answer.status_code, answer.headers["content-type"], answer.content)
    return answer, seconds


def test_bombs_are_refused_soon_and_disturb_nobody(limited: ServerProcess) -> None:
    """Each is 4xx soon; /health goes on answering, and memory does not grow by what they unpack to."""
    before = resident(limited.pid)
    with watched(limited) as watch:
        for bomb in BOMBS:
            if bomb.name == SCANS:
                continue
            answer, seconds = upload(limited, bomb)
            expected = (201, 413) if bomb.name in LATER else (413, 415, 422)
            assert answer.status_code in expected, (bomb.name, answer.text)
            assert seconds < REFUSED_S, (bomb.name, seconds)
    assert len(watch.health_s) > 50
    assert statistics.median(watch.health_s) < HEALTH_P50_S
    assert watch.p99() < HEALTH_P99_S
    assert watch.peak_bytes - before < GROWTH_BYTES
    assert list((limited.home / "blobs" / "incoming").iterdir()) == []


def test_work_without_end_is_refused(limited: ServerProcess) -> None:
    """A picture of 3000 scans over the same pixels is refused before any is made."""
    (bomb,) = (one for one in IMAGES if one.name == SCANS)
    answer, seconds = upload(limited, bomb)
    assert answer.status_code == 413
    assert seconds < REFUSED_S


def test_bombs_at_the_same_time_do_not_add_up(limited: ServerProcess) -> None:
    """Eight large pictures at once wait for their turn: the server's memory stays within the bound of the few."""
    bombs = [one for one in IMAGES if one.name in ("png-13300-square-rgba", "png-idat-bomb", "jpeg-icc-10-mb")]
    contents = [bomb.build() for bomb in bombs]
    before = resident(limited.pid)
    statuses: list[int] = []

    def send(content: bytes) -> None:
        with limited.client(timeout=120) as client:
            statuses.append(client.post("/files", content=content).status_code)

    with watched(limited) as watch:
        threads = [threading.Thread(target=send, args=(contents[n % len(contents)],)) for n in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert len(statuses) == 9
    assert all(status < 500 for status in statuses), statuses
    assert watch.p99() < HEALTH_P99_S
    assert watch.peak_bytes - before < 2 * GROWTH_BYTES
