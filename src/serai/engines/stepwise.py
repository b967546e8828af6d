"""The base of engines whose run is a generator: each step gives one run its turn."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serai.engines.base import Run
from serai.errors import InvalidInput, SeraiError
from serai.events import Done, Event, Failed

Turns = Iterator[Event | None]
"""The steps of one run; None is a step that has nothing to tell. The last one is `Done`."""


class Stepwise:
    """Runs take turns, one step each, so that none waits for another's end.

    A subclass has `load` and `begin`. What a run holds is freed by its generator's `finally`.
    """

    def __init__(self) -> None:
        self._turns: dict[int, Turns] = {}
        self._order: deque[int] = deque()

    def begin(self, run: Run) -> Turns:
        """Check the run's input (raises SeraiError) and return its steps, of which none is made yet.

        A SeraiError out of a step ends this run alone; anything else means that the engine is broken.
        """
        raise NotImplementedError

    def start(self, run: Run) -> None:
        """Take a run on; its first step is made when its turn comes."""
        self._turns[run.id] = self.begin(run)
        self._order.append(run.id)

    def step(self) -> Sequence[tuple[int, Event]]:
        """Make one step of the run whose turn it is."""
        if not self._order:
            return ()
        run = self._order.popleft()
        try:
            event = next(self._turns[run])
        except SeraiError as error:
            event = Failed.of(error)
        except StopIteration:
            raise RuntimeError("a run ended without Done") from None
        if isinstance(event, Done | Failed):
            self._forget(run)
        else:
            self._order.append(run)
        return () if event is None else ((run, event),)

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Refuse the message; an engine that takes any says so itself."""
        raise InvalidInput("This model takes nothing while it answers.")

    def cancel(self, run: int) -> None:
        """Forget the run and free what it holds, at once."""
        if run in self._turns:
            self._order.remove(run)
            self._forget(run)

    def close(self) -> None:
        """Free what the runs hold."""
        for run in tuple(self._turns):
            self.cancel(run)

    def _forget(self, run: int) -> None:
        turns = self._turns.pop(run)
        close = getattr(turns, "close", None)
        if close is not None:
            close()
