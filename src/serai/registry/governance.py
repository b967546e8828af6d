"""The shape of what governs a change: approvals, experiments, deprecation policies, measured performance.

Only data: nothing acts on them yet, and rows that are written today will fit when something does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from serai.registry.service import Target


class ExperimentStatus(StrEnum):
    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One arm of an experiment and what was measured of it."""

    name: str
    target: Target
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    id: str
    service_id: str
    status: ExperimentStatus
    hypothesis: str = ""
    variants: tuple[Variant, ...]
    winner: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalPolicy:
    """What an alias asks before it moves, for example: one approver who is not the author."""

    id: str
    alias: str
    approvers: int = 1
    author_may_approve: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    needs_clean_scan: bool = False
    needs_clear_licence: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One verdict, bound to the digest that it was given for: another digest makes it void."""

    id: str
    version_digest: str
    policy_id: str
    verdict: Literal["requested", "approved", "rejected"]
    comment: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    requested_by: str
    decided_by: str | None = None
    requested_at: datetime
    decided_at: datetime | None = None

    def holds_for(self, digest: str) -> bool:
        return self.verdict == "approved" and self.version_digest == digest


@dataclass(frozen=True, slots=True, kw_only=True)
class DeprecationPolicy:
    """When a version should be deprecated without anyone asking; None leaves a ground out."""

    id: str
    task: str | None = None
    max_age_days: int | None = None
    max_unused_days: int | None = None
    max_error_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What was measured of a version over a span of time."""

    model_id: str
    version: str
    since: datetime
    until: datetime
    requests: int
    errors: int
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    tokens_per_second: float | None = None
    cost: float | None = None
