"""What engines say in words of their own."""

from serai.errors import InvalidInput, LoadFailed, UpstreamFailed


class EngineUnknown(InvalidInput):
    """No engine has the name that a version gives."""

    code = "ENGINE_UNKNOWN"


class EngineMissing(LoadFailed):
    """No engine that can run the version is installed; the hint is the command that installs one."""

    code = "ENGINE_MISSING"


class RemoteFailed(UpstreamFailed):
    """The server behind a remote model failed, broke off, or answered nonsense."""

    code = "REMOTE_FAILED"
    default_hint = "Try again, or choose a model that runs here; GET /services/{id}/explain shows the alternatives."
