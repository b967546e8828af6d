"""Secrets of remote models: fetched by name, kept for a second, bound to their origins."""

import pytest

from serai.auth.secrets import Secret, SecretNotFound
from serai.clock import ManualClock
from serai.engines.remote.secrets import KEEP_S, RemoteSecrets

pytestmark = pytest.mark.anyio


class Vault:
    def __init__(self) -> None:
        self.values = {"openai": "planted-canary"}
        self.asked: list[str] = []

    async def reveal(self, name: str) -> Secret:
        self.asked.append(name)
        if name not in self.values:
            raise SecretNotFound(f"There is no secret {name}.")
        return Secret(name=name, value=self.values[name], origins=frozenset({"https://api.example.com"}))


async def test_a_secret_is_kept_for_a_moment() -> None:
    """Within a second the database is asked once; after it, a change is seen."""
    vault, clock = Vault(), ManualClock()
    secrets = RemoteSecrets(vault.reveal, clock=clock)
    first = await secrets.get("openai")
    assert await secrets.get("openai") is first
    assert vault.asked == ["openai"]
    vault.values["openai"] = "another-value"
    clock.advance(KEEP_S)
    second = await secrets.get("openai")
    assert second.value == "another-value"
    assert second.origins == {"https://api.example.com"}


async def test_an_unknown_secret_is_said_each_time() -> None:
    """A failure is not kept."""
    vault = Vault()
    secrets = RemoteSecrets(vault.reveal, clock=ManualClock())
    for _ in range(2):
        with pytest.raises(SecretNotFound):
            await secrets.get("none")
    assert vault.asked == ["none", "none"]


async def test_a_removed_secret_is_forgotten() -> None:
    """What was removed is used no longer than the moment for which it is kept."""
    vault, clock = Vault(), ManualClock()
    secrets = RemoteSecrets(vault.reveal, clock=clock)
    kept = await secrets.get("openai")
    assert "planted-canary" not in repr(kept)
    del vault.values["openai"]
    clock.advance(KEEP_S)
    with pytest.raises(SecretNotFound):
        await secrets.get("openai")
