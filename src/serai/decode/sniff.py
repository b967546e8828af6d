"""What a file is, by its first bytes: never by its name, nor by what the sender calls it."""

import re
from typing import Literal

HEAD_BYTES = 4096
"""How much of the beginning `sniff` looks at."""

MediaType = Literal[
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/bmp",
    "image/tiff",
    "image/gif",
    "audio/wav",
    "audio/flac",
    "audio/ogg",
    "audio/mpeg",
    "audio/mp4",
    "video/mp4",
    "video/quicktime",
    "video/webm",
    "video/matroska",
    "video/x-msvideo",
]

PICTURES: dict[str, str] = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
}
"""Types that are opened as a picture, and the name of the one Pillow plugin that may do it."""

RECORDINGS: dict[str, str] = {
    "image/gif": "gif",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mpeg": "mp3",
    "audio/mp4": "mov",
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/matroska": "matroska",
    "video/x-msvideo": "avi",
}
"""Types that are opened as sound or video, and the name of the one FFmpeg demuxer that may do it."""

_PREFIXES: tuple[tuple[bytes, MediaType], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
)
_RIFF: dict[bytes, MediaType] = {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}
_BMP_HEADER_BYTES = frozenset((12, 40, 52, 56, 64, 108, 124))
_MP4_BRANDS = re.compile(rb"iso[m2-9a]|mp4[12]|mp71|avc1|dash|msdh|cmfc|M4V[ HP]|MSNV|mmp4|XAVC|f4v |3g[2gp][0-9a-z]")
_M4A_BRANDS = re.compile(rb"M4[AB] ")
_OGG_CODECS = re.compile(rb"OpusHead|\x01vorbis|\x7fFLAC")
_EBML_DOCTYPE = re.compile(rb"\x42\x82[\x80-\x8f](webm|matroska)")


def sniff(head: bytes) -> MediaType | None:
    """Return the type of the file that begins with `head` (its first HEAD_BYTES, or all of it).

    None means: of no type that is opened here.
    """
    for prefix, media_type in _PREFIXES:
        if head.startswith(prefix):
            return media_type
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head.startswith(b"BM"):
        return "image/bmp" if int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES else None
    if head.startswith(b"OggS"):
        return "audio/ogg" if _OGG_CODECS.search(head, 0, 300) else None
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        match = _EBML_DOCTYPE.search(head, 0, 80)
        if match is None:
            return None
        return "video/webm" if match[1] == b"webm" else "video/matroska"
    return _sniff_mp4(head) or _sniff_mp3(head)


def _sniff_mp4(head: bytes) -> MediaType | None:
    """ISO/IEC 14496-12: a box is its length, its type, its content; `ftyp` names the brand.

    QuickTime files older than that begin with any of the other boxes.
    """
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp":
        if brand == b"qt  ":
            return "video/quicktime"
        if _M4A_BRANDS.fullmatch(brand):
            return "audio/mp4"
        return "video/mp4" if _MP4_BRANDS.fullmatch(brand) else None
    return "video/quicktime" if box in (b"moov", b"mdat", b"wide", b"free", b"skip") else None


def _sniff_mp3(head: bytes) -> MediaType | None:
    """An MPEG audio frame of layer III: sync, then no field with a reserved value."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return "audio/mpeg" if version != 1 and layer == 1 and bitrate not in (0, 15) and rate != 3 else None
