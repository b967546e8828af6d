"""Opening sound and video with FFmpeg (PyAV). Runs in the child only."""

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, TypeVar

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.error import PermissionError as NamelessError  # -1, which FFmpeg's decoders return where they have no code
from av.stream import Disposition
from av.subtitles import codeccontext, stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from serai.decode.messages import Limits, MediaInfo, Pixels, Refusal, Samples
from serai.decode.pictures import write_pixels
from serai.decode.sniff import RECORDINGS

# The child cannot load a module any more: all that PyAV puts off is loaded here.
PUT_OFF = (codeccontext, stream)

Frame = TypeVar("Frame", AudioFrame, VideoFrame)

MAX_STREAMS = 16
MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 384_000
CODECS = (
    "h264,hevc,vp8,vp9,libvpx-vp9,libdav1d,av1,mpeg4,mjpeg,gif,"
    "aac,mp3,mp3float,opus,libopus,vorbis,flac,alac,pcm_alaw,pcm_mulaw,pcm_u8,pcm_s16le,pcm_s16be,"
    "pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
"""FFmpeg's decoders that may run."""

_LAYOUTS = {1: "mono", 2: "stereo"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

av.logging.set_level(av.logging.PANIC)


def probe(file: BinaryIO, media_type: str, limits: Limits) -> MediaInfo:
    """Read the headers, and as much as FFmpeg needs to tell the tracks. Raises Refusal, FFmpegError and others."""
    with _open(file, media_type, limits) as container:
        return _describe(container, media_type, limits)


def to_samples(
    file: BinaryIO, media_type: str, limits: Limits, wanted: tuple[int, int, float], sink: BinaryIO
) -> Samples:
    """Write the first sound track to `sink`: float32, interleaved, finite; of a few samples, perhaps nothing.

    `wanted` is the sample rate, the number of channels (1 or 2) and the longest duration. Raises like `probe`.
    """
    rate, channels, max_seconds = wanted
    with _open(file, media_type, limits) as container:
        info = _describe(container, media_type, limits)
        if not container.streams.audio:
            raise Refusal("no_sound")
        if info.duration_s is not None and info.duration_s > max_seconds:
            raise Refusal("duration")
        frames = 0
        for sound in _resample(container, container.streams.audio[0], rate, channels):
            frames += sound.samples
            if frames > max_seconds * rate:
                raise Refusal("duration")
            sink.write(memoryview(sound.planes[0])[: sound.samples * channels * 4])
    sink.flush()
    return Samples(info=info, frames=frames)


def to_frame(
    file: BinaryIO, media_type: str, limits: Limits, at_s: float, max_side: int | None, sink: BinaryIO
) -> Pixels:
    """Write the frame that is shown at `at_s` to `sink`, upright, as `pictures.to_pixels` does.

    Past the end it is the last frame. Raises like `probe`.
    """
    with _open(file, media_type, limits) as container:
        info = _describe(container, media_type, limits)
        video = _video(container)
        if video is None:
            raise Refusal("no_picture")
        frame = _frame_at(container, video, at_s, limits)
        image = frame.to_image(threads=1)  # type: ignore[no-untyped-call]
        turn = _TURNS.get(frame.rotation % 360)
    width, height, mode = write_pixels(image.transpose(turn) if turn is not None else image, max_side, sink)
    return Pixels(info=info, width=width, height=height, mode=mode)


def _open(file: BinaryIO, media_type: str, limits: Limits) -> InputContainer:
    demuxer = RECORDINGS[media_type]
    options = {
        "format_whitelist": demuxer,
        "protocol_whitelist": "none",
        "codec_whitelist": CODECS,
        "max_pixels": str(limits.max_pixels),
        "threads": "1",
    }
    # Past the sound FFmpeg looks through all that follows, with several seeks for every eight bytes.
    stream = _OneWay(file) if media_type == "audio/wav" else file
    return av.open(stream, "r", format=demuxer, options=options, metadata_errors="ignore")


class _OneWay:
    """A file that cannot be rewound."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read


def _video(container: InputContainer) -> VideoStream | None:
    """Return the first video track that is not the cover picture of a sound file."""
    return next((v for v in container.streams.video if not v.disposition & Disposition.attached_pic), None)


def _describe(container: InputContainer, media_type: str, limits: Limits) -> MediaInfo:
    if len(container.streams) > MAX_STREAMS:
        raise Refusal("streams")
    video = _video(container)
    sound = container.streams.audio[0] if container.streams.audio else None
    if video is None and sound is None:
        raise Refusal("malformed")
    duration = container.duration / av.time_base if container.duration is not None else None
    if duration is not None and duration > limits.max_media_seconds:
        raise Refusal("duration")
    if sound is not None:
        _check_sound(sound)
    frames = _check_video(video, duration, limits) if video is not None else None
    return MediaInfo(
        kind="audio" if video is None else "video",
        media_type=media_type.replace("video/", "audio/") if video is None else media_type,
        width=video.width if video is not None else None,
        height=video.height if video is not None else None,
        frames=frames,
        frame_rate=float(video.average_rate) if video is not None and video.average_rate else None,
        duration_s=max(duration, 0.0) if duration is not None else None,
        sample_rate=sound.sample_rate if sound is not None else None,
        channels=sound.channels if sound is not None else None,
    )


def _check_sound(sound: AudioStream) -> None:
    _check_codec(sound)
    if sound.sample_rate < 1 or sound.channels < 1:
        raise Refusal("malformed")
    if sound.sample_rate > MAX_SAMPLE_RATE:
        raise Refusal("rate")
    if sound.channels > MAX_CHANNELS:
        raise Refusal("channels")


def _check_video(video: VideoStream, duration: float | None, limits: Limits) -> int | None:
    """Refuse what is over a bound; return the number of frames, counted or reckoned."""
    _check_codec(video)
    if video.width < 1 or video.height < 1:
        raise Refusal("malformed")
    frames = video.frames or (round(duration * float(video.average_rate)) if duration and video.average_rate else None)
    area = video.width * video.height
    if area > limits.max_pixels or area * (frames or 1) > limits.max_video_pixels:
        raise Refusal("pixels")
    return frames


def _check_codec(track: AudioStream | VideoStream) -> None:
    # The stub forgets that there is none for a codec that FFmpeg does not know.
    if track.codec_context is None or track.codec_context.codec.name not in CODECS.split(","):  # type: ignore[redundant-expr]
        raise Refusal("codec")


def _decode(container: InputContainer, track: AudioStream | VideoStream, kind: type[Frame]) -> Iterator[Frame]:
    track.codec_context.thread_count = 1
    for packet in container.demux(track):
        try:
            frames = packet.decode()
        except (InvalidDataError, NamelessError):
            # One damaged packet, often the last of a file that was cut, does not spoil the rest.
            continue
        yield from (frame for frame in frames if isinstance(frame, kind))


def _resample(container: InputContainer, sound: AudioStream, rate: int, channels: int) -> Iterator[AudioFrame]:
    # By way of integers, because they have no NaN and no infinity.
    finite = AudioResampler(format="s32", layout=_LAYOUTS[channels])
    wanted = AudioResampler(format="flt", layout=_LAYOUTS[channels], rate=rate)
    frame: AudioFrame | None = None
    for frame in _decode(container, sound, AudioFrame):
        for whole in finite.resample(frame):
            yield from wanted.resample(whole)
    if frame is None:
        raise Refusal("malformed")
    yield from wanted.resample(None)


def _frame_at(container: InputContainer, video: VideoStream, at_s: float, limits: Limits) -> VideoFrame:
    if at_s > 0:
        with contextlib.suppress(FFmpegError):
            container.seek(round(at_s * av.time_base))
    shown: VideoFrame | None = None
    decoded = 0
    for frame in _decode(container, video, VideoFrame):
        area = frame.width * frame.height
        decoded += area
        if area > limits.max_pixels or decoded > limits.max_video_pixels:
            raise Refusal("pixels")
        time = frame.time if frame.pts is not None else at_s
        if shown is not None and time > at_s:
            break
        shown = frame
        if time >= at_s:
            break
    if shown is None:
        raise Refusal("malformed")
    return shown
