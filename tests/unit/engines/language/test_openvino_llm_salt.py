"""One owner's prompts look different from another's to the cache, and the same to the network."""

from hypothesis import given
from hypothesis import strategies as st

from serai.engines.language.openvino_llm_salt import BLOCK_TOKENS, CachedPrefixes, Salt

BITS = 18  # of a vocabulary of 151,936
IDS = st.lists(st.integers(0, (1 << BITS) - 1), min_size=3, max_size=80)


@given(IDS, st.lists(st.text(max_size=3), min_size=1, max_size=20))
def test_the_network_sees_the_same_and_the_cache_does_not(ids: list[int], owners: list[str]) -> None:
    """Low bits stay; the first tokens differ for any two owners, and are the same for one; nobody is alone."""
    salt = Salt(BITS)
    marked = [(owner, salt.mark(ids, owner)) for owner in owners]
    for one, first in marked:
        assert [token & ((1 << BITS) - 1) for token in first] == ids
        assert max(first) < 1 << 31
        for other, second in marked:
            if one and one == other:
                assert first == second
            elif first is not second:
                assert first[:3] != second[:3]


def test_no_mark_is_the_plain_prompt() -> None:
    """What was computed without a mark, as at the warm-up, is found by nobody."""
    salt = Salt(BITS)
    assert all(salt.mark([1, 2, 3], f"owner {number}") != [1, 2, 3] for number in range(5000))


def test_marks_stay_different_with_many_owners() -> None:
    """Numbers are not used again, also when owners were forgotten in between."""
    salt = Salt(BITS)
    marks = {tuple(salt.mark([5, 5, 5], f"owner {number}")) for number in range(20_000)}
    assert len(marks) == 20_000


def test_whole_blocks_that_were_kept_count_but_never_the_last_token() -> None:
    """The count is of blocks, and one token is always computed."""
    cached = CachedPrefixes(100)
    ids = list(range(5 * BLOCK_TOKENS))
    assert cached.count(ids) == 0
    cached.keep([*ids, 7])
    assert cached.count(ids) == 4 * BLOCK_TOKENS
    assert cached.count([*ids, 1, 2]) == 5 * BLOCK_TOKENS
    assert cached.count([99, *ids[1:]]) == 0


def test_what_may_have_been_overwritten_does_not_count() -> None:
    """The count is a lower bound: as many blocks as there are, taken since, end it."""
    cached = CachedPrefixes(10)
    ids = list(range(3 * BLOCK_TOKENS + 1))
    cached.keep([*ids, 7])
    cached.occupy(3 * BLOCK_TOKENS)
    assert cached.count(ids) == 3 * BLOCK_TOKENS
    cached.occupy(6 * BLOCK_TOKENS)
    assert cached.count(ids) < 3 * BLOCK_TOKENS
