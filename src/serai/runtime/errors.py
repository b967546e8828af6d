"""Why a request gets no lease, or loses the one it has."""

from typing import Any

from serai.errors import Cancelled, EngineFailed, Unavailable


class DoesNotFit(Unavailable):
    """The models of a request do not fit this machine, however empty it is; trying again does not help."""

    code = "MODEL_DOES_NOT_FIT"
    may_pass = False
    default_hint = "Choose a smaller quantization, raise the device's budget, or run it on a larger machine."

    @classmethod
    def by(cls, needed: int, budget: int) -> "DoesNotFit":
        """Return the error for so many bytes at once, and so many that there are."""
        details = {"needed_bytes": needed, "budget_bytes": budget}
        return cls(f"The models need {needed} bytes at once; the budget is {budget} bytes.", details=details)


class QueueFull(Unavailable):
    """Too many requests wait, in all or of this caller; `retry_after` is set."""

    code = "MODEL_QUEUE_FULL"
    default_hint = "Wait for the seconds in Retry-After, then try again."


class QueueTimeout(Unavailable):
    """The request's time was over before it got a lease; `retry_after` is set."""

    code = "QUEUE_TIMEOUT"
    default_hint = "Try again after Retry-After, or with a longer timeout."


class ModelUnloaded(Unavailable):
    """A model was unloaded by force while the request used it."""

    code = "MODEL_UNLOADED"
    default_hint = "Send the request again; the model is loaded when it is needed."


class SlowConsumer(Cancelled):
    """Too much of an answer was waiting to be read, so its run was cancelled."""

    code = "SLOW_CONSUMER"
    default_hint = "Read the events as they come, or ask without streaming."


class WorkerGone(EngineFailed):
    """A worker has ended. `status` as for `Popen.returncode`: negative for a signal; None where there is no process."""

    code = "WORKER_GONE"

    def __init__(self, message: str, *, status: int | None = None, **told: Any) -> None:
        super().__init__(message, **told)
        self.status = status
