"""What clients of OpenAI's Responses API send."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serai.api.openai.wire import Model, Number
from serai.api.wire import Wire
from serai.chat.chats import Ask, timeout_of
from serai.chat.keep_alive import KeepAlive, keep_alive_of
from serai.chat.messages import Message, from_openai, tools_of
from serai.chat.sampling import checked
from serai.errors import InvalidInput


class Reasoning(Wire):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Any = None


class TextFormat(Wire):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseIn(Wire):
    model: Model
    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Annotated[str, Field(max_length=64)] | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    temperature: Number = None
    text: TextFormat | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[Any] | None = None
    top_p: Number = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    include: list[str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    max_tool_calls: int | None = None
    conversation: Any = None
    prompt: Any = None
    timeout: Number = None
    keep_alive: KeepAlive = None

    def items(self) -> list[dict[str, Any]]:
        """Return the input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        if not self.input:
            raise InvalidInput.at("input", "is empty", hint="Send a text, or a list of at least one item.")
        if not all(isinstance(item, dict) for item in self.input):
            raise InvalidInput.at("input", "must be a text or a list of items")
        return list(self.input)

    def ask(self, history: tuple[Message, ...]) -> Ask:
        """Return what is asked after the messages before. Raises InvalidInput."""
        self._refuse_the_rest()
        names = {"max_tokens": "max_output_tokens"}
        given = checked(
            {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_output_tokens}, names
        )
        instructions = (Message(role="system", parts=(self.instructions,)),) if self.instructions else ()
        effort = self.reasoning.effort if self.reasoning else None
        return Ask(
            model=self.model,
            messages=(*instructions, *history, *messages_of(self.items())),
            given=given,
            response_format=self.text.format if self.text else None,
            tools=tools_of([_tool(tool) for tool in self.tools or ()], self.tool_choice),
            think=None if effort is None else effort not in ("none", "minimal"),
            timeout_s=timeout_of(self.timeout),
            keep_alive=keep_alive_of(self.keep_alive),
            names={"think": "reasoning.effort", "response_format": "text.format", "messages": "input", **names},
        )

    def _refuse_the_rest(self) -> None:
        for name in ("background", "conversation", "prompt", "top_logprobs", "max_tool_calls", "include"):
            if getattr(self, name):
                raise InvalidInput.at(name, "is not supported here")
        if self.truncation == "auto":
            raise InvalidInput.at("truncation", "must be disabled: nothing is left out in silence")
        if self.parallel_tool_calls is False and self.tools:
            raise InvalidInput.at("parallel_tool_calls", "cannot be switched off here")
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise InvalidInput.at("text.verbosity", "cannot be chosen here")


def messages_of(items: list[dict[str, Any]]) -> tuple[Message, ...]:
    """Return the messages that items stand for. Raises InvalidInput that names the place."""
    found: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        match item.get("type", "message"):
            case "message":
                found.append({"role": item.get("role"), "content": item.get("content")})
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                found.append({"role": "assistant", "content": "", "tool_calls": [call]})
            case "function_call_output":
                output = item.get("output")
                found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            case "reasoning":
                continue
            case other:
                raise InvalidInput.at(f"input[{number}].type", f"is not supported here: {str(other)[:40]!r}")
    return from_openai(found, "input")


def _tool(tool: Any) -> Any:
    """Return a tool in the form of chats: here its members stand beside its type."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
