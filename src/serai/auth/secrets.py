"""Secrets that the server sends to others (API tokens of hubs and remote engines), by name.

A value comes from the environment (`SERAI_SECRET_<NAME>` or `…_FILE`) or from the encrypted store,
whose key lies outside the database. Each name has the origins to which its value may be sent; a
value is never given back by the API.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from serai.audit import Actor, record
from serai.auth import store
from serai.errors import ConfigurationError, InvalidInput, NotFound
from serai.storage.database import Connection

_NONCE = 12


class SecretNotFound(NotFound):
    code = "SECRET_NOT_FOUND"
    default_hint = "An admin sets it with PUT /secrets/{name}."


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """What may be told of a secret."""

    name: str
    origins: tuple[str, ...]
    source: str
    created_at: datetime
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A value and where it may go. Its repr hides the value."""

    name: str
    value: str
    origins: frozenset[str]

    def __repr__(self) -> str:
        return f"Secret(name={self.name!r}, value=***)"


class SecretStore:
    """Keeps secrets. `key`: any text of 32 characters or more; `given`: values from the environment."""

    def __init__(self, key: str, given: Mapping[str, str]) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"serai secrets v1").derive(key.encode())
        self._cipher = AESGCM(derived)
        self._given = dict(given)

    def put(
        self, connection: Connection, name: str, value: str | None, origins: list[str], actor: Actor, at: datetime
    ) -> SecretInfo:
        """Set the origins of `name` and, unless its value comes from the environment, its value.

        Raises InvalidInput where there is a value neither here nor there.
        """
        before = store.find_secret(connection, name)
        if value is None and name not in self._given and before is None:
            raise InvalidInput.at("value", f"is missing, and SERAI_SECRET_{name.upper()} is not set")
        ciphertext = self._encrypt(name, value) if value is not None else before.ciphertext if before else b""
        store.put_secret(connection, name, ciphertext, origins, at=at, by=actor.id)
        was = None if before is None else {"origins": before.origins}
        changed = {"origins": origins, "value_changed": value is not None}
        record(connection, actor, "secrets.put", "secret", name, at=at, before=was, after=changed)
        return self.info(connection, name)

    def delete(self, connection: Connection, name: str, actor: Actor, at: datetime) -> None:
        """Remove the secret. Raises SecretNotFound."""
        before = self.info(connection, name)
        if not store.delete_secret(connection, name):
            raise SecretNotFound(f"There is no secret {name}.")
        record(connection, actor, "secrets.delete", "secret", name, at=at, before={"origins": list(before.origins)})

    def info(self, connection: Connection, name: str) -> SecretInfo:
        """Return what may be told. Raises SecretNotFound."""
        row = store.find_secret(connection, name)
        if row is None:
            raise SecretNotFound(f"There is no secret {name}.")
        return self._info(row)

    def list(self, connection: Connection, *, limit: int, after: str | None) -> list[SecretInfo]:
        """Return at most `limit` secrets by name, behind `after`."""
        return [self._info(row) for row in store.list_secrets(connection, limit=limit, after=after)]

    def reveal(self, connection: Connection, name: str) -> Secret:
        """Return the value with its origins, for a call through `outbound`. Raises SecretNotFound."""
        row = store.find_secret(connection, name)
        if row is None:
            raise SecretNotFound(f"There is no secret {name}.")
        value = self._given.get(name) or self._decrypt(name, row.ciphertext)
        return Secret(name=name, value=value, origins=frozenset(row.origins))

    def _info(self, row: Any) -> SecretInfo:
        return SecretInfo(
            name=row.name,
            origins=tuple(row.origins),
            source="environment" if row.name in self._given else "store",
            created_at=row.created_at,
            updated_at=row.updated_at,
            updated_by=row.updated_by,
        )

    def _encrypt(self, name: str, value: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, value.encode(), name.encode())

    def _decrypt(self, name: str, ciphertext: bytes) -> str:
        if not ciphertext:
            raise ConfigurationError(
                f"The secret {name} has no value: it came from the environment and does so no longer.",
                hint=f"Set SERAI_SECRET_{name.upper()} again, or store a value with PUT /secrets/{{name}}.",
            )
        try:
            return self._cipher.decrypt(ciphertext[:_NONCE], ciphertext[_NONCE:], name.encode()).decode()
        except (InvalidTag, ValueError):  # ValueError: too short to be what was written
            raise ConfigurationError(
                f"The secret {name} cannot be decrypted with the key in use.",
                hint="Give the former SERAI_SECRETS_KEY, or set the secret anew.",
            ) from None
