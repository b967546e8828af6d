"""What the compatible dialects tell of a decision: headers."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import format_datetime

from serai.registry.decision import Decision, Outcome
from serai.registry.rules import RegistryRules
from serai.registry.version import Status, Version

DECISION = "X-Serai-Decision"


def decision_headers(decision: Decision, decision_id: str) -> dict[str, str]:
    """Return who answers, why, and in place of whom: 'm@2.0.0=failed, n@1.0.0=skipped'."""
    headers = {
        "X-Serai-Model": f"{decision.model}@{decision.version}",
        "X-Serai-Reason": decision.reason.value,
        DECISION: decision_id,
    }
    if decision.fell_back:
        before = [link for link in decision.chain[:-1] if link.outcome in (Outcome.FAILED, Outcome.SKIPPED)]
        told = (f"{link.model}@{link.version}" if link.version else link.model for link in before)
        outcomes = (link.outcome.value for link in before)
        headers["X-Serai-Fallback"] = ", ".join(
            f"{name}={outcome}" for name, outcome in zip(told, outcomes, strict=True)
        )
    return headers


def deprecation_headers(version: Version, rules: RegistryRules) -> Mapping[str, str]:
    """Return Deprecation (RFC 9745) and Sunset (RFC 8594) for a deprecated version, if warnings are on."""
    if version.status is not Status.DEPRECATED or not rules.warn_on_deprecated_version_usage:
        return {}
    since = version.deprecated_at or version.updated_at
    headers = {"Deprecation": f"@{int(since.timestamp())}"}
    if version.sunset_at is not None:
        headers["Sunset"] = format_datetime(version.sunset_at.astimezone(UTC), usegmt=True)
    return headers
