"""Messages of every dialect become the same values, and what is wrong with one is said with its place."""

import base64
from typing import Any

import pytest

from serai.chat.messages import (
    MAX_MESSAGES,
    Link,
    Message,
    Picture,
    ToolCall,
    for_openai,
    for_template,
    from_ollama,
    from_openai,
    tools_of,
)
from serai.errors import InvalidInput

PNG = base64.b64encode(b"\x89PNG picture").decode()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_a_conversation_of_openai_is_read_and_written_back() -> None:
    """Texts, parts, pictures, calls and their results survive the way in and out."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "https://x.test/a"}}]
    given = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "42"}]},
    ]
    read = from_openai(given)
    assert [message.role for message in read] == ["system", "user", "assistant", "tool"]
    assert read[1].parts == ("What is it?", Link(url="https://x.test/a"))
    assert read[2].tool_calls == (ToolCall(id="call_1", name="f", arguments='{"a":1}'),)
    written = for_openai(read)
    assert written[1] == {"role": "user", "content": parts, "name": "ann"}
    assert written[2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert from_openai(written) == read


def test_a_conversation_of_ollama_is_read() -> None:
    """Pictures beside the text, arguments as objects, thinking."""
    read = from_ollama(
        [
            {"role": "user", "content": "Look", "images": [PNG, f"data:image/png;base64,{PNG}"]},
            {"role": "assistant", "thinking": "Hm", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "42", "tool_name": "f"},
        ]
    )
    assert read[0].pictures == (Picture(data=b"\x89PNG picture"),) * 2
    assert read[1].reasoning == "Hm"
    assert read[1].tool_calls == (ToolCall(id="call_0", name="f", arguments='{"a":1}'),)
    assert (read[2].name, read[2].text) == ("f", "42")


def test_a_template_gets_text_and_objects() -> None:
    """As transformers hands messages to templates."""
    call = ToolCall(id="c", name="f", arguments='{"a":1}')
    message = Message(role="assistant", parts=("a", "b"), reasoning="r", tool_calls=(call,))
    assert for_template([message]) == [
        {
            "role": "assistant",
            "content": "ab",
            "reasoning_content": "r",
            "thinking": "r",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
        }
    ]


def test_a_picture_goes_to_another_server_as_a_data_url() -> None:
    """With the type that its content has."""
    shown = for_openai([Message(role="user", parts=(Picture(data=b"x", media_type="image/png"),))])
    assert shown[0]["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}]


WRONG: list[tuple[list[Any], str]] = [
    (["x"], "messages[0]"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "robot", "content": "x"}], "messages[0].role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": "x", "mood": 1}], "messages[0].mood"),
    ([{"role": "user", "content": [{"type": "video"}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "ftp://x"}]}],
     "messages[0].content[0].image_url"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}],
     "messages[0].content[0].image_url"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,?"}}]}],
     "messages[0].content[0].image_url"),
    ([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": ""}}]}],
     "messages[0].tool_calls[0].function.name"),
    ([{"role": "assistant", "content": "", "function_call": {"name": "f"}}], "messages[0].function_call"),
    ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "messages"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "http://x/"}] * 17}], "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "place"), WRONG, ids=[place for _, place in WRONG])
def test_what_is_wrong_is_said_with_its_place(messages: list[Any], place: str) -> None:
    """The member, down to the part."""
    with pytest.raises(InvalidInput) as refused:
        from_openai(messages)
    assert refused.value.details == [{"field": place, "problem": refused.value.details[0]["problem"]}]  # type: ignore[index]


@pytest.mark.parametrize("images", ["x", ["?"], [5], [""]])
def test_ollamas_pictures_are_base64(images: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidInput, match="images"):
        from_ollama([{"role": "user", "content": "x", "images": images}])


def test_tools_are_offered_unless_the_choice_is_none() -> None:
    """And one that must be called is known by name."""
    assert tools_of([TOOL]).offered == (TOOL,)
    assert tools_of([TOOL], "none").offered == ()
    assert tools_of([TOOL], "required").is_forced
    forced = tools_of([TOOL], {"type": "function", "function": {"name": "f"}})
    assert (forced.is_forced, forced.forced) == (True, "f")
    assert not tools_of(None, "auto").is_forced


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ("x", None),
        ([{"type": "web_search"}], None),
        ([{"type": "function", "function": {"name": "f", "parameters": 5}}], None),
        ([TOOL, TOOL], None),
        ([TOOL], {"type": "function", "function": {"name": "g"}}),
        ([TOOL], "sometimes"),
        ([], "required"),
        ([TOOL] * 129, None),
    ],
)
def test_wrong_tools_are_refused(tools: Any, choice: Any) -> None:
    """By the name of the field."""
    with pytest.raises(InvalidInput, match=r"tools|tool_choice"):
        tools_of(tools, choice)
