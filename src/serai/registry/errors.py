"""What the registry refuses, each with the call that comes next.

Every class is a leaf under a family of `serai.errors`; the family gives the HTTP status, the code
says which rule spoke.
"""

from serai.errors import Conflict, Forbidden, InvalidInput, NotFound, RateLimited, Unavailable


class InvalidVersionFormat(InvalidInput):
    code = "INVALID_VERSION_FORMAT"
    default_hint = "Write a version as MAJOR.MINOR.PATCH, for example 1.2.0 or 2.0.0-rc.1 (Semantic Versioning 2.0.0)."


class InvalidReference(InvalidInput):
    code = "INVALID_REFERENCE"
    default_hint = (
        "Name a service, 'model', 'model@1.2.0', 'model@alias', 'model:tag' or a hub name such as 'owner/name'."
    )


class InvalidStatusMove(Conflict):
    code = "INVALID_STATUS_MOVE"
    default_hint = "GET /models/{id}/versions shows the status; draft → active ↔ deprecated → retired are the moves."


class ModelNotFound(NotFound):
    code = "MODEL_NOT_FOUND"
    default_hint = "GET /models lists the models; POST /pull fetches one from the hub."


class ModelNotPulled(NotFound):
    code = "MODEL_NOT_PULLED"
    default_hint = "Fetch the weights with POST /pull."


class VersionNotFound(NotFound):
    code = "VERSION_NOT_FOUND"
    default_hint = "GET /models/{id}/versions lists the versions."


class AliasNotFound(NotFound):
    code = "ALIAS_NOT_FOUND"
    default_hint = "PUT /models/{id}/aliases/{alias} creates an alias; GET /models/{id} lists those there are."


class ServiceNotFound(NotFound):
    code = "SERVICE_NOT_FOUND"
    default_hint = "GET /services lists the services."


class NothingToRollBack(Conflict):
    code = "NOTHING_TO_ROLL_BACK"
    default_hint = "GET /services/{id}/history lists the earlier revisions."


class ModelAlreadyExists(Conflict):
    code = "MODEL_ALREADY_EXISTS"
    default_hint = "Choose another id, or add a version with POST /models/{id}/versions."


class VersionAlreadyExists(Conflict):
    code = "VERSION_ALREADY_EXISTS"
    default_hint = "Choose a version that was never used; the number of a deleted version is not used again."


class ServiceAlreadyExists(Conflict):
    code = "SERVICE_ALREADY_EXISTS"
    default_hint = "Choose another id, or change the service with PATCH /services/{id}."


class NameCollision(Conflict):
    """A service and a model (or two models) would answer to the same name."""

    code = "NAME_COLLISION"
    default_hint = "Choose an id that no model, lookup name or service has."


class ImmutableVersion(Forbidden):
    code = "IMMUTABLE_VERSION"
    default_hint = "Create a new version with POST /models/{id}/versions; release notes and tags stay editable."


class ActiveVersionLimitExceeded(Conflict):
    code = "ACTIVE_VERSION_LIMIT_EXCEEDED"
    default_hint = "Deprecate a version first: PATCH /models/{id}/versions/{version}/deprecate."


class DeprecatedVersion(Conflict):
    code = "DEPRECATED_VERSION"
    default_hint = "Choose an active version, or re-activate it: PATCH /models/{id}/versions/{version}/activate."


class VersionNotActive(Conflict):
    """A draft, retired or deleted version was to be bound."""

    code = "VERSION_NOT_ACTIVE"
    default_hint = "Choose an active version, or activate it: PATCH /models/{id}/versions/{version}/activate."


class VersionInUse(Conflict):
    """`details` is the list of service ids that use the version."""

    code = "VERSION_IN_USE"
    default_hint = (
        "Switch those services with PATCH /services/{id}/version first, or let an admin repeat it with force=1."
    )


class ServiceVersionSwitchError(Conflict):
    code = "SERVICE_VERSION_SWITCH_ERROR"
    default_hint = "GET /services/{id} lists available_versions; bind another model with PATCH /services/{id}."


class AliasMoved(Conflict):
    """Compare-and-swap failed: the alias does not point where the caller believed."""

    code = "ALIAS_MOVED"
    default_hint = "Read the alias again with GET /models/{id} and repeat with that version as expected_from."


class LicenceRefused(Conflict):
    code = "LICENCE_REFUSED"
    default_hint = "Choose a version whose licence allows this use; GET /models/{id} shows licence and duties."


class InvalidSplit(InvalidInput):
    code = "INVALID_SPLIT"
    default_hint = "Give each target a whole weight from 0 to 100; together they are 100."


class FallbackCycle(Conflict):
    """A fallback chain would come back to a service that it started from."""

    code = "FALLBACK_CYCLE"
    default_hint = "Take one of the named services out of the chain; GET /services/{id} shows each chain."


class IncompatibleFallback(Conflict):
    """A link of a chain does another task or lacks a capability that the service promises."""

    code = "INCOMPATIBLE_FALLBACK"
    default_hint = "Choose a version of the same task that has these capabilities; GET /models?task= lists them."


class ImportRefused(Conflict):
    """An import from another registry was refused as a whole; `details` lists every reason."""

    code = "IMPORT_REFUSED"
    default_hint = "Say what is to become of them with --task, --rename-model and --rename-service, and import again."


class NoCandidate(Unavailable):
    """Nothing may answer; `details` lists each candidate considered and why it was passed over."""

    code = "NO_CANDIDATE"
    default_hint = "GET /services/{id}/explain says why; activate or pull one of the versions that it names."


class CandidateInCooldown(RateLimited):
    """Everything that could answer failed a short while ago; `retry_after` is set."""

    code = "MODEL_IN_COOLDOWN"
    default_hint = "Wait for Retry-After, or let a moderator call POST /models/{ref}/cooldown/clear."
