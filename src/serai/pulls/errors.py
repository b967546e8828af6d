"""What a pull refuses, each with the next step."""

from serai.errors import Conflict, InvalidInput, LoadFailed, Unavailable


class MissingExtra(Conflict):
    """The weights must be converted, and what converts them is not installed; nothing was fetched."""

    code = "MISSING_EXTRA"
    default_hint = "Install it with: pip install 'serai[torch]'. Repositories that hold OpenVINO files need no extra."


class UnsupportedWeights(InvalidInput):
    """No engine here reads weights of this form; nothing was fetched."""

    code = "UNSUPPORTED_WEIGHTS"


class ModelNameTaken(Conflict):
    code = "MODEL_NAME_TAKEN"
    default_hint = "Give the model another id with 'name', or the id of the model that this is a new version of."


class NothingToPull(Conflict):
    """The version needs no files, or comes from no source that could be fetched."""

    code = "NOTHING_TO_PULL"


class InitFailed(LoadFailed):
    """The pull is done and registered; only the loading that was asked for with it failed."""

    code = "INIT_FAILED"
    default_hint = "The version is registered and its files are here: load it with POST /models/{ref}/load."


class RegistryBusy(Unavailable):
    code = "REGISTRY_BUSY"
    default_hint = "Others were adding versions of this model; pull again: nothing has to be fetched twice."
