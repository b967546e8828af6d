"""Chat templates are rendered as transformers renders them, and a hostile one harms nobody."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from serai.chat.errors import RendererUnavailable, TemplateFailed
from serai.chat.rendering.renderer import QUARANTINE_SECONDS, Renderer
from serai.clock import ManualClock

pytestmark = pytest.mark.anyio

MESSAGES = [
    {"role": "system", "content": "You are <kind> & quick."},
    {"role": "user", "content": "سلام 🙂"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, None, "x"]}}}],
    },
    {"role": "tool", "content": "42"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == "user" %}
        {%- set ns.seen = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "trimmed blocks": "  {% for m in messages %}\n    {{ m.role }}\n  {% endfor %}\nend",
    "json": "{{ messages | tojson }}|{{ tools | tojson(indent=2) }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "macros": "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(bos_token) }}{{ dict(a=1).items() | list }}",
}

HOSTILE = {
    "a range without end": "{% for i in range(10**12) %}x{% endfor %}",
    "the way up to object": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "a format string": "{{ '{0.__class__.__mro__}'.format(1) ~ (1).__class__ }}",
    "a namespace's internals": "{% set ns = namespace(__class__=1) %}",
    "an object's code": "{{ raise_exception.__code__.co_consts }}",
    "changing what it is given": "{{ messages.append(1) }}",
    "a text of a gigabyte": "{{ 'a' * 10**9 }}",
    "a format of a gigabyte": "{{ ('%0' ~ 999999999 ~ 'd') % 1 }}",
    "output without end": "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "no template at all": "{% for %}",
    "what is not there": "{{ missing.member.of.it }}",
}
ENDLESS = "".join(f"{{% for {name} in range(99999) %}}" for name in "ijk") + "{% endfor %}" * 3
POWER = "{{ 9 ** (9 ** 7) }}"


@pytest.fixture
async def renderer(anyio_backend: str) -> AsyncIterator[Renderer]:
    made = Renderer(clock=ManualClock())
    yield made
    await made.aclose()


@pytest.fixture
async def hasty(anyio_backend: str) -> AsyncIterator[tuple[Renderer, ManualClock]]:
    """A renderer that gives a template half a second, and its clock."""
    clock = ManualClock()
    made = Renderer(clock=clock, timeout_s=0.5)
    yield made, clock
    await made.aclose()


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_template_gives_what_it_gives_in_transformers(renderer: Renderer, name: str) -> None:
    """Character for character, with tools, special tokens and options."""
    source = TEMPLATES[name]
    extra = {"bos_token": "<s>", "enable_thinking": False}
    (expected,), _ = render_jinja_template(
        [MESSAGES], tools=TOOLS, chat_template=source, add_generation_prompt=True, **extra
    )
    context = {"messages": MESSAGES, "tools": TOOLS, "add_generation_prompt": True, **extra}
    assert await renderer.render(source, context) == expected


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_template_is_refused_and_the_next_one_works(renderer: Renderer, name: str) -> None:
    """Whatever it tries, it gets a clear error that tells nothing of the machine, in the same process."""
    before = await renderer.render("{{ 1 + 1 }}", {}), renderer.pid
    with pytest.raises(TemplateFailed) as refused:
        await renderer.render(HOSTILE[name], {"messages": MESSAGES})
    assert "/" not in refused.value.message.replace("'/etc/passwd'", "")
    assert "0x" not in refused.value.message
    assert (await renderer.render("{{ 1 + 1 }}", {}), renderer.pid) == before


@pytest.mark.parametrize("source", [ENDLESS, POWER], ids=["loops", "a power"])
async def test_a_template_that_goes_on_for_ever_is_killed(hasty: tuple[Renderer, ManualClock], source: str) -> None:
    """Its process dies, others are rendered in a new one, and it is refused at once for a while."""
    renderer, clock = hasty
    await renderer.render("{{ 1 }}", {})
    first = renderer.pid
    with pytest.raises(TemplateFailed, match="takes longer"):
        await renderer.render(source, {})
    assert await renderer.render("{{ 2 }}", {}) == "2"
    second = renderer.pid
    assert first != second
    with pytest.raises(TemplateFailed, match="a moment ago"):
        await renderer.render(source, {})
    assert renderer.pid == second
    clock.advance(QUARANTINE_SECONDS)
    with pytest.raises(TemplateFailed, match="takes longer"):
        await renderer.render(source, {})


async def test_a_template_says_what_is_wrong_with_the_messages(renderer: Renderer) -> None:
    """`raise_exception` is the template's word to whoever sent the messages."""
    with pytest.raises(TemplateFailed, match="Roles must alternate"):
        await renderer.render("{{ raise_exception('Roles must alternate') }}", {})


async def test_the_time_is_the_servers(renderer: Renderer) -> None:
    """`strftime_now` reads the clock that the server gave, in local time."""
    expected = ManualClock().now().astimezone().strftime("%d %b %Y")
    assert await renderer.render("{{ strftime_now('%d %b %Y') }}", {}) == expected


async def test_a_child_that_was_killed_is_replaced(renderer: Renderer) -> None:
    """Whoever comes next notices nothing."""
    await renderer.render("{{ 1 }}", {})
    killed = renderer.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert await renderer.render("{{ 2 }}", {}) == "2"
    assert renderer.pid != killed


async def test_a_caller_that_leaves_disturbs_nobody(renderer: Renderer) -> None:
    """Its answer is not taken for the next one's."""
    big = {"messages": [{"role": "user", "content": "x" * 1_000_000}]}
    await renderer.render("{{ 0 }}", {})
    for number in range(20):
        leaving = asyncio.create_task(renderer.render("{{ messages[0].content }}", big))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await renderer.render("{{ n }}", {"n": number}) == str(number)


async def test_many_at_once_get_their_own_text(renderer: Renderer) -> None:
    """Texts of different lengths, rendered one after the other, never mix."""
    texts = [str(number) * (1 + number * 997 % 50_000) for number in range(50)]
    rendered = await asyncio.gather(*(renderer.render("{{ text }}", {"text": text}) for text in texts))
    assert rendered == texts


async def test_a_closed_renderer_starts_nothing() -> None:
    """Its process is gone, and no other comes."""
    renderer = Renderer(clock=ManualClock())
    await renderer.render("{{ 1 }}", {})
    pid = renderer.pid
    assert pid is not None
    await renderer.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RendererUnavailable):
        await renderer.render("{{ 1 }}", {})
