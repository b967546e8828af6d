"""Pictures by other servers, over real connections of loopback: what is asked, what comes back, what goes wrong."""

import asyncio
import base64
import io
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from PIL import Image

from serai.clock import ManualClock, SystemClock
from serai.engines.errors import RemoteFailed
from serai.engines.options import RemoteOptions
from serai.engines.remote import images_fal
from serai.engines.remote import images_pixels as pixels
from serai.engines.remote.engine import RemoteEngine
from serai.engines.remote.images_openai import form_of
from serai.engines.tasks import Array, GenerateImage
from serai.errors import DeadlineExceeded, InvalidInput, RateLimited, SeraiError
from serai.events import Done, Event, Media, Progress
from serai.outbound import Outbound, OutboundSecret
from serai.registry.source import RemoteSource
from support.image_upstream import ImageUpstream, cut, image_event, jpeg, png, silence, webp
from support.upstream import END, LOOPBACK, STREAM_HEAD, Asked, event, framed, reply, streams

pytestmark = pytest.mark.anyio

SECONDS = 60
CANARY = "planted-canary"
FAL: dict[str, Any] = {"images": "fal"}


@pytest.fixture(scope="module")
def certificates() -> ssl.SSLContext:
    """Read once: it takes longer than the rest of a test."""
    return ssl.create_default_context()


@pytest.fixture
async def upstream() -> AsyncIterator[ImageUpstream]:
    async with ImageUpstream() as server:
        yield server


@pytest.fixture
async def engine(certificates: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RemoteEngine]:
    monkeypatch.setattr(images_fal, "SECOND_LOOKS_S", (0.0, 0.0))
    clock = SystemClock()
    async with Outbound(clock=clock, allow=[LOOPBACK], ssl_context=certificates) as outbound:
        yield RemoteEngine(outbound, clock=clock)


def task(**values: Any) -> GenerateImage:
    defaults: dict[str, Any] = {
        "prompt": "a cat — \"گربه\"\r\n--x", "width": 16, "height": 8, "steps": 4, "guidance_scale": 3.5, "seed": 7,
    }  # fmt: skip
    return GenerateImage(**(defaults | values))


SOURCE = Array(dtype="uint8", shape=(2, 3, 3), data=bytes(range(18)))
MASK = Array(dtype="uint8", shape=(2, 3), data=bytes([0, 255, 0, 0, 255, 255]))


def events_of(
    engine: RemoteEngine,
    upstream: ImageUpstream,
    asked: GenerateImage,
    *,
    timeout_s: float = SECONDS,
    secret: bool = False,
    **options: Any,
) -> aclosing[Any]:
    model = "fal-ai/flux/dev" if options.get("images") == "fal" else "gpt-image-1"
    source = RemoteSource(endpoint=upstream.endpoint, model=model)
    origin = upstream.endpoint.removesuffix("/v1")
    key = OutboundSecret(name="up", value=CANARY, origins=frozenset({origin})) if secret else None
    return aclosing(engine.run(asked, source, options=RemoteOptions(**options), secret=key, timeout_s=timeout_s))


async def collect(engine: RemoteEngine, upstream: ImageUpstream, asked: GenerateImage, **more: Any) -> list[Event]:
    async with events_of(engine, upstream, asked, **more) as events:
        return [one async for one in events]


def media(events: list[Event], name: str = "picture") -> list[Media]:
    return [one for one in events if isinstance(one, Media) and one.name == name]


def result(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Done)
    return events[-1].result


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# OpenAI's API


async def test_pictures_by_openais_api(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """Size and count are asked for; the pictures come as they were sent; what was not asked for is named."""
    events = await collect(engine, upstream, task(images=2))
    (asked,) = upstream.requests
    assert asked.path == "/v1/images/generations"
    assert asked.body == {"model": "gpt-image-1", "prompt": task().prompt, "n": 2, "size": "16x8"}
    assert events[0] == Progress(stage="generating", detail={"image": 0, "images": 2})
    assert [(one.media_type, one.index, opened(one.data).size) for one in media(events)] == [
        ("image/png", 0, (16, 8)), ("image/png", 1, (16, 8)),
    ]  # fmt: skip
    told = result(events)
    assert told["usage"] == {"input_tokens": 7, "output_tokens": 100, "total_tokens": 107}
    assert told["seeds"] == [7, 8]
    assert told["reproducible"] is False
    assert told["unused"] == ["seed", "num_inference_steps", "guidance_scale"]
    assert (told["device"], told["batched"], told["steps"]) == ("remote", False, 4)
    assert set(told["timings"]) == {"prompt_s", "denoising_s", "decoding_s"}
    assert "revised_prompt" not in told


@pytest.mark.parametrize("masked", [False, True])
async def test_edits_send_pixels(engine: RemoteEngine, upstream: ImageUpstream, masked: bool) -> None:
    """The picture arrives as a PNG of the same pixels; of the mask, what is white here is transparent there."""
    await collect(engine, upstream, task(source=SOURCE, mask=MASK if masked else None))
    assert upstream.requests[0].path == "/v1/images/edits"
    (form,) = upstream.forms
    assert {name: form[name].decode() for name in ("prompt", "model", "n", "size")} == {
        "prompt": task().prompt, "model": "gpt-image-1", "n": "1", "size": "16x8",
    }  # fmt: skip
    sent = opened(form["image"])
    assert (sent.format, sent.mode, sent.size, sent.tobytes()) == ("PNG", "RGB", (3, 2), SOURCE.data)
    assert ("mask" in form) is masked
    if masked:
        mask = opened(form["mask"])
        assert (mask.mode, mask.size) == ("RGBA", (3, 2))
        assert mask.getchannel("A").tobytes() == bytes(255 - value for value in MASK.data)


@pytest.mark.parametrize("source", [None, SOURCE])
async def test_partial_pictures_are_previews(
    engine: RemoteEngine, upstream: ImageUpstream, source: Array | None
) -> None:
    """A server that knows streams is asked for some, when the caller wants previews."""
    events = await collect(engine, upstream, task(preview_steps=5, source=source), partial_images=2)
    assert len(media(events, "preview")) == 2
    assert [opened(one.data).size for one in media(events)] == [(16, 8)]
    assert result(events)["usage"]["total_tokens"] == 107
    upstream.next_time("generations", reply(200, {"data": [{"b64_json": base64.b64encode(jpeg()).decode()}]}))
    plain = await collect(engine, upstream, task(preview_steps=5), partial_images=2)
    assert [one.media_type for one in media(plain)] == ["image/jpeg"]


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"preview_steps": 5}, {}),
        ({}, {"partial_images": 2}),
        ({"preview_steps": 5, "images": 2}, {"partial_images": 2}),
    ],
)
async def test_a_stream_is_asked_for_only_where_it_helps(
    engine: RemoteEngine, upstream: ImageUpstream, values: dict[str, Any], options: dict[str, Any]
) -> None:
    """Not of a server that knows none, not where nobody wants previews, not for several pictures."""
    await collect(engine, upstream, task(**values), **options)
    assert "stream" not in upstream.requests[0].body


async def test_what_is_no_preview_is_left_out(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """Where text comes in place of a preview, the picture comes all the same."""
    wrong = image_event("image_generation.partial_image", b"text")
    upstream.next_time("generations", streams(wrong, image_event("image_generation.completed", png())))
    events = await collect(engine, upstream, task(preview_steps=5), partial_images=2)
    assert media(events, "preview") == []
    assert len(media(events, "picture")) == 1


async def test_the_first_preview_comes_before_the_picture(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """A preview is told when it comes."""
    go_on = asyncio.Event()

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + framed(event(image_event("image_generation.partial_image", webp()))))
        await go_on.wait()
        writer.write(framed(event(image_event("image_generation.completed", png()))) + END)

    upstream.always("generations", behave)
    async with asyncio.timeout(SECONDS), events_of(engine, upstream, task(), partial_images=1) as events:
        await anext(events)
        preview = await anext(events)
        assert (preview.name, preview.media_type) == ("preview", "image/webp")
        go_on.set()
        assert [getattr(one, "name", "") async for one in events] == ["picture", ""]


async def test_pictures_by_address(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """They are fetched; the secret goes along to the endpoint's own origin and to no other."""
    upstream.gives_urls = True
    events = await collect(engine, upstream, task(images=2), secret=True)
    assert [opened(one.data).size for one in media(events)] == [(8, 8), (8, 8)]
    assert result(events)["revised_prompt"] == "more"
    assert {one.headers["authorization"] for one in upstream.requests} == {f"Bearer {CANARY}"}
    async with ImageUpstream() as elsewhere:
        upstream.files_at = elsewhere.endpoint
        await collect(engine, upstream, task(), secret=True)
        assert [one.path for one in elsewhere.requests] == ["/v1/files/0.png"]
        assert all("authorization" not in one.headers for one in elsewhere.requests)


async def test_a_picture_in_its_address(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """An address that holds the picture itself is read."""
    upstream.next_time("generations", reply(200, {"data": [{"url": pixels.data_uri(webp())}]}))
    assert [one.media_type for one in media(await collect(engine, upstream, task()))] == ["image/webp"]


@pytest.mark.parametrize(
    ("values", "options", "field"),
    [
        ({"negative_prompt": "dogs"}, {}, "negative_prompt"),
        ({"adapter_scales": {"ink": 1.0}}, {}, "settings.adapters"),
        ({"adapter_scales": {"ink": 1.0}}, FAL, "settings.adapters"),
        ({"max_sequence_length": 77}, {}, "settings.max_sequence_length"),
        ({"max_sequence_length": 77}, FAL, "settings.max_sequence_length"),
        ({"mask": MASK}, {}, "mask"), ({"mask": SOURCE, "source": SOURCE}, {}, "mask"),
        ({"mask": SOURCE, "source": SOURCE}, FAL, "mask"),
        ({"source": MASK}, {}, "image"), ({"source": MASK}, FAL, "image"),
        ({"source": Array(dtype="uint8", shape=(2, 2, 3), data=b"short")}, {}, "image"),
        ({"source": Array(dtype="float32", shape=(1, 1, 3), data=b"123")}, {}, "image"),
        ({"source": Array(dtype="uint8", shape=(0, 0, 3), data=b"")}, {}, "image"),
    ],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused_before_the_call(
    engine: RemoteEngine, upstream: ImageUpstream, values: dict[str, Any], options: dict[str, Any], field: str
) -> None:
    """By the name of the field, and nothing is sent."""
    with pytest.raises(InvalidInput) as refused:
        await collect(engine, upstream, task(**values), **options)
    assert isinstance(refused.value.details, list)
    assert refused.value.details[0]["field"] == field
    assert upstream.connections == 0


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def answer(*images: dict[str, Any], **more: Any) -> bytes:
    return reply(200, {"data": list(images), **more})


PARTIAL = image_event("image_generation.partial_image", png())
OPENAI_FAULTS: dict[str, tuple[Any, type[SeraiError], str]] = {
    "out of calls": (reply(429, {"error": {"message": "slow"}}, retry_after="7"), RateLimited, "no more calls"),
    "busy": (reply(503, {"error": {"message": "busy"}}), RemoteFailed, "status 503"),
    "broken": (reply(500, b"x" * 500_000), RemoteFailed, "status 500"),
    "no size": (reply(400, {"error": {"message": "no such size", "param": "size"}}), InvalidInput, "no such size"),
    "unknown key": (reply(401, {"error": {"message": f"bad key {CANARY}"}}), RemoteFailed, "credentials"),
    "forbidden": (reply(403, {}), RemoteFailed, "credentials"),
    "no such model": (reply(404, {}), RemoteFailed, "does not know the model"),
    "too large a request": (reply(413, {}), InvalidInput, "larger than"),
    "moved": (reply(302, b"", location="http://127.0.0.1/elsewhere"), RemoteFailed, "status 302"),
    "not JSON": (reply(200, b"<html>"), RemoteFailed, "should not"),
    "other JSON": (reply(200, {"data": 3}), RemoteFailed, "should not"),
    "deep JSON": (reply(200, b"[" * 200_000), RemoteFailed, "should not"),
    "an error in 200": (reply(200, {"error": {"message": "10.0.0.9", "code": 500}}), RemoteFailed, "midst"),
    "no pictures": (answer(), RemoteFailed, "fewer pictures"),
    "null": (reply(200, {"data": None}), RemoteFailed, "fewer pictures"),
    "an empty picture": (answer({}), RemoteFailed, "fewer pictures"),
    "no base64": (answer({"b64_json": "!!!!"}), RemoteFailed, "should not"),
    "an SVG": (answer({"b64_json": b64(b"<svg/>")}), RemoteFailed, "no PNG, JPEG or WebP"),
    "a GIF": (answer({"b64_json": b64(b"GIF89a")}), RemoteFailed, "no PNG, JPEG or WebP"),
    "a private address": (answer({"url": "http://10.0.0.1/a.png"}), RemoteFailed, "may not be fetched"),
    "a metadata service": (answer({"url": "http://169.254.169.254/a.png"}), RemoteFailed, "may not be fetched"),
    "a file": (answer({"url": "file:///etc/passwd"}), RemoteFailed, "may not be fetched"),
    "damaged data": (answer({"url": "data:image/png;base64,!!"}), RemoteFailed, "damaged"),
    "plain data": (answer({"url": "data:image/png,abc"}), RemoteFailed, "form that is not accepted"),
    "junk": (b"HTTP/1.1 junk\r\n\r\n", RemoteFailed, "connection"),
    "a cut answer": (cut(answer({"b64_json": b64(png())})), RemoteFailed, "connection"),
    "a cut stream": (streams(PARTIAL, cut=True), RemoteFailed, "connection"),
    "a stream without its end": (streams(PARTIAL, done=False), RemoteFailed, "fewer pictures"),
    "a stream with another end": (streams(PARTIAL), RemoteFailed, "fewer pictures"),
    "junk in a stream": (streams(b"data: junk\n\n"), RemoteFailed, "should not"),
    "an error in a stream": (streams({"type": "error", "error": {"code": "server_error"}}), RemoteFailed, "midst"),
    "moderation in a stream": (
        streams({"error": {"type": "image_generation_user_error", "message": "not this"}}), InvalidInput, "not this"),
    "a preview of text alone": (streams(image_event("image_generation.partial_image", b"text")), RemoteFailed, "fewer"),
}  # fmt: skip


@pytest.mark.parametrize("what", OPENAI_FAULTS)
async def test_faults_of_openais_api(engine: RemoteEngine, upstream: ImageUpstream, what: str) -> None:
    """Every way to fail is one error before any picture, without address, key or talk; the next call works."""
    behaviour, kind, words = OPENAI_FAULTS[what]
    upstream.next_time("generations", behaviour)
    with pytest.raises(SeraiError, match=words) as failed:
        await collect(engine, upstream, task(preview_steps=1), secret=True, partial_images=1)
    assert isinstance(failed.value, kind)
    shown = f"{failed.value} {failed.value.hint} {failed.value.details}"
    for private in (str(upstream.port), LOOPBACK, "10.0.0", "169.254", CANARY, "passwd"):
        assert private not in shown
    if kind is RateLimited:
        assert failed.value.retry_after == 7.0
    assert len(media(await collect(engine, upstream, task()))) == 1


FILE_FAULTS: dict[str, tuple[Any, str]] = {
    "gone": (reply(404, {}), "could not be fetched"),
    "forbidden": (reply(403, {}), "could not be fetched"),
    "out of calls": (reply(429, {}), "could not be fetched"),
    "broken": (reply(500, {}), "could not be fetched"),
    "a page": (reply(200, b"<html>"), "no PNG"),
    "nothing": (reply(200, b""), "no PNG"),
    "cut": (cut(reply(200, png())), "connection"),
    "led astray": (reply(302, b"", location="http://10.0.0.1/a.png"), "may not be fetched"),
    "too large": (reply(200, png() + bytes(4096)), "more than is accepted"),
}


@pytest.mark.parametrize("what", FILE_FAULTS)
@pytest.mark.parametrize("options", [{}, FAL])
async def test_faults_of_pictures_by_address(
    engine: RemoteEngine, upstream: ImageUpstream, monkeypatch: pytest.MonkeyPatch, what: str, options: dict[str, Any]
) -> None:
    """Whatever lies at the address, it is the server's failure and never the caller's."""
    monkeypatch.setattr(pixels, "MAX_PICTURE_BYTES", 4096)
    behaviour, words = FILE_FAULTS[what]
    upstream.gives_urls = True
    upstream.always("file", behaviour)
    with pytest.raises(RemoteFailed, match=words) as failed:
        await collect(engine, upstream, task(), **options)
    assert LOOPBACK not in f"{failed.value} {failed.value.hint}"


async def test_an_answer_over_the_bound_is_given_up(
    engine: RemoteEngine, upstream: ImageUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more of it is read than is accepted."""
    monkeypatch.setattr("serai.engines.remote.images_openai.MAX_REPLY_BYTES", 10_000)
    upstream.next_time("generations", answer({"b64_json": b64(png() + bytes(10_000))}))
    with pytest.raises(RemoteFailed, match="more than is accepted"):
        await collect(engine, upstream, task())


async def test_a_large_picture_in_a_stream(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """An event may be as long as a picture is large."""
    large = png() + bytes(6 * 2**20)
    upstream.next_time("generations", streams(image_event("image_generation.completed", large), step=65536))
    assert [one.data for one in media(await collect(engine, upstream, task()))] == [large]


def test_a_form_cannot_be_broken_out_of() -> None:
    """The boundary is in nothing that it separates, also where a text holds the boundary of the same form."""
    boundary, _ = form_of({"prompt": "x"}, [])
    prompt = f"--{boundary}--\r\n"
    other, body = form_of({"prompt": prompt}, [("image", prompt.encode())])
    assert other != boundary
    assert body.count(f"--{other}".encode()) == 3
    assert body.endswith(f"--{other}--\r\n".encode())


# fal.ai's queue


async def test_pictures_by_the_queue(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """Each picture is a request with a seed of its own; places in the queue are told; the key is sent as a key."""
    events = await collect(engine, upstream, task(images=2, negative_prompt="dogs"), secret=True, **FAL)
    assert [one["seed"] for one in upstream.submitted] == [7, 8]
    assert upstream.submitted[0] == {
        "prompt": task().prompt,
        "negative_prompt": "dogs",
        "image_size": {"width": 16, "height": 8},
        "num_inference_steps": 4,
        "guidance_scale": 3.5,
        "num_images": 1,
        "seed": 7,
    }
    assert upstream.requests[0].path == "/v1/fal-ai/flux/dev"
    assert {one.headers["authorization"] for one in upstream.requests} == {f"Key {CANARY}"}
    details = [one.detail for one in events if isinstance(one, Progress)]
    assert details == [
        {"image": 0, "images": 2, "queue_position": 2}, {"image": 0, "images": 2},
        {"image": 1, "images": 2, "queue_position": 2}, {"image": 1, "images": 2},
    ]  # fmt: skip
    assert [(one.index, opened(one.data).size) for one in media(events)] == [(0, (8, 8)), (1, (8, 8))]
    told = result(events)
    assert (told["seeds"], told["reproducible"], told["unused"]) == ([7, 8], False, [])
    assert upstream.cancelled == []


@pytest.mark.parametrize("member", ["image_url", "image_urls"])
async def test_the_queue_is_sent_pixels(engine: RemoteEngine, upstream: ImageUpstream, member: str) -> None:
    """The picture and the mask travel in their addresses; white is painted anew there as here."""
    await collect(engine, upstream, task(source=SOURCE, mask=MASK, strength=0.5), image_member=member, **FAL)
    (sent,) = upstream.submitted
    picture = sent[member] if member == "image_url" else sent[member][0]
    data = {
        name: text.partition("data:image/png;base64,")[2] for name, text in (("i", picture), ("m", sent["mask_url"]))
    }
    assert opened(base64.b64decode(data["i"])).tobytes() == SOURCE.data
    mask = opened(base64.b64decode(data["m"]))
    assert (mask.mode, mask.size, mask.tobytes()) == ("L", (3, 2), MASK.data)
    assert sent["strength"] == 0.5


@pytest.mark.parametrize(
    ("more", "seeds"),
    [({"seed": 99}, [99]), ({"seed": None}, [7]), ({"seed": -1}, [7]), ({"seed": 2**63}, [7]), ({"seed": True}, [7])],
)
async def test_the_seed_that_the_queue_tells_counts(
    engine: RemoteEngine, upstream: ImageUpstream, more: dict[str, Any], seeds: list[int]
) -> None:
    """If it is one; else the one that was asked for."""
    upstream.more = more
    assert result(await collect(engine, upstream, task(), **FAL))["seeds"] == seeds


async def test_one_picture_and_pictures_in_their_addresses(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """Models that give `image` instead of `images`, and those that send it along."""
    upstream.more = {"images": None, "image": {"url": pixels.data_uri(jpeg())}}
    assert [one.media_type for one in media(await collect(engine, upstream, task(), **FAL))] == ["image/jpeg"]


LOOKS = {
    "status": ("broken", reply(500, {})),
    "result": ("busy", reply(503, {"detail": "no runner"}, retry_after="0")),
    "file": ("cut", cut(reply(200, png()))),
}


@pytest.mark.parametrize("kind", LOOKS)
async def test_a_look_that_fails_once_loses_nothing(engine: RemoteEngine, upstream: ImageUpstream, kind: Any) -> None:
    """The work goes on behind it, so it is looked at again."""
    upstream.next_time(kind, LOOKS[kind][1])
    assert len(media(await collect(engine, upstream, task(), **FAL))) == 1
    assert len(upstream.submitted) == 1
    assert upstream.cancelled == []


DETAIL = {"detail": [{"loc": ["body", "image_size", "width"], "msg": "is too small", "type": "greater_than"}]}
FAL_FAULTS: dict[str, tuple[Any, Any, type[SeraiError], str]] = {
    "out of calls": ("submit", reply(429, {}, retry_after="7"), RateLimited, "no more calls"),
    "broken": ("submit", reply(500, {}), RemoteFailed, "status 500"),
    "unknown key": ("submit", reply(401, {"detail": f"bad {CANARY}"}), RemoteFailed, "credentials"),
    "no money": ("submit", reply(403, {"detail": "User is locked."}), RemoteFailed, "credentials"),
    "no such model": ("submit", reply(404, {}), RemoteFailed, "does not know the model"),
    "a wrong field at once": ("submit", reply(422, DETAIL), InvalidInput, "is too small"),
    "no ticket": ("submit", reply(200, {"request_id": "r1"}), RemoteFailed, "should not"),
    "a ticket of another server": (
        "submit",
        reply(200, dict.fromkeys(("status_url", "response_url", "cancel_url"), "http://127.0.0.1:1/x")),
        RemoteFailed, "should not"),
    "a cut submission": ("submit", cut(reply(200, {"request_id": "r1"})), RemoteFailed, "connection"),
    "a status that fails on": ("status", reply(500, {}), RemoteFailed, "status 500"),
    "a status that fails for long": ("status", reply(429, {}, retry_after="600"), RateLimited, "no more calls"),
    "an unknown status": ("status", reply(200, {"status": "FAILED"}), RemoteFailed, "gave its answer up"),
    "no status": ("status", reply(200, b"<html>"), RemoteFailed, "should not"),
    "a wrong field": ("result", reply(422, DETAIL), InvalidInput, "is too small"),
    "a broken model": ("result", reply(500, {"detail": "cuda at 10.0.0.9:1"}), RemoteFailed, "status 500"),
    "a timeout there": ("result", reply(504, {"error_type": "request_timeout"}), RemoteFailed, "status 504"),
    "no pictures": ("result", reply(200, {"images": []}), RemoteFailed, "fewer pictures"),
    "junk": ("result", reply(200, {"images": "many"}), RemoteFailed, "should not"),
    "a picture held back": (
        "result", reply(200, {"images": [{"url": "http://x/"}], "has_nsfw_concepts": [True]}),
        InvalidInput, "holds back"),
    "a private address": ("result", reply(200, {"images": [{"url": "http://10.0.0.1/a"}]}), RemoteFailed, "may not be"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAL_FAULTS)
async def test_faults_of_the_queue(engine: RemoteEngine, upstream: ImageUpstream, what: str) -> None:
    """Every way to fail is one error without address, key or talk; what is in the queue is cancelled."""
    kind, behaviour, family, words = FAL_FAULTS[what]
    upstream.always(kind, behaviour)
    with pytest.raises(SeraiError, match=words) as failed:
        await collect(engine, upstream, task(), secret=True, **FAL)
    assert isinstance(failed.value, family)
    shown = f"{failed.value} {failed.value.hint} {failed.value.details}"
    for private in (str(upstream.port), LOOPBACK, "10.0.0", CANARY, "cuda", "User is locked"):
        assert private not in shown
    if "field" in what:
        assert failed.value.details == [{"field": "image_size.width", "problem": "is too small"}]
    assert upstream.cancelled == ([] if kind == "submit" else ["r1"])


async def test_a_submission_that_fails_cancels_those_before_it(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """Nothing is left in the queue of a task that nobody waits for."""

    async def third_time(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if len(upstream.submitted) == 2:
            writer.write(reply(503, {}))
        else:
            await upstream._submit(asked, writer)

    upstream.always("submit", third_time)
    with pytest.raises(RemoteFailed, match="status 503"):
        await collect(engine, upstream, task(images=3), **FAL)
    assert upstream.cancelled == ["r1", "r2"]


async def test_closing_the_iterator_cancels_the_request(engine: RemoteEngine, upstream: ImageUpstream) -> None:
    """Those not completed yet, and only those."""
    async with asyncio.timeout(SECONDS):
        async with events_of(engine, upstream, task(images=3), **FAL) as events:
            async for one in events:
                if isinstance(one, Media):
                    break
        assert upstream.cancelled == ["r2", "r3"]


async def test_a_cancel_that_hangs_holds_nobody(
    engine: RemoteEngine, upstream: ImageUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried for a while, and given up in silence."""
    monkeypatch.setattr(images_fal, "CANCEL_S", 0.1)
    upstream.always("cancel", silence)
    async with asyncio.timeout(SECONDS), events_of(engine, upstream, task(), **FAL) as events:
        await anext(events)


WHERE: dict[str, dict[str, Any]] = {
    "generations": {}, "edits": {}, "submit": FAL, "status": FAL, "result": FAL, "file": FAL,
}  # fmt: skip


@pytest.mark.parametrize("kind", WHERE)
async def test_a_cancelled_task_hangs_up(engine: RemoteEngine, upstream: ImageUpstream, kind: Any) -> None:
    """Wherever it waits, the connection closes, and what is in the queue is cancelled."""
    arrived = asyncio.Event()

    async def hang(asked: Asked, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.Event().wait()

    upstream.always(kind, hang)
    async with asyncio.timeout(SECONDS):
        asked = task(source=SOURCE if kind == "edits" else None)
        running = asyncio.create_task(collect(engine, upstream, asked, **WHERE[kind]))
        await arrived.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await upstream.gone.wait()
        if kind in ("status", "result", "file"):
            await upstream.was_cancelled.wait()


@pytest.mark.parametrize("kind", WHERE)
@pytest.mark.parametrize("bound", ["the caller's", "the version's"])
async def test_the_deadline_holds_for_all_of_it(
    engine: RemoteEngine, upstream: ImageUpstream, kind: Any, bound: str
) -> None:
    """A server that is silent at any point is left when the time of the call, or of the version, is over."""
    upstream.always(kind, silence)
    time = {"timeout_s": 0.3} if bound == "the caller's" else {}
    asked = task(source=SOURCE if kind == "edits" else None)
    source = RemoteSource(endpoint=upstream.endpoint, model="a/b")
    options = RemoteOptions(timeout_s=0.3 if bound == "the version's" else 0.0, **WHERE[kind])
    async with asyncio.timeout(SECONDS):
        run = engine.run(asked, source, options=options, secret=None, **({"timeout_s": SECONDS} | time))
        with pytest.raises(DeadlineExceeded, match="did not answer in time"):
            async with aclosing(run) as events:
                async for _ in events:
                    pass


async def test_a_request_that_is_never_completed_is_left_and_cancelled(
    certificates: ssl.SSLContext, upstream: ImageUpstream
) -> None:
    """A queue that does not move costs the time that was given, and no more."""
    clock = ManualClock()

    async def no_news(asked: Asked, writer: asyncio.StreamWriter) -> None:
        clock.advance(SECONDS / 3)
        writer.write(reply(202, {"status": "IN_QUEUE", "queue_position": 5}))

    upstream.always("status", no_news)
    async with Outbound(clock=clock, allow=[LOOPBACK], ssl_context=certificates) as outbound:
        with pytest.raises(DeadlineExceeded):
            await collect(RemoteEngine(outbound, clock=clock), upstream, task(), **FAL)
    assert len(upstream.asked("/status")) == 3
    assert upstream.cancelled == ["r1"]


async def test_nobody_there(engine: RemoteEngine) -> None:
    """A refused connection is a failure of the server, without its address."""
    async with ImageUpstream() as gone:
        pass
    for options in ({}, FAL):
        with pytest.raises(RemoteFailed, match="connection") as failed:
            await collect(engine, gone, task(), **options)
        assert str(gone.port) not in failed.value.message
