"""What a model writes is taken apart the same way however it is cut, and nothing is held back without need."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.chat.messages import ToolCall
from serai.chat.output import Form, Parser, Piece, Said, Thought

PLAIN = Form()
THINKS = Form(thinks=True)
HERMES = Form(tools="hermes")
LLAMA = Form(tools="llama")
BOTH = Form(thinks=True, tools="hermes")
THINKING = Form(thinks=True, is_thinking=True)
CALLING = Form(tools="hermes", is_calling=True)

Read = tuple[str, str, list[tuple[str, str]]]

CASES: list[tuple[Form, str, Read]] = [
    (PLAIN, "a <think>b</think> <tool_call>{}</tool_call>", ("a <think>b</think> <tool_call>{}</tool_call>", "", [])),
    (THINKS, "<think>\nHm.\n\nYes.\n</think>\n\nHello\n", ("Hello\n", "Hm.\n\nYes.", [])),
    (THINKS, "\n<think>Hm</think>x</think>", ("x</think>", "Hm", [])),
    (THINKS, "Hello <think> there", ("Hello <think> there", "", [])),
    (THINKS, "<think>without an end", ("", "without an end", [])),
    (THINKS, "<thin", ("<thin", "", [])),
    (THINKS, " <b>", (" <b>", "", [])),
    (THINKING, "Hm\n</think>\n\nHello", ("Hello", "Hm", [])),
    (HERMES, 'Let me look.\n<tool_call>\n{"name": "f", "arguments": {"a": "</x>"}}\n</tool_call>',
     ("Let me look.", "", [("f", '{"a":"</x>"}')])),
    (HERMES,
     '<tool_call>{"name":"f","arguments":{}}</tool_call>\n<tool_call>{"name":"g","arguments":{"n":1}}</tool_call>',
     ("", "", [("f", "{}"), ("g", '{"n":1}')])),
    (HERMES, "<tool_call>no json</tool_call> and on", ("<tool_call>no json</tool_call> and on", "", [])),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}}', ("", "", [("f", '{"a":1}')])),
    (HERMES, "a < b and <tool", ("a < b and <tool", "", [])),
    (HERMES, "ends with white space \n", ("ends with white space \n", "", [])),
    (BOTH, '<think>\nA call.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
     ("", "A call.", [("f", "{}")])),
    (CALLING, '{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ("", "", [("f", '{"a":1}')])),
    (LLAMA, '{"name": "f", "parameters": {"a": "}"}}', ("", "", [("f", '{"a":"}"}')])),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
     ("", "", [("f", "{}"), ("g", "{}")])),
    (LLAMA, '{"answer": 42}', ('{"answer": 42}', "", [])),
    (LLAMA, "Just words {", ("Just words {", "", [])),
    (HERMES, '<tool_call>__import__("os").system("id")</tool_call>',
     ('<tool_call>__import__("os").system("id")</tool_call>', "", [])),
    (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
     ('<tool_call>{"name": 7, "arguments": {}}</tool_call>', "", [])),
]  # fmt: skip


def read(pieces: list[Piece]) -> Read:
    said = "".join(piece.text for piece in pieces if isinstance(piece, Said))
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    return said, thought, [(piece.name, piece.arguments) for piece in pieces if isinstance(piece, ToolCall)]


def parsed(form: Form, texts: list[str]) -> Read:
    numbers = itertools.count()
    parser = Parser(form, lambda prefix: f"{prefix}_{next(numbers)}")
    return read([piece for text in texts for piece in parser.feed(text)] + parser.finish())


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_an_answer_is_taken_apart_however_it_is_cut(form: Form, text: str, expected: Read) -> None:
    """One character at a time, in pieces of every length, and whole."""
    for size in range(1, len(text) + 1):
        assert parsed(form, [text[at : at + size] for at in range(0, len(text), size)]) == expected, size


MARKS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "<",
    ">",
    "\n",
    " ",
    "{",
    "}",
    '"',
    "a",
]
CALL = '<tool_call>\n{"name": "f", "arguments": {"q": "<tool_call>"}}\n</tool_call>'


@given(
    st.sampled_from([THINKS, HERMES, LLAMA, BOTH, THINKING, CALLING]),
    st.lists(st.sampled_from([*MARKS, CALL]), max_size=12).map("".join),
    st.data(),
)
def test_any_text_means_the_same_however_it_is_cut(form: Form, text: str, data: st.DataObject) -> None:
    """Marks in any order, cut anywhere: the pieces add up to what the whole text gives."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    assert parsed(form, [text[a:b] for a, b in itertools.pairwise(edges)]) == parsed(form, [text])


def test_words_are_told_at_once() -> None:
    """Only what may be the beginning of a mark waits, and no longer than until that is clear."""
    parser = Parser(BOTH, lambda prefix: prefix)
    assert parser.feed("Hello") == [Said("Hello")]
    assert parser.feed(" world. 1 <") == [Said(" world. 1")]
    assert parser.feed("2") == [Said(" <2")]
    assert parser.feed("<tool") == []
    assert parser.feed("s>") == [Said("<tools>")]


def test_calls_have_ids_of_their_own() -> None:
    """Each call gets a fresh id, which the client sends back with the result."""
    numbers = itertools.count()
    parser = Parser(HERMES, lambda prefix: f"{prefix}_{next(numbers)}")
    calls = parser.feed(CALL + CALL)
    assert [call.id for call in calls if isinstance(call, ToolCall)] == ["call_0", "call_1"]


def test_a_call_without_an_end_does_not_wait_for_ever() -> None:
    """A body of a million characters is told as text."""
    parser = Parser(HERMES, lambda prefix: prefix)
    pieces = parser.feed("<tool_call>" + "x" * 1_000_001)
    assert read(pieces)[0].startswith("<tool_call>xxx")
