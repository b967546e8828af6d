"""From a hub to vectors, with openai-python and ollama-python: real pulls, a conversion, engines and workers.

`bert` is converted to 8 bits by its pull; `ready` holds OpenVINO files as they are published.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ollama
import openai
import pytest

from support.embed_models import COUNTS, TEXTS, WIDTH, cosine, embed_folder, expected, files_of
from support.hub_server import HubServer
from support.pulling_server import LONG_S, PullingServer, pulling_server
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)

BERT, READY = "tiny/bert", "tiny/ready"


@dataclass
class Stage:
    """The server with both models, and what the pulls came to."""

    server: PullingServer
    pulls: dict[str, dict[str, object]]

    def loaded(self, model: str) -> dict[str, object] | None:
        """Return what /ps tells of a model."""
        found = self.server.http.get("/ps").json()["items"]
        return next((one for one in found if one["model"] == model), None)

    def in_flight(self, model: str) -> int:
        one = self.loaded(model)
        return 0 if one is None else int(str(one["in_flight"]))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    repos = {
        BERT: files_of(embed_folder(tmp_path_factory, "bert")),
        READY: files_of(embed_folder(tmp_path_factory, "xlm-roberta", "fp16")),
    }
    home = tmp_path_factory.mktemp("embed") / "home"
    with HubServer(repos) as hub, pulling_server(home, hub) as server:
        hub.push(BERT, repos[BERT], pipeline_tag="sentence-similarity", config={"architectures": ["BertModel"]})
        yield Stage(server, {name: server.pulled(name) for name in (BERT, READY)})


@pytest.fixture
def client(stage: Stage) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{stage.server.url}/v1", api_key=stage.server.key, max_retries=0, timeout=LONG_S
    ) as made:
        yield made


@pytest.fixture
def olla(stage: Stage) -> Iterator[ollama.Client]:
    headers = {"authorization": f"Bearer {stage.server.key}"}
    with ollama.Client(host=stage.server.url, headers=headers, trust_env=False, timeout=LONG_S) as made:
        yield made


def test_a_pull_makes_an_embedding_model(stage: Stage) -> None:
    """Known by the hub's words or by the files; converted where that is needed."""
    assert stage.pulls[BERT]["quantization"] == "int8"
    assert stage.pulls[READY]["quantization"] == "none"
    for model in ("bert", "ready"):
        assert stage.server.http.get(f"/models/{model}").json()["task"] == "embedding"


def test_vectors_by_openai_are_those_of_transformers(
    stage: Stage, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the form that the client asks for by itself (base64) and as numbers; in order, with the tokens that count."""
    for model, family, near in (("bert", "bert", 0.99), ("ready", "xlm-roberta", 0.9999)):
        wanted = expected(tmp_path_factory, family, TEXTS)
        coded = client.embeddings.create(model=model, input=list(TEXTS))
        plain = client.embeddings.create(model=model, input=list(TEXTS), encoding_format="float")
        for number, vector in enumerate(wanted):
            assert coded.data[number].index == number
            assert cosine(coded.data[number].embedding, vector) > near
            assert plain.data[number].embedding == pytest.approx(coded.data[number].embedding, abs=1e-6)
        assert coded.usage.prompt_tokens == coded.usage.total_tokens > COUNTS
    one = stage.loaded("bert")
    assert one is not None
    assert one["engine"] == "openvino-embed"


def test_dimensions_and_length(client: openai.OpenAI, olla: ollama.Client) -> None:
    """Fewer dimensions are cut, more refused by name; a text that is too long is cut unless that is forbidden."""
    short = client.embeddings.create(model="bert", input="short", dimensions=8).data[0].embedding
    whole = client.embeddings.create(model="bert", input="short").data[0].embedding
    assert (len(short), len(whole)) == (8, WIDTH)
    assert cosine(short, whole[:8]) > 0.99999
    with pytest.raises(openai.BadRequestError, match=str(WIDTH)) as refused:
        client.embeddings.create(model="bert", input="short", dimensions=WIDTH + 1)
    assert refused.value.param == "dimensions"
    assert client.embeddings.create(model="bert", input=TEXTS[-1]).usage.prompt_tokens == COUNTS
    with pytest.raises(ollama.ResponseError, match=f"more than {COUNTS} tokens") as long:
        olla.embed(model="bert", input=TEXTS[-1], truncate=False)
    assert long.value.status_code == 400


def test_ollama_embeds_and_sees_what_the_model_can_do(olla: ollama.Client, client: openai.OpenAI) -> None:
    """`embed`, the older `embeddings`, and the capability in the list and in `show`."""
    found = olla.embed(model="bert", input=["short", TEXTS[0]], dimensions=16)
    assert [len(vector) for vector in found.embeddings] == [16, 16]
    assert found.prompt_eval_count is not None
    same = client.embeddings.create(model="bert", input="short")
    assert olla.embeddings(model="bert", prompt="short").embedding == pytest.approx(same.data[0].embedding, abs=1e-5)
    assert olla.show("bert").capabilities == ["embedding"]


def test_the_wrong_kind_of_call_says_what_the_model_does(
    stage: Stage, client: openai.OpenAI, olla: ollama.Client
) -> None:
    """A chat with an embedding model and vectors of a chat model are 400, in each dialect."""
    card = {"id": "toy", "task": "chat", "licence": "MIT", "version": "1.0.0", "engine": "fake"}
    made = stage.server.http.post("/models", json={**card, "source": {"kind": "package", "name": "toy"}})
    assert made.status_code == 201, made.text
    hi = {"role": "user", "content": "hi"}
    with pytest.raises(openai.BadRequestError, match="does embedding, not chat"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="does chat, not embedding"):
        client.embeddings.create(model="toy", input="hi")
    for ask in (lambda: olla.chat("bert", [hi]), lambda: olla.generate("bert", "hi")):
        with pytest.raises(ollama.ResponseError, match="does embedding, not chat") as refused:
            ask()
        assert refused.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="does chat, not embedding"):
        olla.embed("toy", "hi")


def test_a_worker_that_dies_in_a_call_is_told_and_replaced(stage: Stage, client: openai.OpenAI) -> None:
    """The call that it was in is a server's error; once the cooldown is cleared the next one is answered."""
    client.embeddings.create(model="ready", input="short")
    one = stage.loaded("ready")
    assert one is not None
    pid = int(str(one["pid"]))
    os.kill(pid, signal.SIGSTOP)  # so that the call is certainly in it
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.embeddings.create, model="ready", input=list(TEXTS))
        wait_until(lambda: stage.in_flight("ready") == 1, seconds=60)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as died:
            call.result(LONG_S)
    assert died.value.code == "model_failed"
    assert stage.server.http.post("/models/ready/cooldown/clear").status_code == 204
    assert len(client.embeddings.create(model="ready", input="short").data[0].embedding) == WIDTH
