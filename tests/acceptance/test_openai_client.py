"""openai-python, unchanged, against a running server: chats, streams, lists, vectors, responses, error classes."""

from collections.abc import Iterator

import openai
import pytest

from support.chat_client import ServedModels, served_models

TEXT = "User: one two Assistant:"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModels]:
    with served_models(tmp_path_factory.mktemp("openai") / "home") as started:
        yield started


@pytest.fixture
def client(server: ServedModels) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def test_a_chat(client: openai.OpenAI) -> None:
    """The whole answer, with its reason and usage."""
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "one two"}])
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    assert answer._request_id is not None


def test_a_chat_as_a_stream(client: openai.OpenAI) -> None:
    """Words as they come, one id throughout, the usage because it was asked for."""
    stream = client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(said) == TEXT
    assert len(said) == 4
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    """It puts the chunks together to the same message."""
    with client.chat.completions.stream(model="echo", messages=[{"role": "user", "content": "one two"}]) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_several_answers_with_log_probabilities(client: openai.OpenAI) -> None:
    """Each with its own, in the client's types."""
    answer = client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "one two"}],
        n=2,
        max_tokens=2,
        logprobs=True,
        top_logprobs=1,
        stop=["never"],
        seed=3,
    )
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


def test_a_plain_completion(client: openai.OpenAI) -> None:
    """Text goes on as it stands."""
    assert client.completions.create(model="echo", prompt="a b c").choices[0].text == "a b c"
    streamed = client.completions.create(model="echo", prompt="a b c", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "a b c"


def test_vectors(client: openai.OpenAI) -> None:
    """In base64 (what the client asks for by itself) and as numbers they are the same."""
    coded = client.embeddings.create(model="vectors", input=["a", "b"])
    plain = client.embeddings.create(model="vectors", input=["a", "b"], encoding_format="float")
    assert [entry.embedding for entry in coded.data] == [entry.embedding for entry in plain.data]
    assert len(coded.data[0].embedding) == 4


def test_models(client: openai.OpenAI) -> None:
    """They are listed, and shown by name."""
    assert {"echo", "vectors"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("echo").object == "model"


def test_responses(client: openai.OpenAI) -> None:
    """Whole, streamed, and going on from the one before."""
    first = client.responses.create(model="echo", input="one two")
    assert first.output_text == TEXT
    second = client.responses.create(model="echo", input="three", previous_response_id=first.id)
    assert second.output_text.endswith("User: three Assistant:")
    with client.responses.stream(model="echo", input="one two") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == TEXT
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert client.responses.retrieve(first.id).output_text == TEXT


def test_the_classes_of_errors(client: openai.OpenAI, server: ServedModels) -> None:
    """Each in the client's own class, with code and parameter."""
    hello = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="owner/missing", messages=hello)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    assert "POST /pull" in missing.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="echo", messages=hello, temperature=9)  # type: ignore[arg-type]
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unable:
        client.chat.completions.create(model="echo", messages=hello, logit_bias={"5": 1})  # type: ignore[arg-type]
    assert unable.value.param == "logit_bias"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-serai-" + "A" * 43).models.list()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="broken", messages=hello)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list()


def test_an_error_in_a_stream(client: openai.OpenAI) -> None:
    """What was said comes first, then the error is raised."""
    said = ""
    with pytest.raises(openai.APIError):
        for chunk in client.chat.completions.create(
            model="breaks", messages=[{"role": "user", "content": "one two"}], stream=True
        ):
            said += chunk.choices[0].delta.content or ""
    assert said == "User: one"


def test_a_timeout_is_not_tried_again(server: ServedModels) -> None:
    """The client would, three times, if the answer did not say otherwise."""
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=3) as client,
        pytest.raises(openai.APIStatusError) as late,
    ):
        client.chat.completions.create(
            model="endless", messages=[{"role": "user", "content": "x"}], extra_body={"timeout": 2}
        )
    assert late.value.status_code == 408
    assert late.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_leaving_a_stream_frees_the_model(client: openai.OpenAI, server: ServedModels) -> None:
    """An answer that would go on for hours ends with its reader."""
    stream = client.chat.completions.create(model="endless", messages=[{"role": "user", "content": "x"}], stream=True)
    next(iter(stream))
    stream.close()
    server.await_idle("endless")


def test_keys_without_the_role_are_refused(server: ServedModels) -> None:
    """A viewer lists models and asks none."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.viewer_key, max_retries=0) as client:
        assert client.models.list().data
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])
