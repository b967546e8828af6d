"""From messages to the text that a model goes on from: its own template, or one plain format.

A model without a template gets this, and answers end where the next `User:` would begin:

    You are kind.            ← the system's messages, each as a paragraph

    User: Hello
    Assistant: Hi!
    User: How are you?
    Assistant:
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serai.chat.errors import CannotDo
from serai.chat.messages import Message, Tools, for_template
from serai.chat.output import CALL, THINK, Form
from serai.chat.templates import ChatTemplate
from serai.engines.tasks import Grammar
from serai.errors import InvalidInput

Render = Callable[[str, Mapping[str, Any]], Awaitable[str]]
"""`Renderer.render`."""

TEMPLATE_OPTIONS = frozenset({"enable_thinking", "thinking", "reasoning_effort", "preserve_thinking"})
"""What a caller may hand to a template; anything else could stand in the place of what we hand to it."""

PLAIN_STOPS = ("\nUser:", "\nSystem:")
_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt, and how its answer is to be read."""

    text: str
    has_special_tokens: bool
    stops: tuple[str, ...] = ()
    form: Form = field(default_factory=Form)
    grammar: Grammar | None = None
    """What the answer must match for the sake of a forced call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a caller asks of a prompt, beside the messages."""

    tools: Tools = field(default_factory=Tools)
    think: bool | None = None
    """None: as the model does by itself."""
    has_grammar: bool = False
    """The answer itself must match a grammar: a model that thinks first could not."""
    options: Mapping[str, Any] = field(default_factory=dict)
    can_think: bool = False


def template_options(value: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return what a caller hands to the template. Raises InvalidInput for what it may not."""
    given = dict(value or {})
    for option, chosen in given.items():
        if option not in TEMPLATE_OPTIONS:
            known = ", ".join(sorted(TEMPLATE_OPTIONS))
            raise InvalidInput.at(f"{name}.{option[:60]}", f"is not an option of templates here; known: {known}")
        if not isinstance(chosen, bool | str | int | float):
            raise InvalidInput.at(f"{name}.{option}", "must be true, false, a text or a number")
    return given


async def make_prompt(
    messages: Sequence[Message], wanted: Wanted, template: ChatTemplate | None, render: Render
) -> Prompt:
    """Return the prompt. Raises TemplateFailed, CannotDo."""
    if template is None:
        return plain_prompt(messages, wanted)
    tools = wanted.tools.offered
    if tools and not template.takes_tools:
        raise CannotDo.at("tools", "cannot be used: the model's chat template knows no tools")
    options = dict(wanted.options)
    think = wanted.think
    if wanted.has_grammar or wanted.tools.is_forced:
        think = False if think is None else think
    if think is not None and wanted.can_think:
        options |= {"enable_thinking": think, "thinking": think}
    context: dict[str, Any] = {
        **template.special_tokens,
        **options,
        "messages": for_template(messages),
        "tools": list(tools) or None,
        "add_generation_prompt": True,
    }
    text = await render(template.source, context)
    format_ = template.tool_format if tools else None
    form = Form(thinks=wanted.can_think, is_thinking=wanted.can_think and _ends_thinking(text), tools=format_)
    if wanted.tools.is_forced and format_ is not None:
        return _forced(text, form, wanted.tools)
    return Prompt(text=text, has_special_tokens=True, form=form)


def plain_prompt(messages: Sequence[Message], wanted: Wanted) -> Prompt:
    """Return the plain format. Raises CannotDo for tools, which it cannot tell of."""
    if wanted.tools.offered:
        raise CannotDo.at("tools", "cannot be used: the model has no chat template")
    system = [message.text.strip() for message in messages if message.role == "system"]
    lines = [f"{_SPEAKERS[message.role]}: {message.text.strip()}" for message in messages if message.role != "system"]
    text = "\n\n".join([*system, "\n".join([*lines, "Assistant:"])])
    return Prompt(text=text, has_special_tokens=False, stops=PLAIN_STOPS)


def _ends_thinking(text: str) -> bool:
    return text.rstrip().endswith(THINK)


def _forced(text: str, form: Form, tools: Tools) -> Prompt:
    """Return a prompt whose answer can be nothing but a call: begun by us, kept in form by a grammar."""
    named = [tool["function"] for tool in tools.functions if tools.forced in ("", tool["function"]["name"])]
    member = "parameters" if form.tools == "llama" else "arguments"
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                member: function.get("parameters") or {"type": "object"},
            },
            "required": ["name", member],
            "additionalProperties": False,
        }
        for function in named
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    grammar = Grammar(kind="json_schema", value=msgspec.json.encode(schema).decode())
    begun = f"{text}{CALL}\n" if form.tools == "hermes" else text
    told = Form(tools=form.tools, is_calling=form.tools == "hermes")
    return Prompt(text=begun, has_special_tokens=True, form=told, grammar=grammar)
