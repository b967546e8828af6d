"""Chats whose history the server keeps, for their owner alone.

One message is answered at a time: the next one would not know the answer. A turn is kept whole, the
message with its answer, or not at all: one that failed, timed out or was left can be sent again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from serai.chat import store
from serai.chat.messages import Message, ToolCall, for_openai, from_openai
from serai.chat.store import Session
from serai.clock import Clock
from serai.errors import InvalidInput
from serai.ids import NewId
from serai.registry.plan import Request
from serai.storage.database import Connection, Database

DEFAULT_TTL_S = 3600.0
MAX_TTL_S = 7 * 86400.0
DEFAULT_HISTORY = 50
MAX_HISTORY = 1000
_MARGIN_S = 30.0
"""How long after an answer's own deadline its server may still hold the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message of a session that is being answered."""

    session: Session
    claim: str
    history: tuple[Message, ...]
    """What the model is told before the new message."""


class Sessions:
    """Keeps sessions in the database."""

    def __init__(self, database: Database, clock: Clock, new_id: NewId) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def create(
        self,
        *,
        owner_id: str,
        model: str | None,
        service: str | None,
        options: Mapping[str, Any],
        first: Sequence[Message] = (),
        max_history: int = DEFAULT_HISTORY,
        ttl_s: float = DEFAULT_TTL_S,
    ) -> Session:
        """Make a session that begins with these messages. Raises InvalidInput, Conflict."""
        who = one_of(model, service)
        now = self._clock.now()
        session = Session(
            id=self._new_id("session"),
            owner_id=owner_id,
            model=who.model,
            service=who.service,
            options=dict(options),
            max_history=max_history,
            ttl_s=ttl_s,
            last_seq=0,
            created_at=now,
            updated_at=now,
            expires_at=now + timedelta(seconds=ttl_s),
        )
        kept = _kept(first)

        def make(connection: Connection) -> Session:
            store.create(connection, session)
            if kept:
                store.append(connection, session.id, None, kept, now=now, ttl_s=ttl_s)
            return store.get(connection, session.id, owner_id=owner_id, now=now)

        return await self._database.run(make)

    async def get(self, id_: str, *, owner_id: str, last: int) -> tuple[Session, list[Mapping[str, Any]]]:
        """Return a session with its last messages. Raises SessionNotFound."""
        now = self._clock.now()

        def look(connection: Connection) -> tuple[Session, list[Mapping[str, Any]]]:
            session = store.get(connection, id_, owner_id=owner_id, now=now)
            return session, store.messages(connection, id_, last=last)

        return await self._database.read(look)

    async def delete(self, id_: str, *, owner_id: str) -> None:
        """Remove a session. Raises SessionNotFound."""
        await self._database.run(store.delete, id_, owner_id=owner_id, now=self._clock.now())

    async def begin(self, id_: str, *, owner_id: str, timeout_s: float) -> Turn:
        """Begin a turn. Raises SessionNotFound, SessionBusy, Conflict. End it with `finish` or `abandon`."""
        now, claim = self._clock.now(), self._new_id("turn")
        until = now + timedelta(seconds=timeout_s + _MARGIN_S)

        def take(connection: Connection) -> Turn:
            session = store.claim(connection, id_, claim, owner_id=owner_id, now=now, until=until)
            told = store.messages(connection, id_, last=session.max_history)
            systems = store.systems(connection, id_)
            if session.last_seq > session.max_history:
                told = [*systems, *(message for message in told if message["role"] != "system")]
            return Turn(session=session, claim=claim, history=from_openai(told))

        return await self._database.run(take)

    async def finish(self, turn: Turn, messages: Sequence[Message]) -> bool:
        """Keep a turn; False where the session is gone meanwhile."""
        return await self._append(turn, _kept(messages))

    async def abandon(self, turn: Turn) -> None:
        """End a turn of which nothing is kept."""
        await self._append(turn, [])

    async def prune(self, now: datetime) -> int:
        """Remove the sessions whose time is over; return how many."""
        return await self._database.run(store.prune, now)

    async def _append(self, turn: Turn, messages: list[dict[str, Any]]) -> bool:
        return await self._database.run(
            store.append,
            turn.session.id,
            turn.claim,
            messages,
            now=self._clock.now(),
            ttl_s=turn.session.ttl_s,
        )


def one_of(model: str | None, service: str | None) -> Request:
    """Return what a session asks for at each message. Raises InvalidInput unless one of the two is named."""
    if (model is None) == (service is None):
        raise InvalidInput.at("model", "or a service must be named, and not both")
    return Request(model=model, service=service, task="chat")


def answer_message(text: str, reasoning: str, calls: Sequence[ToolCall]) -> Message:
    """Return what the model said as a message."""
    return Message(role="assistant", parts=(text,) if text else (), reasoning=reasoning, tool_calls=tuple(calls))


def _kept(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as they are stored: in OpenAI's form, which `from_openai` reads back."""
    shown = for_openai(messages)
    return [
        {**entry, **({"reasoning_content": message.reasoning} if message.reasoning else {})}
        for entry, message in zip(shown, messages, strict=True)
    ]
