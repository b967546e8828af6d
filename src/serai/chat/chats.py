"""The way from a request to an answer: prompt, call, and the pieces of what comes back."""

import asyncio
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from serai.auth.limits import Limiter
from serai.auth.policy import Caller
from serai.chat.errors import CannotDo
from serai.chat.messages import Message, Tools, for_openai
from serai.chat.output import Form
from serai.chat.pictures import Pictures
from serai.chat.prompts import Prompt, Render, Wanted, make_prompt
from serai.chat.reply import Answer, Reply
from serai.chat.sampling import Need, for_version, grammar_of, needs_of
from serai.chat.templates import ChatTemplate, read_template
from serai.clock import Clock
from serai.engines.base import EngineInfo
from serai.engines.tasks import AnyTask, Chat, Generate, Sampling
from serai.errors import InvalidInput, SeraiError
from serai.ids import NewId
from serai.registry.errors import NoCandidate
from serai.registry.plan import Request
from serai.registry.snapshot import Candidate
from serai.serving.call import Call
from serai.serving.placing import needs_weights
from serai.serving.weights import Weights

MIN_TIMEOUT_S, MAX_TIMEOUT_S = 1.0, 600.0
MAX_CACHED_TEMPLATES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a caller wants answered, whatever the dialect. Either `messages` or `prompt`."""

    model: str | None = None
    service: str | None = None
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    """Text to go on from as it stands, without a template."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Sampling` that the caller set: `sampling.checked`."""
    fallback: Mapping[str, Any] = field(default_factory=dict)
    """What the dialect takes where neither the caller nor the version says anything."""
    response_format: Mapping[str, Any] | None = None
    """In OpenAI's form."""
    tools: Tools = field(default_factory=Tools)
    think: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the template: `prompts.template_options`."""
    timeout_s: float | None = None
    """None: as the server is set."""
    keep_alive: float | None = None
    priority: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    """What the dialect calls the fields, for errors."""

    def field_named(self, name: str) -> str:
        return self.names.get(name, name)


def timeout_of(value: Any, field_name: str = "timeout") -> float | None:
    """Return the seconds that a caller gives, or None. Raises InvalidInput."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_TIMEOUT_S <= value <= MAX_TIMEOUT_S:
        raise InvalidInput.at(field_name, f"must be {MIN_TIMEOUT_S:g} to {MAX_TIMEOUT_S:g} seconds")
    return float(value)


class Serves(Protocol):
    """What is asked of serving."""

    async def open(self, call: Call) -> Answer:
        """Return the answer, which begins in the background. Raises what no candidate can mend."""


class Chats:
    """Answers chats and completions of every dialect."""

    def __init__(
        self,
        *,
        serving: Serves,
        weights: Weights,
        render: Render,
        pictures: Pictures,
        limiter: Limiter,
        clock: Clock,
        new_id: NewId,
        timeout_s: float = MAX_TIMEOUT_S,
    ) -> None:
        self._serving = serving
        self._weights = weights
        self._render = render
        self._pictures = pictures
        self._limiter = limiter
        self._clock = clock
        self._new_id = new_id
        self._timeout_s = timeout_s
        self._templates: dict[tuple[Any, ...], ChatTemplate | None] = {}

    async def open(self, ask: Ask, caller: Caller, *, tells_waiting: bool = False) -> Reply:
        """Return the answer, which comes as it is read. Raises what no candidate can mend."""
        await self._limiter.check_tokens(caller)
        if any(message.pictures for message in ask.messages):
            ask = replace(ask, messages=await self._pictures.look(ask.messages))
        preparation = _Preparation(self, ask, caller.user_id)
        started = self._clock.monotonic()
        call = Call(
            request=_request(ask, caller),
            task=preparation.task,
            caller=caller.limit_id,
            owner=caller.user_id,
            timeout_s=ask.timeout_s or self._timeout_s,
            priority=ask.priority,
            keep_alive=ask.keep_alive,
            needs=frozenset(need.capability for need in preparation.needs),
        )
        try:
            answer = await self._serving.open(call)
        except (NoCandidate, InvalidInput) as error:
            raise preparation.explained(error) from None
        return Reply(
            answer,
            lambda: preparation.form,
            spend=lambda tokens: self._limiter.spend_tokens(caller, tokens),
            started=started,
            seconds=self._clock.monotonic,
            new_id=self._new_id,
            tells_waiting=tells_waiting,
            explain=preparation.in_words_of_the_caller,
        )

    async def template_of(self, candidate: Candidate) -> ChatTemplate | None:
        """Return the chat template of a version whose weights are here. Raises ModelNotPulled, TemplateFailed."""
        version = candidate.version
        if not needs_weights(version):
            return None
        key = (*candidate.key, version.digest, version.updated_at)
        if key not in self._templates:
            if len(self._templates) >= MAX_CACHED_TEMPLATES:
                self._templates.pop(next(iter(self._templates)))
            self._templates[key] = await asyncio.to_thread(lambda: read_template(self._weights.locate(version)))
        return self._templates[key]

    async def prompt(self, ask: Ask, candidate: Candidate) -> Prompt:
        """Return the prompt of `ask` for one version. Raises TemplateFailed, CannotDo."""
        wanted = Wanted(
            tools=ask.tools,
            think=ask.think,
            has_grammar=grammar_of(ask.response_format) is not None,
            options=ask.options,
            can_think="thinking" in candidate.version.capabilities,
        )
        return await make_prompt(ask.messages, wanted, await self.template_of(candidate), self._render)


def _request(ask: Ask, caller: Caller) -> Request:
    sees = any(message.pictures for message in ask.messages)
    return Request(
        model=ask.model,
        service=ask.service,
        task="chat",
        capabilities=frozenset({"vision"}) if sees else frozenset(),
        client_key=caller.user_id,
    )


class _Preparation:
    """Makes the task for each candidate, and remembers how the answer of the last one is to be read."""

    def __init__(self, chats: Chats, ask: Ask, owner: str) -> None:
        self._chats = chats
        self._ask = ask
        self._owner = owner
        self.form = Form()
        self.needs = _needs(ask)

    async def task(self, candidate: Candidate, engine: EngineInfo) -> AnyTask:
        """Return the task for one version on one engine. Raises InvalidInput."""
        for need in self.needs:
            if need.capability not in engine.capabilities:
                raise CannotDo.at(
                    need.field, f"is not possible with the engine {engine.name}, on which this model runs"
                )
        ask = self._ask
        if ask.think and "thinking" not in candidate.version.capabilities:
            raise CannotDo.at(ask.field_named("think"), f"is not possible: {candidate.model.id} does not think")
        # What a dialect assumes is not asked of another server, which has assumptions of its own.
        sampling = for_version(candidate.version.parameters, ask.given, {} if _is_remote(engine) else ask.fallback)
        if ask.prompt is not None:
            self.form = Form()
            grammar = grammar_of(ask.response_format)
            return self._generate(ask.prompt, replaced(sampling, grammar=grammar), has_special_tokens=False)
        if _renders_itself(engine):
            return self._chat(sampling, engine, candidate)
        return await self._rendered(sampling, engine, candidate)

    def explained(self, error: NoCandidate | InvalidInput) -> SeraiError:
        """Return the error for what nobody can do in the caller's words: the field that asks for it."""
        details = [entry for entry in error.details or () if isinstance(entry, Mapping)]
        if isinstance(error, InvalidInput):
            lacking = {entry.get("field") for entry in details}
            need = next((need for need in self.needs if need.capability in lacking), None)
            if need is None:
                return self.in_words_of_the_caller(error)
            return CannotDo(
                error.message.replace(f"{need.capability}:", f"{need.field}:", 1),
                hint=error.hint,
                details=[{**details[0], "field": need.field}],
            )
        sees = any(message.pictures for message in self._ask.messages)
        if not (sees and any("cannot do vision" in str(entry.get("why")) for entry in details)):
            return error
        return CannotDo.at(self._ask.field_named("messages"), "hold a picture, which nobody who may answer can see")

    def in_words_of_the_caller(self, error: SeraiError) -> SeraiError:
        """Return an error of an engine or a version under the name that the caller has for the field."""
        first = error.details[0] if isinstance(error.details, list | tuple) and error.details else None
        if not isinstance(error, InvalidInput) or not isinstance(first, Mapping) or "field" not in first:
            return error
        field_name = str(first["field"])
        is_template = field_name == "prompt" and self._ask.prompt is None  # it was made of the messages
        name = self._ask.field_named("messages" if is_template else field_name)
        if name == field_name:
            return error
        told = copy(error)
        told.details = [{**first, "field": name}]
        told.message = error.message.replace(f"{field_name}:", f"{name}:", 1)
        return told

    def _chat(self, sampling: Sampling, engine: EngineInfo, candidate: Candidate) -> Chat:
        ask = self._ask
        if (ask.think is not None and "thinking" in candidate.version.capabilities) or ask.options:
            name = ask.field_named("think" if ask.think is not None else "chat_template_kwargs")
            raise CannotDo.at(name, f"cannot be chosen for a model on another server ({engine.name})")
        self.form = Form(thinks="thinking" in candidate.version.capabilities)
        choice: str | dict[str, Any] | None = None
        if ask.tools.functions:
            name = ask.tools.forced
            choice = {"type": "function", "function": {"name": name}} if name else ask.tools.choice
        return Chat(
            messages=for_openai(ask.messages),
            sampling=sampling,
            tools=ask.tools.functions,
            tool_choice=choice,
            response_format=ask.response_format,
        )

    async def _rendered(self, sampling: Sampling, engine: EngineInfo, candidate: Candidate) -> Generate:
        if any(message.pictures for message in self._ask.messages):
            name = self._ask.field_named("messages")
            raise CannotDo.at(name, f"hold a picture, and the engine {engine.name} takes none")
        prompt = await self._chats.prompt(self._ask, candidate)
        self.form = prompt.form
        grammar = prompt.grammar or grammar_of(self._ask.response_format)
        stop = (*sampling.stop, *prompt.stops)
        return self._generate(
            prompt.text, replaced(sampling, grammar=grammar, stop=stop), has_special_tokens=prompt.has_special_tokens
        )

    def _generate(self, text: str, sampling: Sampling, *, has_special_tokens: bool) -> Generate:
        return Generate(prompt=text, sampling=sampling, has_special_tokens=has_special_tokens, cache_key=self._owner)


replaced = msgspec.structs.replace


def _is_remote(engine: EngineInfo) -> bool:
    return engine.device_kinds == ("remote",)


def _renders_itself(engine: EngineInfo) -> bool:
    """Say whether messages go to the engine as they are: its server has the template."""
    return "chat" in engine.tasks and ("generate" not in engine.tasks or _is_remote(engine))


def _needs(ask: Ask) -> tuple[Need, ...]:
    """Return what an engine must be able to do for this request."""
    grammar = grammar_of(ask.response_format, ask.field_named("response_format"))
    needs = needs_of(Sampling(**{**ask.given, "grammar": grammar}), ask.names)
    if ask.tools.is_forced and grammar is None:
        needs = (*needs, Need(capability="grammar", field="tool_choice"))
    return needs
