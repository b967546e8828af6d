"""The type of a file is told by its first bytes, and only by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.audio import FFCONCAT, HLS, SDP, coded, tone, wav
from corpus.images import saved
from corpus.video import DASH, XBIN, video
from serai.decode.sniff import HEAD_BYTES, PICTURES, RECORDINGS, sniff

KNOWN = [
    (saved("RGB", "PNG"), "image/png"),
    (saved("RGB", "JPEG"), "image/jpeg"),
    (saved("RGB", "WEBP"), "image/webp"),
    (saved("RGB", "BMP"), "image/bmp"),
    (saved("RGB", "TIFF"), "image/tiff"),
    (saved("RGB", "TIFF", big_tiff=True), None),
    (saved("P", "GIF"), "image/gif"),
    (saved("RGB", "AVIF"), None),
    (saved("RGB", "ICO"), None),
    (wav(tone(80)), "audio/wav"),
    (coded("flac", "flac"), "audio/flac"),
    (coded("ogg", "libopus"), "audio/ogg"),
    (coded("mp3", "libmp3lame"), "audio/mpeg"),
    (coded("mp3", "libmp3lame")[1000:], None),
    (coded("ipod", "aac"), "audio/mp4"),
    (coded("adts", "aac"), None),
    (video("mp4"), "video/mp4"),
    (video("mov"), "video/quicktime"),
    (video("3gp"), "video/mp4"),
    (video("webm", "libvpx"), "video/webm"),
    (video("matroska"), "video/matroska"),
    (video("avi", "mpeg4"), "video/x-msvideo"),
    (video("mpegts"), None),
    *((text, None) for text in (FFCONCAT, SDP, HLS, DASH, XBIN, b"", b"\0", b"\xff\xfb", b"BM", b"RIFF")),
]


@pytest.mark.parametrize(("data", "expected"), KNOWN)
def test_a_type_is_told_by_the_first_bytes(data: bytes, expected: str | None) -> None:
    """What the encoders of each type write is told apart, and what is not on the list is nothing."""
    assert sniff(data[:HEAD_BYTES]) == expected


def test_an_mp3_without_a_tag_is_told_by_its_first_frame() -> None:
    """The header of an MPEG frame is enough, unless one of its fields has a reserved value."""
    assert sniff(b"\xff\xfb\x90\x00") == "audio/mpeg"
    for reserved in (b"\xff\xeb\x90\x00", b"\xff\xf9\x90\x00", b"\xff\xfb\xf0\x00", b"\xff\xfb\x9c\x00"):
        assert sniff(reserved) is None


@given(st.binary(max_size=400), st.sampled_from([data[:16] for data, _ in KNOWN]))
def test_no_bytes_make_it_fail(tail: bytes, head: bytes) -> None:
    """Any bytes have a type that can be opened, or none."""
    for data in (tail, head + tail):
        media_type = sniff(data)
        assert media_type is None or media_type in PICTURES or media_type in RECORDINGS
