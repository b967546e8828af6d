"""From a hub to an answer, with openai-python and ollama-python: real pulls, conversions, engines and workers.

One server for the whole module, for a conversion takes long. `llama` computes in 32 bits and never ends by
itself, so that equal answers are equal token for token and a stream goes on until somebody leaves it; `qwen3`
is as a pull leaves it, with a template that knows tools.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import ollama
import openai
import pytest

from support.hub_server import HubServer
from support.model_server import all_gone
from support.pulling_server import LLAMA, LONG_S, QWEN3, WEIGHTS, PullingServer, endless, pulling_server, tiny_repos
from support.waiting import eventually, wait_until

pytestmark = pytest.mark.timeout(900)

READY = "tiny/ready"
"""OpenVINO files as they are published: nothing is converted."""
CONTEXT_TOKENS = 4096
HI = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "found": {"type": "boolean"}},
    "required": ["size", "found"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Stage:
    """The server with both models, and what the client was told of the first pull."""

    server: PullingServer
    told: list[ollama.ProgressResponse]

    def ollama(self) -> ollama.Client:
        headers = {"authorization": f"Bearer {self.server.key}"}
        return ollama.Client(host=self.server.url, headers=headers, trust_env=False, timeout=LONG_S)

    def openai(self, **values: Any) -> openai.OpenAI:
        return openai.OpenAI(**self.openai_values(**values))

    def openai_values(self, **values: Any) -> dict[str, Any]:
        given = {"base_url": f"{self.server.url}/v1", "api_key": self.server.key, "max_retries": 0}
        return {**given, "timeout": LONG_S, **values}

    def loaded(self, model: str) -> dict[str, Any] | None:
        """Return what /ps tells of a model."""
        found = self.server.http.get("/ps").json()["items"]
        return next((one for one in found if one["model"] == model), None)

    def in_flight(self, model: str) -> int:
        one = self.loaded(model)
        return 0 if one is None else int(one["in_flight"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    repos = tiny_repos(tmp_path_factory)
    repos[LLAMA] = endless(repos[LLAMA], context_tokens=CONTEXT_TOKENS)
    home = tmp_path_factory.mktemp("chat") / "home"
    with HubServer(repos) as hub, pulling_server(home, hub) as server:
        card = {
            "id": "llama",
            "task": "chat",
            "licence": "MIT",
            "version": "1.0.0",
            "version_status": "draft",
            "source": {"kind": "hub", "repo": LLAMA},
            "engine_options": {"precision": "f32", "cache_precision": "f32"},
        }
        made = server.http.post("/models", json=card)
        assert made.status_code == 201, made.text
        made_stage = Stage(server, [])
        made_stage.told = _pull_in_two_parts(made_stage, hub)
        server.pulled(QWEN3)
        folder = home / "models" / "versions" / "qwen3" / "1.0.0"
        hub.push(READY, {path.name: path.read_bytes() for path in folder.iterdir()}, pipeline_tag="text-generation")
        yield made_stage


def _pull_in_two_parts(stage: Stage, hub: HubServer) -> list[ollama.ProgressResponse]:
    """Pull Llama's weights; the hub holds them in the middle until the client has been told of a part."""
    held = hub.hold(WEIGHTS, at=5 * 2**16)
    told = []
    with stage.ollama() as client:
        for part in client.pull("llama", stream=True):
            told.append(part)
            if part.completed and part.total and 2**16 < part.completed < part.total:
                held.release.set()
    return told


@pytest.fixture
def client(stage: Stage) -> Iterator[openai.OpenAI]:
    with stage.openai() as made:
        yield made


@pytest.fixture
def olla(stage: Stage) -> Iterator[ollama.Client]:
    with stage.ollama() as made:
        yield made


def create(client: openai.OpenAI, model: str, **values: Any) -> Any:
    given = {"model": model, "messages": HI, "temperature": 0, "max_tokens": 12, **values}
    return client.chat.completions.create(**given)


def said(answer: Any) -> str:
    return str(answer.choices[0].message.content)


# Pulls and lists


def test_a_pull_is_told_from_the_manifest_to_success(stage: Stage) -> None:
    """Each step once and in order; the bytes of one layer only grow, of one total, to its end."""
    statuses = list(dict.fromkeys(part.status for part in stage.told))
    assert statuses == [
        "pulling manifest",
        "pulling weights",
        "verifying sha256 digest",
        "converting weights",
        "writing manifest",
        "success",
    ]
    layer = [part for part in stage.told if part.digest]
    completed = [part.completed or 0 for part in layer]
    files = stage.server.hub.repos[LLAMA].commits[stage.server.hub.commit(LLAMA)]
    total = sum(map(len, files.values()))
    assert {part.total for part in layer} == {total}
    assert completed == sorted(completed)
    assert completed[-1] == total
    assert any(0 < one < total for one in completed)


def test_a_model_that_is_here_is_not_fetched_again(stage: Stage, olla: ollama.Client) -> None:
    """The pull succeeds with the version that there is; no byte leaves the hub."""
    before = dict(stage.server.hub.served)
    assert olla.pull(QWEN3).status == "success"
    assert dict(stage.server.hub.served) == before
    assert stage.server.pulled(QWEN3)["already"]


def test_what_was_pulled_is_listed_and_shown(stage: Stage, olla: ollama.Client, client: openai.OpenAI) -> None:
    """With size and digest, the form and the quantization that the conversion chose, and its template."""
    listed = {model.model: model for model in olla.list().models}
    assert {"llama:latest", "llama:1.0.0", "qwen3:latest", "qwen3:1.0.0"} <= set(listed)
    folder = stage.server.process.home / "models" / "versions" / "qwen3" / "1.0.0"
    found = listed["qwen3:latest"]
    assert found.size == sum(path.stat().st_size for path in folder.iterdir())
    assert found.digest is not None
    assert len(found.digest) == 64
    assert found.details is not None
    assert (found.details.format, found.details.quantization_level) == ("ir", "int8")
    shown = olla.show("qwen3")
    assert shown.modelinfo is not None
    assert shown.modelinfo["serai.version"] == "1.0.0"
    assert shown.template is not None
    assert "<tool_call>" in shown.template
    assert {"llama", "qwen3"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("qwen3").owned_by == "tiny"


def test_a_model_is_in_memory_from_its_first_answer_until_keep_alive_0(stage: Stage, olla: ollama.Client) -> None:
    """`ps` shows it with its bytes and context; the answer that asked for the end comes whole."""
    olla.chat(model="qwen3", messages=HI, options={"num_predict": 2})
    shown = {model.model: model for model in olla.ps().models}["qwen3:1.0.0"]
    assert shown.size is not None
    assert shown.size > 2**20
    assert shown.context_length == 512
    assert shown.expires_at is not None
    one = stage.loaded("qwen3")
    assert one is not None
    assert olla.chat(model="qwen3", messages=HI, keep_alive=0, options={"num_predict": 2}).eval_count == 2
    wait_until(lambda: stage.loaded("qwen3") is None, seconds=60)
    asyncio.run(all_gone([one["pid"]]))
    assert olla.generate(model="qwen3", keep_alive="5m").done_reason == "load"
    assert olla.generate(model="qwen3", keep_alive=0).done_reason == "unload"
    assert "qwen3:1.0.0" not in {model.model for model in olla.ps().models}


def test_deleting_a_model_takes_it_from_the_lists(stage: Stage, olla: ollama.Client) -> None:
    """One of published OpenVINO files, which is taken as it is; it answers, and then it is gone."""
    result = stage.server.pulled(READY)
    assert (result["model"], result["quantization"]) == ("ready", "none")
    assert olla.chat(model="ready", messages=HI, options={"num_predict": 2}).eval_count == 2
    assert olla.delete("ready").status == "success"
    assert "ready:latest" not in {model.model for model in olla.list().models}
    with pytest.raises(ollama.ResponseError) as missing:
        olla.chat(model="ready", messages=HI)
    assert missing.value.status_code == 404


# Chat


def test_an_answer_is_the_same_whole_streamed_and_in_every_dialect(client: openai.OpenAI, olla: ollama.Client) -> None:
    """Token for token at temperature 0, with a true count and reason."""
    whole = create(client, "llama")
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 12)
    chunks = list(create(client, "llama", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(whole)
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    options = {"temperature": 0, "num_predict": 12}
    parts = list(olla.chat(model="llama", messages=HI, stream=True, options=options))
    assert "".join(part.message.content or "" for part in parts) == said(whole)
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 12)
    assert client.responses.create(
        model="llama", input="hello there", temperature=0, max_output_tokens=12
    ).output_text == said(whole)


def test_a_text_is_continued(client: openai.OpenAI, olla: ollama.Client) -> None:
    """Without a template, alike in both dialects."""
    continued = client.completions.create(model="llama", prompt="hello", temperature=0, max_tokens=6)
    options = {"temperature": 0, "num_predict": 6}
    assert olla.generate(model="llama", prompt="hello", raw=True, options=options).response == continued.choices[0].text


def test_an_answer_stops_where_it_is_told_to(client: openai.OpenAI, olla: ollama.Client) -> None:
    """Before the first of the strings, which is not said, even where it lies across tokens."""
    whole = said(create(client, "llama"))
    mark = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(mark)]
    stopped = create(client, "llama", stop=["never said", mark])
    assert (said(stopped), stopped.choices[0].finish_reason) == (expected, "stop")
    told = olla.chat(model="llama", messages=HI, options={"temperature": 0, "num_predict": 12, "stop": [mark]})
    assert (told.message.content, told.done_reason) == (expected, "stop")


def test_a_seed_repeats_an_answer_and_another_does_not(client: openai.OpenAI) -> None:
    """At a temperature at which two draws of the same twelve tokens are as good as impossible."""
    first, again, other = (said(create(client, "llama", temperature=1.5, seed=seed)) for seed in (11, 11, 12))
    assert first == again != other


def test_log_probabilities_belong_to_the_tokens_that_were_said(client: openai.OpenAI) -> None:
    """Of each token, from the likeliest; alternatives are refused by an engine that has none."""
    answer = create(client, "llama", logprobs=True).choices[0]
    tokens = answer.logprobs.content
    assert len(tokens) == 12
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == answer.message.content
    assert all(token.logprob <= 0 for token in tokens)
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        create(client, "llama", logprobs=True, top_logprobs=2)


def test_two_answers_to_one_question_differ(client: openai.OpenAI) -> None:
    """Each with its place and reason, counted together, whole and streamed."""
    answer = create(client, "llama", n=2, temperature=1.5, seed=4)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    texts = [choice.message.content for choice in answer.choices]
    assert texts[0] != texts[1]
    assert answer.usage.completion_tokens == 24
    streamed = ["", ""]
    for chunk in create(client, "llama", n=2, temperature=1.5, seed=4, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_an_answer_keeps_to_its_schema(client: openai.OpenAI, olla: ollama.Client) -> None:
    """However little the model knows, what it says can be read."""
    form = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}
    for temperature in (0.0, 1.0):
        answer = create(client, "qwen3", response_format=form, max_tokens=60, temperature=temperature)
        found = json.loads(said(answer))
        assert found["size"] in ("small", "large")
        assert isinstance(found["found"], bool)
        assert answer.choices[0].finish_reason == "stop"
    told = olla.chat(model="qwen3", messages=HI, format=SCHEMA, options={"num_predict": 60})
    assert set(json.loads(told.message.content or "")) == {"size", "found"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
def test_a_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    """With arguments of the tool's schema, whole and streamed, and nothing said beside."""
    values = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 100}
    answer = create(client, "qwen3", **values).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.finish_reason, answer.message.content, call.function.name) == ("tool_calls", None, "weather")
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    with client.chat.completions.stream(model="qwen3", messages=HI, temperature=0, **values) as stream:  # type: ignore[arg-type]
        for _ in stream:
            pass
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert streamed.function.arguments == call.function.arguments
    history = [*HI, {"role": "assistant", "content": None, "tool_calls": [call.to_dict()]}]
    history.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    assert create(client, "qwen3", messages=history, tools=[WEATHER]).usage.completion_tokens > 0


def test_tools_are_refused_by_a_model_whose_template_knows_none(client: openai.OpenAI, olla: ollama.Client) -> None:
    """By the name of the field."""
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, "llama", tools=[WEATHER])
    assert refused.value.param == "tools"
    with pytest.raises(ollama.ResponseError, match="tools"):
        olla.chat(model="llama", messages=HI, tools=[WEATHER])


# Errors


def test_errors_have_the_clients_own_classes(stage: Stage, client: openai.OpenAI, olla: ollama.Client) -> None:
    """Unknown, without a right, wrong, too long: with the remedy, the code and the parameter."""
    with pytest.raises(openai.NotFoundError) as missing:
        create(client, "tiny/unknown")
    assert missing.value.code == "model_not_found"
    assert 'POST /pull {"model":' in missing.value.message
    with pytest.raises(openai.AuthenticationError) as stranger, stage.openai(api_key="sk-nobody") as other:
        create(other, "llama")
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as wrong:
        create(client, "llama", temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match=str(CONTEXT_TOKENS)):
        create(client, "llama", messages=[{"role": "user", "content": "word " * CONTEXT_TOKENS}])
    with pytest.raises(ollama.ResponseError) as unknown:
        list(olla.pull("tiny/unknown", stream=True))
    assert "tiny/unknown" in unknown.value.error


def test_a_model_that_crashed_is_429_until_it_is_cleared(stage: Stage, client: openai.OpenAI) -> None:
    """With the seconds to wait, and how to end the wait; cleared, it is loaded again."""
    assert create(client, "qwen3", max_tokens=2).usage.completion_tokens == 2
    one = stage.loaded("qwen3")
    assert one is not None
    os.kill(one["pid"], signal.SIGKILL)
    wait_until(lambda: stage.loaded("qwen3") is None, seconds=60)
    with pytest.raises(openai.RateLimitError) as cooling:
        create(client, "qwen3")
    assert int(cooling.value.response.headers["retry-after"]) > 0
    assert "cooldown/clear" in cooling.value.message
    assert stage.server.http.post("/models/qwen3/cooldown/clear").status_code == 204
    assert create(client, "qwen3", max_tokens=2).usage.completion_tokens == 2


def test_memory_that_is_in_use_is_503_after_the_wait(stage: Stage, client: openai.OpenAI) -> None:
    """While an answer holds all of it nothing can be evicted; then the model is loaded as ever."""
    budget = stage.server.http.get("/health").json()["memory"]["cpu"]["budget_bytes"]
    hog = {
        "id": "hog",
        "task": "chat",
        "licence": "MIT",
        "version": "1.0.0",
        "engine": "fake",
        "engine_options": {"tokens": 100_000, "step_s": 0.02},
        "source": {"kind": "package", "name": "hog"},
        "footprint": [{"device": "cpu", "bytes": budget}],
    }
    assert stage.server.http.post("/models", json=hog).status_code == 201
    stream = create(client, "hog", stream=True, max_tokens=100_000)
    try:
        next(iter(stream))
        with pytest.raises(openai.InternalServerError) as busy:
            create(client, "qwen3", extra_body={"timeout": 1})
    finally:
        stream.close()
    assert busy.value.status_code == 503
    assert int(busy.value.response.headers["retry-after"]) > 0
    assert create(client, "qwen3", max_tokens=2).usage.completion_tokens == 2
    wait_until(lambda: stage.loaded("hog") is None, seconds=60)


# Many at once


def questions(count: int) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": f"question {number}: what is {number * 37 % 101}?"}] for number in range(count)
    ]


@pytest.mark.anyio
async def test_two_models_that_answer_at_once_never_mix(stage: Stage, client: openai.OpenAI) -> None:
    """Eight questions to each, all at once: every answer is the one that the question had alone."""
    asked = [(model, messages) for messages in questions(8) for model in ("llama", "qwen3")]

    def alone() -> list[str]:
        return [said(create(client, model, messages=messages, max_tokens=24)) for model, messages in asked]

    expected = await asyncio.to_thread(alone)
    assert len(set(expected)) > len(expected) // 2
    async with openai.AsyncOpenAI(**stage.openai_values()) as many:

        async def ask(model: str, messages: list[dict[str, str]]) -> str:
            text = ""
            async for chunk in await create(many, model, messages=messages, max_tokens=24, stream=True):  # type: ignore[arg-type]
                assert chunk.model == model
                text += chunk.choices[0].delta.content or ""
            return text

        told = await asyncio.gather(*(ask(model, messages) for model, messages in asked))
    assert told == expected


@pytest.mark.anyio
async def test_32_questions_at_once_are_one_batch(stage: Stage, client: openai.OpenAI) -> None:
    """Every one is being answered, token by token, before any has ended; each says what it says alone."""
    count, letters = 32, 60
    asked = questions(count)

    def alone() -> list[str]:
        return [said(create(client, "llama", messages=messages, max_tokens=letters)) for messages in asked]

    expected = await asyncio.to_thread(alone)
    barrier = asyncio.Barrier(count + 1)
    rounds: list[int] = []
    async with openai.AsyncOpenAI(**stage.openai_values()) as many:

        async def ask(number: int) -> str:
            stream = await create(many, "llama", messages=asked[number], max_tokens=CONTEXT_TOKENS // 2, stream=True)  # type: ignore[arg-type]
            text = ""
            try:
                async for chunk in stream:
                    assert chunk.choices[0].finish_reason is None, "it ended before the others had begun"
                    if not text and chunk.choices[0].delta.content:
                        await barrier.wait()
                    text += chunk.choices[0].delta.content or ""
                    rounds.append(number)
                    if len(text) >= len(expected[number]):
                        break
            finally:
                await stream.close()
            return text

        tasks = [asyncio.create_task(ask(number)) for number in range(count)]
        async with asyncio.timeout(LONG_S):
            await barrier.wait()
            one = await asyncio.to_thread(stage.loaded, "llama")
            told = await asyncio.gather(*tasks)
    assert one is not None
    assert one["in_flight"] == count
    for number in range(count):
        assert told[number].startswith(expected[number].rstrip("\ufffd")), number
    await eventually(lambda: _is_idle(stage), seconds=60)


async def _is_idle(stage: Stage) -> bool:
    return await asyncio.to_thread(stage.in_flight, "llama") == 0


def test_a_stream_begins_long_before_its_end_and_blocks_nobody(stage: Stage, client: openai.OpenAI) -> None:
    """After its first words the model still computes; /health, another stream and another model answer meanwhile."""
    with ExitStack() as stack:
        stream = create(client, "llama", stream=True, max_tokens=CONTEXT_TOKENS // 2)
        stack.callback(stream.close)
        words = (chunk.choices[0].delta.content for chunk in stream)
        first = next(word for word in words if word)
        assert stage.in_flight("llama") == 1
        assert stage.server.http.get("/health").json()["status"] == "healthy"
        other = create(client, "llama", messages=questions(1)[0], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in other)
        assert said(create(client, "qwen3"))
        assert stage.in_flight("llama") == 1
        assert next(word for word in words if word)
    assert first
    wait_until(lambda: stage.in_flight("llama") == 0, seconds=60)
    assert httpx.get(f"{stage.server.url}/live", trust_env=False).status_code == 200
