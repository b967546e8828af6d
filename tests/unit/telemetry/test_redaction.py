"""What a log line may hold."""

import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.telemetry.redaction import MAX_ITEMS, MAX_TEXT, STARS, is_secret_name, redact, redact_text

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
NESTED = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner)
)
TOKEN = jwt.encode({"sub": "user_1"}, "k" * 32, algorithm="HS256")


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "Authorization", "proxy-authorization", "cookie", "Set-Cookie", "password", "new_password",
        "userPassword", "password_hash", "secret", "client_secret", "jwt_secret", "token", "accessToken", "X-Api-Key",
        "apikey", "api_key", "OPENAI_API_KEY", "secrets_key", "private.key", "credentials", "csrf",
    ],
)  # fmt: skip
def test_a_field_that_is_named_for_a_secret_becomes_stars(name: str) -> None:
    """The name decides, whatever the value's form, at any depth, and in pairs as headers come."""
    assert is_secret_name(name)
    assert redact("abc", name) == STARS
    assert redact({"a": [{name: {"b": "abc"}}]}) == {"a": [{name: STARS}]}
    assert redact([(name, "abc")]) == [[name, STARS]]


@pytest.mark.parametrize(
    "name", ["tokens", "max_tokens", "token_count", "secretary", "monkey", "key_id", "passwords_max"]
)
def test_a_name_that_only_resembles_a_secret_keeps_its_value(name: str) -> None:
    """Counts of tokens and ids of keys are what logs are for."""
    assert not is_secret_name(name)
    assert redact(12, name) == 12


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key {} refused", "sk-serai-" + "aB3_-" * 8 + "xyz"),
        ("Authorization: {}", "abc def"),
        ("{{'authorization': '{}'}}", "Basic eDp5"),
        ("Cookie: session={}; csrf=1", "s3cr3t"),
        ("sent Bearer {} to us", "abcdefgh.ijkl"),
        ("cannot read {}.", TOKEN),
        ("cannot read {}", TOKEN[:40]),
        ("postgresql://serai:{}@db.internal/serai", "hunter2"),
        ("GET /?api_key={}&x=1", "abc123"),
        ("password={} user=ada", "hunter2"),
        ("token: {}", "abc123"),
        ("HF said {}", "hf_abcdefghijklmnop"),
        ("stored {}", "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaA"),
    ],
)
def test_a_secret_inside_a_text_becomes_stars(text: str, secret: str) -> None:
    """The form decides where no name does: in messages and in the texts of exceptions."""
    shown = redact_text(text.format(secret))
    assert secret not in shown
    assert STARS in shown


def test_a_secret_across_the_cut_is_not_shown_in_part() -> None:
    """Cutting a long text does not hide a secret from the patterns."""
    for at in range(MAX_TEXT - 60, MAX_TEXT):
        assert "Q" not in redact_text("." * at + " sk-serai-" + "Q" * 43)


def test_binary_data_is_never_shown() -> None:
    """A picture in a log call leaves its length."""
    assert redact(b"\x89PNG") == "<4 bytes>"
    assert redact({"image": bytearray(10)}) == {"image": "<10 bytes>"}


def test_what_is_shown_is_bounded() -> None:
    """A long text, a long list and a value that contains itself give short lines."""
    endless: list[object] = []
    endless.append(endless)
    assert len(str(redact("x" * 10**6))) < MAX_TEXT + 40
    assert len(redact(list(range(1000))) or []) == MAX_ITEMS  # type: ignore[arg-type]
    assert len(json.dumps(redact(endless))) < 100


def test_a_value_whose_text_cannot_be_made_is_still_a_value() -> None:
    """A broken `__str__` costs its text, not the line."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert redact(Broken()) == "<Broken: RuntimeError>"


@given(NESTED)
def test_whatever_is_logged_is_strict_json(value: object) -> None:
    """No value of any kind breaks a line: no NaN, no lone surrogate, nothing that JSON lacks."""
    text = json.dumps(redact(value), allow_nan=False)
    assert json.loads(text) == redact(value)
    assert "\n" not in text
