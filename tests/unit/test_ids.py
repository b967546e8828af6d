"""Ids: their form, their order, and that they do not repeat."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.ids import encode_ulid, is_id, new_id

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
moments = st.integers(0, 2**48 - 1)
chances = st.integers(0, 2**80 - 1)


def decode(ulid: str) -> tuple[int, int]:
    value = 0
    for character in ulid:
        value = value * 32 + ALPHABET.index(character)
    return value >> 80, value & (2**80 - 1)


@given(moments, chances)
def test_a_ulid_holds_its_time_and_its_chance(milliseconds: int, randomness: int) -> None:
    """26 characters of Crockford's alphabet, from which both numbers come back."""
    ulid = encode_ulid(milliseconds, randomness)
    assert len(ulid) == 26
    assert decode(ulid) == (milliseconds, randomness)


@given(st.tuples(moments, chances), st.tuples(moments, chances))
def test_ids_sort_by_their_time(one: tuple[int, int], other: tuple[int, int]) -> None:
    """The order of the texts is the order of the numbers."""
    assert (encode_ulid(*one) < encode_ulid(*other)) == (one < other)


def test_the_specifications_own_example() -> None:
    """The ULID specification's example, in lower case."""
    assert encode_ulid(1469918176385, 0)[:10] == "01ARYZ6S41".lower()


def test_ids_do_not_repeat() -> None:
    """Ten thousand made in one go differ."""
    assert len({new_id("job") for _ in range(10_000)}) == 10_000


def test_threads_and_forks_do_not_repeat_each_other() -> None:
    """Not the random part, which is drawn for many ids at once, either."""
    forks = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=forks) as processes, ThreadPoolExecutor(4) as threads:
        made = [new_id("job")]
        for pool in (processes, threads):
            for ids in pool.map(several, [1000] * 4):
                made += ids
    made += several(1000)
    chances_of = {decode(one.removeprefix("job_"))[1] for one in made}
    assert len(chances_of) == len(made) == 9001


def several(count: int) -> list[str]:
    return [new_id("job") for _ in range(count)]


def test_an_id_tells_its_kind_and_when_it_was_made() -> None:
    """The prefix is the kind; the time is that of the call, to the millisecond."""
    before = time.time_ns() // 1_000_000
    made = new_id("user")
    after = time.time_ns() // 1_000_000
    assert is_id(made, "user")
    assert before <= decode(made.removeprefix("user_"))[0] <= after


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job_",
        "01k0000000000000000000000a",
        "job_01k0000000000000000000000",
        "job_01k000000000000000000000000",
        "job_01K000000000000000000000AB",
        "job_01k00000000000000000000i00",
        "job_01k00000000000000000000l00",
        "job_01k00000000000000000000o00",
        "job_01k00000000000000000000u00",
        "job_01k00000000000000000000a00\n",
        "job_../../../../../../../etc/p",
        "jobs_01k00000000000000000000a00",
        "Job_01k00000000000000000000a00",
    ],
)
def test_what_does_not_look_like_an_id_is_none(text: str) -> None:
    """Another kind, length, alphabet or case, and anything that could be a path."""
    assert not is_id(text, "job")


@given(st.text(max_size=40))
def test_no_text_passes_by_chance(text: str) -> None:
    """What passes holds letters, digits and one underscore only."""
    if is_id(text, "job"):
        assert set(text) <= set(ALPHABET + "job_")
