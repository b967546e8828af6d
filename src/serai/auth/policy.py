"""The rules of access, pure: roles, scopes and owners.

    viewer      reads
    user        also calls services, and owns what that makes
    moderator   also pulls, loads, creates, publishes, deprecates and switches
    admin       also users, keys of others, secrets, settings, force and delete

A role includes the ones before it. A key or token may hold less than its user's role, and scopes
may narrow it further to groups of routes; nothing ever widens it.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, Literal

from serai.errors import Forbidden, Unauthenticated

RoleLabel = Literal["viewer", "user", "moderator", "admin"]


class Role(IntEnum):
    """Ordered: a greater role may do all that a lesser one may."""

    VIEWER = 1
    USER = 2
    MODERATOR = 3
    ADMIN = 4

    @property
    def label(self) -> RoleLabel:
        return _LABELS[self]

    @classmethod
    def of(cls, label: str) -> "Role":
        """Return the role with that label; KeyError for another word."""
        return cls[label.upper()]


_LABELS: Final[dict[Role, RoleLabel]] = {
    Role.VIEWER: "viewer",
    Role.USER: "user",
    Role.MODERATOR: "moderator",
    Role.ADMIN: "admin",
}

PUBLIC: Final = None
"""The access of a route that needs no caller."""

Access = Role | None

SCOPES: Final = frozenset(
    {"audit", "chat", "files", "images", "jobs", "keys", "models", "secrets", "services", "system", "users"}
)
"""The groups of routes that a key can be narrowed to."""

ANY_SCOPE: Final = "any"
"""The scope of routes that every key may use, however it is narrowed: who am I."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """A key's own limits; None takes the server's."""

    per_minute: int | None = None
    per_hour: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a request. `limit_id` is what its rate is counted by; empty `scopes` means all."""

    user_id: str
    name: str
    role: Role
    limit_id: str
    key_id: str | None = None
    expires_at: datetime | None = None
    """When the key ends; what it makes ends no later."""
    scopes: frozenset[str] = frozenset()
    limits: RequestLimits = RequestLimits()
    disk_quota_bytes: int | None = None
    """What the user may keep; None takes the server's default."""
    csrf: str | None = None
    """The token that a page must send with a change, where the caller is known by a cookie."""
    shows_key: bool = False
    """The key itself came with the request, not a token or cookie that was made from it."""

    @property
    def is_moderator(self) -> bool:
        return self.role >= Role.MODERATOR

    @property
    def is_admin(self) -> bool:
        return self.role >= Role.ADMIN


def check_access(caller: Caller | None, access: Access, scope: str) -> None:
    """Raise Unauthenticated or Forbidden unless `caller` may use a route of that access and scope."""
    if access is PUBLIC:
        return
    if caller is None:
        raise Unauthenticated("This call needs a key.")
    if caller.role < access:
        raise Forbidden(
            f"This call needs the role {access.label}; yours is {caller.role.label}.",
            hint="Ask an admin for a key with that role.",
        )
    if caller.scopes and scope != ANY_SCOPE and scope not in caller.scopes:
        raise Forbidden(
            f"This key is limited to: {', '.join(sorted(caller.scopes))}.", hint=f"Use a key with the scope {scope}."
        )


def owns(caller: Caller, owner_id: str) -> bool:
    """Say whether what `owner_id` made is the caller's to see and change: its owner's and every admin's."""
    return caller.user_id == owner_id or caller.is_admin


def narrowed(caller: Caller, role: Role | None, scopes: frozenset[str]) -> tuple[Role, frozenset[str]]:
    """Return role and scopes for a new key that `caller` makes for itself. Raises Forbidden if they would be more."""
    wanted = caller.role if role is None else role
    if wanted > caller.role:
        raise Forbidden(f"A key cannot have more than your own role, {caller.role.label}.")
    if caller.scopes and not (scopes and scopes <= caller.scopes):
        raise Forbidden(f"A key cannot have more than your own scopes: {', '.join(sorted(caller.scopes))}.")
    return wanted, scopes
