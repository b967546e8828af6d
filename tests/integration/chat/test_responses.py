"""OpenAI's Responses: items, the order of events, and answers that go on from earlier ones."""

import json
from typing import Any

import pytest

from serai.api.openai.response_events import ResponseEvents
from serai.chat.messages import ToolCall
from serai.chat.output import Said, Thought
from serai.chat.reply import Bit
from serai.ids import new_id
from support.chat_stage import ChatStage, data_of

pytestmark = pytest.mark.anyio

TEXT = "User: one two Assistant:"


async def test_a_whole_response(chats: ChatStage) -> None:
    """A message with its text, the usage in this call's words, and a status."""
    chats.model("m")
    body = (await chats.post("/v1/responses", model="m", input="one two", metadata={"a": "b"})).json()
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["metadata"]) == ("response", "completed", {"a": "b"})
    (item,) = body["output"]
    assert (item["type"], item["role"], item["content"][0]["text"]) == ("message", "assistant", TEXT)
    assert (body["usage"]["input_tokens"], body["usage"]["total_tokens"]) == (4, 8)
    cut = (await chats.post("/v1/responses", model="m", input="one two", max_output_tokens=1)).json()
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_the_events_of_a_stream_are_in_order(chats: ChatStage) -> None:
    """Numbered without a gap, named as their type, each item opened and closed."""
    chats.model("m")
    answer = await chats.post("/v1/responses", model="m", input="one two", stream=True)
    events = [json.loads(frame) for frame in data_of(answer.text)]
    names = [line[7:] for line in answer.text.split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert names[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(names[4:-4]) == {"response.output_text.delta"}
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event["delta"] for event in events[4:-4]) == TEXT == events[-4]["text"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert "[DONE]" not in answer.text


async def test_a_failure_in_a_stream_is_its_last_event(chats: ChatStage) -> None:
    """With what was said before it."""
    chats.model("m", fail="run", fail_after=1)
    answer = await chats.post("/v1/responses", model="m", input="one two", stream=True)
    last = json.loads(data_of(answer.text)[-1])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["usage"] is None  # nobody told it
    assert last["response"]["output"][0]["content"][0]["text"] == "User:"


async def test_an_answer_goes_on_from_an_earlier_one(chats: ChatStage) -> None:
    """Its messages come first, without the instructions; it can be read, and deleted."""
    chats.model("m")
    first = (await chats.post("/v1/responses", model="m", input="a", instructions="Kind.")).json()
    second = (await chats.post("/v1/responses", model="m", input="b", previous_response_id=first["id"])).json()
    text = second["output"][0]["content"][0]["text"]
    assert text == "User: a Assistant: Kind. User: a Assistant: User: b Assistant:"
    assert (await chats.client.get(f"/v1/responses/{first['id']}")).json() == first
    items = (await chats.client.get(f"/v1/responses/{second['id']}/input_items")).json()
    assert items["data"] == [{"type": "message", "role": "user", "content": "b"}]
    deleted = await chats.client.delete(f"/v1/responses/{first['id']}")
    assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
    gone = await chats.post("/v1/responses", model="m", input="b", previous_response_id=first["id"])
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "invalid_request_error")
    unkept = (await chats.post("/v1/responses", model="m", input="a", store=False)).json()
    assert (await chats.client.get(f"/v1/responses/{unkept['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": [{"type": "image_generation_call"}]}, "input[0].type"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"temperature": "0.5"}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(chats: ChatStage, fields: dict[str, Any], param: str) -> None:
    """In this call's own words."""
    chats.model("m")
    answer = await chats.post("/v1/responses", **{"model": "m", "input": "x", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/responses/input_tokens", 404),
        ("POST", "/v1/responses/compact", 404),
        ("POST", "/v1/responses/resp_1/cancel", 404),
        ("GET", "/v1/responses/resp_1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("PATCH", "/v1/responses/resp_1", 405),
        ("DELETE", "/v1/models/m", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
    ],
)
async def test_what_is_not_served_is_told_in_the_envelope(
    chats: ChatStage, method: str, path: str, status: int
) -> None:
    """404 for a path that is not served, 405 for a method that it does not know, in OpenAI's form."""
    answer = await chats.client.request(method, path, json={"model": "m"} if method == "POST" else None)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert ("allow" in answer.headers) == (status == 405)


def test_reasoning_words_and_calls_are_items_of_their_own() -> None:
    """Each opened before its deltas and closed after them; indexes count up."""
    events = ResponseEvents(new_id)
    call = ToolCall(id="call_1", name="f", arguments='{"a":1}')
    told = events.batch([Bit(0, Thought("Hm")), Bit(0, Said("Hi")), Bit(0, call), Bit(0, Said("!"))])
    told += b"".join(events.close())
    frames = [json.loads(frame) for frame in data_of(told.decode())]
    assert [item["type"] for item in events.output] == ["reasoning", "message", "function_call", "message"]
    added = [frame["item"]["id"] for frame in frames if frame["type"] == "response.output_item.added"]
    done = [frame["item"] for frame in frames if frame["type"] == "response.output_item.done"]
    assert added == [item["id"] for item in done]
    assert done == events.output
    assert (done[2]["call_id"], done[2]["arguments"]) == ("call_1", '{"a":1}')
