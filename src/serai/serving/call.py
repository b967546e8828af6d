"""What a capability hands over to have a task run on a service."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serai.engines.base import EngineInfo
from serai.engines.tasks import AnyTask
from serai.registry.plan import Request
from serai.registry.snapshot import Candidate

MakeTask = Callable[[Candidate, EngineInfo], AnyTask | Awaitable[AnyTask]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. `task` is made anew for each candidate and engine, because templates differ; it raises InvalidInput."""

    request: Request
    task: MakeTask
    caller: str
    """Whose turn it is in queues: the id of the API key."""
    owner: str
    """The id of the user."""
    timeout_s: float
    """For all of it: waiting, loading, every candidate, and the answer to its end."""
    priority: int = 0
    keep_alive: float | None = None
    needs: frozenset[str] = frozenset()
    """Capabilities of an engine that the task cannot do without: grammar, logprobs, logit_bias."""
