"""How much memory a worker takes, and how seldom that is asked."""

import subprocess
import sys

import msgspec
import pytest

from serai.clock import ManualClock
from serai.events import Text
from serai.runtime.worker.channel import decode_from_worker, decode_to_worker, encode
from serai.runtime.worker.memory import Gauge
from serai.runtime.worker.messages import Cancel, Exit, Feed, Loading, Ready, Stats, Stop, Told

MIB = 2**20

TAKING = """
from serai.runtime.worker.memory import proportional_set_size as taken
before = taken()
held = bytearray(b"x") * 2**26
print(before, taken())
"""


def test_the_memory_of_this_process_is_measured() -> None:
    """What is taken shows, in a process that does nothing else meanwhile."""
    said = subprocess.run([sys.executable, "-c", TAKING], capture_output=True, text=True, check=True, timeout=120)
    before, after = map(int, said.stdout.split())
    assert 63 * MIB < after - before < 66 * MIB


@pytest.mark.parametrize(("cost_s", "rest_s"), [(0.001, 2.0), (0.04, 2.0), (0.5, 25.0)])
def test_a_figure_that_is_dear_is_read_seldom(cost_s: float, rest_s: float) -> None:
    """Every two seconds at most, and never more than a fiftieth of the time."""
    clock = ManualClock()
    readings = 0

    def read() -> int:
        nonlocal readings
        readings += 1
        clock.advance(cost_s)
        return readings

    gauge = Gauge(read, clock)
    assert gauge.value() == gauge.value() == 1
    clock.advance(rest_s - 0.001)
    assert gauge.value() == 1
    clock.advance(0.002)
    assert gauge.value() == 2


def test_every_message_survives_the_way() -> None:
    """What one side encodes the other decodes as the same; what is no message is refused."""
    said = [
        Loading(fraction=0.5),
        Ready(bytes=1, max_runs=2, facts={"a": [1, b"x"]}),
        Told(3, Text(delta="x")),
        Stats(bytes=1, runs=2, steps=3),
        Exit(code="A", message="b", hint=None),
    ]
    assert decode_from_worker(encode(said)) == said
    heard = [Feed(run=1, message={"a": b"x"}), Cancel(run=2), Stop()]
    assert decode_to_worker(encode(heard)) == heard
    with pytest.raises(msgspec.ValidationError):
        decode_to_worker(encode(said))
