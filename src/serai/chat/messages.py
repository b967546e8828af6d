"""Messages of a chat, whatever dialect they came in, and the forms in which engines and templates take them."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import msgspec

from serai.errors import InvalidInput

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

MAX_MESSAGES = 2048
MAX_PICTURES = 16
MAX_TOOL_CALLS = 128

_ROLE_OF: dict[str, Role] = {role: role for role in ROLES}
_ROLE_OF["developer"] = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A picture that is still to be fetched."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture with its type; an empty type means that nobody has looked yet."""

    data: bytes
    media_type: str = ""

    @property
    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


Part = str | Link | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What the model wants done; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str

    @property
    def values(self) -> Any:
        """Return the arguments as JSON values; the text itself where it is not JSON."""
        try:
            return msgspec.json.decode(self.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            return self.arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. `parts` are in the order in which the model is to see them."""

    role: Role
    parts: tuple[Part, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """Of a tool's answer: the call that it answers."""
    name: str = ""

    @property
    def text(self) -> str:
        return "".join([part for part in self.parts if isinstance(part, str)])

    @property
    def pictures(self) -> tuple[Link | Picture, ...]:
        return tuple([part for part in self.parts if not isinstance(part, str)])


@dataclass(slots=True)
class _At:
    """A place in a request, for errors; it is put into words only then."""

    name: str | int
    inside: "_At | None" = None

    def __truediv__(self, name: str | int) -> "_At":
        return _At(name, self)

    def __str__(self) -> str:
        if self.inside is None:
            return str(self.name)
        return f"{self.inside}[{self.name}]" if isinstance(self.name, int) else f"{self.inside}.{self.name}"

    def wrong(self, problem: str) -> InvalidInput:
        return InvalidInput.at(str(self), problem)


def from_openai(value: Sequence[Any], field_name: str = "messages") -> tuple[Message, ...]:
    """Return messages in the form of OpenAI's chat completions. Raises InvalidInput that names the place."""
    return _messages(value, _At(field_name), _openai_message)


def from_ollama(value: Sequence[Any], field_name: str = "messages") -> tuple[Message, ...]:
    """Return messages in Ollama's form. Raises InvalidInput that names the place."""
    return _messages(value, _At(field_name), _ollama_message)


def _messages(value: Sequence[Any], at: _At, read: Any) -> tuple[Message, ...]:
    if len(value) > MAX_MESSAGES:
        raise at.wrong(f"has more than {MAX_MESSAGES} messages")
    found = tuple([read(entry, at / number) for number, entry in enumerate(value)])
    if sum(len(message.pictures) for message in found) > MAX_PICTURES:
        raise at.wrong(f"has more than {MAX_PICTURES} pictures")
    return found


_OPENAI_MEMBERS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content", "reasoning", "thinking"}
    | {"annotations", "audio", "function_call"}
)


def _openai_message(entry: Any, at: _At) -> Message:
    entry = _object(entry, at, _OPENAI_MEMBERS)
    for name in ("audio", "function_call"):
        if entry.get(name) is not None:
            raise (at / name).wrong("is not supported here")
    role = _role(entry, at)
    reasoning = next((entry[name] for name in ("reasoning_content", "reasoning", "thinking") if entry.get(name)), "")
    message = Message(
        role=role,
        parts=_openai_parts(entry.get("content"), at / "content"),
        reasoning=_text(reasoning, at / "reasoning_content"),
        tool_calls=_tool_calls(entry.get("tool_calls"), at / "tool_calls"),
        tool_call_id=_text(entry.get("tool_call_id"), at / "tool_call_id"),
        name=_text(entry.get("name"), at / "name"),
    )
    if entry.get("content") is None and not message.tool_calls and not message.reasoning and role != "assistant":
        raise (at / "content").wrong("is missing")
    return message


def _openai_parts(content: Any, at: _At) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (content,) if content else ()
    if not isinstance(content, list):
        raise at.wrong("is a text or a list of parts")
    return tuple(_openai_part(part, at / number) for number, part in enumerate(content))


def _openai_part(part: Any, at: _At) -> Part:
    part = _object(part, at, None)
    match part.get("type"):
        case "text" | "input_text" | "output_text" | "refusal":
            return _text(part.get("text", part.get("refusal")), at / "text")
        case "image_url":
            held = part.get("image_url")
            return _link(held.get("url") if isinstance(held, dict) else held, at / "image_url")
        case "input_image":
            return _link(part.get("image_url"), at / "image_url")
        case other:
            raise (at / "type").wrong(f"must be text or image_url, not {str(other)[:40]!r}")


def _link(url: Any, at: _At) -> Link | Picture:
    """Return a picture in a data: URL, or the address from which it is to be fetched."""
    if not isinstance(url, str) or not url:
        raise at.wrong("must be an http, https or data URL")
    if url[:5].lower() != "data:":
        if url.partition(":")[0].lower() not in ("http", "https"):
            raise at.wrong("must be an http, https or data URL")
        return Link(url=url)
    head, comma, data = url[5:].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise at.wrong("must hold its picture as base64: data:image/png;base64,…")
    return Picture(data=_bytes(data, at))


_OLLAMA_MEMBERS = frozenset(
    {"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id", "name"}
)


def _ollama_message(entry: Any, at: _At) -> Message:
    entry = _object(entry, at, _OLLAMA_MEMBERS)
    images = entry.get("images") or []
    if not isinstance(images, list):
        raise (at / "images").wrong("is a list of pictures in base64")
    pictures = [_ollama_picture(image, at / "images" / number) for number, image in enumerate(images)]
    text = _text(entry.get("content"), at / "content")
    return Message(
        role=_role(entry, at),
        parts=(*pictures, *((text,) if text else ())),
        reasoning=_text(entry.get("thinking"), at / "thinking"),
        tool_calls=_tool_calls(entry.get("tool_calls"), at / "tool_calls"),
        tool_call_id=_text(entry.get("tool_call_id"), at / "tool_call_id"),
        name=_text(entry.get("tool_name") or entry.get("name"), at / "tool_name"),
    )


def _ollama_picture(image: Any, at: _At) -> Link | Picture:
    if isinstance(image, str) and image[:5].lower() == "data:":
        return _link(image, at)
    return Picture(data=_bytes(_text(image, at), at))


def picture_of(text: str, field_name: str) -> Picture:
    """Return a picture in base64. Raises InvalidInput."""
    return Picture(data=_bytes(text, _At(field_name)))


def _bytes(text: str, at: _At) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise at.wrong("is not base64") from None
    if not data:
        raise at.wrong("is empty")
    return data


def _role(entry: Mapping[str, Any], at: _At) -> Role:
    role = _ROLE_OF.get(entry["role"]) if isinstance(entry.get("role"), str) else None
    if role is None:
        raise (at / "role").wrong(f"must be one of {', '.join(ROLES)}")
    return role


def _tool_calls(value: Any, at: _At) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOL_CALLS:
        raise at.wrong(f"is a list of at most {MAX_TOOL_CALLS} calls")
    return tuple(_tool_call(call, at / number, number) for number, call in enumerate(value))


def _tool_call(call: Any, at: _At, number: int) -> ToolCall:
    call = _object(call, at, None)
    function = _object(call.get("function"), at / "function", None)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(_object(arguments, at / "function" / "arguments", None)).decode()
    name = _text(function.get("name"), at / "function" / "name")
    if not name:
        raise (at / "function" / "name").wrong("is missing")
    return ToolCall(id=_text(call.get("id"), at / "id") or f"call_{number}", name=name, arguments=arguments)


def _object(value: Any, at: _At, members: frozenset[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise at.wrong("must be an object")
    unknown = sorted(set(value) - members) if members is not None else []
    if unknown:
        raise (at / unknown[0][:60]).wrong("is not a member of a message")
    return value


def _text(value: Any, at: _At) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise at.wrong("must be a text")
    return value


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates read them: content as text, arguments as objects."""
    return [_for_template(message) for message in messages]


def _for_template(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning:
        shown |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.values}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    if message.name:
        shown["name"] = message.name
    return shown


def for_openai(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Return messages in OpenAI's form, pictures as data: URLs, for an engine that renders them itself."""
    return tuple([_for_openai(message) for message in messages])


def _for_openai(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.pictures:
        shown["content"] = [_openai_shown(part) for part in message.parts]
    if message.tool_calls:
        shown["tool_calls"] = [openai_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    if message.name and message.role != "tool":
        shown["name"] = message.name
    return shown


def openai_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _openai_shown(part: Part) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case Picture():
            return {"type": "image_url", "image_url": {"url": part.data_url}}
        case Link():
            return {"type": "image_url", "image_url": {"url": part.url}}


def with_pictures(messages: Sequence[Message], pictures: Mapping[Part, Picture]) -> tuple[Message, ...]:
    """Return the messages with every link and unseen picture replaced as `pictures` says."""
    return tuple(
        replace(message, parts=tuple(pictures.get(part, part) for part in message.parts))
        if message.pictures
        else message
        for message in messages
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the model may call, and whether it must. `choice`: auto, none, required, or the name of one."""

    functions: tuple[Mapping[str, Any], ...] = ()
    choice: str = "auto"
    forced: str = field(default="")
    """The one function that must be called; empty for none in particular."""

    @property
    def offered(self) -> tuple[Mapping[str, Any], ...]:
        return () if self.choice == "none" else self.functions

    @property
    def is_forced(self) -> bool:
        return self.choice == "required" and bool(self.functions)


MAX_TOOLS = 128


def tools_of(value: Any, choice: Any = None) -> Tools:
    """Return tools in OpenAI's form (Ollama's is the same). Raises InvalidInput that names the place."""
    at = _At("tools")
    if value is not None and (not isinstance(value, list) or len(value) > MAX_TOOLS):
        raise at.wrong(f"is a list of at most {MAX_TOOLS} tools")
    functions = tuple(_tool(tool, at / number) for number, tool in enumerate(value or ()))
    names = [tool["function"]["name"] for tool in functions]
    if len(set(names)) != len(names):
        raise at.wrong("names the same function twice")
    if choice is None or choice in ("auto", "none"):
        return Tools(functions=functions, choice=choice or "auto")
    if choice == "required":
        return _forced(functions, "")
    held = choice.get("function", choice) if isinstance(choice, dict) else None
    name = held.get("name") if isinstance(held, dict) else None
    if not isinstance(name, str) or name not in names:
        raise InvalidInput.at("tool_choice", "must be none, auto, required, or name a function among the tools")
    return _forced(functions, name)


def _forced(functions: tuple[Mapping[str, Any], ...], name: str) -> Tools:
    if not functions:
        raise InvalidInput.at("tool_choice", "requires a call, and there are no tools")
    return Tools(functions=functions, choice="required", forced=name)


def _tool(tool: Any, at: _At) -> dict[str, Any]:
    tool = _object(tool, at, None)
    if tool.get("type", "function") != "function":
        raise (at / "type").wrong("must be function")
    function = _object(tool.get("function"), at / "function", None)
    name = function.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= 128:
        raise (at / "function" / "name").wrong("must be a text of 1 to 128 characters")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise (at / "function" / "parameters").wrong("must be a JSON schema")
    return {"type": "function", "function": function}
