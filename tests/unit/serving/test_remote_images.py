"""Pictures by another server, as a candidate among others."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serai.auth.secrets import SecretNotFound
from serai.engines.base import EngineInfo
from serai.engines.tasks import AnyTask, Array, GenerateImage
from serai.errors import InvalidInput
from serai.events import Media, Progress
from serai.outbound import OutboundSecret
from serai.registry.decision import Reason
from serai.registry.snapshot import Candidate
from serai.registry.source import Adapter, FileSource
from serai.storage.database import Database
from support.image_upstream import ImageUpstream, cut, image_event, png, silence
from support.upstream import reply, streams
from unit.registry.build import link, to
from unit.serving.stage import Stage, chain_of, done, staged

pytestmark = pytest.mark.anyio


def drawn(candidate: Candidate, engine: EngineInfo) -> AnyTask:
    return GenerateImage(
        prompt="a cat", width=16, height=8, steps=4, guidance_scale=3.5, seed=7, images=2, preview_steps=2
    )


def edited(candidate: Candidate, engine: EngineInfo) -> AnyTask:
    source = Array(dtype="uint8", shape=(8, 16, 3), data=bytes(16 * 8 * 3))
    return GenerateImage(prompt="a hat", width=16, height=8, steps=4, guidance_scale=1.0, seed=7, source=source)


def one(candidate: Candidate, engine: EngineInfo) -> AnyTask:
    return GenerateImage(prompt="a", width=16, height=8, steps=4, guidance_scale=1.0, seed=7, preview_steps=2)


def painter(stage: Stage, id_: str, upstream: ImageUpstream, **options: Any) -> None:
    values = {name: options.pop(name) for name in ("task", "adapters", "secret") if name in options}
    stage.remote(id_, upstream.endpoint, engine_options=options, **({"task": "image-generation"} | values))


def service(stage: Stage, *names: str, task: str = "image-generation") -> None:
    stage.desk.service("s", to(names[0]), fallback=tuple(link(name) for name in names[1:]), task=task)


def pictures(events: list[Any]) -> int:
    return sum(isinstance(event, Media) and event.name == "picture" for event in events)


FAULTS: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "it fails": ({}, "generations", reply(500, {"error": {"message": "oh"}}), "remote_5xx"),
    "it has had enough": ({}, "generations", reply(429, {}, retry_after="7"), "remote_429"),
    "it is slow": ({"timeout_s": 0.3}, "generations", silence, "timeout"),
    "it does not know us": ({}, "generations", reply(401, {}), "remote_5xx"),
    "it sends a page": ({}, "generations", reply(200, b"<html>"), "remote_5xx"),
    "it sends no picture": ({}, "generations", reply(200, {"data": [{"b64_json": "AAAA"}] * 2}), "remote_5xx"),
    "it sends one of two": ({}, "generations", reply(200, {"data": [{"b64_json": "AAAA"}]}), "remote_5xx"),
    "it breaks off": ({}, "generations", cut(reply(200, {"data": []})), "remote_5xx"),
    "the queue fails": ({"images": "fal"}, "submit", reply(503, {}), "remote_5xx"),
    "the queue has had enough": ({"images": "fal"}, "submit", reply(429, {}), "remote_429"),
    "the queue stands still": (
        {"images": "fal", "timeout_s": 0.5},
        "status",
        reply(202, {"status": "IN_QUEUE", "queue_position": 3}),
        "timeout",
    ),
    "its pictures are gone": ({"images": "fal", "timeout_s": 30}, "file", reply(404, {}), "remote_5xx"),
}


@pytest.mark.parametrize("what", FAULTS)
async def test_a_failure_of_the_server_walks_the_chain(stage: Stage, what: str) -> None:
    """Whatever it does before its first picture, the next candidate draws; progress is no output."""
    options, kind, behaviour, failure = FAULTS[what]
    async with ImageUpstream() as far, ImageUpstream() as near:
        far.always(kind, behaviour)
        painter(stage, "far", far, **options)
        painter(stage, "near", near, **({} if options.get("images") else {"images": "fal"}))
        service(stage, "far@1.0.0", "near@1.0.0")
        answer, events = await stage.ask(task=drawn)
    assert done(events)
    assert pictures(events) == 2
    assert any(isinstance(event, Progress) for event in events)
    assert chain_of(answer) == ["far@1.0.0 failed", "near@1.0.0 served"]
    assert answer.decision.reason is Reason.FALLBACK_ERROR
    assert answer.engine == "remote"
    assert stage.figure("serai_fallbacks_total", failure=failure) == 1
    assert stage.runtime.loaded() == ()
    if failure != "timeout":  # else the time may be over before the ticket is here
        assert far.cancelled == [f"r{at + 1}" for at in range(len(far.submitted))]


@pytest.mark.parametrize("task", ["image-generation", "image-edit"])
async def test_a_model_of_pictures_behind_another_server(stage: Stage, task: str) -> None:
    """It needs no engine to be named, no memory and no file; an edit can be asked of it."""
    async with ImageUpstream() as far:
        painter(stage, "far", far, task=task)
        service(stage, "far@1.0.0", task=task)
        answer, events = await stage.ask(task=edited, needs=frozenset({"edit", "image_to_image", "inpaint", "n"}))
    assert done(events)
    assert pictures(events) == 1
    assert far.requests[0].path == "/v1/images/edits"
    assert answer.engine == "remote"


async def test_a_refusal_is_the_callers(stage: Stage) -> None:
    """What the other server says of the request is told, and nobody else is asked."""
    async with ImageUpstream() as far, ImageUpstream() as near:
        far.always("result", reply(422, {"detail": [{"loc": ["body", "prompt"], "msg": "is not allowed"}]}))
        painter(stage, "far", far, images="fal")
        painter(stage, "near", near)
        service(stage, "far@1.0.0", "near@1.0.0")
        answer, _ = await stage.ask(task=drawn)
    assert isinstance(answer.error, InvalidInput)
    assert "is not allowed" in answer.error.message
    assert chain_of(answer) == ["far@1.0.0 failed"]
    assert near.requests == []


async def test_after_a_preview_the_next_one_draws(stage: Stage) -> None:
    """It shows how far the picture is, and is no part of the answer."""
    async with ImageUpstream() as far, ImageUpstream() as near:
        far.always("generations", streams(image_event("image_generation.partial_image", png()), cut=True))
        painter(stage, "far", far, partial_images=2)
        painter(stage, "near", near)
        service(stage, "far@1.0.0", "near@1.0.0")
        answer, events = await stage.ask(task=one)
    assert done(events)
    assert next(event.name for event in events if isinstance(event, Media)) == "preview"
    assert pictures(events) == 1
    assert chain_of(answer) == ["far@1.0.0 failed", "near@1.0.0 served"]


async def test_a_server_that_keeps_failing_is_left_alone(stage: Stage) -> None:
    """Its circuit opens, and it is not even asked."""
    async with ImageUpstream() as far, ImageUpstream() as near:
        far.always("generations", reply(500, {}))
        painter(stage, "far", far)
        painter(stage, "near", near)
        service(stage, "far@1.0.0", "near@1.0.0")
        chains = [chain_of((await stage.ask(task=drawn))[0])[0] for _ in range(12)]
    assert chains[0] == "far@1.0.0 failed"
    assert chains[-1] == "far@1.0.0 skipped"
    assert len(far.requests) < 12


async def test_a_caller_who_leaves_cancels_the_request(stage: Stage) -> None:
    """The other server is told that nobody waits for its picture any more."""
    async with ImageUpstream() as far:
        far.always("status", reply(202, {"status": "IN_QUEUE", "queue_position": 3}))
        painter(stage, "far", far, images="fal")
        service(stage, "far@1.0.0")
        answer = await stage.open(task=drawn)
        async with asyncio.timeout(60):
            assert isinstance(await anext(answer), Progress)
            await answer.aclose()
            await far.was_cancelled.wait()
    assert set(far.cancelled) <= {"r1", "r2"}


async def test_adapters_are_not_sent_anywhere(stage: Stage) -> None:
    """A version with adapters is passed over, not drawn without them."""
    ink = Adapter(id="ink", source=FileSource(url="https://x.example/ink.safetensors", sha256="0" * 64))
    async with ImageUpstream() as far, ImageUpstream() as near:
        painter(stage, "far", far, adapters=(ink,))
        painter(stage, "near", near)
        service(stage, "far@1.0.0", "near@1.0.0")
        answer, _ = await stage.ask(task=drawn)
    assert chain_of(answer) == ["far@1.0.0 skipped", "near@1.0.0 served"]
    assert far.requests == []


async def test_the_secret_of_the_version_is_sent(sqlite: Database, tmp_path: Any) -> None:
    """As fal.ai's key where its queue is asked, to the origins that it names alone."""
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(ImageUpstream())

        async def reveal(name: str) -> OutboundSecret:
            if name != "key":
                raise SecretNotFound(f"There is no secret {name}.")
            origin = far.endpoint.removesuffix("/v1")
            return OutboundSecret(name=name, value="planted", origins=frozenset({origin}))

        stage = await stack.enter_async_context(staged(sqlite, tmp_path, reveal=reveal))
        painter(stage, "far", far, images="fal", secret="key")
        service(stage, "far@1.0.0")
        _, events = await stage.ask(task=drawn)
    assert done(events)
    assert {request.headers["authorization"] for request in far.requests} == {"Key planted"}
