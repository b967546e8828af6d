"""Bodies: undone in pieces, counted, never beyond the bound."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import UpstreamFailed
from serai.outbound.bodies import PIECE_BYTES, BodyDecoder, UpstreamTooLarge

MIB = 1024 * 1024


def decode(encoding: str, chunks: list[bytes], max_bytes: int = MIB) -> bytes:
    decoder = BodyDecoder(encoding, max_bytes)
    return b"".join([*(piece for chunk in chunks for piece in decoder.feed(chunk)), decoder.finish()])


ENCODERS = {
    "": lambda body: body,
    "identity": lambda body: body,
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    " deflate ": zlib.compress,
}


@settings(deadline=None)
@given(st.sampled_from(sorted(ENCODERS)), st.binary(max_size=2000), st.integers(1, 500), st.integers(1, 60))
def test_every_encoding_gives_back_the_body(encoding: str, seed: bytes, repeat: int, cut: int) -> None:
    """However the network cuts it, what was encoded comes out again."""
    body = seed * repeat
    wire = ENCODERS[encoding](body)
    step = max(1, len(wire) // cut)
    chunks = [wire[start : start + step] for start in range(0, len(wire), step)]
    assert decode(encoding, chunks, max(len(body), 1)) == body


def test_members_of_gzip_are_joined() -> None:
    """A body of several gzip members is one body."""
    assert decode("gzip", [gzip.compress(b"one ") + gzip.compress(b"two")]) == b"one two"


def test_a_bomb_is_cut_at_the_bound() -> None:
    """Of a 1,000:1 bomb no more than the bound comes out, in pieces of bounded size."""
    bomb = gzip.compress(bytes(64 * MIB))
    decoder = BodyDecoder("gzip", MIB)
    out = 0
    with pytest.raises(UpstreamTooLarge):
        for piece in decoder.feed(bomb):
            assert len(piece) <= PIECE_BYTES
            out += len(piece)
    assert out == MIB


def test_the_bound_is_inclusive() -> None:
    """A body of exactly the bound passes, one byte more does not."""
    for encoding, encode in ENCODERS.items():
        assert len(decode(encoding, [encode(bytes(1000))], 1000)) == 1000
        with pytest.raises(UpstreamTooLarge):
            decode(encoding, [encode(bytes(1001))], 1000)


def test_an_endless_run_of_empty_blocks_is_cut() -> None:
    """Compressed bytes that add nothing to the body are bounded too."""
    empty_member = gzip.compress(b"")
    with pytest.raises(UpstreamTooLarge):
        decode("gzip", [empty_member * 100] * 100, 1000)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "chunked"])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding: str) -> None:
    """Other encodings, and several at once, are a failure of the other server."""
    with pytest.raises(UpstreamFailed, match="not asked for"):
        BodyDecoder(encoding, MIB)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_damage_is_noticed(encoding: str) -> None:
    """What is no compression, what is damaged and what is cut off fails; nothing at all is an empty body."""
    whole = ENCODERS["gzip"](b"hello" * 100)
    for wire in (b"not compressed", whole[:-9], whole[:-12] + b"\xff" * 12, whole + b"tail"):
        with pytest.raises(UpstreamFailed):
            decode(encoding, [wire])
    assert decode(encoding, []) == b""
