"""Ollama's dialect: lines, options, loading by asking nothing, and names of models."""

import base64
import json
from typing import Any

import pytest

from support.chat_stage import ChatStage

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "one two"}]
TEXT = "User: one two Assistant:"
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


async def lines(chats: ChatStage, path: str, **body: Any) -> list[Any]:
    """Return the lines of a stream; none of them is blank."""
    answer = await chats.post(path, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text[:-1].split("\n")]


async def test_a_chat_streams_lines_unless_told_otherwise(chats: ChatStage) -> None:
    """Pieces, then one line with the reason, the counts and durations in nanoseconds."""
    chats.model("m")
    *said, last = await lines(chats, "/api/chat", model="m", messages=HI)
    assert "".join(line["message"]["content"] for line in said) == TEXT
    assert not any(line["done"] for line in said)
    assert (last["done"], last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == (True, "stop", 4, 4)
    assert all(isinstance(last[name], int) and last[name] >= 0 for name in DURATIONS)
    assert last["created_at"].endswith("000Z")


async def test_a_whole_chat_is_one_object(chats: ChatStage) -> None:
    """With `stream: false`."""
    chats.model("m")
    body = (await chats.post("/api/chat", model="m", messages=HI, stream=False, options={"num_predict": 2})).json()
    assert body["message"] == {"role": "assistant", "content": "User: one"}
    assert (body["done"], body["done_reason"], body["eval_count"]) == (True, "length", 2)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "asked"), [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "one two"})])
async def test_the_time_of_a_load_is_told(chats: ChatStage, path: str, asked: dict[str, Any], *, stream: bool) -> None:
    """Streamed or not: it was loaded for the first call, and is there for the second; the parts are in the whole."""
    chats.model("m", load_s=0.2, step_s=0.01)
    first = (await lines(chats, path, model="m", stream=stream, **asked))[-1] if stream else None
    first = first or (await chats.post(path, model="m", stream=False, **asked)).json()
    assert first["load_duration"] >= 0.15 * 10**9
    assert first["eval_duration"] >= 0.02 * 10**9
    assert first["total_duration"] >= sum(first[name] for name in DURATIONS[1:])
    again = (await chats.post(path, model="m", stream=False, **asked)).json()
    assert again["load_duration"] == 0


async def test_a_prompt_is_answered(chats: ChatStage) -> None:
    """With the system's word, or as it stands."""
    chats.model("m")
    told = await lines(chats, "/api/generate", model="m", prompt="one two", system="Be kind.")
    assert "".join(line["response"] for line in told) == "Be kind. User: one two Assistant:"
    raw = (await chats.post("/api/generate", model="m", prompt="one two", raw=True, stream=False)).json()
    assert raw["response"] == "one two"


@pytest.mark.parametrize(("path", "member"), [("/api/chat", "message"), ("/api/generate", "response")])
async def test_asking_nothing_loads_and_unloads(chats: ChatStage, path: str, member: str) -> None:
    """`load` when it is there, `unload` when it is gone; /api/ps shows it in between."""
    chats.model("m")
    (loaded,) = await lines(chats, path, model="m", keep_alive="10m")
    assert (loaded["done"], loaded["done_reason"], member in loaded) == (True, "load", True)
    (shown,) = (await chats.client.get("/api/ps")).json()["models"]
    assert (shown["name"], shown["size_vram"]) == ("m:1.0.0", 0)
    body = (await chats.post(path, model="m", keep_alive=0, stream=False)).json()
    assert body["done_reason"] == "unload"
    assert (await chats.client.get("/api/ps")).json() == {"models": []}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"options": {"temperature": 5}}, "options.temperature"),
    ({"options": {"typical_p": 0.5}}, "options.typical_p"),
    ({"options": {"speed": 5}}, "options.speed"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"format": "xml"}, "format"),
    ({"format": "json"}, "format"),
    ({"think": True}, "think"),
    ({"messages": [{"role": "user", "content": "x", "images": ["?"]}]}, "messages[0].images[0]"),
    ({"mood": 1}, "mood"),
]


@pytest.mark.parametrize(("fields", "name"), REFUSED, ids=[f"{name}-{n}" for n, (_, name) in enumerate(REFUSED)])
async def test_what_cannot_be_done_is_refused_by_name(chats: ChatStage, fields: dict[str, Any], name: str) -> None:
    """Status 400 and one text."""
    chats.model("m")
    answer = await chats.post("/api/chat", **{"model": "m", "messages": HI, **fields})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert name in answer.json()["error"]


async def test_hints_for_the_machine_are_taken(chats: ChatStage) -> None:
    """They change no answer; neither do values that mean: as usual."""
    chats.model("m")
    options = {"num_ctx": 4096, "num_gpu": 1, "seed": -1, "num_predict": -1, "repeat_last_n": 64, "stop": []}
    body = (await chats.post("/api/chat", model="m", messages=HI, stream=False, options=options)).json()
    assert body["message"]["content"] == TEXT


async def test_errors_are_one_text(chats: ChatStage) -> None:
    """404 for a model or a path that is not there; in a stream one line."""
    missing = await chats.post("/api/chat", model="nope", messages=HI)
    assert (missing.status_code, list(missing.json())) == (404, ["error"])
    path = await chats.post("/api/nothing")
    assert (path.status_code, list(path.json())) == (404, ["error"])
    chats.model("m", fail="run", fail_after=1)
    told = await lines(chats, "/api/chat", model="m", messages=HI)
    assert list(told[-1]) == ["error"]
    assert told[0]["message"]["content"] == "User:"


async def test_models_are_listed_as_name_and_tag(chats: ChatStage) -> None:
    """Every version under its number, the newest as latest, aliases and services too."""
    chats.model("m")
    chats.stage.service("m", id_="s")
    names = {entry["name"] for entry in (await chats.client.get("/api/tags")).json()["models"]}
    assert names == {"s:latest", "m:latest", "m:1.0.0"}
    for name in ("m", "s:latest", "m:1.0.0"):
        shown = (await chats.post("/api/show", model=name)).json()
        assert shown["capabilities"] == ["completion"]
        assert shown["model_info"]["serai.version"] == "1.0.0"


async def test_a_copy_is_another_name(chats: ChatStage) -> None:
    """A tag of the same model, or a further name; deleting it leaves the model."""
    chats.model("m")
    for destination in ("m:best", "mine"):
        copied = await chats.post("/api/copy", source="m", destination=destination)
        assert copied.status_code == 200, copied.text
        answer = await chats.post("/api/chat", model=destination, messages=HI, stream=False)
        assert answer.json()["model"] == destination
        gone = await chats.client.request("DELETE", "/api/delete", json={"model": destination})
        assert gone.status_code == 200, gone.text
        assert (await chats.post("/api/chat", model=destination, messages=HI)).status_code == 404
    assert (await chats.post("/api/show", model="m")).status_code == 200
    deleted = await chats.client.request("DELETE", "/api/delete", json={"model": "m"})
    assert deleted.status_code == 200
    assert (await chats.post("/api/show", model="m")).status_code == 404


async def test_vectors_have_length_one(chats: ChatStage) -> None:
    """Of each text; the older call gives one as it is."""
    chats.model("e", task="embedding", dimensions=4)
    body = (await chats.post("/api/embed", model="e", input=["a", "b"])).json()
    assert body["total_duration"] >= body["load_duration"] > 0
    assert [pytest.approx(1.0) == sum(x * x for x in vector) for vector in body["embeddings"]] == [True, True]
    assert body["prompt_eval_count"] == 2
    assert len((await chats.post("/api/embeddings", model="e", prompt="a")).json()["embedding"]) == 4


async def test_a_picture_needs_a_model_that_sees(chats: ChatStage) -> None:
    """It is looked at first; then the field is named that holds it."""
    chats.model("m")
    png = base64.b64encode(bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
        "0000000049454e44ae426082"
    )).decode()  # fmt: skip
    message = {"role": "user", "content": "what is it?", "images": [png]}
    answer = await chats.post("/api/chat", model="m", messages=[message])
    assert (answer.status_code, "messages" in answer.json()["error"]) == (400, True), answer.text
    fake = {"role": "user", "content": "what is it?", "images": [base64.b64encode(b"no picture at all").decode()]}
    assert (await chats.post("/api/chat", model="m", messages=[fake])).status_code == 400
