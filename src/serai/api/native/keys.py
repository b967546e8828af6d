"""API keys, tokens and sessions: whatever proves who calls."""

import secrets
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serai.api.access import COOKIE, Routes, actor_of, address_of, caller_of, parts_of
from serai.api.changes import change
from serai.api.wire import Cursor, Limit, Name, Page, Wire, page_of, place_of
from serai.auth import store
from serai.auth.credentials import is_key, key_digest, key_prefix, new_key
from serai.auth.policy import PUBLIC, SCOPES, Caller, RequestLimits, Role, RoleLabel, narrowed, owns
from serai.errors import Forbidden, InvalidInput, Unauthenticated

routes = Routes("keys")

KeyId = Annotated[str, Path(max_length=64)]
Rate = Annotated[int, Field(ge=1, le=1_000_000_000)]
MAX_LIFE_S = 10 * 366 * 86400


class Limits(Wire):
    """Limits of one key; null takes the server's."""

    per_minute: Rate | None = None
    per_hour: Rate | None = None
    tokens_per_minute: Rate | None = None


class KeyOut(Wire):
    id: str
    user_id: str
    name: str
    prefix: str
    role: RoleLabel
    scopes: list[str]
    limits: Limits
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime
    created_by: str


class NewKeyOut(KeyOut):
    key: str = Field(description="The key itself: shown this once and never again.")


class KeyIn(Wire):
    name: Name
    user_id: str | None = Field(None, max_length=64, description="For an admin: whose key it is; else your own.")
    role: RoleLabel | None = Field(None, description="Not above the user's; the user's if left out.")
    scopes: list[str] = Field([], max_length=len(SCOPES), description=f"Empty: all. Of: {', '.join(sorted(SCOPES))}.")
    expires_in_s: Annotated[int, Field(ge=1, le=MAX_LIFE_S)] | None = None
    limits: Limits | None = Field(None, description="For an admin: limits other than the server's.")


class TokenOut(Wire):
    token: str
    expires_at: datetime


class LoginIn(Wire):
    """Either a name with its password, or an API key."""

    name: Annotated[str, Field(max_length=64)] | None = None
    password: Annotated[str, Field(max_length=256)] | None = None
    api_key: Annotated[str, Field(max_length=256)] | None = None


class LoginOut(Wire):
    user_id: str
    csrf_token: str = Field(description="Send it as X-CSRF-Token with every change.")
    expires_at: datetime


def show(key: store.ApiKey) -> KeyOut:
    """Return the view of a key, without the key itself."""
    limits = Limits(**asdict(key.limits))
    return KeyOut(
        id=key.id,
        user_id=key.user_id,
        name=key.name,
        prefix=key.prefix,
        role=key.role.label,
        scopes=sorted(key.scopes),
        limits=limits,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
        created_at=key.created_at,
        created_by=key.created_by,
    )


@routes.get("/keys", access=Role.USER)
async def list_keys(request: Request, limit: Limit = 50, cursor: Cursor = None) -> Page[KeyOut]:
    """List your keys; an admin sees all."""
    caller = caller_of(request)
    owner = None if caller.is_admin else caller.user_id
    read = parts_of(request).database.read
    rows = await read(store.list_keys, user_id=owner, limit=limit + 1, after=place_of(cursor))
    return page_of(rows, limit, show, lambda key: key.id)


@routes.post("/keys", access=Role.USER, status_code=201)
async def create_key(request: Request, body: KeyIn) -> NewKeyOut:
    """Make a key for yourself, or as an admin for another user. The answer shows it once."""
    parts, caller, now = parts_of(request), caller_of(request), parts_of(request).clock.now()
    unknown = sorted(set(body.scopes) - SCOPES)
    if unknown:
        raise InvalidInput.at("scopes", f"knows no {unknown[0][:50]}; known: {', '.join(sorted(SCOPES))}")
    if not (caller.shows_key or caller.csrf or parts.settings.auth == "off"):
        raise Forbidden("A token cannot make keys: it would outlive itself.", hint="Send the key, or sign in.")
    role, scopes = await _granted(request, caller, body)
    limits = RequestLimits(**body.limits.model_dump()) if body.limits else caller.limits
    text = new_key()
    key = store.ApiKey(
        id=parts.new_id("key"),
        user_id=body.user_id or caller.user_id,
        name=body.name,
        prefix=key_prefix(text),
        role=role,
        scopes=scopes,
        limits=limits,
        expires_at=_end(caller, body, now),
        revoked_at=None,
        last_used_at=None,
        created_at=now,
        created_by=caller.user_id,
    )
    stored = await change(request, store.create_key, key, key_digest(text), actor_of(request))
    return NewKeyOut(**dict(show(stored)), key=text)


@routes.get("/keys/{key_id}", access=Role.USER)
async def get_key(request: Request, key_id: KeyId) -> KeyOut:
    """Show a key, without the key itself."""
    return show(await _own_key(request, key_id))


@routes.delete("/keys/{key_id}", access=Role.USER, status_code=204)
async def revoke_key(request: Request, key_id: KeyId) -> None:
    """Revoke a key: it stops working on every server within a second."""
    await _own_key(request, key_id)
    await change(request, store.revoke_key, key_id, actor_of(request), parts_of(request).clock.now())


@routes.post("/tokens", access=Role.VIEWER, status_code=201, rehearsable=False)
async def create_token(request: Request) -> TokenOut:
    """Make a short-lived token from the API key of this call; it may do what the key may."""
    parts, caller = parts_of(request), caller_of(request)
    if not caller.shows_key:  # a token that renews itself would never expire
        raise Forbidden("A token is made from an API key.", hint="Send the key, not a token or a cookie.")
    user = await parts.database.read(store.get_user, caller.user_id)
    token, expires = parts.callers.issue(user, caller, parts.settings.jwt_ttl_s)
    return TokenOut(token=token, expires_at=expires)


@routes.post("/login", access=PUBLIC, rehearsable=False)
async def login(request: Request, body: LoginIn) -> Response:
    """Begin a session for a browser: sets a cookie that scripts cannot read, and returns the CSRF token."""
    parts = parts_of(request)
    await parts.limiter.admit_address(address_of(request))
    caller: Caller | None = None
    if body.api_key is not None and body.name is None and body.password is None:
        if not is_key(body.api_key):  # a token would outlive itself as a session
            raise Unauthenticated("This is not an API key.")
        caller = await parts.callers.by_bearer(body.api_key)
        user = await parts.database.read(store.get_user, caller.user_id)
    elif body.name is not None and body.password is not None and body.api_key is None:
        user = await parts.callers.by_password(body.name, body.password)
    else:
        raise InvalidInput("A login has a name and a password, or an api_key.")
    csrf = secrets.token_urlsafe(24)
    token, expires = parts.callers.issue(user, caller, parts.settings.session_ttl_s, csrf)
    told = LoginOut(user_id=user.id, csrf_token=csrf, expires_at=expires)
    response = JSONResponse(told.model_dump(mode="json"))
    secure = request.url.scheme == "https"
    life = int(parts.settings.session_ttl_s)
    response.set_cookie(COOKIE, token, max_age=life, httponly=True, samesite="strict", secure=secure)
    return response


@routes.post("/logout", access=Role.VIEWER, status_code=204, rehearsable=False)
async def logout() -> Response:
    """End this browser's session."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


async def _granted(request: Request, caller: Caller, body: KeyIn) -> tuple[Role, frozenset[str]]:
    role = None if body.role is None else Role.of(body.role)
    if body.user_id is None or body.user_id == caller.user_id:
        if body.limits is not None and not caller.is_admin:
            raise Forbidden("Only an admin sets the limits of a key.")
        return narrowed(caller, role, frozenset(body.scopes))
    if not caller.is_admin:
        raise Forbidden("Only an admin makes keys for others.")
    _, scopes = narrowed(caller, None, frozenset(body.scopes))
    user = await parts_of(request).database.read(store.get_user, body.user_id)
    if role is not None and role > user.role:
        raise Forbidden(f"A key cannot have more than its user's role, {user.role.label}.")
    return role or user.role, scopes


def _end(caller: Caller, body: KeyIn, now: datetime) -> datetime | None:
    """Return when the new key expires: one that is made with a key ends no later than that key."""
    asked = now + timedelta(seconds=body.expires_in_s) if body.expires_in_s else None
    if caller.expires_at is None:
        return asked
    if asked is not None and asked > caller.expires_at:
        raise Forbidden("A key cannot live longer than the one that makes it.")
    return asked or caller.expires_at


async def _own_key(request: Request, key_id: str) -> store.ApiKey:
    """Return the key if the caller may see it; another's does not exist for it."""
    key = await parts_of(request).database.read(store.get_key, key_id)
    caller = caller_of(request)
    if not owns(caller, key.user_id):
        raise store.KeyNotFound("No such key.", hint="GET /keys lists yours.")
    return key
