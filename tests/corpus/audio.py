"""Sound that has hurt, or could hurt, those who open it."""

import array
import functools
import io
import math
import struct
from fractions import Fraction

import av

from corpus.specimen import Specimen, cut

MIB = 2**20
PCM, FLOAT = 1, 3
UNKNOWN_SIZE = 2**32 - 1


def tone(frames: int = 8000, rate: int = 8000) -> bytes:
    """Return a 440 Hz tone as 16-bit samples."""
    return array.array("h", (int(12_000 * math.sin(2 * math.pi * 440 * n / rate)) for n in range(frames))).tobytes()


def wav(
    samples: bytes,
    *,
    rate: int = 8000,
    channels: int = 1,
    bits: int = 16,
    coding: int = PCM,
    data_size: int | None = None,
    riff_size: int | None = None,
) -> bytes:
    """Return a WAV file whose fields say what they are told to, true or not."""
    block = channels * bits // 8 % 65536
    fields = struct.pack("<HHIIHH", coding, channels, rate, min(rate * block, 2**32 - 1), block, bits)
    data = b"data" + struct.pack("<I", len(samples) if data_size is None else data_size) + samples
    body = b"WAVEfmt " + struct.pack("<I", len(fields)) + fields + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def coded(
    container: str, codec: str, *, rate: int = 48_000, seconds: float = 1, repeat: int = 1, layout: str = "mono"
) -> bytes:
    """Return `seconds` of silence, its packets repeated so that it lasts `repeat` times as long."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        track = file.add_stream(codec, rate=rate, layout=layout)
        packets = []
        size = track.codec_context.frame_size or 1024
        for start in range(0, int(seconds * rate), size):
            frame = av.AudioFrame(format=track.codec_context.format.name, layout=layout, samples=size)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            packets += track.encode(frame)
        flushed = track.encode(None)
        span = sum(packet.duration for packet in packets)
        for round_ in range(repeat):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.duration = track, packet.time_base, packet.duration
                copy.pts, copy.dts = packet.pts + round_ * span, packet.dts + round_ * span
                file.mux(copy)
        if repeat == 1:
            file.mux(flushed)
    return out.getvalue()


def flac_without_length() -> bytes:
    """Return an hour of silence whose header does not say how long it is."""
    whole = bytearray(coded("flac", "flac", rate=8000, seconds=60, repeat=60))
    # STREAMINFO begins at 8; the low 36 bits of its bytes 10 to 17 are the number of samples.
    whole[21] &= 0xF0
    whole[22:26] = bytes(4)
    return bytes(whole)


def id3(content: bytes, size: int | None = None) -> bytes:
    """Return an ID3v2.3 tag that holds `content`, or says that it is `size` long."""
    length = len(content) if size is None else size
    return b"ID3\x03\0\0" + bytes(length >> shift & 0x7F for shift in (21, 14, 7, 0)) + content


def picture_frame(size: int) -> bytes:
    """Return an ID3 frame with a cover picture of `size` zeros."""
    content = b"\0image/jpeg\0\x03\0" + bytes(size)
    return b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content


MP3 = functools.partial(coded, "mp3", "libmp3lame")
OPUS = functools.partial(coded, "ogg", "libopus")
FLAC = functools.partial(coded, "flac", "flac")
FLOATS = struct.pack("<6d", math.nan, math.inf, -math.inf, 1e300, -1e300, 5e-324) * 1000

FFCONCAT = b"ffconcat version 1.0\nfile other.wav\nfile other.wav\n"
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


def _lies() -> list[Specimen]:
    return [
        Specimen("wav-data-size-0", lambda: wav(tone(), data_size=0), "any"),
        Specimen("wav-data-size-unknown", lambda: wav(tone(), data_size=UNKNOWN_SIZE, riff_size=UNKNOWN_SIZE), "ok"),
        Specimen("wav-data-size-odd", lambda: wav(tone()[:-1]), "ok"),
        Specimen("wav-riff-size-0", lambda: wav(tone(), riff_size=0), "any"),
        Specimen("wav-0-hz", lambda: wav(tone(), rate=0), "malformed"),
        Specimen("wav-10-mhz", lambda: wav(tone(), rate=10_000_000), "too_large"),
        Specimen("wav-4-ghz", lambda: wav(tone(), rate=2**32 - 1), "rejected"),
        Specimen("wav-0-channels", lambda: wav(tone(), channels=0), "malformed"),
        Specimen("wav-255-channels", lambda: wav(tone(), channels=255), "too_large"),
        Specimen("wav-65535-channels", lambda: wav(tone(), channels=65535), "rejected"),
        Specimen("wav-0-bits", lambda: wav(tone(), bits=0), "rejected"),
        Specimen("wav-codec-unknown", lambda: wav(tone(), coding=0xBEEF), "rejected"),
        Specimen("wav-codec-not-allowed", lambda: wav(tone(), coding=0x0002, bits=4), "unsupported"),
        Specimen("wav-no-samples", lambda: wav(b""), "malformed"),
        Specimen("wav-header-only", lambda: wav(b"")[:20], "malformed"),
        Specimen("mp3-tag-longer-than-file", lambda: id3(b"", size=2**28 - 1) + MP3(), "malformed"),
        Specimen("mp3-tag-only", lambda: id3(bytes(1000)), "malformed"),
        Specimen("ogg-first-page-only", lambda: OPUS()[:47], "malformed"),
    ]


def _fine() -> list[Specimen]:
    return [
        Specimen("wav-telephone", lambda: wav(tone()), "ok"),
        Specimen("wav-stereo", lambda: wav(tone(), channels=2), "ok"),
        Specimen("wav-one-sample", lambda: wav(b"\xff\x7f"), "ok"),
        Specimen("wav-8-bit", lambda: wav(bytes(8000), bits=8), "ok"),
        Specimen("wav-no-numbers", lambda: wav(FLOATS, bits=64, coding=FLOAT), "ok"),
        Specimen("wav-clipped", lambda: wav(b"\xff\x7f\x00\x80" * 8000), "ok"),
        Specimen("wav-constant", lambda: wav(b"\x00\x40" * 8000), "ok"),
        Specimen("wav-8-mb-tail", lambda: wav(tone()) + bytes(8 * MIB), "ok"),
        Specimen("mp3", MP3, "ok"),
        Specimen("mp3-16-mb-cover", lambda: id3(picture_frame(16 * MIB)) + MP3(), "ok"),
        Specimen("opus", OPUS, "ok"),
        Specimen("opus-twice-in-one", lambda: OPUS() + OPUS(), "ok"),
        Specimen("flac", FLAC, "ok"),
        Specimen("m4a", lambda: coded("ipod", "aac"), "ok"),
    ]


def _long() -> list[Specimen]:
    """Return what lasts an hour in a few hundred kilobytes, to be refused by those who take ten minutes."""
    return [
        Specimen("opus-hour", lambda: coded("ogg", "libopus", seconds=30, repeat=120), "too_large"),
        Specimen("flac-hour", lambda: coded("flac", "flac", rate=8000, seconds=60, repeat=60), "too_large"),
        Specimen("flac-hour-unsaid", flac_without_length, "too_large"),
        Specimen("mp3-hour", lambda: coded("mp3", "libmp3lame", rate=8000, seconds=30, repeat=120), "too_large"),
    ]


def _disguised() -> list[Specimen]:
    texts = (("ffconcat", FFCONCAT), ("sdp", SDP), ("hls", HLS))
    bare = [Specimen(name, functools.partial(bytes, text), "unsupported") for name, text in texts]
    in_wav = [
        Specimen(f"wav-{name}", functools.partial(bytes, b"RIFF\xff\0\0\0WAVE" + text), "malformed")
        for name, text in texts
    ]
    in_mp3 = [Specimen(f"mp3-{name}", functools.partial(bytes, id3(b"") + text), "malformed") for name, text in texts]
    return [
        *bare,
        *in_wav,
        *in_mp3,
        Specimen("empty", bytes, "malformed"),
        Specimen("picture", lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "unsupported"),
        Specimen("ogg-theora", lambda: b"OggS" + bytes(24) + b"\x80theora" + bytes(500), "unsupported"),
        Specimen("aiff", lambda: b"FORM\0\0\0\0AIFF" + bytes(500), "unsupported"),
        Specimen("midi", lambda: b"MThd\0\0\0\x06" + bytes(500), "unsupported"),
    ]


AUDIO: list[Specimen] = [
    *_fine(),
    *_lies(),
    *_long(),
    *_disguised(),
    *cut("wav", lambda: wav(tone()), "any"),
    *cut("flac", FLAC, "any"),
    *cut("opus", OPUS, "any"),
    *cut("mp3", MP3, "any"),
]
"""Each to be decoded by a decoder that takes at most ten minutes."""
