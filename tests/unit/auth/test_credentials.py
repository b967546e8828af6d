"""Keys, passwords and tokens: what proves who calls, and what does not."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.auth.credentials import (
    PASSWORD_LENGTHS,
    Claims,
    Passwords,
    Tokens,
    is_key,
    key_digest,
    key_prefix,
    new_key,
)
from serai.errors import InvalidInput

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET, OLD, FOREIGN = "a" * 32, "b" * 32, "c" * 32
CLAIMS = Claims(
    user_id="user_1",
    epoch=3,
    role="user",
    scopes=("files", "keys"),
    key_id="key_1",
    csrf=None,
    expires_at=NOW + timedelta(minutes=15),
)
PAYLOAD: dict[str, Any] = {
    "aud": "serai",
    "sub": "user_1",
    "iat": int(NOW.timestamp()),
    "exp": int(NOW.timestamp()) + 900,
    "epoch": 3,
    "role": "user",
    "scopes": [],
    "key": None,
    "csrf": None,
}


def encode(part: Any) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def forge(header: dict[str, Any], payload: Any, secret: str = SECRET) -> str:
    """Return a token of any header and payload whose signature holds for `secret`."""
    signed = f"{encode(header)}.{encode(payload)}"
    return f"{signed}.{encode(hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest())}"


class TestKeys:
    """API keys."""

    def test_keys_differ_and_look_like_keys(self) -> None:
        """A thousand keys are a thousand different keys, with 256 random bits each."""
        keys = {new_key() for _ in range(1000)}
        assert len(keys) == 1000
        assert all(is_key(key) for key in keys)
        assert all(len(base64.urlsafe_b64decode(key.removeprefix("sk-serai-") + "=")) == 32 for key in keys)

    @pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "a", lambda k: k + "\n", str.upper, str.strip])
    def test_only_the_exact_form_is_a_key(self, change: Any) -> None:
        """One character less or more, a line break or another case is not a key."""
        key = new_key()
        assert is_key(change(key)) is (change(key) == key)

    @given(st.text(max_size=60))
    def test_no_text_is_a_key_by_chance(self, text: str) -> None:
        """A token, a password or noise goes another way."""
        assert not is_key(text)

    def test_what_is_stored_and_shown_does_not_give_the_key_away(self) -> None:
        """The digest is SHA-256; the shown prefix has 6 of 43 random characters."""
        key = new_key()
        assert key_digest(key) == hashlib.sha256(key.encode()).hexdigest()
        assert key.startswith(key_prefix(key))
        assert len(key_prefix(key)) == len("sk-serai-") + 6


class TestPasswords:
    """Argon2id."""

    passwords = Passwords()

    def test_a_password_matches_its_own_hash_only(self) -> None:
        """The right one matches, another and another's hash do not, and nothing stored matches nothing."""
        stored = self.passwords.hash("correct horse")
        assert stored.startswith("$argon2id$")
        assert self.passwords.matches(stored, "correct horse")
        assert not self.passwords.matches(stored, "correct horsf")
        assert not self.passwords.matches(None, "correct horse")

    def test_equal_passwords_have_different_hashes(self) -> None:
        """Each hash has a salt of its own."""
        assert self.passwords.hash("correct horse") != self.passwords.hash("correct horse")

    @pytest.mark.parametrize("length", [0, PASSWORD_LENGTHS[0] - 1, PASSWORD_LENGTHS[1] + 1])
    def test_a_length_out_of_bounds_is_refused(self, length: int) -> None:
        """Too short to keep, too long to hash."""
        with pytest.raises(InvalidInput, match="password: must have 10 to 256 characters"):
            self.passwords.hash("x" * length)

    def test_the_longest_password_works_and_one_more_character_does_not(self) -> None:
        """A long guess is cut before it is hashed, and the cut never makes it right."""
        stored = self.passwords.hash("x" * PASSWORD_LENGTHS[1])
        assert self.passwords.matches(stored, "x" * PASSWORD_LENGTHS[1])
        assert not self.passwords.matches(stored, "x" * 100_000)

    def test_unicode_and_nul_are_characters_like_others(self) -> None:
        """Nothing is cut off at a NUL, and letters that look alike differ."""
        stored = self.passwords.hash("رمز\x00عبور-۱۲۳۴")
        assert self.passwords.matches(stored, "رمز\x00عبور-۱۲۳۴")
        assert not self.passwords.matches(stored, "رمز\x00عبور-1234")

    @pytest.mark.parametrize("stored", ["", "plain", "$argon2id$broken", "$2b$12$abcdefghijklmnopqrstuv"])
    def test_a_damaged_hash_matches_nothing(self, stored: str) -> None:
        """It is a refusal, not a crash."""
        assert not self.passwords.matches(stored, stored)


class TestTokens:
    """JSON Web Tokens."""

    tokens = Tokens([SECRET])

    def test_what_was_signed_is_read(self) -> None:
        """Every claim comes back."""
        for claims in (CLAIMS, replace(CLAIMS, scopes=(), key_id=None, csrf="abc")):
            assert self.tokens.read(self.tokens.sign(claims, NOW), NOW) == claims

    def test_it_ends_at_its_time_by_the_servers_clock(self) -> None:
        """Valid until the second before, invalid from the second on, whatever the machine's clock says."""
        token = self.tokens.sign(CLAIMS, NOW)
        assert self.tokens.read(token, CLAIMS.expires_at - timedelta(seconds=1)) == CLAIMS
        assert self.tokens.read(token, CLAIMS.expires_at) is None
        assert self.tokens.read(token, CLAIMS.expires_at + timedelta(days=1)) is None

    def test_a_signature_by_another_is_refused(self) -> None:
        """A foreign secret signs nothing for us."""
        assert self.tokens.read(Tokens([FOREIGN]).sign(CLAIMS, NOW), NOW) is None

    def test_rotation_keeps_tokens_of_the_former_secret(self) -> None:
        """The new secret signs, the former still verifies; without it, its tokens end."""
        old_token = Tokens([OLD]).sign(CLAIMS, NOW)
        rotated = Tokens([SECRET, OLD])
        assert rotated.read(old_token, NOW) == CLAIMS
        new_token = rotated.sign(CLAIMS, NOW)
        assert self.tokens.read(new_token, NOW) == CLAIMS
        assert Tokens([OLD]).read(new_token, NOW) is None
        assert self.tokens.read(old_token, NOW) is None

    @pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "", None, 7, []])
    def test_another_algorithm_is_refused(self, algorithm: object) -> None:
        """The header does not choose how it is verified; 'none' verifies nothing."""
        assert self.tokens.read(forge({"alg": algorithm, "typ": "JWT"}, PAYLOAD), NOW) is None
        unsigned = f"{encode({'alg': algorithm, 'typ': 'JWT'})}.{encode(PAYLOAD)}."
        assert self.tokens.read(unsigned, NOW) is None

    @pytest.mark.parametrize(
        "header",
        [
            {"kid": "../../../../dev/null"},
            {"kid": "' OR 1=1 --"},
            {"jku": "http://127.0.0.1:1/keys"},
            {"jwk": {"kty": "oct", "k": encode(FOREIGN.encode())}},
            {"x5u": "file:///etc/passwd"},
        ],
    )
    def test_a_key_named_in_the_header_is_not_used(self, header: dict[str, Any]) -> None:
        """The token cannot bring its own key."""
        assert self.tokens.read(forge({"alg": "HS256", "typ": "JWT", **header}, PAYLOAD, FOREIGN), NOW) is None

    @pytest.mark.parametrize("audience", ["other", "", None, ["other"], 7])
    def test_a_token_for_another_audience_is_refused(self, audience: object) -> None:
        """Another application that happens to share the secret cannot call here."""
        assert self.tokens.read(forge({"alg": "HS256"}, {**PAYLOAD, "aud": audience}), NOW) is None

    @pytest.mark.parametrize("missing", ["aud", "sub", "exp", "epoch", "scopes"])
    def test_a_token_without_what_it_must_say_is_refused(self, missing: str) -> None:
        """Each claim that decides something is required."""
        payload = {name: value for name, value in PAYLOAD.items() if name != missing}
        assert self.tokens.read(forge({"alg": "HS256"}, payload), NOW) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            {"exp": "never"},
            {"exp": None},
            {"exp": 1e300},
            {"exp": 10**30},
            {"exp": -1},
            {"epoch": "3"},
            {"epoch": None},
            {"scopes": "files"},
            {"scopes": {"files": 1}},
            {"sub": 7},
            {"sub": None},
        ],
    )
    def test_a_claim_of_another_type_is_refused(self, wrong: dict[str, Any]) -> None:
        """Signed nonsense is refused like unsigned."""
        assert self.tokens.read(forge({"alg": "HS256"}, {**PAYLOAD, **wrong}), NOW) is None

    def test_a_changed_claim_is_noticed(self) -> None:
        """The signature covers the payload: a role cannot be edited in."""
        header, _, signature = self.tokens.sign(CLAIMS, NOW).split(".")
        assert self.tokens.read(f"{header}.{encode({**PAYLOAD, 'role': 'admin'})}.{signature}", NOW) is None

    @given(st.integers(0, 10**6), st.characters(codec="ascii", categories=["L", "N"]))
    def test_one_changed_character_is_noticed(self, place: int, character: str) -> None:
        """Anywhere in header, payload or signature; the last character has bits that mean nothing."""
        token = self.tokens.sign(CLAIMS, NOW)
        place %= len(token) - 1
        changed = f"{token[:place]}{character}{token[place + 1 :]}"
        if changed != token:
            assert self.tokens.read(changed, NOW) is None

    @given(st.text(max_size=80) | st.from_regex(r"[A-Za-z0-9_-]{0,20}\.[A-Za-z0-9_-]{0,20}\.[A-Za-z0-9_-]{0,20}"))
    def test_no_text_is_a_token_by_chance(self, text: str) -> None:
        """Whatever stands in the header, the answer is None and never a crash."""
        assert self.tokens.read(text, NOW) is None

    def test_a_nested_payload_is_refused(self) -> None:
        """Deep or wrong JSON in a payload is no crash."""
        for payload in (b"[" * 100_000, b"null", b"[]", b'"x"', b"\xff"):
            assert self.tokens.read(forge({"alg": "HS256"}, payload), NOW) is None

    def test_others_can_read_what_we_sign(self) -> None:
        """It is a plain JWT: the library verifies it with the secret and the audience."""
        token = self.tokens.sign(CLAIMS, NOW)
        read = jwt.decode(token, SECRET, algorithms=["HS256"], audience="serai", options={"verify_exp": False})
        assert (read["sub"], read["epoch"]) == ("user_1", 3)
        assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
