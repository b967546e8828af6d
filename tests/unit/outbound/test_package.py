"""The package: importing it starts nothing."""

import subprocess
import sys

import pytest

from serai.clock import ManualClock
from serai.errors import ConfigurationError, OutboundRefused
from serai.outbound import Outbound

QUIET = """
import os, sys, threading
def sockets():
    links = []
    for entry in os.listdir("/proc/self/fd"):
        try: links.append(os.readlink("/proc/self/fd/" + entry))
        except FileNotFoundError: pass
    return [link for link in links if link.startswith(("socket:", "anon_inode:"))]
before = sockets()
import serai.outbound
from serai.clock import ManualClock
client = serai.outbound.Outbound(clock=ManualClock())
assert sockets() == before, sockets()
assert threading.active_count() == 1
import multiprocessing
assert not multiprocessing.active_children()
heavy = {"httpx", "rich", "fastapi", "sqlalchemy", "torch"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_and_creating_start_nothing() -> None:
    """Neither the import nor a new client opens a socket, starts a thread or loads a framework."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_check_url_needs_no_dns() -> None:
    """A URL is normalised or refused without an event loop, and so without DNS."""
    client = Outbound(clock=ManualClock(), allow=["10.0.0.0/8"])
    assert client.check_url("HTTPS://Hooks.Example.com:443/x#y").url == "https://hooks.example.com/x"
    assert client.check_url("http://10.1.2.3:8000").origin == "http://10.1.2.3:8000"
    with pytest.raises(OutboundRefused) as refused:
        client.check_url("http://192.168.1.1/")
    assert "192.168" not in refused.value.message
    assert refused.value.hint is not None
    assert "outbound_allow" in refused.value.hint


def test_a_bad_allow_list_stops_the_start() -> None:
    """An entry that names nothing is a configuration error when the client is made."""
    with pytest.raises(ConfigurationError):
        Outbound(clock=ManualClock(), allow=["*"])
