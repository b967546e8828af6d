"""ollama-python, unchanged, against a running server: chats, texts, vectors, lists, loading, errors."""

from collections.abc import Iterator

import ollama
import pytest

from support.chat_client import ServedModels, served_models

TEXT = "User: one two Assistant:"
HI = [{"role": "user", "content": "one two"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModels]:
    with served_models(tmp_path_factory.mktemp("ollama") / "home") as started:
        yield started


@pytest.fixture
def client(server: ServedModels) -> Iterator[ollama.Client]:
    headers = {"authorization": f"Bearer {server.key}"}
    with ollama.Client(host=server.url, headers=headers, trust_env=False) as made:
        yield made


def test_a_chat(client: ollama.Client) -> None:
    """The whole answer, with counts and durations."""
    answer = client.chat(model="echo", messages=HI)
    assert answer.message.content == TEXT
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 4)
    assert answer.total_duration is not None
    assert answer.total_duration > 0


def test_a_chat_as_a_stream(client: ollama.Client) -> None:
    """Pieces as they come, then the counts."""
    parts = list(client.chat(model="echo", messages=HI, stream=True))
    assert "".join(part.message.content or "" for part in parts) == TEXT
    assert [part.done for part in parts] == [False] * 4 + [True]


def test_a_text(client: ollama.Client) -> None:
    """With options, and as a stream."""
    assert client.generate(model="echo", prompt="one two", options={"num_predict": 2}).response == "User: one"
    streamed = client.generate(model="echo", prompt="one two", raw=True, stream=True)
    assert "".join(part.response or "" for part in streamed) == "one two"


def test_vectors(client: ollama.Client) -> None:
    """One per text."""
    assert [len(vector) for vector in client.embed(model="vectors", input=["a", "b"]).embeddings] == [4, 4]


def test_models_are_listed_and_shown(client: ollama.Client) -> None:
    """By name and tag, as clients look for them."""
    names = {model.model for model in client.list().models}
    assert {"echo:latest", "echo:1.0.0"} <= names
    shown = client.show("echo")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["serai.model"] == "echo"


def test_a_model_is_loaded_and_unloaded_by_asking_nothing(client: ollama.Client) -> None:
    """And `ps` shows it in between."""
    assert client.generate(model="echo", keep_alive="5m").done_reason == "load"
    assert "echo:1.0.0" in {model.model for model in client.ps().models}
    assert client.generate(model="echo", keep_alive=0).done_reason == "unload"
    assert "echo:1.0.0" not in {model.model for model in client.ps().models}


def test_a_copy_and_its_end(client: ollama.Client) -> None:
    """Another name, until it is deleted."""
    assert client.copy("echo", "echo:mine").status == "success"
    assert client.chat(model="echo:mine", messages=HI).message.content == TEXT
    assert client.delete("echo:mine").status == "success"
    with pytest.raises(ollama.ResponseError, match="mine"):
        client.chat(model="echo:mine", messages=HI)


def test_errors(client: ollama.Client) -> None:
    """With status and text; in a stream, too."""
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="nobody", messages=HI)
    assert missing.value.status_code == 404
    assert "POST /pull" in missing.value.error
    with pytest.raises(ollama.ResponseError) as wrong:
        client.chat(model="echo", messages=HI, options={"temperature": 9})
    assert wrong.value.status_code == 400
    said = ""
    with pytest.raises(ollama.ResponseError):
        for part in client.chat(model="breaks", messages=HI, stream=True):
            said += part.message.content or ""
    assert said == "User: one"


@pytest.mark.anyio
async def test_the_asynchronous_client(server: ServedModels) -> None:
    """It streams as well."""
    client = ollama.AsyncClient(host=server.url, headers={"authorization": f"Bearer {server.key}"}, trust_env=False)
    parts = [part.message.content async for part in await client.chat(model="echo", messages=HI, stream=True)]
    assert "".join(part or "" for part in parts) == TEXT
    await client.close()
