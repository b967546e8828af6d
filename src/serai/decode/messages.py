"""What the server and the processes that open files say to each other.

The server sends an `Order` to the zygote, with three descriptors: where to answer, the file, and
the memory file for the result. The child answers one `Reply`; if it dies before that, the zygote
answers `Died` in its place. Every message is one packet of msgpack on a SOCK_SEQPACKET socket.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Reason = Literal[
    "malformed",
    "codec",
    "no_picture",
    "no_sound",
    "pixels",
    "scans",
    "duration",
    "streams",
    "channels",
    "rate",
    "memory",
    "time",
]

MAX_MESSAGE_BYTES = 16 * 1024
READY = b"ready"
"""What the zygote sends, once, when it has loaded the decoders."""

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Extent = Annotated[int, Meta(ge=1, le=2**31)]
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """What a file holds, as far as its headers say; None is unknown or does not apply."""

    kind: Literal["image", "audio", "video"]
    media_type: str
    width: _Extent | None = None
    """Pixels; of a picture as it is to be seen, of a video as it is stored (before any rotation)."""
    height: _Extent | None = None
    frames: _Count | None = None
    frame_rate: _Seconds | None = None
    """Frames per second, on average."""
    duration_s: _Seconds | None = None
    sample_rate: _Extent | None = None
    channels: _Extent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one file and on the child that opens it."""

    memory_bytes: int
    """Address space of the child, and the most that it may hand back."""
    seconds: float
    max_pixels: int
    """Width × height of a picture or of one frame."""
    max_video_pixels: int
    """Width × height × frames of a video, and of what is decoded to reach one frame."""
    max_media_seconds: float


class Probe(msgspec.Struct, tag="probe", frozen=True):
    """Say what the file is."""


class ToPixels(msgspec.Struct, tag="pixels", frozen=True, kw_only=True):
    """Open the picture; reduce it to fit a square of `max_side`."""

    max_side: int | None


class ToSamples(msgspec.Struct, tag="samples", frozen=True, kw_only=True):
    """Decode the first sound track to float32."""

    sample_rate: int
    channels: int
    max_seconds: float


class ToFrame(msgspec.Struct, tag="frame", frozen=True, kw_only=True):
    """Decode the frame of the video that is shown at `at_s`; reduce it to fit a square of `max_side`."""

    at_s: float
    max_side: int | None


Task = Probe | ToPixels | ToSamples | ToFrame


class Order(msgspec.Struct, frozen=True, kw_only=True):
    media_type: str
    limits: Limits
    task: Task


class Probed(msgspec.Struct, tag="probed", frozen=True, kw_only=True):
    info: MediaInfo


class Pixels(msgspec.Struct, tag="pixels", frozen=True, kw_only=True):
    info: MediaInfo
    width: _Extent
    height: _Extent
    mode: Literal["RGB", "RGBA"]


class Samples(msgspec.Struct, tag="samples", frozen=True, kw_only=True):
    info: MediaInfo
    frames: _Count


class Refused(msgspec.Struct, tag="refused", frozen=True, kw_only=True):
    reason: Reason


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Something of ours went wrong in the child; the file is not to blame."""


class Died(msgspec.Struct, tag="died", frozen=True, kw_only=True):
    """The child ended without an answer. `signal` is what killed it, 0 if it left by itself."""

    signal: int


Reply = Probed | Pixels | Samples | Refused | Failed | Died

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


class Refusal(Exception):
    """The file is over a bound, damaged, or of a kind that is not opened. Raised in the child only."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason
