"""What is sent to another server: everything that was asked, or a refusal by name."""

import json
from typing import Any

import pytest

from serai.engines.options import RemoteOptions
from serai.engines.remote.requests import request_for, url_below
from serai.engines.tasks import Chat, Embed, Generate, Grammar, Sampling
from serai.errors import InvalidInput

MESSAGES = ({"role": "user", "content": "hi"},)


def body(task: Chat | Generate | Embed, **options: Any) -> dict[str, Any]:
    return dict(json.loads(request_for(task, "m-1", RemoteOptions(**options)).content))


def test_a_chat_says_no_more_than_it_must() -> None:
    """Model, messages, a stream with usage, and how tokens are drawn."""
    assert body(Chat(messages=MESSAGES)) == {
        "model": "m-1",
        "messages": list(MESSAGES),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1.0,
        "top_p": 1.0,
    }
    assert "stream_options" not in body(Chat(messages=MESSAGES), stream_usage=False)


def test_everything_that_was_asked_is_sent() -> None:
    """Each parameter under OpenAI's name."""
    sampling = Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.2, seed=0, stop=("x", "y"),
        n=2, logprobs=3, logit_bias={7: -1.5},
    )  # fmt: skip
    tools = ({"type": "function", "function": {"name": "f"}},)
    task = Chat(
        messages=MESSAGES,
        sampling=sampling,
        tools=tools,
        tool_choice="required",
        response_format={"type": "json_object"},
    )
    sent = body(task)
    assert {name: sent[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "n")} == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 0, "stop": ["x", "y"], "n": 2,
    }  # fmt: skip
    assert (sent["presence_penalty"], sent["frequency_penalty"], sent["logit_bias"]) == (0.1, 0.2, {"7": -1.5})
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 3)
    assert (sent["tools"], sent["tool_choice"], sent["response_format"]) == (
        list(tools), "required", {"type": "json_object"},
    )  # fmt: skip


def test_every_sampling_parameter_is_sent_or_refused() -> None:
    """Nothing is left out in silence: a change of any field changes what is sent, or is refused."""
    plain = body(Generate(prompt="p", sampling=Sampling(max_tokens=5)))
    changes: dict[str, Any] = {
        "max_tokens": 6, "temperature": 0.1, "top_p": 0.1, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 1.0, "frequency_penalty": 1.0, "seed": 3, "stop": ("a",), "n": 2, "logprobs": 0,
        "logit_bias": {1: 1.0}, "grammar": Grammar(kind="regex", value="a"),
    }  # fmt: skip
    assert set(changes) == set(Sampling.__struct_fields__)
    refused = {"top_k", "min_p", "repetition_penalty", "grammar"}
    for name, value in changes.items():
        task = Generate(prompt="p", sampling=Sampling(**({"max_tokens": 5} | {name: value})))
        if name in refused:
            with pytest.raises(InvalidInput):
                body(task)
        else:
            assert body(task) != plain, name


def test_what_the_api_lacks_is_sent_only_where_an_admin_says_so() -> None:
    """top_k and its like are refused by name, unless the endpoint is known to take them."""
    task = Chat(messages=MESSAGES, sampling=Sampling(top_k=5))
    with pytest.raises(InvalidInput, match="top_k"):
        body(task)
    assert body(task, sampling_extensions=("top_k",))["top_k"] == 5


def test_the_bound_has_the_name_that_the_server_knows() -> None:
    """Newer servers call it max_completion_tokens."""
    task = Chat(messages=MESSAGES, sampling=Sampling(max_tokens=5))
    assert body(task, max_tokens_member="max_completion_tokens")["max_completion_tokens"] == 5


def test_a_schema_becomes_a_response_format() -> None:
    """A JSON schema goes along as it is; other grammars, and two at once, are refused."""
    schema = Grammar(kind="json_schema", value='{"type": "object"}')
    sent = body(Chat(messages=MESSAGES, sampling=Sampling(grammar=schema)))
    assert sent["response_format"]["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}
    for task in (
        Chat(messages=MESSAGES, sampling=Sampling(grammar=Grammar(kind="ebnf", value="a"))),
        Chat(messages=MESSAGES, sampling=Sampling(grammar=schema), response_format={"type": "json_object"}),
        Generate(prompt="p", sampling=Sampling(max_tokens=1, grammar=schema)),
    ):
        with pytest.raises(InvalidInput, match="response_format"):
            body(task)


def test_a_text_needs_its_bound() -> None:
    """Servers of this API would stop after 16 tokens, which nobody asked for."""
    with pytest.raises(InvalidInput, match="max_tokens"):
        body(Generate(prompt="p"))
    sent = body(Generate(prompt="p", sampling=Sampling(max_tokens=5, logprobs=2)))
    assert (sent["prompt"], sent["max_tokens"], sent["logprobs"]) == ("p", 5, 2)


def test_texts_are_embedded_together() -> None:
    """One call for all."""
    assert body(Embed(texts=("a", "b"))) == {"model": "m-1", "input": ["a", "b"], "encoding_format": "float"}


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("https://x.example/v1", "https://x.example/v1/embeddings"),
        ("https://x.example/v1/", "https://x.example/v1/embeddings"),
        ("https://x.example", "https://x.example/embeddings"),
        ("https://x.example/d/m?api-version=1", "https://x.example/d/m/embeddings?api-version=1"),
    ],
)
def test_paths_lie_below_the_endpoint(endpoint: str, url: str) -> None:
    """A slash at its end and a query change nothing."""
    assert url_below(endpoint, "/embeddings") == url
