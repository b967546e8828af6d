"""Prompts for pictures, written out by a language model in a style that the caller chose."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

from serai.auth.policy import Caller
from serai.chat.chats import Ask, Chats
from serai.chat.errors import NoEnricher
from serai.chat.messages import Message
from serai.chat.reply import gather
from serai.errors import Cancelled, DeadlineExceeded, InvalidInput, RateLimited, SeraiError
from serai.registry.failure import Situation
from serai.registry.plan import Plan, Request
from serai.registry.policy import make_plan
from serai.registry.snapshot import RegistrySnapshot
from serai.serving.serving import Serving

Style = Literal["cinematic", "anime", "realistic", "fantasy", "sci-fi", "cyberpunk", "enhance"]
STYLES: tuple[Style, ...] = get_args(Style)

MAX_PROMPT: Final = 4000
_MAX_TOKENS: Final = 400
_CHAT: Final = "chat"

_STYLE: Final[Mapping[Style, str]] = MappingProxyType(
    {
        "cinematic": "a still from a film: composed like a shot, with lens, depth of field, dramatic light and grading",
        "anime": "an anime illustration: clean lines, expressive characters, cel shading, vivid colours",
        "realistic": "a photograph: natural light, true materials and skin, camera and lens, fine detail",
        "fantasy": "a fantasy painting: magic, myth, rich costumes and landscapes, glowing light",
        "sci-fi": "a science-fiction scene: advanced technology, plausible machines, vast scale, clean hard light",
        "cyberpunk": "a cyberpunk scene: neon in rain, dense megacity, implants and holograms, strong contrast",
        "enhance": "the same picture told more exactly: subject, setting, light, colours, composition, detail",
    }
)
_FOR_ALL: Final = (RateLimited, DeadlineExceeded, Cancelled)
"""What is true of the caller or of the call, whoever writes."""
_UNTAUGHT: Final = frozenset({"base", "starter"})
"""Tags of models that go on with a text, or answer one kind of questions and refuse the rest."""
_RULES: Final = (
    "You write prompts for an image model. Rewrite the user's prompt as {style}. Keep its subject and every fact in "
    "it, and its language. Add concrete visual detail. Answer with the new prompt alone: one paragraph of at most "
    "120 words, without quotation marks, headings or remarks."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enriched:
    """A prompt that was written out, and by whom."""

    prompt: str
    """At most MAX_PROMPT characters."""
    style: Style
    model: str
    version: str
    headers: Mapping[str, str]
    """What is told of the decision in headers."""


async def enrich(
    chats: Chats,
    serving: Serving,
    snapshot: RegistrySnapshot,
    *,
    prompt: str,
    style: Style,
    caller: Caller,
    model: str | None = None,
) -> Enriched:
    """Return `prompt` written out in a style by `model`, or else by a chat service, or a chat model in memory.

    Models that follow no instructions are asked only by name. A service whose model is in memory goes before
    others; where one fails, the next is asked. Raises InvalidInput; for a `model`, what the chat raises and what it
    failed of; else NoEnricher, which tells who was tried, and what is the caller's own: RateLimited,
    DeadlineExceeded.
    """
    prompt = prompt.strip()
    if not 1 <= len(prompt) <= MAX_PROMPT:
        raise InvalidInput.at("prompt", f"must have 1 to {MAX_PROMPT} characters")
    if style not in _STYLE:
        raise InvalidInput.at("style", f"must be one of {', '.join(STYLES)}, not {str(style)[:40]!r}")
    if model is not None:
        return await _written(chats, Request(model=model), prompt, style, caller)
    failed: list[dict[str, str]] = []
    for writer in await _writers(serving, snapshot):
        try:
            return await _written(chats, writer, prompt, style, caller)
        except _FOR_ALL:
            raise
        except SeraiError as error:
            name = writer.service or writer.model or ""
            failed.append({"candidate": name, "code": error.code, "why": error.message.rstrip(".")})
    told = "; ".join(f"{entry['candidate']}: {entry['why']}" for entry in failed)
    raise NoEnricher(f"Nobody could write the prompt out ({told}).", details=failed)


async def _written(chats: Chats, writer: Request, prompt: str, style: Style, caller: Caller) -> Enriched:
    messages = (
        Message(role="system", parts=(_RULES.format(style=_STYLE[style]),)),
        Message(role="user", parts=(prompt,)),
    )
    given = {"max_tokens": _MAX_TOKENS}
    ask = Ask(model=writer.model, service=writer.service, messages=messages, given=given, fallback={"temperature": 0.7})
    reply = await chats.open(ask, caller)
    gathered, ending = await gather(reply)
    if ending.error is not None:
        raise ending.error
    decision = reply.decision
    written = _cleaned(gathered.choices[0].content)
    if not written:
        raise NoEnricher(f"{decision.model}@{decision.version} answered nothing that could be a prompt.")
    return Enriched(
        prompt=written, style=style, model=decision.model, version=decision.version, headers=reply.headers()
    )


async def _writers(serving: Serving, snapshot: RegistrySnapshot) -> list[Request]:
    """Return who may write where nobody says: the services that can answer, else the chat models in memory."""
    loaded = {name for one in await serving.loaded() for name in one.versions}
    plans = list(_plans(snapshot, serving.situation()))
    if plans:
        return [plan.request for plan in sorted(plans, key=lambda plan: plan.candidate.name not in loaded)]
    if found := [Request(model=name) for name in sorted(loaded) if _writes(snapshot, name.partition("@")[0])]:
        return found
    raise NoEnricher("There is no chat service that can answer, and no chat model is loaded.")


def _plans(snapshot: RegistrySnapshot, situation: Situation) -> Iterator[Plan]:
    for name in sorted(snapshot.services):
        if snapshot.services[name].task != _CHAT:
            continue
        try:
            plan = make_plan(snapshot, Request(service=name, task=_CHAT), situation)
        except SeraiError:  # it cannot answer now; another one may
            continue
        if _writes(snapshot, plan.candidate.key[0]):
            yield plan


def _writes(snapshot: RegistrySnapshot, model: str) -> bool:
    """Say whether it is a chat model that does as it is told."""
    entry = snapshot.models.get(model)
    return entry is not None and entry.model.task == _CHAT and _UNTAUGHT.isdisjoint(entry.model.tags)


def _cleaned(text: str) -> str:
    """Return an answer as a prompt: on one line, without quotation marks around it, not over the bound."""
    line = " ".join(text.split())
    for opening, closing in (('"', '"'), ("“", "”"), ("'", "'")):
        if len(line) > 1 and line.startswith(opening) and line.endswith(closing):
            line = line[1:-1].strip()
    if len(line) <= MAX_PROMPT:
        return line
    return line[:MAX_PROMPT].rsplit(" ", 1)[0]
