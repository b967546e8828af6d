"""Video that has hurt, or could hurt, those who open it."""

import functools
import io
import struct
from fractions import Fraction

import av

from corpus.audio import FFCONCAT, HLS, SDP, coded
from corpus.images import gif
from corpus.specimen import Specimen, cut

FAST = {"preset": "ultrafast", "g": "25", "bf": "0"}


def video(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (64, 48),
    frames: int = 25,
    repeat: int = 1,
    rate: int = 25,
    fmt: str = "yuv420p",
    still: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return `frames` frames, their packets repeated `repeat` times.

    Each is dark on the left and light on the right, at first black and white, by and by both grey.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=options or {}) as file:
        track = file.add_stream(codec, rate=rate, options=FAST if codec == "libx264" else {})
        track.width, track.height, track.pix_fmt = *size, fmt
        packets = []
        for number in range(frames):
            frame = av.VideoFrame(*size, fmt)
            for index, plane in enumerate(frame.planes):
                dark = 128 if index else 0 if still else number * 127 // frames
                row = bytes([dark]) * (plane.width // 2) + bytes([255 - dark]) * (plane.width - plane.width // 2)
                plane.update(row.ljust(plane.line_size, b"\0") * plane.height)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            packets += track.encode(frame)
        packets += track.encode(None)
        for round_ in range(repeat):
            for packet in packets:
                shift = int(Fraction(round_ * frames, rate) / packet.time_base)
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = track, packet.time_base, packet.is_keyframe
                copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
                file.mux(copy)
    return out.getvalue()


def rotated(quarters: int) -> bytes:
    """Return an MP4 whose track header asks for turns of a quarter, clockwise."""
    whole = bytearray(video())
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters % 4]
    one = 1 << 16
    # tkhd, version 0 (ISO/IEC 14496-12, 8.3.2): the matrix is 40 bytes into its content.
    matrix = whole.index(b"tkhd") + 4 + 40
    whole[matrix : matrix + 36] = struct.pack(
        ">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30
    )
    return bytes(whole)


def patched(what: bytes, offset: int, value: bytes) -> bytes:
    """Return an MP4 with `value` written `offset` bytes after the name of the box `what`."""
    whole = bytearray(video())
    at = whole.index(what) + 4 + offset
    whole[at : at + len(value)] = value
    return bytes(whole)


def many_tracks(count: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mov") as file:
        tracks = [file.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(count)]
        for track in tracks:
            frame = av.AudioFrame(format="s16", layout="mono", samples=80)
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
            file.mux(track.encode(frame))
    return out.getvalue()


def without_moov() -> bytes:
    # Not "free": there FFmpeg would look for it.
    return video().replace(b"moov", b"none", 1)


def huge_moov() -> bytes:
    """Return an MP4 whose moov says, in 64 bits, that it is 2^63 bytes long."""
    whole = video()
    return whole.replace(
        struct.pack(">I", len(whole) - whole.index(b"moov") + 4) + b"moov", b"\0\0\0\1moov\x80" + bytes(7), 1
    )


DASH = b'<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>'
XBIN = b"XBIN\x1a" + bytes(500)


def _fine() -> list[Specimen]:
    return [
        Specimen("mp4", video, "ok"),
        Specimen("mp4-fragmented", lambda: video(options={"movflags": "frag_keyframe+empty_moov"}), "ok"),
        Specimen("mov", lambda: video("mov"), "ok"),
        Specimen("webm", lambda: video("webm", "libvpx"), "ok"),
        Specimen("webm-odd-size", lambda: video("webm", "libvpx-vp9", size=(33, 17)), "ok"),
        Specimen("webm-one-pixel", lambda: video("webm", "libvpx-vp9", size=(1, 1), frames=3), "ok"),
        Specimen("mkv", lambda: video("matroska"), "ok"),
        Specimen("mp4-hevc", lambda: video("mp4", "libx265"), "ok"),
        Specimen("mp4-av1", lambda: video("mp4", "libsvtav1", size=(128, 64)), "ok"),
        Specimen("avi", lambda: video("avi", "mpeg4"), "ok"),
        Specimen("mp4-odd-size", lambda: video("mp4", "mpeg4", size=(33, 17)), "ok"),
        Specimen("gif", lambda: gif(3), "ok"),
        Specimen("gif-10000-frames", lambda: gif(10_000), "any"),
        Specimen("gif-frame-larger-than-canvas", lambda: gif(3, (1, 1), (60000, 60000)), "any"),
        Specimen("gif-damaged-pixels", lambda: gif(3).replace(b"\x02\x02\x4c", b"\x10\x02\x4c"), "malformed"),
        Specimen("gif-huge-canvas", lambda: gif(3, (65535, 65535)), "rejected"),
        *(Specimen(f"mp4-rotated-{turn}", functools.partial(rotated, turn), "ok") for turn in range(4)),
    ]


def _bombs() -> list[Specimen]:
    uhd = functools.partial(video, size=(3840, 2160), frames=25, repeat=40, still=True)
    return [
        Specimen("mp4-4k-1000-frames", uhd, "too_large"),
        Specimen("mkv-4k-1000-frames", lambda: uhd("matroska"), "too_large"),
        Specimen("mp4-an-hour", lambda: video(rate=1, frames=60, repeat=60), "too_large"),
        Specimen("mp4-100-tracks", lambda: many_tracks(100), "too_large"),
        Specimen("mp4-1000000-fps", lambda: video(rate=1_000_000), "any"),
        Specimen("mp4-says-65535-square", lambda: patched(b"avc1\0\0\0\0\0\0", 20, b"\xff\xff\xff\xff"), "any"),
        Specimen("mp4-duration-2e32", lambda: patched(b"mvhd", 16, b"\xff\xff\xff\xfe"), "any"),
        Specimen("mp4-0-timescale", lambda: patched(b"mdhd", 12, bytes(4)), "any"),
        Specimen("mp4-2e32-samples", lambda: patched(b"stsz", 8, b"\xff\xff\xff\xff"), "any"),
        Specimen("mp4-2e32-chunks", lambda: patched(b"stco", 4, b"\xff\xff\xff\xff"), "any"),
        Specimen("mp4-chunks-beyond-end", lambda: patched(b"stco", 8, b"\xff\xff\xff\xff"), "any"),
    ]


def _refused() -> list[Specimen]:
    texts = (("ffconcat", FFCONCAT), ("sdp", SDP), ("hls", HLS), ("dash", DASH), ("xbin", XBIN))
    return [
        *(Specimen(name, functools.partial(bytes, text), "unsupported") for name, text in texts),
        *(
            Specimen(f"mp4-{name}", functools.partial(bytes, b"\0\0\0\x14ftypisom\0\0\0\0isom" + text), "rejected")
            for name, text in texts
        ),
        *(
            Specimen(
                f"mkv-{name}", functools.partial(bytes, b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm" + text), "rejected"
            )
            for name, text in texts
        ),
        Specimen("empty", bytes, "malformed"),
        Specimen("mp4-no-moov", without_moov, "malformed"),
        Specimen("mp4-moov-2e63", huge_moov, "any"),
        Specimen("mp4-sound-only", lambda: coded("mp4", "aac"), "unsupported"),
        Specimen("mp3-as-video", lambda: coded("mp3", "libmp3lame"), "unsupported"),
        Specimen("mkv-codec-not-allowed", lambda: video("matroska", "ffv1"), "unsupported"),
        Specimen("mpeg-ts", lambda: video("mpegts"), "unsupported"),
        Specimen("flv", lambda: video("flv"), "unsupported"),
        Specimen("png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "malformed"),
        *cut("mp4", video, "malformed"),
        *cut("webm", lambda: video("webm", "libvpx"), "any"),
    ]


VIDEO: list[Specimen] = [*_fine(), *_bombs(), *_refused()]
"""Each to be probed, and its first frame shown, by a decoder that takes ten minutes and 10^9 pixels."""
