"""What made a picture, written into its file: pure functions of bytes, which never touch a pixel.

Every file gets three things. The whole document as JSON, which `read_embedded` gives back exactly: in PNG
as the text `serai`, in JPEG and WebP within XMP. The line of `parameters` that the web UIs of Stable
Diffusion write and read: in PNG a text of that name, else the UserComment of EXIF. And where it comes from,
in XMP: IPTC's digital source type "trained algorithmic media", with Serai as the software.

PNG: https://www.w3.org/TR/png-3/#11textinfo, EXIF: CIPA DC-008, XMP: ISO 16684-1 and, for where it lies in
each format, part 3 of Adobe's specification.
"""

import json
import re
import struct
from collections.abc import Mapping
from itertools import chain
from typing import Any
from xml.sax.saxutils import escape, unescape

from serai import __version__
from serai.images import containers

_DOCUMENT = re.compile(rb"<serai:document>(.*?)</serai:document>", re.DOTALL)
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_MAX_DESCRIPTION = 2000
"""Characters. XMP has to fit one segment of a JPEG, with the document, which has the whole prompt."""
_MAX_SEGMENT = 65_000
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:serai="urn:serai:xmp:1:">
<xmp:CreatorTool>Serai</xmp:CreatorTool>
<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>
{properties}</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def embed(data: bytes, document: Mapping[str, Any]) -> bytes:
    """Return the PNG, JPEG or WebP file `data` with `document` in it; the same input gives the same bytes.

    EXIF, XMP and texts of ours that it had are replaced. Raises MediaMalformed for another or a damaged file.
    """
    # What XML cannot hold stands in JSON's texts alone, where an escape means the same.
    told = _NOT_XML.sub(_escaped, json.dumps(document, ensure_ascii=False, separators=(",", ":")))
    text = _NOT_XML.sub("\ufffd", parameters(document))
    if containers.is_png(data):
        texts = {"Software": "Serai", "parameters": text, "serai": told}
        return containers.with_png_texts(data, {**texts, containers.XMP_KEYWORD: _xmp(document, None)})
    return containers.with_segments(data, exif=_exif(text), xmp=_xmp(document, told).encode())


def read_embedded(data: bytes) -> dict[str, Any] | None:
    """Return the document that `embed` wrote, or None where there is none."""
    if containers.is_png(data):
        told = containers.png_texts(data).get("serai")
    else:
        found = _DOCUMENT.search(containers.xmp_of(data) or b"")
        told = None if found is None else unescape(found[1].decode(errors="replace"))
    try:
        document = json.loads(told or "null")
    except (ValueError, RecursionError):  # somebody else wrote something under our name
        return None
    return document if isinstance(document, dict) else None


def parameters(document: Mapping[str, Any]) -> str:
    """Return the text in which the web UIs of Stable Diffusion tell how a picture was made.

    The prompt; `Negative prompt: …` where there is one; a line of `Name: value` with commas between, in which
    a value with a comma, a colon or a line's end is quoted as JSON.
    """
    settings = document.get("settings", {})
    told = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": settings.get("sampler"),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": document.get("seed"),
        "Size": f"{document['width']}x{document['height']}" if "width" in document and "height" in document else None,
        "Model": document.get("model"),
        "Denoising strength": settings.get("strength"),
        "Version": f"Serai {__version__}",
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in told.items() if value is not None)
    negative = document.get("negative_prompt")
    return "\n".join([document.get("prompt", ""), *([f"Negative prompt: {negative}"] if negative else []), line])


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def _escaped(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


def _xmp(document: Mapping[str, Any], told: str | None) -> str:
    """Return the packet; without the description, then without the document, where it would be too long for JPEG."""
    described = _NOT_XML.sub("\ufffd", document.get("prompt", "")[:_MAX_DESCRIPTION])
    description = (
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(described)}</rdf:li></rdf:Alt></dc:description>'
    )
    date = f"<xmp:CreateDate>{escape(document['created_at'])}</xmp:CreateDate>" if "created_at" in document else ""
    whole = "" if told is None else f"<serai:document>{escape(told)}</serai:document>"
    choices = ((date, description, whole), (date, whole), (date,))
    packets = (_PACKET.replace("{properties}", "\n".join([*chosen, ""])) for chosen in choices)
    return next(packet for packet in packets if len(packet.encode()) <= _MAX_SEGMENT)


def _exif(text: str) -> bytes:
    """Return TIFF's bytes, the most significant first as the web UIs write them: the software, and `text`."""
    software, comment = b"Serai\0", b"UNICODE\0" + text.encode("utf-16-be")[:_MAX_SEGMENT]
    first = 8  # behind the header
    second = first + _ifd_size(2)
    values = second + _ifd_size(1)
    main = [(0x0131, _ASCII, len(software), values + len(comment)), (0x8769, _LONG, 1, second)]
    own = [(0x9286, _UNDEFINED, len(comment), values)]  # UserComment
    tables = (struct.pack(f">H{'HHII' * len(entries)}I", len(entries), *chain(*entries), 0) for entries in (main, own))
    return struct.pack(">2sHI", b"MM", 42, first) + b"".join(tables) + comment + software


def _ifd_size(entries: int) -> int:
    return 2 + 12 * entries + 4
