"""From a request to a task and back: templates and engines decide the form, the caller's words stay true."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serai.auth.callers import NOBODY_ASKED
from serai.auth.limits import Defaults, Limiter
from serai.chat.chats import Ask, Chats, timeout_of
from serai.chat.errors import CannotDo
from serai.chat.messages import Message, Picture, ToolCall, tools_of
from serai.chat.pictures import Pictures
from serai.chat.rendering.renderer import Renderer
from serai.chat.reply import Ending, Gathered, gather
from serai.clock import ManualClock
from serai.decode.decoder import Decoder
from serai.engines.catalogue import CATALOGUE
from serai.engines.tasks import AnyTask, Chat, Generate
from serai.errors import DeadlineExceeded, EngineFailed, InvalidInput, OutboundRefused, SeraiError, UnsupportedMedia
from serai.events import Done, Event, Failed, Loading, Queued, Text
from serai.outbound import Outbound
from serai.registry.errors import NoCandidate
from serai.registry.parameters import Parameter
from serai.registry.source import HubSource, RemoteSource
from serai.serving.call import Call
from unit.registry.build import a_snapshot, a_version

pytestmark = pytest.mark.anyio

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
HELLO = (Message(role="user", parts=("Hello",)),)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
DONE = Done(
    result={
        "finish_reasons": ["stop"],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1},
        "timings": {"prompt_s": 0.5, "generation_s": 1.5},
    }
)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)  # fmt: skip


class Scripted:
    """An answer that is known before; every event comes alone unless `together`."""

    def __init__(self, events: list[Event], *, together: bool = False, error: SeraiError | None = None) -> None:
        self._events = list(events)
        self._together = together
        self.error = error
        self.decision: Any = None
        self.closed = 0
        self.load_s = 0.0

    async def __anext__(self) -> Event:
        await asyncio.sleep(0)
        return self._events.pop(0)

    def ready(self) -> list[Event]:
        if not self._together:
            return []
        events, self._events = self._events, []
        return events

    def headers(self) -> Mapping[str, str]:
        return {"X-Serai-Model": "m@1.0.0"}

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class Kitchen:
    """Chats over a serving that makes the task for one version on one engine, and answers by a script."""

    folder: Path
    chats: Chats
    limiter: Limiter
    version: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "openvino-genai"
    events: list[Event] = field(default_factory=lambda: [DONE])
    calls: list[Call] = field(default_factory=list)
    tasks: list[AnyTask] = field(default_factory=list)
    answer: Scripted | None = None
    refusal: SeraiError | None = None

    async def open(self, call: Call) -> Scripted:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(call)
        version = a_version(**{"source": HubSource(repo="a/b"), **self.version})
        candidate = a_snapshot(version).models["m"].candidates["1.0.0"]
        engine = CATALOGUE[self.engine]
        made = call.task(candidate, engine)
        self.tasks.append(made if not asyncio.iscoroutine(made) else await made)
        self.answer = Scripted(self.events)
        return self.answer

    def locate(self, version: Any) -> Path:
        return self.folder

    async def ask(self, *messages: Message, **values: Any) -> tuple[Gathered, Ending]:
        ask = Ask(**{"model": "m", "messages": messages or HELLO, **values})
        return await gather(await self.chats.open(ask, NOBODY_ASKED))

    @property
    def task(self) -> Any:
        return self.tasks[-1]


@pytest.fixture
async def kitchen(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Kitchen]:
    clock = ManualClock()
    numbers = itertools.count()
    renderer, decoder = Renderer(clock=clock), Decoder()
    outbound = Outbound(clock=clock)
    limits = Defaults(per_minute=1000, per_hour=1000, tokens_per_minute=1000, address_per_minute=1000)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    made = Kitchen(folder=tmp_path, chats=SimpleNamespace(), limiter=Limiter(limits, clock))  # type: ignore[arg-type]
    made.chats = Chats(
        serving=made,
        weights=made,  # type: ignore[arg-type]
        render=renderer.render,
        pictures=Pictures(outbound, decoder),
        limiter=made.limiter,
        clock=clock,
        new_id=lambda prefix: f"{prefix}_{next(numbers)}",
    )
    yield made
    await renderer.aclose()
    await decoder.aclose()
    await outbound.aclose()


def said(*words: str, index: int = 0) -> list[Event]:
    return [*(Text(delta=word, index=index) for word in words), DONE]


async def test_an_engine_gets_the_rendered_template(kitchen: Kitchen) -> None:
    """With its special tokens, the sampling, and a cache of its owner's own."""
    kitchen.version = {"parameters": {"temperature": Parameter(default=0.6)}}
    kitchen.events = said("Hi", "!")
    gathered, ending = await kitchen.ask(given={"max_tokens": 5}, fallback={"temperature": 0.8, "top_k": 40})
    assert isinstance(kitchen.task, Generate)
    assert kitchen.task.prompt == "<s><user>Hello<assistant>"
    assert kitchen.task.has_special_tokens
    assert (kitchen.task.sampling.temperature, kitchen.task.sampling.top_k, kitchen.task.sampling.max_tokens) == (
        0.6,
        40,
        5,
    )
    assert kitchen.task.cache_key == NOBODY_ASKED.user_id
    assert gathered.choices[0].content == "Hi!"
    assert (ending.prompt_tokens, ending.completion_tokens, ending.cached_tokens) == (3, 2, 1)
    assert (ending.prompt_s, ending.generation_s, ending.finish_reasons) == (0.5, 1.5, ("stop",))


async def test_another_server_gets_the_messages_as_they_are(kitchen: Kitchen) -> None:
    """Its template is its own, and so are its defaults; tools, choice and form go along."""
    kitchen.engine = "remote"
    kitchen.version = {"source": RemoteSource(endpoint="https://x.test/v1", model="y")}
    tools = tools_of(TOOLS, {"type": "function", "function": {"name": "f"}})
    await kitchen.ask(tools=tools, fallback={"top_k": 40}, response_format={"type": "json_object"})
    assert kitchen.task == Chat(
        messages=({"role": "user", "content": "Hello"},),
        tools=tuple(TOOLS),
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_object"},
    )


async def test_calls_of_another_server_become_calls_of_ours(kitchen: Kitchen) -> None:
    """Those that come with its end, for each answer; its reasoning too."""
    kitchen.engine = "remote"
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"finish_reasons": ["tool_calls"], "tool_calls": [[call]], "reasoning": ["Hm"], "usage": None}
    kitchen.events = [Done(result=result)]
    gathered, ending = await kitchen.ask(tools=tools_of(TOOLS))
    assert gathered.choices[0].tool_calls == [ToolCall(id="x", name="f", arguments="{}")]
    assert gathered.choices[0].thought == "Hm"
    assert ending.finish_reasons == ("tool_calls",)


async def test_calls_and_reasoning_are_taken_out_of_the_text(kitchen: Kitchen) -> None:
    """And the reason that an answer ended is true."""
    kitchen.version = {"capabilities": ("thinking", "tools")}
    kitchen.events = said(
        "<think>", "\nHm\n</th", "ink>\n\n", "<tool_call>\n{", '"name": "f", "arguments": {}}', "\n</tool_call>"
    )
    gathered, ending = await kitchen.ask(tools=tools_of(TOOLS))
    assert '"name": "f"' in kitchen.task.prompt
    assert gathered.choices[0].thought == "Hm"
    assert gathered.choices[0].content == ""
    assert gathered.choices[0].tool_calls == [ToolCall(id="call_0", name="f", arguments="{}")]
    assert ending.finish_reasons == ("tool_calls",)


async def test_a_choice_of_none_hides_the_tools(kitchen: Kitchen) -> None:
    """The model is told of none, and what looks like a call is text."""
    kitchen.events = said('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    gathered, _ = await kitchen.ask(tools=tools_of(TOOLS, "none"))
    assert "tool_call" not in kitchen.task.prompt
    assert gathered.choices[0].content.startswith("<tool_call>")


async def test_a_forced_call_needs_an_engine_with_grammars(kitchen: Kitchen) -> None:
    """Where there is one, its answer is read as a call; where there is none, the field is named."""
    kitchen.events = said('{"name": "f",', ' "arguments": {"a": 1}}')
    gathered, _ = await kitchen.ask(tools=tools_of(TOOLS, "required"))
    assert kitchen.task.sampling.grammar is not None
    assert kitchen.calls[-1].needs == {"grammar"}
    assert gathered.choices[0].tool_calls[0].arguments == '{"a":1}'
    kitchen.engine = "transformers"
    with pytest.raises(CannotDo, match="tool_choice"):
        await kitchen.ask(tools=tools_of(TOOLS, "required"))


@pytest.mark.parametrize(
    ("values", "field_name"),
    [
        ({"given": {"logit_bias": {1: 1.0}}}, "logit_bias"),
        ({"given": {"logprobs": 2}}, "top_logprobs"),
        ({"think": True}, "reasoning"),
        ({"think": True, "names": {"think": "effort"}}, "effort"),
    ],
)
async def test_what_a_version_cannot_do_is_refused_by_field(
    kitchen: Kitchen, values: dict[str, Any], field_name: str
) -> None:
    """With the name that the dialect gives to it."""
    with pytest.raises(CannotDo, match=field_name.replace("reasoning", "think")):
        await kitchen.ask(**values)


async def test_servings_own_refusals_are_told_in_the_callers_words(kitchen: Kitchen) -> None:
    """A capability becomes the field that asked for it; what is nobody's field stays as it is."""
    form = {"response_format": {"type": "json_object"}, "names": {"response_format": "format"}}
    kitchen.refusal = InvalidInput.at("grammar", "is not possible")
    with pytest.raises(CannotDo, match=r"^format: is not possible"):
        await kitchen.ask(**form)
    kitchen.refusal = InvalidInput.at("model", "is wrong")
    with pytest.raises(InvalidInput, match=r"^model"):
        await kitchen.ask(**form)
    blind = NoCandidate("Nobody.", details=[{"candidate": "m", "why": "it cannot do vision"}])
    kitchen.refusal = blind
    with pytest.raises(NoCandidate):
        await kitchen.ask()
    with pytest.raises(CannotDo, match="messages"):
        await kitchen.ask(Message(role="user", parts=(Picture(data=PNG),)))


async def test_a_picture_is_looked_at_before_anybody_is_asked(kitchen: Kitchen) -> None:
    """Its content says what it is; it goes to a server that can see, and asks for that capability."""
    kitchen.engine = "remote"
    kitchen.version = {"capabilities": ("vision",)}
    await kitchen.ask(Message(role="user", parts=("What?", Picture(data=PNG))))
    (message,) = kitchen.task.messages
    assert message["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert kitchen.calls[-1].request.capabilities == {"vision"}
    with pytest.raises(UnsupportedMedia):
        await kitchen.ask(Message(role="user", parts=(Picture(data=b"nothing of the kind"),)))
    kitchen.engine = "openvino-genai"
    with pytest.raises(CannotDo, match="takes none"):
        await kitchen.ask(Message(role="user", parts=(Picture(data=PNG),)))


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "http://169.254.169.254/latest", "http://[::1]/"])
async def test_a_picture_is_not_fetched_from_inside(kitchen: Kitchen, url: str) -> None:
    """The guard of the way out says no, and nobody is asked."""
    from serai.chat.messages import from_openai

    with pytest.raises(OutboundRefused):
        await kitchen.ask(*from_openai([{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]))
    assert kitchen.calls == []


async def test_a_prompt_goes_as_it_stands(kitchen: Kitchen) -> None:
    """Without a template, and the tokenizer adds what it would add to any text."""
    await kitchen.ask(messages=(), prompt="Once upon")
    assert (kitchen.task.prompt, kitchen.task.has_special_tokens) == ("Once upon", False)


async def test_a_model_without_a_template_gets_the_plain_format(kitchen: Kitchen) -> None:
    """And stops where the next speaker would begin, besides the caller's own stops."""
    (kitchen.folder / "chat_template.jinja").unlink()
    await kitchen.ask(given={"stop": ("x",)})
    assert kitchen.task.prompt == "User: Hello\nAssistant:"
    assert kitchen.task.sampling.stop == ("x", "\nUser:", "\nSystem:")
    assert not kitchen.task.has_special_tokens


async def test_a_failure_is_the_end_with_what_was_said(kitchen: Kitchen) -> None:
    """A timeout is one of its own; both count what was generated."""
    for failed, reason in ((DeadlineExceeded("Late."), "timeout"), (EngineFailed("Broken."), "error")):
        kitchen.events = [Text(delta="a"), Text(delta="b"), Failed.of(failed)]
        gathered, ending = await kitchen.ask()
        assert (gathered.choices[0].content, ending.finish_reasons, ending.completion_tokens) == ("ab", (reason,), 2)
        assert type(ending.error) is type(failed)


@pytest.mark.parametrize(("asked", "field"), [({}, "messages"), ({"prompt": "Hello", "messages": ()}, "prompt")])
async def test_a_prompt_that_is_too_long_names_the_field_of_the_caller(
    kitchen: Kitchen, asked: dict[str, Any], field: str
) -> None:
    """The engine knows a prompt alone; who sent messages is told of those, with the figures."""
    too_long = [{"field": "prompt", "problem": "too long", "tokens": 9, "context": 8}]
    kitchen.events = [Failed.of(InvalidInput("The prompt has 9 tokens.", details=too_long))]
    _, ending = await kitchen.ask(**asked)
    assert isinstance(ending.error, InvalidInput)
    assert ending.error.details == [{**too_long[0], "field": field}]


async def test_what_failed_without_a_word_is_raised_before_a_stream_opens(kitchen: Kitchen) -> None:
    """So that it becomes a status; what has begun is told in band."""
    for events, raises in (
        ([Failed.of(EngineFailed("No."))], True),
        ([Text(delta="a"), Failed.of(EngineFailed("No."))], False),
    ):
        kitchen.events = events
        reply = await kitchen.chats.open(Ask(model="m", messages=HELLO), NOBODY_ASKED)
        assert kitchen.answer is not None
        kitchen.answer._together = True
        if raises:
            with pytest.raises(EngineFailed):
                await reply.started(1)
        else:
            await reply.started(1)
            assert await anext(reply) == [Text(delta="a")]
            assert reply.ending is not None
        await reply.aclose()


async def test_tokens_are_spent_once_however_it_ends(kitchen: Kitchen) -> None:
    """What was used by an answer to its end, or what was told of one that was left."""
    spent: list[int] = []

    async def spend(caller: Any, tokens: int) -> None:
        spent.append(tokens)

    kitchen.limiter.spend_tokens = spend  # type: ignore[method-assign]
    kitchen.events = said("a", "b")
    await kitchen.ask()
    reply = await kitchen.chats.open(Ask(model="m", messages=HELLO), NOBODY_ASKED)
    await anext(reply)
    await reply.aclose()
    await reply.aclose()
    assert spent == [5, 1]
    assert kitchen.answer is not None
    assert kitchen.answer.closed == 2


async def test_waiting_is_told_only_to_who_asks(kitchen: Kitchen) -> None:
    """Queue positions and loads; the time of a load is no part of the prompt's."""
    kitchen.events = [Queued(position=1), Loading(model="m", version="1.0.0"), *said("a")]
    for tells, expected in ((False, [Text]), (True, [Queued, Loading, Text])):
        reply = await kitchen.chats.open(Ask(model="m", messages=HELLO), NOBODY_ASKED, tells_waiting=tells)
        assert [type(item) async for items in reply for item in items] == expected


def test_a_timeout_has_bounds() -> None:
    """Nothing said means the longest; zero is an error."""
    assert timeout_of(None) is None
    assert timeout_of(1) == 1.0
    for wrong in (0, 0.9, 601, -5, float("nan"), True, "5"):
        with pytest.raises(InvalidInput, match="1 to 600"):
            timeout_of(wrong)
