"""The process that opens one file: it gives up all it can, does the one task, answers and ends."""

import errno
import os
import socket
from math import ceil
from typing import BinaryIO, NoReturn

from av.error import FFmpegError

from serai.decode import pictures, recordings
from serai.decode.confinement import confine
from serai.decode.messages import (
    Failed,
    Order,
    Pixels,
    Probe,
    Probed,
    Refusal,
    Refused,
    Reply,
    Samples,
    ToFrame,
    ToPixels,
    ToSamples,
    decode_order,
    encode,
)
from serai.decode.sniff import PICTURES


def serve_and_exit(packet: bytes, *, reply: int, source: int, sink: int, parent: int) -> NoReturn:
    """Carry out the order in `packet`, reading the file `source` and writing `sink`; answer on `reply`; never return.

    Call it in a fresh fork of the process `parent`. Every other descriptor is closed.
    """
    try:
        _keep_only(reply, source, sink)
        order = decode_order(packet)
        answer = socket.socket(fileno=reply)
        with open(source, "rb", closefd=False) as file, open(sink, "wb", closefd=False) as result:
            limits = order.limits
            confine(memory_bytes=limits.memory_bytes, cpu_seconds=ceil(limits.seconds) + 1, parent=parent)
            answer.send(encode(_answer(order, file, result)))
            os._exit(0)
    finally:
        # Reached only by an error of ours. Nothing that the fork shares with its parent is to run.
        os._exit(1)


def _keep_only(*kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    below = 3
    for descriptor in sorted(kept):
        os.closerange(below, descriptor)
        below = descriptor + 1
    os.closerange(below, 65536)


def _answer(order: Order, file: BinaryIO, sink: BinaryIO) -> Reply:
    try:
        return _perform(order, file, sink)
    except Refusal as refusal:
        return Refused(reason=refusal.reason)
    except MemoryError:
        return Refused(reason="memory")
    except PermissionError as error:
        # The filter of system calls refused something that a decoder needs: ours to mend. But FFmpeg's
        # decoders return the same number where they have no code for what is wrong with the file.
        return Refused(reason="malformed") if isinstance(error, FFmpegError) else Failed()
    except OSError as error:
        return Refused(reason="memory" if error.errno in (errno.ENOMEM, errno.EFBIG) else "malformed")
    except Exception:  # noqa: BLE001  decoders raise anything at all when they are fed garbage
        return Refused(reason="malformed")


def _perform(order: Order, file: BinaryIO, sink: BinaryIO) -> Probed | Pixels | Samples:
    media_type, limits, task = order.media_type, order.limits, order.task
    is_picture = media_type in PICTURES
    match task:
        case Probe():
            probe = pictures.probe if is_picture else recordings.probe
            return Probed(info=probe(file, media_type, limits))
        case ToPixels():
            return pictures.to_pixels(file, media_type, limits, task.max_side, sink)
        case ToSamples():
            wanted = (task.sample_rate, task.channels, task.max_seconds)
            return recordings.to_samples(file, media_type, limits, wanted, sink)
        case ToFrame():
            return recordings.to_frame(file, media_type, limits, task.at_s, task.max_side, sink)
