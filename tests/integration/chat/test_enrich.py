"""Prompts written out: by whom, in which style, and what is said where nobody can."""

from typing import Any

import pytest

from serai.auth.callers import NOBODY_ASKED
from serai.chat.enrich import MAX_PROMPT, STYLES, Enriched, enrich
from serai.chat.errors import NoEnricher
from serai.errors import EngineFailed, InvalidInput
from serai.registry import bindings
from serai.registry.errors import ModelNotFound
from support.chat_stage import ChatStage

pytestmark = pytest.mark.anyio


async def written(chats: ChatStage, prompt: str = "a red fox", style: Any = "cinematic", **values: Any) -> Enriched:
    parts = chats.parts
    snapshot = await parts.registry.current()
    return await enrich(parts.chats, parts.serving, snapshot, prompt=prompt, style=style, caller=NOBODY_ASKED, **values)


async def test_each_style_has_its_own_words(chats: ChatStage) -> None:
    """The model is told the style and given the prompt; who answered is told."""
    chats.model("talker")
    told = {style: await written(chats, style=style, model="talker") for style in STYLES}
    assert len({one.prompt for one in told.values()}) == len(STYLES) == 7
    for style, one in told.items():
        assert (one.style, one.model, one.version) == (style, "talker", "1.0.0")
        assert "a red fox" in one.prompt
        assert "\n" not in one.prompt
        assert one.headers["X-Serai-Model"] == "talker@1.0.0"


async def test_without_a_chat_service_it_says_so(chats: ChatStage) -> None:
    """A model that is not in memory is not loaded unasked; once it is, it writes."""
    chats.model("talker")
    with pytest.raises(NoEnricher, match="no chat service") as refused:
        await written(chats)
    assert refused.value.hint is not None
    assert "POST /services" in refused.value.hint
    await chats.parts.serving.preload("talker", timeout_s=60)
    assert (await written(chats)).model == "talker"


@pytest.mark.parametrize("tag", ["starter", "base"])
async def test_a_model_that_follows_no_instructions_writes_only_by_name(chats: ChatStage, tag: str) -> None:
    """Its answer would be no prompt; in memory or behind a service it is passed over."""
    chats.model("guide", tags=(tag,))
    chats.stage.service("guide", id_="talk")
    await chats.parts.serving.preload("guide", timeout_s=60)
    with pytest.raises(NoEnricher, match="no chat service"):
        await written(chats)
    assert (await written(chats, model="guide")).model == "guide"
    chats.model("talker")
    await chats.parts.serving.preload("talker", timeout_s=60)
    assert (await written(chats)).model == "talker"


async def test_a_chat_service_writes_the_one_in_memory_first(chats: ChatStage) -> None:
    """In the order of their ids otherwise; one that cannot answer is passed over."""
    for id_ in ("one", "two"):
        chats.model(id_)
        chats.stage.service(id_, id_=f"talk-{id_}")
    chats.stage.service("one", id_="a-broken-one")
    assert (await written(chats)).model == "one"
    await chats.parts.serving.unload("one")
    await chats.parts.serving.preload("two", timeout_s=60)
    assert (await written(chats)).model == "two"


async def test_what_a_caller_gets_wrong_is_told(chats: ChatStage) -> None:
    """An unknown style or model, an empty prompt, one that is too long."""
    chats.model("talker")
    for wrong in ({"style": "baroque"}, {"prompt": "  "}, {"prompt": "x" * (MAX_PROMPT + 1)}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            await written(chats, model="talker", **wrong)
    with pytest.raises(ModelNotFound):
        await written(chats, model="nobody")


async def test_a_failure_of_the_writer_is_told(chats: ChatStage) -> None:
    """As it is told to a chat."""
    chats.model("breaks", fail="run")
    with pytest.raises(EngineFailed):
        await written(chats, model="breaks")


async def test_where_a_service_fails_the_next_one_writes(chats: ChatStage) -> None:
    """One that cannot load, and one that breaks off; when all fail, each of them is named with why."""
    for id_, fail in (("a", "load"), ("b", "run"), ("c", "")):
        chats.model(id_, **({"fail": fail} if fail else {}))
        chats.stage.service(id_, id_=f"talk-{id_}")
    assert (await written(chats)).model == "c"
    chats.stage.desk.do(bindings.delete_service, "talk-c")
    with pytest.raises(NoEnricher, match=r"talk-b: .+") as refused:
        await written(chats)
    assert isinstance(refused.value.details, list)
    assert {entry["candidate"] for entry in refused.value.details} >= {"talk-b"}


async def test_what_is_written_is_a_prompt(chats: ChatStage) -> None:
    """On one line, without quotation marks around it, and never over the bound."""
    chats.model("long", tokens=3000)
    found = await written(chats, prompt='say "yes" ' * 300, model="long")
    assert len(found.prompt) <= MAX_PROMPT
