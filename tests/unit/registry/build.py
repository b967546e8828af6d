"""Small rows for the tests of the registry: only what a test is about is given."""

from datetime import UTC, datetime
from typing import Any

from serai.registry.model import Alias, Model
from serai.registry.parameters import Parameter
from serai.registry.rules import RegistryRules
from serai.registry.service import FallbackEntry, Revision, Service, Target
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.source import PackageSource
from serai.registry.version import Status, Version

AT = datetime(2026, 1, 1, tzinfo=UTC)
STAMPS: dict[str, Any] = {"created_at": AT, "created_by": "ann", "updated_at": AT, "updated_by": "ann"}


def a_model(id_: str = "m", **values: Any) -> Model:
    return Model(**({"id": id_, "name": id_.upper(), "task": "chat", "licence": "MIT"} | values), **STAMPS)


def a_version(model_id: str = "m", version: str = "1.0.0", **values: Any) -> Version:
    steps = values.pop("steps", None)
    if steps is not None:
        values["parameters"] = {"num_inference_steps": Parameter(default=steps)}
    defaults = {"seq": 1, "status": Status.ACTIVE, "source": PackageSource(name=f"{model_id}-{version}")}
    return Version(model_id=model_id, version=version, **(defaults | values), **STAMPS)


def an_alias(model_id: str, name: str, version: str) -> Alias:
    return Alias(model_id=model_id, name=name, version=version, epoch=1, updated_at=AT, updated_by="ann")


def to(text: str, weight: int = 100) -> Target:
    """'m', 'm@1.0.0' or 'm@:alias' as a target."""
    model, _, selector = text.partition("@")
    if selector.startswith(":"):
        return Target(model=model, alias=selector[1:], weight=weight)
    return Target(model=model, version=selector or None, weight=weight)


def link(text: str, **values: Any) -> FallbackEntry:
    """'m@1.0.0' or 'service:s' as a link of a chain."""
    if text.startswith("service:"):
        return FallbackEntry(service=text.removeprefix("service:"), **values)
    model, _, version = text.partition("@")
    return FallbackEntry(model=model, version=version or None, **values)


def a_service(
    id_: str = "s",
    *targets: Target,
    fallback: tuple[FallbackEntry, ...] = (),
    shadow: Target | None = None,
    **values: Any,
) -> Service:
    revision = Revision(
        service_id=id_, n=1, targets=targets, fallback=fallback, shadow=shadow, created_at=AT, created_by="ann"
    )
    return Service(**({"id": id_, "name": id_.upper(), "task": "chat", "revision": revision} | values), **STAMPS)


def a_snapshot(*rows: Model | Version | Alias | Service, **rules: Any) -> RegistrySnapshot:
    """An index over the rows; a model that only its versions name is made for them."""
    models = {row.id: row for row in rows if isinstance(row, Model)}
    versions = [row for row in rows if isinstance(row, Version)]
    for version in versions:
        models.setdefault(version.model_id, a_model(version.model_id))
    return RegistrySnapshot.build(
        models=models.values(),
        versions=versions,
        aliases=[row for row in rows if isinstance(row, Alias)],
        services=[row for row in rows if isinstance(row, Service)],
        rules=RegistryRules(**rules),
    )
