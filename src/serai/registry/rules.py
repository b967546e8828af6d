"""The settings that the registry's rules read, under the names that the settings object gives them."""

from dataclasses import dataclass
from typing import Literal

Deployment = Literal["private", "research", "commercial"]
"""What the server is used for: one's own purposes, research, or anything that serves a business."""

OnLimit = Literal["refuse", "deprecate-oldest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRules:
    deployment: Deployment = "private"
    max_active_versions_per_model: int = 5
    on_limit: OnLimit = "refuse"
    default_version_status: Literal["draft", "active"] = "active"
    enable_version_immutability: bool = True
    allow_service_deprecated_version_switch: bool = False
    warn_on_deprecated_version_usage: bool = True
