"""What made a picture: the document that its file, an archive and the API tell, and the forms that files have for it.

Every file gets three things. The whole document as JSON: in PNG as the text `serai`, in JPEG and WebP within
XMP. The line of `parameters` that the web UIs of Stable Diffusion write and read: in PNG a text of that name,
else the UserComment of EXIF. And where it comes from, in XMP: IPTC's digital source type "trained algorithmic
media", with Serai as the software.

PNG: https://www.w3.org/TR/png-3/#11textinfo, EXIF: CIPA DC-008, XMP: ISO 16684-1.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from xml.sax.saxutils import escape

from serai import __version__
from serai.images.model import Picture

SOFTWARE: Final = "Serai"
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_MAX_DESCRIPTION = 2000
"""Characters. XMP has to fit one segment of a JPEG, with the document, which has the whole prompt."""
_MAX_SEGMENT = 65_000
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


def document_of(
    *,
    model: str,
    version: str,
    prompt: str,
    negative_prompt: str,
    settings: Mapping[str, Any],
    seed: int,
    size: tuple[int, int],
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """Return what makes one picture, and nothing that differs when it is made again.

    `settings`: those of its job, which may make others besides; `seed`: its own; `size`: width and height;
    `sources`: SHA-256 of what it began with, as `image_sha256` and `mask_sha256`.
    """
    return {
        "model": model,
        "version": version,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "settings": {**settings, "seed": seed, "num_images": 1},
        "seed": seed,
        "width": size[0],
        "height": size[1],
        "format": settings["format"],
        **sources,
    }


def of_picture(picture: Picture, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the document of a picture in the gallery; `sources` as in `document_of`."""
    return document_of(
        model=picture.model,
        version=picture.version,
        prompt=picture.prompt,
        negative_prompt=picture.negative_prompt,
        settings=picture.settings,
        seed=picture.seed,
        size=(picture.width, picture.height),
        sources=sources,
    )


def texts(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of a PNG with the document, by their keywords."""
    told = {"Software": SOFTWARE, "parameters": _plain(parameters(document)), "serai": _as_json(document)}
    return {**told, "XML:com.adobe.xmp": _packet(document, None)}


def comment(document: Mapping[str, Any]) -> bytes:
    """Return the UserComment of EXIF, whose numbers have the most significant byte first."""
    return b"UNICODE\0" + _plain(parameters(document)).encode("utf-16-be")[:_MAX_SEGMENT]


def xmp(document: Mapping[str, Any]) -> bytes:
    """Return the packet of XMP with the document in it, for JPEG and WebP."""
    return _packet(document, _as_json(document)).encode()


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


def _plain(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _as_json(document: Mapping[str, Any]) -> str:
    """Return JSON with what XML cannot hold, which stands in texts alone, as escapes that mean the same."""
    told = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return _NOT_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", told)


def _packet(document: Mapping[str, Any], told: str | None) -> str:
    """Return the packet; without the description, then without the document, where it would be too long for JPEG."""
    described = escape(_plain(document.get("prompt", "")[:_MAX_DESCRIPTION]))
    description = (
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{described}</rdf:li></rdf:Alt></dc:description>'
    )
    whole = "" if told is None else f"<serai:document>{escape(told)}</serai:document>"
    choices = ((description, whole), (whole,), ())
    packets = (_PACKET.replace("{properties}", "\n".join([*chosen, ""])) for chosen in choices)
    return next(packet for packet in packets if len(packet.encode()) <= _MAX_SEGMENT)
