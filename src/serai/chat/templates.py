"""The chat template that comes with a model: where it stands, and what can be told from its text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from serai.chat.errors import TemplateFailed

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
LEGACY_TEMPLATE_NAME = "chat_template.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"

_MAX_CONFIG_BYTES = 64 * 2**20
"""Some tokenizers list every added token in this file."""
_MAX_TEMPLATE_BYTES = 2 * 2**20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

ToolFormat = Literal["hermes", "llama"]
"""How a model writes a call: `<tool_call>{"name", "arguments"}</tool_call>`, or bare `{"name", "parameters"}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A template with the tokens that it may name."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_tools(self) -> bool:
        return "tools" in self.source

    @property
    def tool_format(self) -> ToolFormat:
        is_llama = "<tool_call>" not in self.source and (
            "<|python_tag|>" in self.source or '"parameters": dictionary' in self.source
        )
        return "llama" if is_llama else "hermes"


def read_template(folder: Path) -> ChatTemplate | None:
    """Return the template of the model in `folder`, or None where it has none. Blocks.

    A file of its own goes before the tokenizer's configuration, as in transformers. Raises
    TemplateFailed for files that cannot be read as what they should be.
    """
    config = _read_json(folder / CONFIG_NAME, _MAX_CONFIG_BYTES)
    source = _read_text(folder / TEMPLATE_NAME, _MAX_TEMPLATE_BYTES)
    if source is None:
        source = _chosen(config.get("chat_template"))
    if source is None:
        source = _chosen(_read_json(folder / LEGACY_TEMPLATE_NAME, _MAX_TEMPLATE_BYTES).get("chat_template"))
    if source is None:
        return None
    tokens = {**_read_json(folder / SPECIAL_TOKENS_NAME, _MAX_TEMPLATE_BYTES), **config}
    named = {name: _token(tokens.get(name)) for name in _SPECIAL}
    return ChatTemplate(source=source, special_tokens={name: token for name, token in named.items() if token})


def _chosen(value: Any) -> str | None:
    """Return the template of a configuration: a text, or of a list of named ones the default."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    found = named.get("default", named.get("tool_use"))
    return found if isinstance(found, str) else None


def _token(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    text = _read_text(path, max_bytes)
    if text is None:
        return {}
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise TemplateFailed(f"The model's file {path.name} is not JSON.") from None
    return value if isinstance(value, dict) else {}


def _read_text(path: Path, max_bytes: int) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError:
        return None
    if len(data) > max_bytes:
        raise TemplateFailed(f"The model's file {path.name} is larger than {max_bytes} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise TemplateFailed(f"The model's file {path.name} is not text in UTF-8.") from None
