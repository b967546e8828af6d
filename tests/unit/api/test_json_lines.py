"""JSON that stays one line, wherever a reader breaks lines."""

import json

import pytest

from serai.api.json_lines import encode


@pytest.mark.parametrize("text", [chr(code) for code in range(0x3000) if len(f"a{chr(code)}b".splitlines()) > 1])
def test_no_character_breaks_a_line(text: str) -> None:
    """Of all at which Python, and httpx with it, would break one; what is read is what was written."""
    told = encode({"a": f"one{text}two é 漢 🙂"})
    assert len(told.decode().splitlines()) == 1
    assert json.loads(told) == {"a": f"one{text}two é 漢 🙂"}


def test_everything_else_stays_as_short_as_it_is() -> None:
    """Text of other scripts is not escaped."""
    assert encode("é漢🙂") == '"é漢🙂"'.encode()
