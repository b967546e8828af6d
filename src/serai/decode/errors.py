"""How opening a file can fail, in words that hold nothing a decoder said."""

import signal

from serai.decode.messages import Limits, Reason
from serai.errors import InvalidInput, SeraiError, TooLarge, Unavailable, UnsupportedMedia


class MediaMalformed(InvalidInput):
    """The file cannot be opened: damaged, cut short, or not what its first bytes say."""

    code = "MEDIA_MALFORMED"
    default_hint = "Open the file elsewhere to see whether it is whole, and save it anew."


class MediaTooLarge(TooLarge):
    """Opened, the file would be over a bound, whatever its size in bytes."""

    code = "MEDIA_TOO_LARGE"
    default_hint = "Reduce the picture, or shorten the recording, and send it again."


class DecoderUnavailable(Unavailable):
    """The process that opens files is gone or could not start."""

    code = "DECODER_UNAVAILABLE"


NOT_ACCEPTED_HINT = (
    "Pictures: PNG, JPEG, WebP, BMP, TIFF. Sound: WAV, FLAC, Ogg (Opus, Vorbis), MP3, M4A. "
    "Video: MP4, MOV, WebM, MKV, AVI, GIF."
)

_MALFORMED = "The file is damaged or is not what its first bytes say."
_TOO_LONG_TO_OPEN = "Opening the file takes longer than is allowed."
_TEXTS: dict[Reason, tuple[type[InvalidInput], str]] = {
    "malformed": (MediaMalformed, _MALFORMED),
    "codec": (UnsupportedMedia, "The file is of an accepted type, but is coded in a way that is not."),
    "no_picture": (UnsupportedMedia, "The file holds no video."),
    "no_sound": (UnsupportedMedia, "The file holds no sound."),
    "pixels": (MediaTooLarge, "The picture or video has more pixels than are allowed."),
    "scans": (MediaTooLarge, "The picture repeats its scans more often than is allowed."),
    "duration": (MediaTooLarge, "The recording is longer than is allowed."),
    "streams": (MediaTooLarge, "The recording has more tracks than are allowed."),
    "channels": (MediaTooLarge, "The recording has more channels than are allowed."),
    "rate": (MediaTooLarge, "The recording has a higher sample rate than is allowed."),
    "memory": (MediaTooLarge, "Opening the file takes more memory than is allowed."),
    "time": (MediaTooLarge, _TOO_LONG_TO_OPEN),
}
_FAULTS = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP))


def refused(reason: Reason, limits: Limits) -> InvalidInput:
    """Return the error that says why the file was refused, with the bound where there is one."""
    kind, message = _TEXTS[reason]
    bounds: dict[Reason, dict[str, float]] = {
        "pixels": {"max_image_pixels": limits.max_pixels, "max_video_pixels": limits.max_video_pixels},
        "duration": {"max_media_seconds": limits.max_media_seconds},
    }
    bound = bounds.get(reason)
    if bound is not None:
        told = " and ".join(f"{name} = {value:.0f}" for name, value in bound.items())
        message = f"{message.rstrip('.')}: {told}."
    return kind(message, hint=NOT_ACCEPTED_HINT if kind is UnsupportedMedia else None, details=bound)


def died(number: int) -> SeraiError:
    """Return the error for a child that signal `number` ended (0: it left without an answer)."""
    if number in _FAULTS:
        return MediaMalformed(_MALFORMED)
    if number == signal.SIGXCPU:
        return MediaTooLarge(_TOO_LONG_TO_OPEN)
    return DecoderUnavailable("The process that opens files ended before it was done.")
