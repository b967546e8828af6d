"""Answers that clients refer back to, for their owner: in memory, for an hour, on this server alone."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serai.chat.errors import ResponseNotFound
from serai.chat.messages import Message
from serai.clock import Clock

TTL_S = 3600.0
MAX_KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResponse:
    """An answer with the messages up to it, its own among them."""

    id: str
    owner_id: str
    body: Mapping[str, Any]
    input_items: tuple[Mapping[str, Any], ...]
    messages: tuple[Message, ...]


class KeptResponses:
    """The last answers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, KeptResponse]] = OrderedDict()

    def put(self, response: KeptResponse) -> None:
        """Keep an answer; the oldest makes room."""
        self._kept[response.id] = (self._clock.monotonic() + TTL_S, response)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def get(self, id_: str, *, owner_id: str) -> KeptResponse:
        """Return an answer. Raises ResponseNotFound, for another owner's, too."""
        until, response = self._kept.get(id_, (0.0, None))
        if response is None or response.owner_id != owner_id or until <= self._clock.monotonic():
            raise ResponseNotFound("There is no such response, or it is not kept any more.")
        return response

    def delete(self, id_: str, *, owner_id: str) -> None:
        """Forget an answer. Raises ResponseNotFound."""
        del self._kept[self.get(id_, owner_id=owner_id).id]
