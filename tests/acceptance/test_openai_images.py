"""openai-python, unchanged, makes pictures on a running server: whole, as addresses, streamed, edited, varied."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from support.chat_client import ServedModels, served_models
from support.picture_api import PAINTER
from support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModels]:
    home = tmp_path_factory.mktemp("images") / "home"
    with served_models(home, worker_threads=1) as started, started.process.client() as client:
        for id_, options in (
            ("painter", {}),
            ("breaks-painter", {"fail": "run", "fail_after": 3}),
            ("stuck-painter", {"step_gate": str(home.parent / "never")}),
        ):
            source = {"kind": "package", "name": id_}
            body = {**PAINTER, "id": id_, "source": source, "engine_options": options}
            made = client.post("/models", json={**body, "footprint": [{"device": "cpu", "bytes": 2**20}]})
            assert made.status_code == 201, made.text
        yield started


@pytest.fixture
def client(server: ServedModels) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=120) as made:
        yield made


def opened(coded: str | None) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(coded or "")))
    image.load()
    return image


def a_png(path: Path, *clear: int) -> Path:
    """Write a red picture, of which a box may be clear."""
    image = Image.new("RGBA", (64, 64), "red")
    if clear:
        image.paste((0, 0, 0, 0), tuple(clear))
    image.save(path)
    return path


def newest_job(server: ServedModels) -> dict[str, Any]:
    with server.process.client() as client:
        return dict(client.get("/jobs", params={"kind": "images"}).json()["items"][0])


def files(server: ServedModels) -> list[Any]:
    with server.process.client() as client:
        return list(client.get("/files").json()["items"])


def test_pictures_are_generated(client: openai.OpenAI) -> None:
    """As base64, in the client's own types; what is ours goes through extra_body."""
    answer = client.images.generate(
        model="painter",
        prompt="a hill",
        n=2,
        size="96x64",
        output_format="webp",
        extra_body={"seed": 4, "steps": 2, "negative_prompt": "rain", "priority": 1},
    )
    assert answer.data is not None
    assert [(opened(one.b64_json).format, opened(one.b64_json).size) for one in answer.data] == [("WEBP", (96, 64))] * 2
    assert (answer.size, answer.output_format, answer.background) == ("96x64", "webp", "opaque")
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.text_tokens == 0


def test_an_address_is_read_without_a_key(client: openai.OpenAI, server: ServedModels) -> None:
    """It is a whole one, of this server."""
    answer = client.images.generate(model="painter", prompt="a hill", response_format="url")
    assert answer.data is not None
    url = answer.data[0].url or ""
    assert url.startswith(server.url)
    read = httpx.get(url, trust_env=False)
    assert Image.open(io.BytesIO(read.content)).size == (64, 64)


def test_a_stream_has_partial_images(client: openai.OpenAI) -> None:
    """Two before the picture, in order, each that can be opened."""
    events = list(
        client.images.generate(model="painter", prompt="a hill", stream=True, partial_images=2, extra_body={"seed": 9})
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    for number, event in enumerate(events[:-1]):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == number
        assert opened(event.b64_json).format == "WEBP"
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert (opened(last.b64_json).size, last.size, last.usage.total_tokens) == ((64, 64), "64x64", 0)


def test_a_picture_is_edited(client: openai.OpenAI, server: ServedModels, tmp_path: Path) -> None:
    """Where the mask is clear, and nowhere else; whole and as a stream; the client may send a list of one."""
    image, mask = a_png(tmp_path / "image.png"), a_png(tmp_path / "mask.png", 0, 0, 32, 64)
    ours = {"strength": 1, "seed": 3}
    answer = client.images.edit(model="painter", image=image, mask=mask, prompt="a hill", size="64x64", extra_body=ours)
    assert answer.data is not None
    drawn = opened(answer.data[0].b64_json).convert("RGB")
    assert drawn.crop((40, 0, 64, 64)).getcolors() == [(24 * 64, (255, 0, 0))]
    assert drawn.crop((0, 0, 24, 64)).getcolors() != [(24 * 64, (255, 0, 0))]
    events = list(
        client.images.edit(
            model="painter", image=[image], prompt="a hill", stream=True, partial_images=1, extra_body=ours
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert files(server) == []


def test_a_picture_is_varied(client: openai.OpenAI, server: ServedModels, tmp_path: Path) -> None:
    """Without words."""
    with a_png(tmp_path / "image.png").open("rb") as image, pytest.warns(DeprecationWarning, match="deprecated"):
        answer = client.images.create_variation(model="painter", image=image, n=2)
    assert len(answer.data or ()) == 2
    assert files(server) == []


def test_models_that_draw_are_listed(client: openai.OpenAI) -> None:
    """Beside those that talk."""
    assert {"painter", "echo"} <= {model.id for model in client.models.list()}


def test_the_classes_of_errors(client: openai.OpenAI, server: ServedModels, tmp_path: Path) -> None:
    """Each in the client's own class, with its parameter."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(model="owner/missing", prompt="a hill")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.images.generate(model="painter", prompt="a hill", size="4096x4096")
    assert wrong.value.param == "size"
    with pytest.raises(openai.BadRequestError) as text:
        client.images.edit(model="painter", image=("x.png", b"junk"), prompt="a hill")
    assert text.value.param == "image"
    with pytest.raises(openai.BadRequestError) as many:
        image = a_png(tmp_path / "image.png")
        client.images.edit(model="painter", image=[image, image], prompt="a hill")
    assert many.value.param == "image"
    with pytest.raises(openai.InternalServerError):
        client.images.generate(model="breaks-painter", prompt="a hill")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.viewer_key, max_retries=0) as viewer,
        pytest.raises(openai.PermissionDeniedError),
    ):
        viewer.images.generate(model="painter", prompt="a hill")


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI) -> None:
    """After what was shown."""
    shown = []
    with pytest.raises(openai.APIError):
        for event in client.images.generate(model="breaks-painter", prompt="a hill", stream=True, partial_images=3):
            shown += [event.type]
    assert shown == ["image_generation.partial_image"]


def test_a_timeout_is_not_tried_again(server: ServedModels) -> None:
    """The job is cancelled, and the client does not ask for another one."""
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=3) as client,
        pytest.raises(openai.APIStatusError) as late,
    ):
        client.images.generate(model="stuck-painter", prompt="a hill", extra_body={"timeout": 2})
    assert late.value.status_code == 408
    assert late.value.response.request.headers["x-stainless-retry-count"] == "0"
    wait_until(lambda: newest_job(server)["status"] == "cancelled", seconds=60)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_cancels_the_job(server: ServedModels, tmp_path: Path, *, stream: bool) -> None:
    """Also before anything was drawn; the picture that was sent goes with it."""
    image = a_png(tmp_path / "image.png")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=3) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        list(client.images.edit(model="stuck-painter", image=image, prompt="a hill", stream=stream))
    wait_until(lambda: newest_job(server)["status"] == "cancelled", seconds=60)
    wait_until(lambda: files(server) == [], seconds=60)
    server.await_idle("stuck-painter")
