"""Chunks of another server become events, and nonsense is never taken for an answer."""

import contextlib
import json
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.engines.errors import RemoteFailed
from serai.engines.remote.answers import Answer, body_in, embeddings_in
from serai.engines.tasks import Array
from serai.errors import InvalidInput, RateLimited, SeraiError
from serai.events import Text
from support.upstream import chunk, usage


def collect(*chunks: dict[str, Any] | str, n: int = 1, logprobs: bool = False) -> tuple[list[Text], dict[str, Any]]:
    answer = Answer(n=n, logprobs=logprobs, secret=None)
    texts = [
        text for one in chunks for text in answer.take((one if isinstance(one, str) else json.dumps(one)).encode())
    ]
    return texts, answer.result({"prompt_s": 0.0, "generation_s": 0.0}).result


def test_a_chat_is_read() -> None:
    """Texts come as events; reason and usage at the end."""
    texts, result = collect(
        chunk("", role="assistant"), chunk("sa"), chunk("lām"), chunk(finish="stop"), usage(5, 2, 3), "[DONE]"
    )
    assert [text.delta for text in texts] == ["sa", "lām"]
    assert result["finish_reasons"] == ["stop"]
    assert result["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 3}
    assert "tool_calls" not in result


def test_usage_that_is_not_told_is_none() -> None:
    """Nothing is made up."""
    assert collect(chunk("a", finish="stop"))[1]["usage"] is None


def test_answers_are_kept_apart() -> None:
    """Of several answers each has its own texts and its own end."""
    texts, result = collect(chunk("a"), chunk("b", index=1), chunk(finish="length", index=1), chunk(finish="stop"), n=2)
    assert [(text.delta, text.index) for text in texts] == [("a", 0), ("b", 1)]
    assert result["finish_reasons"] == ["stop", "length"]


def call(index: int | None, **more: Any) -> dict[str, Any]:
    name, arguments = more.pop("name", None), more.pop("arguments", None)
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return chunk(tool_calls=[{"index": index, "function": function, **more}])


def test_tool_calls_are_put_together() -> None:
    """Names come first, arguments in pieces, several calls side by side."""
    _, result = collect(
        call(0, id="c1", name="weather", arguments=""),
        call(0, arguments='{"city": "Yaz'),
        call(1, id="c2", name="time", arguments="{}"),
        call(0, arguments='d"}'),
        chunk(finish="tool_calls"),
    )
    assert result["finish_reasons"] == ["tool_calls"]
    assert result["tool_calls"] == [
        [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Yazd"}'}},
            {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ]
    ]


def test_tool_calls_without_numbers_are_told_apart_by_id() -> None:
    """Servers that leave the index out begin a call with its id."""
    _, result = collect(
        call(None, id="c1", name="a", arguments="{"),
        call(None, arguments="}"),
        call(None, id="c2", name="b", arguments="{}"),
        "[DONE]",
    )
    assert [one["function"] for one in result["tool_calls"][0]] == [
        {"name": "a", "arguments": "{}"},
        {"name": "b", "arguments": "{}"},
    ]
    assert result["finish_reasons"] == ["tool_calls"]


def test_reasoning_and_refusal_are_kept() -> None:
    """They are no part of the text and not lost either."""
    texts, result = collect(
        chunk(reasoning_content="let me "), chunk(reasoning="see"), chunk("no"), chunk(refusal="I will not"), "[DONE]"
    )
    assert [text.delta for text in texts] == ["no"]
    assert (result["reasoning"], result["refusal"]) == (["let me see"], ["I will not"])


@pytest.mark.parametrize(
    ("told", "meant"),
    [("stop", "stop"), ("length", "length"), ("max_tokens", "length"), ("function_call", "tool_calls"),
     ("content_filter", "content_filter"), ("eos", "stop"), ("something new", "stop")],
)  # fmt: skip
def test_reasons_are_ours(told: str, meant: str) -> None:
    """Whatever words a server has, there are four reasons."""
    assert collect(chunk("a", finish=told))[1]["finish_reasons"] == [meant]


def test_logprobs_of_chats_and_texts() -> None:
    """Both of OpenAI's forms become one."""
    content = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5}]}]
    asked = chunk("a", finish="stop")
    asked["choices"][0]["logprobs"] = {"content": content, "refusal": None}
    expected = [{"token": "a", "logprob": -0.5, "top": [{"token": "b", "logprob": -1.5}]}]
    assert collect(asked, logprobs=True)[0][0].logprobs == expected
    assert collect(asked)[0][0] == Text(delta="a")
    told = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}]}
    text = {"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": told}]}
    assert collect(text, logprobs=True)[0][0].logprobs == expected


@pytest.mark.parametrize(
    "junk",
    [
        "", "junk", "[]", "7", "null", '{"choices": 1}', '{"choices": [{"index": "0"}]}', '{"choices": [{"index": 1}]}',
        '{"choices": [{"index": -1}]}', '{"choices": [{"delta": {"content": 5}}]}', '{"choices": [null]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": 7}]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": -1}]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": {}}}]}}]}',
        '{"choices": [{"finish_reason": "error"}]}', '{"a":' * 5000,
    ],
)  # fmt: skip
def test_nonsense_is_refused(junk: str) -> None:
    """What is not of the form is a failure of the server, with nothing of it in the message."""
    with pytest.raises(RemoteFailed) as failed:
        collect(junk)
    assert not junk or junk not in failed.value.message


def test_broken_characters_are_nonsense() -> None:
    """Text that is not UTF-8 is never passed on."""
    answer = Answer(n=1, logprobs=False, secret=None)
    with pytest.raises(RemoteFailed):
        answer.take(b'{"choices": [{"delta": {"content": "\xff\xfe"}}]}')


def test_a_cut_stream_is_no_answer() -> None:
    """Without a reason for every answer, and without the end mark, it broke off."""
    for chunks in ((), (chunk("a"),)):
        with pytest.raises(RemoteFailed, match="broke off"):
            collect(*chunks)
    with pytest.raises(RemoteFailed, match="broke off"):
        collect(chunk("a", finish="stop"), n=2)
    assert collect(chunk("a"), "[DONE]")[1]["finish_reasons"] == ["stop"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "slow down", "code": 429}, RateLimited),
        ({"message": "too long", "type": "invalid_request_error", "param": "messages"}, InvalidInput),
        ({"message": "boom", "type": "server_error"}, RemoteFailed),
        ("boom", RemoteFailed),
        ({}, RemoteFailed),
        (7, RemoteFailed),
    ],
)
def test_errors_in_the_stream_are_raised(error: object, expected: type[SeraiError]) -> None:
    """An error object ends the answer as the error that it is."""
    with pytest.raises(expected):
        collect(chunk("a"), json.dumps({"error": error}))


@settings(deadline=None, max_examples=200)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["choices", "delta", "index", "content", "usage", "error", "tool_calls", "x"]),
                        inner, max_size=4), max_leaves=12))  # fmt: skip
def test_any_json_is_read_or_refused(value: Any) -> None:
    """No JSON makes the reader fail otherwise than by an error of ours."""
    answer = Answer(n=1, logprobs=True, secret=None)
    with contextlib.suppress(RemoteFailed, InvalidInput, RateLimited):
        answer.take(json.dumps(value).encode())
        answer.is_over = True
        assert answer.result({}).result["finish_reasons"]


def test_vectors_come_in_the_order_of_their_texts() -> None:
    """By their index, as float32."""
    rows = [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2.5]}]
    done = embeddings_in(json.dumps({"data": rows, "usage": {"prompt_tokens": 4}}).encode(), 2)
    told = Array.of(done.result["embeddings"])
    assert (told.dtype, told.shape, list(array("f", told.data))) == ("float32", (2, 2), [1, 2.5, 3, 4])
    assert done.result["usage"] == {"prompt_tokens": 4}


@pytest.mark.parametrize(
    "rows",
    [
        [], [{"index": 0, "embedding": [1]}], [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}],
        [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": [1]}],
    ],
)  # fmt: skip
def test_vectors_that_are_not_all_there_are_refused(rows: list[Any]) -> None:
    """One too few, one twice, one of another length, an empty one, another form."""
    with pytest.raises(RemoteFailed):
        embeddings_in(json.dumps({"data": rows}).encode(), 2)


def test_any_json_is_a_body() -> None:
    """`fetch` takes JSON of any kind and nothing else."""
    assert body_in(b"[1]").result == {"body": [1]}
    for junk in (b"", b"<html>", b'"\xff"', b"[" * 100_000):
        with pytest.raises(RemoteFailed):
            body_in(junk)
