"""The application in this process, with a client for each role, for tests of the API."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from serai.app import create_app
from serai.settings import Settings
from support.scrub import check_error

ROLES = ("viewer", "user", "moderator", "admin")
BASE = "http://127.0.0.1:8713"


@dataclass
class Running:
    """A running application. `clients` are by role; `anonymous` has no key."""

    app: FastAPI
    settings: Settings
    admin: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    user_ids: dict[str, str] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def client(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        """Return a client with that key."""
        given = {**headers, **({"authorization": f"Bearer {key}"} if key else {})}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("127.0.0.1", 50000))
        hooks = {"response": [_check]}
        return httpx.AsyncClient(transport=transport, base_url=BASE, headers=given, event_hooks=hooks)

    async def make_user(self, name: str, role: str) -> httpx.AsyncClient:
        """Create a user with a key, and return its client."""
        made = await self.admin.post("/users", json={"name": name, "role": role})
        assert made.status_code == 201, made.text
        self.user_ids[name] = made.json()["id"]
        key = await self.admin.post("/keys", json={"name": "test", "user_id": made.json()["id"]})
        assert key.status_code == 201, key.text
        return await self.stack.enter_async_context(self.client(key.json()["key"]))


@asynccontextmanager
async def running(home: Path, *, admin_key: str | None = None, **settings: Any) -> AsyncIterator[Running]:
    """Run the application in `home` until the block ends. `admin_key`: of a database that has its first admin."""
    chosen = Settings(home=home, **{"min_free_disk_bytes": 0, **settings})
    app = create_app(chosen)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        key = admin_key or (home / "admin.key").read_text().strip()
        server = Running(app=app, settings=chosen, admin=None, anonymous=None, stack=stack)  # type: ignore[arg-type]
        server.admin = await stack.enter_async_context(server.client(key))
        server.anonymous = await stack.enter_async_context(server.client())
        yield server


async def _check(response: httpx.Response) -> None:
    """Whatever a test is about: no error of the whole run tells what it should not."""
    if response.status_code >= 400 and response.request.method != "HEAD":
        body, request = await response.aread(), response.request
        sent = getattr(request, "_content", b"").decode("utf-8", "replace")
        kind = response.headers.get("content-type", "")
        check_error(response.status_code, kind, body, path=request.url.path, said=f"{request.url} {sent}")


async def with_every_role(server: Running) -> dict[str, httpx.AsyncClient]:
    """Return clients of four users, one of each role."""
    for role in ROLES:
        server.clients[role] = await server.make_user(f"the-{role}", role)
    return server.clients
