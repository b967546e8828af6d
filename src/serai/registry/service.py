"""The stable name that clients call: what it is bound to, what stands behind it, and its history.

A revision is one immutable state of a service (targets, fallback chain, limits, configuration).
A switch makes a new one, a rollback makes a new one like an earlier one, so "which version answered
at time T" is one question to the history.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from serai.errors import InvalidInput
from serai.registry.errors import InvalidSplit
from serai.registry.failure import Failure
from serai.registry.reference import check_id
from serai.registry.source import Benchmark, Value

ADMIN = "admin"
"""No service has this id."""

Share = Annotated[float, Meta(ge=0, le=1)]


class Target(Value, frozen=True, kw_only=True):
    """A model and its share of the traffic in percent.

    By version, by alias, or (with neither) by its newest active version, whichever that is.
    """

    model: str
    version: str | None = None
    alias: str | None = None
    weight: int = 100

    @property
    def reference(self) -> str:
        selector = self.version or self.alias
        return f"{self.model}@{selector}" if selector else self.model


class Condition(Value, frozen=True, kw_only=True):
    """When a link of the chain may be used; what is left empty does not restrict."""

    on: tuple[Failure, ...] = ()
    """Failures of the candidate before it that lead here."""
    marketplaces: tuple[str, ...] = ()
    min_complexity: Share | None = None
    max_complexity: Share | None = None


class FallbackEntry(Value, frozen=True, kw_only=True):
    """One link: a model (with version, alias or neither), or another service with its whole chain."""

    model: str | None = None
    version: str | None = None
    alias: str | None = None
    service: str | None = None
    condition: Condition | None = None

    @property
    def reference(self) -> str:
        selector = self.version or self.alias
        name = self.model or self.service or ""
        return f"{name}@{selector}" if selector else name


class Limits(Value, frozen=True, kw_only=True):
    """Bounds of one service; None leaves it to the server's own."""

    concurrency: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=600)] | None = None
    queue_length: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class Health(Value, frozen=True, kw_only=True, omit_defaults=False):
    """What the last check found; told in full, also where nothing was checked yet."""

    status: Literal["unknown", "healthy", "degraded", "unhealthy"] = "unknown"
    checked_at: datetime | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One state of a service. No target at all leaves the choice to the policy."""

    service_id: str
    n: int
    targets: tuple[Target, ...] = ()
    shadow: Target | None = None
    fallback: tuple[FallbackEntry, ...] = ()
    limits: Limits = field(default_factory=Limits)
    config: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    rolled_back_to: int | None = None
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The stable name. `required` are the capabilities that it promises, so each link must have them."""

    id: str
    name: str
    task: str
    description: str = ""
    required: tuple[str, ...] = ()
    revision: Revision
    pinned: bool = False
    published: bool = False
    hardware: str = ""
    benchmarks: tuple[Benchmark, ...] = ()
    health: Health = field(default_factory=Health)
    version_updated_at: datetime | None = None
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str

    @property
    def binding(self) -> Target | None:
        """The target with the most traffic, the first of equals; None where the policy chooses."""
        return max(self.revision.targets, key=lambda target: target.weight, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One line of a service's history: what it answered with, from when until when (None: until now).

    `versions` are those that the targets meant when the line began, so an alias or a floating target
    that moved later makes a new line.
    """

    service_id: str
    revision: int
    versions: tuple[str, ...]
    """Each as 'model@version', in the order of the targets."""
    since: datetime
    until: datetime | None = None
    by: str = ""
    reason: str = ""


def binding_at(history: Sequence[Binding], at: datetime) -> Binding | None:
    """Return the line of `history` that was in force at a time, or None before the first."""
    return next((line for line in history if line.since <= at and (line.until is None or at < line.until)), None)


def check_shape(service: Service) -> None:
    """Refuse what is wrong in itself: id, weights, links. Raises InvalidInput, InvalidSplit.

    Whether what it names exists and fits is asked of a snapshot (`checks.check_service`).
    """
    check_id(service.id)
    if service.id == ADMIN:
        raise InvalidInput.at("id", f"must not be {ADMIN!r}: /services/{ADMIN}/… are paths of their own")
    if not service.name.strip():
        raise InvalidInput.at("name", "must not be empty")
    check_weights(service.revision.targets)
    for entry in service.revision.fallback:
        _check_entry(entry)


def check_weights(targets: Sequence[Target]) -> None:
    """Raises InvalidSplit unless the weights are whole percents that make 100, each target once."""
    if not targets:
        return
    if any(not 0 <= target.weight <= 100 for target in targets) or sum(target.weight for target in targets) != 100:
        weights = ", ".join(str(target.weight) for target in targets)
        raise InvalidSplit(f"The weights {weights} are not percents that sum to 100.")
    references = [target.reference for target in targets]
    if len(set(references)) != len(references):
        raise InvalidSplit("A split names the same target twice.")
    if any(target.version is not None and target.alias is not None for target in targets):
        raise InvalidInput.at("targets", "name a version or an alias, not both")


def _check_entry(entry: FallbackEntry) -> None:
    if (entry.model is None) == (entry.service is None):
        raise InvalidInput.at("fallback", "each link names either a model or a service")
    if entry.version is not None and entry.alias is not None:
        raise InvalidInput.at("fallback", "a link names a version or an alias, not both")
    if entry.service is not None and (entry.version is not None or entry.alias is not None):
        raise InvalidInput.at("fallback", "a service has no versions to name")
    if entry.condition is not None:
        _check_condition(entry.condition)


def _check_condition(condition: Condition) -> None:
    low, high = condition.min_complexity, condition.max_complexity
    if low is not None and high is not None and low > high:
        raise InvalidInput.at("fallback", "a condition has min_complexity above max_complexity")
    if any(failure.is_final for failure in condition.on):
        raise InvalidInput.at("fallback", "a condition names a failure that never falls back")
