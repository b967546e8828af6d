"""OpenAI's dialect: forms, the order of a stream, and errors in its words."""

import asyncio
import json
from typing import Any

import pytest

from serai.registry.parameters import Parameter
from support.chat_stage import ChatStage, data_of

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "one two three"}]
TEXT = "User: one two three Assistant:"
"""What the fake engine makes of the plain format: the same words."""


async def chunks(chats: ChatStage, path: str = "/v1/chat/completions", **body: Any) -> list[Any]:
    """Return the chunks of a stream, which ends with exactly one [DONE]."""
    answer = await chats.post(path, **{"model": "m", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, last = data_of(answer.text)
    assert last == "[DONE]"
    assert "[DONE]" not in frames
    return [json.loads(frame) for frame in frames]


async def test_a_whole_chat_completion(chats: ChatStage) -> None:
    """Id, choices, reason and true usage; headers tell who answered."""
    chats.model("m")
    answer = await chats.post("/v1/chat/completions", model="m", messages=HI)
    body = answer.json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert (body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]) == (5, 10)
    assert answer.headers["x-serai-model"] == "m@1.0.0"
    assert answer.headers["x-serai-reason"] == "default"


async def test_the_order_of_a_stream(chats: ChatStage) -> None:
    """Role, words, reason, usage because it was asked for, [DONE]; one id and one time throughout."""
    chats.model("m")
    told = await chunks(chats, messages=HI, stream_options={"include_usage": True})
    assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in told}) == 1
    first, *middle, last, usage = told
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == TEXT
    assert len(middle) == 5
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert all(chunk["usage"] is None for chunk in told[:-1])
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 5)


async def test_no_usage_is_told_that_nobody_asked_for(chats: ChatStage) -> None:
    """Neither a chunk of it nor a member."""
    chats.model("m")
    told = await chunks(chats, messages=HI)
    assert all("usage" not in chunk and chunk["choices"] for chunk in told)


async def test_several_answers_keep_apart(chats: ChatStage) -> None:
    """Each with its index, its role and its reason; whole and streamed alike."""
    chats.model("m")
    whole = (await chats.post("/v1/chat/completions", model="m", messages=HI, n=3, max_tokens=2)).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * 3
    assert len(texts) == 3
    streamed = ["", "", ""]
    for chunk in await chunks(chats, messages=HI, n=3, max_tokens=2):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


async def test_log_probabilities_come_with_their_tokens(chats: ChatStage) -> None:
    """In the form of chats, and in that of plain completions with their places."""
    chats.model("m")
    whole = (await chats.post("/v1/chat/completions", model="m", messages=HI, logprobs=True, top_logprobs=2)).json()
    tokens = whole["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == TEXT
    assert all(len(token["top_logprobs"]) == 2 and token["bytes"] == list(token["token"].encode()) for token in tokens)
    plain = (await chats.post("/v1/completions", model="m", prompt="a bb c", logprobs=0, echo=True)).json()
    choice = plain["choices"][0]
    assert choice["text"] == "a bb ca bb c"
    assert choice["logprobs"]["text_offset"] == [6, 7, 10]


async def test_a_plain_completion_streams(chats: ChatStage) -> None:
    """Words, then the reason, in the form of that call."""
    chats.model("m")
    told = await chunks(chats, "/v1/completions", prompt="a b c", stream_options={"include_usage": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in told[:-1]) == "a b c"
    assert told[-2]["choices"][0]["finish_reason"] == "stop"
    assert told[-1]["usage"]["total_tokens"] == 6
    assert {chunk["object"] for chunk in told} == {"text_completion"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 3}, "temperature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "x", "content": "y"}]}, "messages[0].role"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"temperature": "0.5"}, "temperature"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"timeout": "x"}, "timeout"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": 601}, "timeout"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"model": "x y"}, "model"),
    ({"n": 99}, "n"),
]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_bound_of_the_version_names_the_field_of_the_caller(chats: ChatStage, name: str) -> None:
    """Whichever of the two names it was sent by; the bound is in plain digits."""
    chats.model("m", parameters={"max_tokens": Parameter(max=2**20)})
    answer = await chats.post("/v1/chat/completions", model="m", messages=HI, **{name: 2**21})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, name)
    assert f"{name}: must be at most 1048576" in error["message"]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{param}-{n}" for n, (_, param) in enumerate(REFUSED)])
async def test_what_cannot_be_done_is_refused_by_name(chats: ChatStage, fields: dict[str, Any], param: str) -> None:
    """Status 400 with the field, also where only another engine could; never dropped in silence."""
    chats.model("m")
    answer = await chats.post("/v1/chat/completions", **{"model": "m", "messages": HI, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert param.split("[", maxsplit=1)[0].split(".", maxsplit=1)[0] in error["message"]


async def test_errors_are_in_this_dialects_words(chats: ChatStage) -> None:
    """A model that is not there, a path that is not there, a method, and a body that is no JSON."""
    unknown = await chats.post("/v1/chat/completions", model="nobody/has-it", messages=HI)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert 'POST /pull {"model": "nobody/has-it"}' in unknown.json()["error"]["message"]
    for path in ("/v1/threads", "/v1", "/v1/"):
        missing = await chats.post(path)
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    method = await chats.client.get("/v1/chat/completions")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert set(method.json()["error"]) == {"message", "type", "param", "code"}
    broken = await chats.client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_failure_before_the_first_word_is_a_status(chats: ChatStage) -> None:
    """503 with the reason, for streams too: nothing was sent yet."""
    chats.model("m", fail="run")
    for stream in (False, True):
        answer = await chats.post("/v1/chat/completions", model="m", messages=HI, stream=stream)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")


async def test_a_failure_in_a_stream_ends_it_in_band(chats: ChatStage) -> None:
    """One frame with the error, then [DONE]; what was said before stays said."""
    chats.model("m", fail="run", fail_after=2)
    told = await chunks(chats, messages=HI)
    assert told[-1]["error"]["type"] == "server_error"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in told[1:-1]] == ["User:", " one"]


async def test_an_answer_that_takes_too_long_keeps_what_it_has(chats: ChatStage) -> None:
    """408, not to be tried again, with the words so far."""
    chats.model("m", tokens=10_000, step_s=0.01)
    await chats.post("/v1/chat/completions", model="m", messages=HI, max_tokens=1)  # loads it
    answer = await chats.post("/v1/chat/completions", model="m", messages=HI, timeout=2)
    assert answer.status_code == 408, answer.text
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["partial"][0]["content"].startswith("User: one")


async def test_models_and_services_are_listed(chats: ChatStage) -> None:
    """Each can be shown by each of its names, slashes and colons too."""
    chats.model("m")
    chats.stage.service("m", id_="s")
    listed = (await chats.client.get("/v1/models")).json()
    assert [entry["id"] for entry in listed["data"]] == ["s", "m"]
    assert {entry["object"] for entry in listed["data"]} == {"model"}
    for name in ("s", "m", "m:latest", "m@1.0.0"):
        shown = await chats.client.get(f"/v1/models/{name}")
        assert (shown.status_code, shown.json()["id"]) == (200, name)
    missing = await chats.client.get("/v1/models/owner/name:tag")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_vectors_come_as_numbers_or_as_base64(chats: ChatStage) -> None:
    """The same vectors, of float32, in order; tokens of another tokenizer are refused."""
    import base64
    from array import array

    chats.model("e", task="embedding", dimensions=4)
    plain = (await chats.post("/v1/embeddings", model="e", input=["a", "b"])).json()
    coded = (await chats.post("/v1/embeddings", model="e", input=["a", "b"], encoding_format="base64")).json()
    for number in range(2):
        vector = array("f", base64.b64decode(coded["data"][number]["embedding"]))
        assert list(vector) == plain["data"][number]["embedding"]
        assert len(vector) == 4
    assert plain["usage"]["total_tokens"] == 2
    for wrong in ([[1, 2]], [1, 2], [""], []):
        refused = await chats.post("/v1/embeddings", model="e", input=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input"), wrong
    other = await chats.post("/v1/embeddings", model="e", input="a", dimensions=5)
    assert (other.status_code, other.json()["error"]["param"]) == (400, "dimensions")


async def test_a_chain_answers_and_says_who(chats: ChatStage) -> None:
    """The headers name who answered and in place of whom."""
    chats.model("bad", fail="load")
    chats.model("good")
    chats.stage.service("bad", "good")
    answer = await chats.post("/v1/chat/completions", model="s", messages=HI)
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    assert answer.headers["x-serai-model"] == "good@1.0.0"
    assert answer.headers["x-serai-fallback"] == "bad@1.0.0=failed"


FAILING = [("/v1/chat/completions", {"messages": HI}), ("/v1/responses", {"input": "a"}), ("/chat", {"messages": HI})]
FAILING += [("/v1/embeddings", {"input": "a"}), ("/api/chat", {"messages": HI}), ("/api/embed", {"input": "a"})]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "asked"), FAILING, ids=[path for path, _ in FAILING])
async def test_a_failure_of_everybody_names_its_decision(
    chats: ChatStage, path: str, asked: dict[str, Any], *, stream: bool
) -> None:
    """In every dialect: the header leads to what was stored of who was tried, and why nobody answered."""
    is_embedding = "embed" in path
    chats.model("bad", fail="load", **({"task": "embedding", "dimensions": 4} if is_embedding else {}))
    body = asked if is_embedding else {**asked, "stream": stream}
    answer = await chats.post(path, model="bad", **body)
    assert answer.status_code == 503, answer.text
    found = {row.id: row for row in await chats.stage.rows()}
    assert found[answer.headers["x-serai-decision"]].document["error"] == "LOAD_FAILED"


async def test_many_at_once_never_mix(chats: ChatStage) -> None:
    """Thirty-two streams on two models: each gets its own words."""
    chats.model("m")
    chats.model("other")

    async def ask(number: int) -> str:
        words = f"number{number} {'more ' * (number % 5)}"
        told = await chunks(
            chats, model=("m", "other")[number % 2], messages=[{"role": "user", "content": words.strip()}]
        )
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told)

    answers = await asyncio.gather(*(ask(number) for number in range(32)))
    assert [answer.split()[1] for answer in answers] == [f"number{number}" for number in range(32)]
    assert [answer.count("more") for answer in answers] == [number % 5 for number in range(32)]
