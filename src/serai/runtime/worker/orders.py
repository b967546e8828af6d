"""What the server and a fork server say to each other, each a packet on a SOCK_SEQPACKET socket.

| to the fork server | with | then |
|---|---|---|
| `Fork` | the worker's end of its channel; where its output goes | `Forked`, and one day `Ended` |
| `Signal` | | the worker's process group gets it, if the worker is still there |

The fork server says `Started` first. When the socket is closed, it kills its workers and ends.
"""

import msgspec

MAX_PACKET_BYTES = 16 * 1024


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag="fork"):
    worker: int
    """A number that the server gives, never twice."""
    target: str
    """The engine, 'module:class'."""
    threads: int


class Signal(msgspec.Struct, frozen=True, kw_only=True, tag="signal"):
    worker: int
    number: int


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    preloaded: bool
    """False where a module could not be imported before a fork; the workers do that themselves."""


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked"):
    worker: int
    pid: int
    """0: the machine has no room for one more process."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The worker and its process group are gone. `status` as for `Popen.returncode`."""

    worker: int
    status: int


Order = Fork | Signal
Answer = Started | Forked | Ended

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
