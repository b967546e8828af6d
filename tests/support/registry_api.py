"""What the tests of the registry's API share: asking, and bodies to send."""

from collections.abc import Awaitable
from typing import Any

import httpx

SOURCE = {"kind": "package", "name": "m"}
WITHOUT_A_HINT = {"INVALID_INPUT", "CONFLICT"}
"""General errors; every error of the registry itself says what to do next."""


async def said(call: Awaitable[httpx.Response], status: int = 200) -> Any:
    """Return the JSON of an answer that must have this status; None for no body."""
    answer = await call
    assert answer.status_code == status, f"{answer.request.method} {answer.request.url}: {answer.text}"
    return answer.json() if answer.content else None


async def refused(call: Awaitable[httpx.Response], status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """Return the error of an answer that must have this status and code, and name this field."""
    answer = await call
    asked = f"{answer.request.method} {answer.request.url}"
    assert answer.status_code == status, f"{asked}: {answer.status_code} {answer.text}"
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code, f"{asked}: {error}"
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["hint"] or code in WITHOUT_A_HINT, error
    if field is not None:
        assert field in [entry["field"] for entry in error["details"]], error
    return error


async def make_model(client: httpx.AsyncClient, model_id: str, *numbers: str, **fields: Any) -> None:
    """Create a model with these versions (1.0.0 if none is named), the first with these fields."""
    first, *others = numbers or ("1.0.0",)
    body = {"id": model_id, "task": "chat", "licence": "MIT", "version": first, "source": SOURCE, **fields}
    await said(client.post("/models", json=body), 201)
    for number in others:
        await said(client.post(f"/models/{model_id}/versions", json={"version": number}), 201)


async def make_service(client: httpx.AsyncClient, service_id: str, **fields: Any) -> Any:
    """Create a service and return it."""
    return await said(client.post("/services", json={"id": service_id, "task": "chat", **fields}), 201)


async def everything(client: httpx.AsyncClient) -> Any:
    """Return all that the API tells of the registry, and the end of the audit log."""
    models = await said(client.get("/models?limit=200&include_deprecated=1"))
    services = await said(client.get("/services?limit=200"))
    return models, services, await said(client.get("/audit/head"))
