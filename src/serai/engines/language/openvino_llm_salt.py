"""Keeping one owner's cached prefixes from another's.

GenAI finds cached keys and values by a hash of the tokens up to a place, and of nothing else, so a prompt of
one owner would be answered faster because another sent it before: it could be guessed. Our exporter makes
networks that ignore the upper bits of a token's id. Every owner gets a number, and the first tokens of
a prompt carry it in those bits: the hash of each block includes that of the blocks before it, so nothing is
found across owners, while the network computes the same. Networks from elsewhere run without the cache.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from hashlib import blake2b

BLOCK_TOKENS = 32
"""Tokens in a block of GenAI's cache on CPUs."""
_ID_BITS = 31
"""OpenVINO's CPU plugin computes ids as int32."""
_CARRIERS = 3
"""How many tokens carry the number."""
_MAX_OWNERS = 4096


class Salt:
    """Numbers owners and marks their prompts. An owner who comes back after many others gets a new number."""

    def __init__(self, salt_bits: int) -> None:
        self._bits = salt_bits
        self._width = _ID_BITS - salt_bits
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._last = 0

    def mark(self, ids: Sequence[int], owner: str) -> list[int]:
        """Return the ids with the owner's number in their upper bits; '' is nobody, who shares with nobody.

        A prompt of one or two tokens carries what fits: with thousands of owners two may then share a block
        of that length, of which GenAI computes the last token anew anyway.
        """
        number = self._number(owner)
        marked = list(ids)
        for place in range(min(_CARRIERS, len(marked))):
            digit = (number >> (place * self._width)) & ((1 << self._width) - 1)
            marked[place] |= digit << self._bits
        return marked

    def _number(self, owner: str) -> int:
        known = self._numbers.pop(owner, None) if owner else None
        if known is None:
            self._last += 1
            known = self._last
        if owner:
            self._numbers[owner] = known
            if len(self._numbers) > _MAX_OWNERS:
                self._numbers.popitem(last=False)
        return known


class CachedPrefixes:
    """How many tokens of a prompt are surely in the cache: a lower bound, for GenAI does not tell.

    A block stays until all others that were used before it are overwritten; so what was finished less than
    the cache's number of blocks ago is still there.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._used: OrderedDict[Hashable, None] = OrderedDict()
        self._anonymous = 0

    def count(self, ids: Sequence[int]) -> int:
        """Return how many of the first tokens are cached: whole blocks, and never the whole prompt."""
        hits = 0
        for key in _keys(ids[: len(ids) - 1]):
            if key not in self._used:
                break
            hits += 1
        return hits * BLOCK_TOKENS

    def occupy(self, tokens: int) -> None:
        """A run takes blocks; they may push out others, and are not themselves counted on."""
        for _ in range(-(-tokens // BLOCK_TOKENS) + 1):
            self._anonymous += 1
            self._touch(self._anonymous)

    def keep(self, ids: Sequence[int]) -> None:
        """A run has ended whose tokens were all computed but the last."""
        for key in reversed(_keys(ids[:-1])):
            self._touch(key)

    def _touch(self, key: Hashable) -> None:
        self._used.pop(key, None)
        self._used[key] = None
        while len(self._used) > self._blocks:
            self._used.popitem(last=False)


def _keys(ids: Sequence[int]) -> list[Hashable]:
    """Return a key for each whole block, which includes all before it."""
    keys: list[Hashable] = []
    key = b""
    for end in range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS):
        block = b"".join(one.to_bytes(8, "little") for one in ids[end - BLOCK_TOKENS : end])
        key = blake2b(key + block, digest_size=16).digest()
        keys.append(key)
    return keys
