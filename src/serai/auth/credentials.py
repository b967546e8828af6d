"""What proves who calls: API keys, passwords and signed tokens. Nothing here knows HTTP or SQL."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import argon2
import jwt

from serai.errors import InvalidInput

KEY_PREFIX = "sk-serai-"
_KEY = re.compile(r"sk-serai-[A-Za-z0-9_-]{43}")
_SHOWN = len(KEY_PREFIX) + 6
_AUDIENCE = "serai"
_ALGORITHM = "HS256"
_YEAR_10000 = 253_402_300_800  # beyond it there is no datetime

PASSWORD_LENGTHS = (10, 256)


def new_key() -> str:
    """Return a fresh API key: the prefix and 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def is_key(text: str) -> bool:
    """Say whether `text` has the form of an API key."""
    return _KEY.fullmatch(text) is not None


def key_digest(key: str) -> str:
    """Return the SHA-256 under which a key is stored; with 256 random bits in it, no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_prefix(key: str) -> str:
    """Return the beginning of a key that may be shown to tell it from others."""
    return key[:_SHOWN]


class Passwords:
    """Argon2id with the library's recommended cost. Both methods take tens of milliseconds: call them in a thread."""

    def __init__(self) -> None:
        self._hasher = argon2.PasswordHasher()

    @cached_property
    def _decoy(self) -> str:
        return self._hasher.hash(secrets.token_hex(16))

    def hash(self, password: str) -> str:
        """Return the hash to store. Raises InvalidInput for a password that is too short or too long."""
        least, most = PASSWORD_LENGTHS
        if not least <= len(password) <= most:
            raise InvalidInput.at("password", f"must have {least} to {most} characters")
        return self._hasher.hash(password)

    def matches(self, stored: str | None, password: str) -> bool:
        """Say whether `password` belongs to `stored`; takes as long where there is nothing stored."""
        try:
            self._hasher.verify(stored if stored is not None else self._decoy, password[: PASSWORD_LENGTHS[1] + 1])
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        return stored is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says. `epoch` must be the user's: raising that ends all earlier tokens."""

    user_id: str
    epoch: int
    role: str
    scopes: tuple[str, ...]
    key_id: str | None
    csrf: str | None
    expires_at: datetime


class Tokens:
    """Signs and reads JSON Web Tokens (HS256). The first secret signs; all of them verify (rotation)."""

    def __init__(self, secrets_: Sequence[str]) -> None:
        self._secrets = tuple(secrets_)

    def sign(self, claims: Claims, now: datetime) -> str:
        """Return the token."""
        payload = {
            "aud": _AUDIENCE,
            "sub": claims.user_id,
            "iat": int(now.timestamp()),
            "exp": int(claims.expires_at.timestamp()),
            "epoch": claims.epoch,
            "role": claims.role,
            "scopes": list(claims.scopes),
            "key": claims.key_id,
            "csrf": claims.csrf,
        }
        return jwt.encode(payload, self._secrets[0], algorithm=_ALGORITHM)

    def read(self, token: str, now: datetime) -> Claims | None:
        """Return what the token says, or None if it is forged, malformed or expired."""
        for secret in self._secrets:
            try:
                payload = jwt.decode(
                    token,
                    secret,
                    algorithms=[_ALGORITHM],
                    audience=_AUDIENCE,
                    options={"require": ["sub", "exp", "epoch"], "verify_exp": False, "verify_iat": False},
                )
            except jwt.InvalidTokenError:
                continue
            return _claims(payload, now)
        return None


def _claims(payload: dict[str, object], now: datetime) -> Claims | None:
    """Time is checked here, against the server's clock, and not by the library against the machine's."""
    expires, epoch, scopes = payload["exp"], payload["epoch"], payload.get("scopes")
    if not isinstance(expires, int) or not isinstance(epoch, int) or not isinstance(scopes, list):
        return None
    if not now.timestamp() < expires < _YEAR_10000:
        return None
    key_id, csrf = payload.get("key"), payload.get("csrf")
    return Claims(
        user_id=str(payload["sub"]),
        epoch=epoch,
        role=str(payload.get("role")),
        scopes=tuple(str(scope) for scope in scopes),
        key_id=None if key_id is None else str(key_id),
        csrf=None if csrf is None else str(csrf),
        expires_at=datetime.fromtimestamp(expires, now.tzinfo),
    )
