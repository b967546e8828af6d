"""The parts of PNG, JPEG and WebP files: reading and replacing what stands beside the pixels."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from serai.decode.errors import MediaMalformed

XMP_KEYWORD: Final = "XML:com.adobe.xmp"
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1, _SCAN = 0xE1, 0xDA
_ALPHA, _EXIF, _XMP = 0x10, 0x08, 0x04
"""Bits of VP8X."""


def is_png(data: bytes) -> bool:
    """Say whether the first bytes are those of a PNG."""
    return data.startswith(_PNG_HEAD)


def with_png_texts(data: bytes, texts: Mapping[str, str]) -> bytes:
    """Return the PNG with these international texts before its pixels, in place of others of their names and of EXIF.

    Raises MediaMalformed.
    """
    chunks = [
        (kind, body)
        for kind, body in _png_chunks(data)
        if kind != b"eXIf" and not (kind in (b"tEXt", b"zTXt", b"iTXt") and _keyword(body) in texts)
    ]
    at = next((place for place, (kind, _) in enumerate(chunks) if kind == b"IDAT"), None)
    if at is None:
        raise _malformed()
    # Not compressed (two zeros), and without a language or a translated name (two empty texts).
    added = [(b"iTXt", name.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for name, text in texts.items()]
    return _PNG_HEAD + b"".join(_png_chunk(kind, body) for kind, body in [*chunks[:at], *added, *chunks[at:]])


def png_texts(data: bytes) -> dict[str, str]:
    """Return the international texts that are not compressed. Raises MediaMalformed."""
    found = {}
    for kind, body in _png_chunks(data):
        if kind == b"iTXt" and (parts := body.split(b"\0", 1)[-1])[:2] == b"\0\0":
            found[_keyword(body)] = parts[2:].split(b"\0", 2)[-1].decode(errors="replace")
    return found


def with_segments(data: bytes, *, exif: bytes, xmp: bytes) -> bytes:
    """Return the JPEG or WebP with these in place of its own. Raises MediaMalformed."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_with(data, exif, xmp)
    chunks = [(kind, body) for kind, body in _webp_chunks(data) if kind not in (b"EXIF", b"XMP ")]
    if chunks[0][0] != b"VP8X":
        chunks.insert(0, (b"VP8X", _webp_header(*chunks[0])))
    header = chunks[0][1]
    chunks[0] = (b"VP8X", bytes([header[0] | _EXIF | _XMP]) + header[1:])
    parts = [_webp_chunk(kind, body) for kind, body in [*chunks, (b"EXIF", exif), (b"XMP ", xmp)]]
    size = 4 + sum(map(len, parts))
    return b"".join([b"RIFF", size.to_bytes(4, "little"), b"WEBP", *parts])


def xmp_of(data: bytes) -> bytes | None:
    """Return the XMP packet of a JPEG or WebP. Raises MediaMalformed."""
    if data.startswith(b"\xff\xd8"):
        found = (body for marker, body, _ in _jpeg_segments(data) if marker == _APP1 and body.startswith(_JPEG_XMP))
        packet = next(found, None)
        return None if packet is None else packet.removeprefix(_JPEG_XMP)
    return next((body for kind, body in _webp_chunks(data) if kind == b"XMP "), None)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG_HEAD)
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        end = place + 12 + size
        if end > len(data):
            raise _malformed()
        yield data[place + 4 : place + 8], data[place + 8 : end - 4]
        place = end


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)


def _keyword(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode("latin-1")


def _jpeg_with(data: bytes, exif: bytes, xmp: bytes) -> bytes:
    """JFIF's segment stays the first one, as its standard asks; what follows the first scan stays as it is."""
    kept, rest = [], len(data)
    for marker, body, end in _jpeg_segments(data):
        if marker == _SCAN:
            rest = end - len(body) - 4
            break
        if not (marker == _APP1 and body.startswith((_JPEG_EXIF, _JPEG_XMP))):
            kept.append(_jpeg_segment(marker, body))
    at = 1 if kept and kept[0][1] == 0xE0 else 0
    added = [_jpeg_segment(_APP1, _JPEG_EXIF + exif), _jpeg_segment(_APP1, _JPEG_XMP + xmp)]
    return b"".join([b"\xff\xd8", *kept[:at], *added, *kept[at:], data[rest:]])


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield the marker, the body and the end of each segment up to the first scan, that one included."""
    place = 2
    while True:
        while data[place : place + 2] == b"\xff\xff":  # fill bytes
            place += 1
        size = int.from_bytes(data[place + 2 : place + 4])
        end = place + 2 + size
        if data[place : place + 1] != b"\xff" or size < 2 or end > len(data):
            raise _malformed()
        yield data[place + 1], data[place + 4 : end], end
        if data[place + 1] == _SCAN:
            return
        place = end


def _jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def _webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise _malformed()
    chunks, place = [], 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if place + 8 + size > len(data):
            raise _malformed()
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    if not chunks:
        raise _malformed()
    return chunks


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)


def _webp_header(kind: bytes, body: bytes) -> bytes:
    """Return the body of VP8X for a file that had none, from its only chunk: RFC 6386 9.1, RFC 9649 2.6."""
    if kind == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        width, height, flags = bits & 0x3FFF, bits >> 14 & 0x3FFF, _ALPHA * (bits >> 28 & 1)
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        side = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        width, height, flags = side[0] - 1, side[1] - 1, 0
    else:
        raise _malformed()
    return bytes([flags, 0, 0, 0]) + width.to_bytes(3, "little") + height.to_bytes(3, "little")


def _malformed() -> MediaMalformed:
    return MediaMalformed("The picture is damaged, or none of PNG, JPEG and WebP.")
