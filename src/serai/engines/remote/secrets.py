"""Secrets of remote models, kept for a moment so that a call does not begin with a look into the database."""

from collections.abc import Awaitable, Callable

from serai.auth.secrets import Secret
from serai.clock import Clock
from serai.outbound import OutboundSecret

KEEP_S = 1.0
"""A secret that was changed or removed is used no longer than this."""

Reveal = Callable[[str], Awaitable[Secret]]
"""From a secret's name to its value and origins. Raises SecretNotFound."""


class RemoteSecrets:
    """Gives secrets by name, with the origins to which they may go."""

    def __init__(self, reveal: Reveal, *, clock: Clock) -> None:
        self._reveal = reveal
        self._clock = clock
        self._kept: dict[str, tuple[float, OutboundSecret]] = {}

    async def get(self, name: str) -> OutboundSecret:
        """Return the secret. Raises SecretNotFound, or InvalidInput for a value that no header can carry."""
        now = self._clock.monotonic()
        kept = self._kept.get(name)
        if kept is not None and now - kept[0] < KEEP_S:
            return kept[1]
        self._kept = {other: entry for other, entry in self._kept.items() if now - entry[0] < KEEP_S}
        secret = await self._reveal(name)
        usable = OutboundSecret(name=secret.name, value=secret.value, origins=secret.origins)
        self._kept[name] = (now, usable)
        return usable
