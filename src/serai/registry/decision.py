"""Which candidate answered, why, and what was tried before it: stored, returned, counted."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec


class Reason(StrEnum):
    """Why this candidate: the words that headers, metrics and rows use."""

    USER_CHOICE = "user_choice"
    BOUND = "bound"
    SPLIT = "split"
    AUTO_POLICY = "auto_policy"
    FALLBACK_ERROR = "fallback_error"
    FALLBACK_UNAVAILABLE = "fallback_unavailable"
    DEFAULT = "default"


class Outcome(StrEnum):
    """What became of one link of the chain."""

    SKIPPED = "skipped"
    """Passed over without being tried; `error` says why."""
    FAILED = "failed"
    SELECTED = "selected"
    """It is to answer, and has not finished."""
    SERVED = "served"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One candidate that was passed over, tried or taken; `ms` is how long trying it took."""

    model: str
    version: str
    outcome: Outcome
    error: str | None = None
    ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The record. The last link of the chain is the candidate named by `model` and `version`."""

    model: str
    version: str
    service: str | None
    reason: Reason
    explanation: str
    chain: tuple[ChainLink, ...]
    warnings: tuple[str, ...] = ()

    @property
    def fell_back(self) -> bool:
        return self.reason in (Reason.FALLBACK_ERROR, Reason.FALLBACK_UNAVAILABLE)

    def document(self) -> dict[str, Any]:
        """Return the decision as JSON values, with the names of the specification."""
        return dict(msgspec.to_builtins(self))
