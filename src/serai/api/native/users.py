"""Users. An admin makes and changes them; everybody sees who they are themselves."""

import asyncio
from datetime import datetime
from typing import Annotated

from fastapi import Path
from pydantic import Field
from starlette.requests import Request

from serai.api.access import Routes, actor_of, caller_of, parts_of
from serai.api.changes import change
from serai.api.wire import Cursor, Limit, Page, Wire, page_of, place_of
from serai.auth import store
from serai.auth.policy import ANY_SCOPE, Caller, Role, RoleLabel
from serai.errors import Forbidden
from serai.storage.links import usage

routes = Routes("users")

UserName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._@-]*$")]
Password = Annotated[str, Field(min_length=10, max_length=256)]
Quota = Annotated[int, Field(ge=0, le=2**50)]
UserId = Annotated[str, Path(max_length=64)]


class UserOut(Wire):
    id: str
    name: str
    role: RoleLabel
    has_password: bool
    disabled: bool
    disk_quota_bytes: int | None
    created_at: datetime
    updated_at: datetime
    created_by: str


class UserIn(Wire):
    name: UserName
    role: RoleLabel = "user"
    password: Password | None = None
    disk_quota_bytes: Quota | None = None


class UserChange(Wire):
    """Members that are left out stay as they are."""

    role: RoleLabel | None = None
    password: Password | None = None
    disabled: bool | None = None
    disk_quota_bytes: Quota | None = None


class WhoAmI(Wire):
    user_id: str
    name: str
    role: RoleLabel
    key_id: str | None
    scopes: list[str]
    disk_used_bytes: int
    csrf_token: str | None


def show(user: store.User) -> UserOut:
    """Return the view of a user."""
    return UserOut(
        id=user.id,
        name=user.name,
        role=user.role.label,
        has_password=user.password_hash is not None,
        disabled=user.disabled_at is not None,
        disk_quota_bytes=user.disk_quota_bytes,
        created_at=user.created_at,
        updated_at=user.updated_at,
        created_by=user.created_by,
    )


@routes.get("/whoami", access=Role.VIEWER, scope=ANY_SCOPE)
async def whoami(request: Request) -> WhoAmI:
    """Say who calls, and what they may."""
    caller = caller_of(request)
    return WhoAmI(
        user_id=caller.user_id,
        name=caller.name,
        role=caller.role.label,
        key_id=caller.key_id,
        scopes=sorted(caller.scopes),
        disk_used_bytes=await parts_of(request).database.read(usage, caller.user_id),
        csrf_token=caller.csrf,
    )


@routes.get("/users", access=Role.ADMIN)
async def list_users(request: Request, limit: Limit = 50, cursor: Cursor = None) -> Page[UserOut]:
    """List the users."""
    rows = await parts_of(request).database.read(store.list_users, limit=limit + 1, after=place_of(cursor))
    return page_of(rows, limit, show, lambda user: user.id)


@routes.post("/users", access=Role.ADMIN, status_code=201)
async def create_user(request: Request, body: UserIn) -> UserOut:
    """Create a user. Without a password it can only use API keys."""
    parts, now = parts_of(request), parts_of(request).clock.now()
    _check_narrowed(caller_of(request), body.role, body.password)
    user = store.User(
        id=parts.new_id("user"),
        name=body.name,
        role=Role.of(body.role),
        password_hash=await _hash(request, body.password),
        token_epoch=0,
        disk_quota_bytes=body.disk_quota_bytes,
        disabled_at=None,
        created_at=now,
        updated_at=now,
        created_by=caller_of(request).user_id,
    )
    return show(await change(request, store.create_user, user, actor_of(request)))


@routes.get("/users/{user_id}", access=Role.ADMIN)
async def get_user(request: Request, user_id: UserId) -> UserOut:
    """Show a user."""
    return show(await parts_of(request).database.read(store.get_user, user_id))


@routes.patch("/users/{user_id}", access=Role.ADMIN)
async def update_user(request: Request, user_id: UserId, body: UserChange) -> UserOut:
    """Change a user. A new password, another role or disabling ends the user's tokens and sessions at once."""
    now = parts_of(request).clock.now()
    _check_narrowed(caller_of(request), body.role, body.password)
    changes: dict[str, object] = {}
    if body.role is not None:
        changes["role"] = Role.of(body.role)
    if body.password is not None:
        changes["password_hash"] = await _hash(request, body.password)
    if body.disabled is not None:
        changes["disabled_at"] = now if body.disabled else None
    ends_tokens = bool(changes)
    if "disk_quota_bytes" in body.model_fields_set:
        changes["disk_quota_bytes"] = body.disk_quota_bytes
    actor = actor_of(request)
    return show(await change(request, store.update_user, user_id, changes, actor, now, ends_tokens=ends_tokens))


@routes.delete("/users/{user_id}", access=Role.ADMIN, status_code=204)
async def delete_user(request: Request, user_id: UserId) -> None:
    """Remove a user and its keys. What the user made stays, and admins see it."""
    await change(request, store.delete_user, user_id, actor_of(request), parts_of(request).clock.now())


def _check_narrowed(caller: Caller, role: RoleLabel | None, password: str | None) -> None:
    """Refuse a narrowed key what would widen it: signing in, or acting as another admin, has every scope."""
    if caller.scopes and (password is not None or (role is not None and Role.of(role) >= caller.role)):
        raise Forbidden(
            "A key that is limited to scopes sets no passwords and gives no role as high as its own.",
            hint="Use a key without scopes.",
        )


async def _hash(request: Request, password: str | None) -> str | None:
    if password is None:
        return None
    return await asyncio.to_thread(parts_of(request).passwords.hash, password)
