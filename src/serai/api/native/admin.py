"""The admin paths of the service that this one replaces: other names for calls of `models` and `services`.

Each does exactly what the call behind it does, for moderators and admins. What changes a model needs
the scope `models` here as there, so that a key narrowed to services gains nothing by the other path.
"""

from starlette.requests import Request

from serai.api.access import Routes
from serai.api.native import models, services
from serai.api.native import registry_wire as wire
from serai.api.native.models import Force, ModelId, Number
from serai.api.wire import Cursor, Limit, Page
from serai.auth.policy import Role

_models, _services = Routes("models"), Routes("services")
routes = (_models, _services)


class VersionNamed(wire.RegistryIn):
    """A version, named in the body."""

    model_id: wire.Id
    version: wire.Number


class DeprecateNamed(wire.DeprecateIn, VersionNamed):
    """A version to deprecate, with what is said of it."""


class ServiceVersion(wire.RegistryIn):
    """The version that a service is to answer with."""

    service_id: wire.Id
    model_version: wire.Number
    reason: wire.Remark = ""


@_models.post("/services/admin/create/model/{model_id}/version", access=Role.MODERATOR, status_code=201)
async def create_version(request: Request, model_id: ModelId, body: wire.VersionIn) -> wire.VersionOut:
    """Add a version. The same as POST /models/{model_id}/versions."""
    return await models.create_version(request, model_id, body)


@_models.patch("/services/admin/deprecate/model/version", access=Role.MODERATOR)
async def deprecate_version(request: Request, body: DeprecateNamed, force: Force = False) -> wire.VersionOut:
    """Deprecate a version. The same as PATCH /models/{model_id}/versions/{version}/deprecate."""
    return await models.deprecate_version(request, body.model_id, body.version, body, force)


@_models.patch("/services/admin/publish/model/version", access=Role.MODERATOR)
async def publish_version(request: Request, body: VersionNamed) -> wire.VersionOut:
    """Publish a version. The same as PATCH /models/{model_id}/versions/{version}/publish."""
    return await models.publish_version(request, body.model_id, body.version)


@_models.patch("/services/admin/unpublish/model/version", access=Role.MODERATOR)
async def unpublish_version(request: Request, body: VersionNamed, force: Force = False) -> wire.VersionOut:
    """Take a version back from publication. The same as PATCH /models/{model_id}/versions/{version}/unpublish."""
    return await models.unpublish_version(request, body.model_id, body.version, force)


@_models.get("/services/admin/model/{model_id}/versions", access=Role.MODERATOR)
async def list_versions(
    request: Request, model_id: ModelId, limit: Limit = 50, cursor: Cursor = None
) -> Page[wire.VersionOut]:
    """List the versions of a model. The same as GET /models/{model_id}/versions."""
    return await models.list_versions(request, model_id, limit, cursor)


@_models.get("/services/admin/model/{model_id}/version/{version}/services", access=Role.MODERATOR)
async def version_services(request: Request, model_id: ModelId, version: Number) -> wire.ImpactOut:
    """Tell who uses a version. The same as GET /models/{model_id}/versions/{version}/services."""
    return await models.version_services(request, model_id, version)


@_models.get("/services/admin/model/{model_id}/deprecated-version-services", access=Role.MODERATOR)
async def deprecated_version_services(request: Request, model_id: ModelId) -> wire.DeprecatedUses:
    """Tell who still uses deprecated versions. The same as GET /models/{model_id}/deprecated-version-services."""
    return await models.deprecated_version_services(request, model_id)


@_services.patch("/services/admin/update/service/version", access=Role.MODERATOR)
async def update_service_version(request: Request, body: ServiceVersion) -> wire.ServiceOut:
    """Switch a service. The same as PATCH /services/{service_id}/version."""
    wanted = wire.SwitchIn(version=body.model_version, reason=body.reason)
    return await services.switch_version(request, body.service_id, wanted)
