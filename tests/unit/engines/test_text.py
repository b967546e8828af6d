"""Tokens become text: whole characters, stop texts cut exactly, likelihoods beside the text they belong to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from serai.engines.text import Answer, Detokenizer, DrawnToken, StopTexts, answer_bound, encode
from serai.errors import InvalidInput
from serai.events import Text

WORDS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_tokenizer() -> Tokenizer:
    """A token per byte: every character but ASCII takes several."""
    made = Tokenizer(
        models.BPE(vocab={word: number for number, word in enumerate(WORDS)}, merges=[], byte_fallback=True)
    )
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return made


TOKENIZER = byte_tokenizer()


def decode(ids: object) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True))  # type: ignore[call-overload]


def answer(stops: tuple[str, ...] = (), max_tokens: int = 1000, *, has_logprobs: bool = False) -> Answer:
    return Answer(
        index=0, decode=decode, stops=stops, end_ids=frozenset({0}), max_tokens=max_tokens, has_logprobs=has_logprobs
    )


def told(made: Answer, data: bytes) -> list[Text]:
    events = [made.push(DrawnToken(id=byte, logprob=-1.0)) for byte in data]
    return [event for event in events if event is not None]


@given(st.text(alphabet=st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=40))
def test_pieces_are_whole_characters_and_make_the_text(text: str) -> None:
    """No piece holds a broken character, and together they are the text."""
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_token() -> None:
    """Nothing is told of the first three bytes of an emoji, all of it with the fourth."""
    detokenizer = Detokenizer(decode)
    assert [detokenizer.push(byte) for byte in "🙂a".encode()] == ["", "", "", "🙂", "a"]


def test_half_a_character_at_the_end_is_not_told() -> None:
    """An answer that is cut within a character ends before it."""
    made = answer(max_tokens=4)
    events = told(made, b"a" + "🙂".encode()[:3])
    assert "".join(event.delta for event in events) == "a"
    assert made.finish_reason == "length"


def test_bytes_that_are_no_text_do_not_hold_the_answer_back_for_ever() -> None:
    """After some tokens without a character, what cannot become one is told as broken."""
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(0xFF) for _ in range(40)]
    assert len("".join(pieces)) >= 30


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "c", "سلام", "🙂"]), max_size=30),
    st.lists(st.sampled_from(["ab", "aab", "bc", "abab", "c🙂", "لام"]), min_size=1, max_size=3),
)
def test_stop_texts_cut_exactly(pieces: list[str], stops: list[str]) -> None:
    """Whatever the pieces, what is let through is the text before the first stop text, and not a letter of it."""
    text = "".join(pieces)
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    watch = StopTexts(stops)
    through = "".join([*[watch.push(piece) for piece in pieces], watch.flush()])
    assert watch.is_hit == bool(ends)
    if not ends:
        assert through == text
        return
    # The first that is complete in the stream counts; another may begin before it and end later.
    assert text.startswith(through)
    assert through == text[: len(through)]
    assert any(text.startswith(stop, len(through)) for stop in stops)
    assert not any(stop in through for stop in stops)


def test_a_stop_text_across_tokens_ends_the_answer() -> None:
    """The answer ends with the token that completes the stop text; later tokens are ignored."""
    made = answer(stops=("END",))
    events = told(made, b"one EN two END three")
    assert "".join(event.delta for event in events) == "one EN two "
    assert made.finish_reason == "stop"
    assert len(made.tokens) == len("one EN two END")


def test_what_looked_like_a_stop_text_is_told_at_the_end() -> None:
    """Text that was held back as the beginning of a stop text comes when nothing came of it."""
    made = answer(stops=("END",), max_tokens=5)
    assert "".join(event.delta for event in told(made, b"ab EN")) == "ab EN"
    assert made.finish_reason == "length"


def test_an_end_token_is_counted_and_not_told() -> None:
    """The token that ends an answer is one of its tokens, and no text."""
    made = answer()
    assert "".join(event.delta for event in told(made, b"ab\x00c")) == "ab"
    assert (made.finish_reason, len(made.tokens)) == ("stop", 3)


def test_likelihoods_come_with_the_text_of_their_tokens() -> None:
    """Each token that was drawn has its likelihood told once, none for what a stop text cut off."""
    made = answer(stops=("xy",), has_logprobs=True)
    events = told(made, "aé".encode() + b"bxyz")
    entries = [(event.delta, len(event.logprobs)) for event in events if isinstance(event.logprobs, list)]
    assert entries == [("a", 1), ("é", 2), ("b", 1)]


def test_a_prompt_without_room_is_refused_with_both_figures() -> None:
    """The error says how long the prompt is and how much the context holds."""
    assert answer_bound(prompt_tokens=10, context_tokens=16, max_tokens=None) == 6
    assert answer_bound(prompt_tokens=10, context_tokens=16, max_tokens=3) == 3
    with pytest.raises(InvalidInput) as caught:
        answer_bound(prompt_tokens=16, context_tokens=16, max_tokens=1)
    assert "16" in caught.value.message


def test_a_prompt_that_is_nothing_or_unknown_to_the_model_is_refused() -> None:
    """Neither reaches the model: GenAI would read beyond its table."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    assert encode(made, "a", has_special_tokens=True, vocabulary=5) == [0]
    for prompt in ("", "b"):
        with pytest.raises(InvalidInput):
            encode(made, prompt, has_special_tokens=True, vocabulary=5)
