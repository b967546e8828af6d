"""Which template a model has, and the prompts that come of it or of the plain format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serai.chat.errors import CannotDo, TemplateFailed
from serai.chat.messages import Message, Tools, tools_of
from serai.chat.output import Form
from serai.chat.prompts import PLAIN_STOPS, Wanted, make_prompt, plain_prompt, template_options
from serai.chat.templates import ChatTemplate, read_template
from serai.errors import InvalidInput

pytestmark = pytest.mark.anyio

HELLO = (Message(role="system", parts=("Be kind.",)), Message(role="user", parts=("Hello",)))
TOOLS = tools_of([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
HERMES = ChatTemplate(source="{{ tools }}<tool_call>", special_tokens={"bos_token": "<s>"})


class Recorder:
    """Renders nothing, and remembers what it was given."""

    def __init__(self, text: str = "prompt") -> None:
        self.text = text
        self.context: Mapping[str, Any] = {}

    async def __call__(self, source: str, context: Mapping[str, Any]) -> str:
        self.context = context
        return self.text


async def test_a_template_gets_messages_tokens_tools_and_options() -> None:
    """The text holds its special tokens; the answer is read for calls in the template's own form."""
    render = Recorder()
    prompt = await make_prompt(HELLO, Wanted(tools=TOOLS, options={"reasoning_effort": "low"}), HERMES, render)
    assert render.context == {
        "bos_token": "<s>",
        "reasoning_effort": "low",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
        "tools": list(TOOLS.functions),
        "add_generation_prompt": True,
    }
    assert (prompt.text, prompt.has_special_tokens, prompt.form) == ("prompt", True, Form(tools="hermes"))


async def test_what_the_caller_hands_over_replaces_nothing_of_ours() -> None:
    """Options of templates are a short list; messages and tools are not on it."""
    assert template_options({"enable_thinking": False}, "kwargs") == {"enable_thinking": False}
    for wrong in ({"messages": []}, {"tools": None}, {"tokenize": True}, {"enable_thinking": {"a": 1}}):
        with pytest.raises(InvalidInput, match="kwargs"):
            template_options(wrong, "kwargs")


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Wanted(can_think=True), None),
        (Wanted(can_think=True, think=True), True),
        (Wanted(can_think=True, think=False), False),
        (Wanted(can_think=True, has_grammar=True), False),
        (Wanted(can_think=False, think=False), None),
    ],
)
async def test_thinking_is_switched_where_the_model_can(wanted: Wanted, told: bool | None) -> None:
    """A model that must answer in a form cannot think before; one that cannot think is told nothing."""
    render = Recorder()
    prompt = await make_prompt(HELLO, wanted, HERMES, render)
    assert render.context.get("enable_thinking") is told
    assert prompt.form.thinks is wanted.can_think


async def test_a_prompt_may_begin_the_reasoning() -> None:
    """Then the answer starts inside it."""
    prompt = await make_prompt(HELLO, Wanted(can_think=True), HERMES, Recorder("<assistant><think>\n"))
    assert prompt.form == Form(thinks=True, is_thinking=True)


async def test_a_forced_call_is_begun_and_kept_in_form() -> None:
    """The grammar lets nothing through but a call of the named function."""
    forced = Tools(functions=TOOLS.functions, choice="required", forced="f")
    prompt = await make_prompt(HELLO, Wanted(tools=forced), HERMES, Recorder())
    assert prompt.text == "prompt<tool_call>\n"
    assert prompt.form == Form(tools="hermes", is_calling=True)
    assert prompt.grammar is not None
    schema = msgspec.json.decode(prompt.grammar.value)
    assert schema["properties"] == {"name": {"const": "f"}, "arguments": {"type": "object"}}


async def test_tools_need_a_template_that_knows_them() -> None:
    """Neither a template without them nor the plain format can tell a model of tools."""
    for template in (ChatTemplate(source="{{ messages }}"), None):
        with pytest.raises(CannotDo, match="tools"):
            await make_prompt(HELLO, Wanted(tools=TOOLS), template, Recorder())


def test_a_model_without_a_template_gets_the_plain_format() -> None:
    """The system's words first, then who said what; the answer ends where the next speaker would begin."""
    said = (*HELLO, Message(role="assistant", parts=("Hi!",)), Message(role="user", parts=("Bye",)))
    prompt = plain_prompt(said, Wanted())
    assert prompt.text == "Be kind.\n\nUser: Hello\nAssistant: Hi!\nUser: Bye\nAssistant:"
    assert prompt.stops == PLAIN_STOPS
    assert not prompt.has_special_tokens


def test_a_template_stands_in_one_of_three_files(tmp_path: Path) -> None:
    """One of its own, the tokenizer's configuration, or the older JSON; with the special tokens."""
    assert read_template(tmp_path) is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "pad_token": "p"}))
    assert read_template(tmp_path) == ChatTemplate(source="old", special_tokens={"bos_token": "<s>", "pad_token": "p"})
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "configured"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "eos_token": "</s>"}))
    found = read_template(tmp_path)
    assert found is not None
    assert found.source == "configured"
    assert found.special_tokens == {"bos_token": "<s>", "pad_token": "p", "eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("own")
    assert read_template(tmp_path) == ChatTemplate(source="own", special_tokens=found.special_tokens)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[1, 2]", b"x" * (2**21 + 1)])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, content: bytes) -> None:
    """Text that is none, JSON that is none, a file that is too large."""
    name = "chat_template.jinja" if content[:1] in (b"\xff", b"x") else "tokenizer_config.json"
    (tmp_path / name).write_bytes(content)
    if content == b"[1, 2]":
        assert read_template(tmp_path) is None
        return
    with pytest.raises(TemplateFailed, match=name):
        read_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("<tool_call>", "hermes"),
        ("nothing", "hermes"),
        ("<|python_tag|>", "llama"),
        ("<|python_tag|><tool_call>", "hermes"),
    ],
)
def test_the_form_of_calls_is_the_templates(source: str, form: str) -> None:
    """Told by the marks that stand in it."""
    assert ChatTemplate(source=source).tool_format == form
