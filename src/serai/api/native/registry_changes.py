"""What the routes that change the registry share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from serai.api.access import actor_of, caller_of, is_rehearsal, parts_of
from serai.api.changes import attempt, change
from serai.auth.policy import Caller
from serai.errors import Forbidden, InvalidInput
from serai.registry.registry import Change
from serai.registry.source import RemoteSource

_MAY_BE_NULL = frozenset(
    {
        "alias",
        "commercial_use",
        "inference_schema",
        "input_schema",
        "memory_class",
        "model_id",
        "model_version",
        "output_schema",
        "reference_url",
        "shadow",
        "source",
    }
)

P = ParamSpec("P")
R = TypeVar("R")


async def registry_change(
    request: Request, command: Callable[Concatenate[Change, P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run a command of the registry in one transaction, or rehearse it."""
    parts = parts_of(request)
    actor, now = actor_of(request), parts.clock.now()
    return await change(request, parts.registry.write, command, actor, now, *args, **kwargs)


async def moved(
    request: Request,
    service_id: str,
    goals: Sequence[str],
    preload: bool | None,
    command: Callable[Concatenate[Change, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Run a command that binds a service to the versions `goals`: loaded before, and what it leaves drained after."""
    if is_rehearsal(request):
        return await registry_change(request, command, *args, **kwargs)
    parts = parts_of(request)
    actor, now = actor_of(request), parts.clock.now()
    await attempt(request, parts.registry.write, command, actor, now, *args, **kwargs)
    return await parts.serving.switches.switch(
        service_id,
        goals,
        lambda: registry_change(request, command, *args, **kwargs),
        preload=preload,
        timeout_s=parts.settings.load_timeout_s,
    )


def given(body: BaseModel) -> dict[str, Any]:
    """Return the members that the caller sent, as domain values; a null empties what may be empty."""
    values = {name: getattr(body, name) for name in body.model_fields_set}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None or name in _MAY_BE_NULL
    }


def changed(body: BaseModel) -> dict[str, Any]:
    """Return the same of a change. A null for what cannot be empty would be lost: raises InvalidInput."""
    for name in sorted(body.model_fields_set):
        if getattr(body, name) is None and name not in _MAY_BE_NULL:
            hint = "Leave it out to keep what there is, or send an empty value."
            raise InvalidInput.at(name, "cannot be null", hint=hint)
    return given(body)


def forced(request: Request, force: bool) -> bool:
    """Return `force`, which only an admin may set. Raises Forbidden."""
    if force and not caller_of(request).is_admin:
        raise Forbidden("Only an admin may force this.", hint="Switch the services first, then repeat without force.")
    return force


def check_admin_fields(caller: Caller, values: Mapping[str, Any]) -> None:
    """Refuse what only an admin may set: code or pickles from outside, and the binding of a secret."""
    if caller.is_admin:
        return
    for name in ("allow_remote_code", "allow_pickle"):
        if values.get(name):
            raise Forbidden(f"Only an admin may set {name}.", hint="Ask an admin to make this change.")
    sources = [values.get("source"), *(adapter.source for adapter in values.get("adapters") or ())]
    if any(isinstance(source, RemoteSource) and source.secret for source in sources):
        raise Forbidden("Only an admin may bind a secret to a model.", hint="Ask an admin to make this change.")
