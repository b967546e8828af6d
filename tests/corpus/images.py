"""Pictures that have hurt, or could hurt, those who open them."""

import functools
import io
import random
import struct
import zlib
from typing import Any

from PIL import Image

from corpus.specimen import Specimen, cut

MIB = 2**20
GREY, RGB, RGBA = 0, 2, 6
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """Return a PNG of these dimensions and chunks, whether they fit together or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_MAGIC + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def deflated_zeros(count: int) -> bytes:
    """Return `count` zero bytes as a zlib stream; a gigabyte takes milliseconds, for one block is repeated."""
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = block.compress(bytes(MIB)) + block.flush(zlib.Z_FULL_FLUSH)
    tail = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = tail.compress(bytes(count % MIB)) + tail.flush()
    adler = (count % 65521) << 16 | 1
    return b"\x78\xda" + megabyte * (count // MIB) + rest + struct.pack(">I", adler)


def black_png(width: int, height: int, depth: int, colour: int) -> bytes:
    """Return a whole and valid PNG of zeros."""
    samples = {GREY: 1, RGB: 3, RGBA: 4}[colour]
    row = 1 + (width * samples * depth + 7) // 8
    return png(width, height, depth, colour, chunk(b"IDAT", deflated_zeros(row * height)))


def saved(mode: str, kind: str, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """Return a picture of noise (always the same) in a mode and format of Pillow."""
    image = Image.new(mode, size)
    image.frombytes(random.Random(7).randbytes(len(image.tobytes())))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(value: int) -> bytes:
    """Return a JPEG of 64 × 48 as stored, in red, green, blue and white quarters, whose EXIF orientation is `value`."""
    image = Image.new("RGB", (64, 48), (255, 0, 0))
    image.paste((0, 255, 0), (32, 0, 64, 24))
    image.paste((0, 0, 255), (0, 24, 32, 48))
    image.paste((255, 255, 255), (32, 24, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = value
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


def text_bomb(kind: bytes, unpacked: int) -> bytes:
    keyword = b"Comment\0" + (b"\0" if kind == b"zTXt" else b"\1\0\0\0")
    bomb = chunk(kind, keyword + deflated_zeros(unpacked))
    return png(1, 1, 8, GREY, bomb, chunk(b"IDAT", zlib.compress(b"\0\0")))


def apng(frames: int) -> bytes:
    """Return an animated PNG of one pixel."""
    control = struct.pack(">IIIIHHBB", 1, 1, 0, 0, 0, 100, 0, 0)
    pixel = zlib.compress(b"\0\0")
    chunks = [chunk(b"acTL", struct.pack(">II", frames, 0)), chunk(b"fcTL", struct.pack(">I", 0) + control)]
    chunks.append(chunk(b"IDAT", pixel))
    for number in range(1, frames):
        chunks.append(chunk(b"fcTL", struct.pack(">I", 2 * number - 1) + control))
        chunks.append(chunk(b"fdAT", struct.pack(">I", 2 * number) + pixel))
    return png(1, 1, 8, GREY, *chunks)


def gif(frames: int, canvas: tuple[int, int] = (1, 1), frame: tuple[int, int] = (1, 1)) -> bytes:
    """Return an animation without delays, one white pixel sent per frame, whatever size `frame` claims."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    one = b"\x21\xf9\x04\0\0\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\0"
    return head + one * frames + b";"


def tiff(*tags: tuple[int, int, int, int], following: int = 0) -> bytes:
    """Return a little-endian TIFF with one directory at 8; pixels, if any, are 64 KiB of zeros from 1024."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following)
    return head.ljust(1024, b"\0") + bytes(65536)


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], following: int = 0) -> bytes:
    plain = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1))
    strip = ((273, 4, 1, 1024), (278, 4, 1, height), (279, 4, 1, min(65536, width * height)))
    return tiff(*sorted({tag[0]: tag for tag in (*plain, *strip, *more)}.values()), following=following)


def tiled_tiff() -> bytes:
    """Return a small picture in one tile that claims to be 2^20 pixels wide and high."""
    tiles = ((322, 4, 1, 2**20), (323, 4, 1, 2**20), (324, 4, 1, 1024), (325, 4, 1, 65536))
    plain = ((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1))
    return tiff(*plain, *tiles)


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    information = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 8 if compression else 24, compression, 0, 0, 0, 0, 0
    )
    return b"BM" + struct.pack("<IHHI", 10_000, 0, 0, 54) + information + bytes(10_000)


def webp_canvas(width: int, height: int) -> bytes:
    """Return an extended WebP with a canvas of this size and a picture of another."""
    inner = saved("RGB", "WEBP", (1, 1))[12:]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def scan_bomb(scans: int, side: int = 4000) -> bytes:
    """Return a progressive JPEG, `side` × `side`, whose last scan comes again and again."""
    out = io.BytesIO()
    Image.new("L", (side, side), 128).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * scans + b"\xff\xd9"


def ftyp(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"mif1" + bytes(4096)


def svg(body: str, doctype: str = "") -> bytes:
    return f'<?xml version="1.0"?>{doctype}<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>'.encode()


XXE = '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
LAUGHS = "<!DOCTYPE svg [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10)
) + "]>"  # fmt: skip
ZIP_TAIL = b"PK\x05\x06" + bytes(18)
NOISE_PNG = functools.partial(saved, "RGB", "PNG")
NOISE_JPEG = functools.partial(saved, "RGB", "JPEG")


def _valid() -> list[Specimen]:
    modes = [
        Specimen("png-1x1", lambda: black_png(1, 1, 8, GREY), "ok"),
        Specimen("png-palette-alpha", lambda: saved("P", "PNG", transparency=bytes(range(256))), "ok"),
        Specimen("png-grey-16-bit", lambda: saved("I;16", "PNG"), "ok"),
        Specimen("png-rgb-16-bit", lambda: black_png(40, 30, 16, RGB), "ok"),
        Specimen("png-1-bit", lambda: black_png(333, 77, 1, GREY), "ok"),
        Specimen("jpeg-cmyk", lambda: saved("CMYK", "JPEG"), "ok"),
        Specimen("jpeg-grey", lambda: saved("L", "JPEG"), "ok"),
        Specimen("tiff-cmyk", lambda: saved("CMYK", "TIFF"), "ok"),
        Specimen("tiff-lab", lambda: saved("LAB", "TIFF"), "ok"),
        Specimen("tiff-float", lambda: saved("F", "TIFF"), "ok"),
        Specimen("tiff-int-32", lambda: saved("I", "TIFF"), "ok"),
        Specimen("tiff-lzw", lambda: saved("RGB", "TIFF", compression="tiff_lzw"), "ok"),
        Specimen("tiff-jpeg", lambda: saved("RGB", "TIFF", compression="jpeg"), "ok"),
        Specimen("bmp", lambda: saved("RGB", "BMP"), "ok"),
        Specimen("bmp-palette", lambda: saved("P", "BMP"), "ok"),
        Specimen("webp-alpha", lambda: saved("RGBA", "WEBP", lossless=True), "ok"),
        Specimen("webp-animated", lambda: saved("RGB", "WEBP", save_all=True, append_images=_frames(5)), "ok"),
        Specimen("jpeg-two-pictures", lambda: saved("RGB", "MPO", save_all=True, append_images=_frames(1)), "ok"),
    ]
    turned = [Specimen(f"jpeg-orientation-{n}", functools.partial(oriented, n), "ok") for n in range(1, 9)]
    return modes + turned


def _frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (64, 48), (n * 40, 0, 0)) for n in range(count)]


def _bombs() -> list[Specimen]:
    return [
        Specimen("png-1e9-square", lambda: png(10**9, 10**9, 8, RGB, chunk(b"IDAT", b"")), "too_large"),
        Specimen("png-65535-square", lambda: png(65535, 65535, 8, RGBA, chunk(b"IDAT", b"")), "too_large"),
        Specimen("png-13300-square-rgba", lambda: black_png(13300, 13300, 8, RGBA), "too_large"),
        Specimen("png-18900-square-rgb", lambda: black_png(18900, 18900, 8, RGB), "too_large"),
        Specimen("png-60000-square-1-bit", lambda: black_png(60000, 60000, 1, GREY), "too_large"),
        Specimen("bmp-30000-square", lambda: bmp(30000, 30000), "too_large"),
        Specimen("bmp-rle-30000-square", lambda: bmp(30000, 30000, compression=1), "too_large"),
        Specimen("tiff-65535-square", lambda: grey_tiff(65535, 65535), "too_large"),
        Specimen("tiff-huge-tile", tiled_tiff, "rejected"),
        Specimen("webp-16383-square-canvas", lambda: webp_canvas(16383, 16383), "rejected"),
        Specimen("png-ztxt-bomb", lambda: text_bomb(b"zTXt", 1024 * MIB), "rejected"),
        Specimen("png-itxt-bomb", lambda: text_bomb(b"iTXt", 1024 * MIB), "rejected"),
        Specimen("jpeg-3000-scans", lambda: scan_bomb(3000), "too_large"),
        Specimen("png-10000-frames", lambda: apng(10_000), "ok"),
        Specimen("png-idat-bomb", lambda: png(1, 1, 8, GREY, chunk(b"IDAT", deflated_zeros(1024 * MIB))), "any"),
        Specimen("jpeg-icc-10-mb", lambda: saved("RGB", "JPEG", icc_profile=bytes(10 * MIB)), "ok"),
        Specimen("png-8-mb-tail", lambda: NOISE_PNG() + bytes(8 * MIB), "ok"),
    ]


def _damaged() -> list[Specimen]:
    return [
        Specimen("empty", bytes, "malformed"),
        Specimen("one-byte", lambda: b"\x89", "unsupported"),
        Specimen("png-magic-only", lambda: PNG_MAGIC, "malformed"),
        Specimen("png-header-only", lambda: NOISE_PNG()[:33], "malformed"),
        Specimen("png-no-pixels", lambda: png(64, 48, 8, RGB), "malformed"),
        Specimen("png-0x0", lambda: png(0, 0, 8, RGB, chunk(b"IDAT", b"")), "malformed"),
        Specimen("png-bad-crc", lambda: NOISE_PNG().replace(b"IDAT", b"IDAX", 1), "malformed"),
        Specimen("png-depth-77", lambda: png(8, 8, 77, RGB, chunk(b"IDAT", zlib.compress(bytes(999)))), "malformed"),
        Specimen("jpeg-start-only", lambda: b"\xff\xd8\xff", "malformed"),
        Specimen(
            "jpeg-exif-corrupt", lambda: saved("RGB", "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9)), "ok"
        ),
        Specimen("jpeg-icc-corrupt", lambda: saved("RGB", "JPEG", icc_profile=b"\xff" * 500), "ok"),
        Specimen("tiff-directory-loop", lambda: grey_tiff(64, 64, following=8), "ok"),
        Specimen("tiff-2e32-values", lambda: grey_tiff(64, 64, (270, 2, 2**32 - 1, 1024)), "any"),
        Specimen("tiff-directory-beyond-end", lambda: b"II*\0\xf0\xff\xff\xff" + bytes(64), "malformed"),
        Specimen("tiff-codec-unknown", lambda: grey_tiff(64, 64, (259, 3, 1, 60000)), "malformed"),
        Specimen("webp-empty", lambda: b"RIFF\x04\0\0\0WEBP", "malformed"),
        Specimen("bmp-negative-size", lambda: bmp(-5, -(2**31)), "rejected"),
        *cut("png", NOISE_PNG, "malformed"),
        *cut("jpeg", NOISE_JPEG, "malformed"),
        *cut("webp", functools.partial(saved, "RGB", "WEBP"), "malformed"),
        *cut("bmp", functools.partial(saved, "RGB", "BMP"), "malformed"),
        *cut("tiff", functools.partial(saved, "RGB", "TIFF", compression="tiff_lzw"), "malformed"),
    ]


def _foreign() -> list[Specimen]:
    return [
        Specimen("gif", lambda: gif(1), "unsupported"),
        Specimen("gif-10000-frames", lambda: gif(10_000), "unsupported"),
        Specimen("gif-javascript", lambda: b"GIF89a/*" + gif(1)[8:] + b"*/=1;alert(1)", "unsupported"),
        Specimen("jpeg-2000", lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(500), "unsupported"),
        Specimen("jpeg-2000-stream", lambda: b"\xff\x4f\xff\x51" + bytes(500), "unsupported"),
        Specimen("ico", lambda: b"\0\0\1\0\1\0" + bytes(500), "unsupported"),
        Specimen("psd", lambda: b"8BPS\0\1" + bytes(500), "unsupported"),
        Specimen(
            "eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n", "unsupported"
        ),
        Specimen("flashpix", lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(5000), "unsupported"),
        Specimen("avif", lambda: ftyp(b"avif"), "unsupported"),
        Specimen("heic", lambda: ftyp(b"heic"), "unsupported"),
        Specimen("pdf", lambda: b"%PDF-1.7\n" + bytes(500), "unsupported"),
        Specimen("svg-script", lambda: svg("<script>alert(1)</script>"), "unsupported"),
        Specimen("svg-xxe", lambda: svg("<text>&x;</text>", XXE), "unsupported"),
        Specimen("svg-billion-laughs", lambda: svg("<text>&a9;</text>", LAUGHS), "unsupported"),
        Specimen("html", lambda: b"<!doctype html><script>alert(1)</script>", "unsupported"),
        Specimen("xpm", lambda: b"/* XPM */\nstatic char *x[]={};", "unsupported"),
        Specimen("big-tiff", lambda: b"II+\0\x08\0\0\0" + bytes(500), "unsupported"),
        Specimen("png-zip", lambda: NOISE_PNG() + ZIP_TAIL, "ok"),
        Specimen("jpeg-html", lambda: saved("RGB", "JPEG", comment=b"<script>alert(1)</script>"), "ok"),
        Specimen("sound", lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(500), "unsupported"),
    ]


IMAGES: list[Specimen] = [*_valid(), *_bombs(), *_damaged(), *_foreign()]
"""Each to be opened as a picture."""
