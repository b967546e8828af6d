"""Pictures made by other servers. What they cannot be asked for is refused by name, or named in the result."""

from collections.abc import AsyncGenerator

from serai.engines.options import RemoteOptions
from serai.engines.remote.call import RemoteCall
from serai.engines.remote.images_fal import fal_events
from serai.engines.remote.images_openai import openai_events
from serai.engines.tasks import GenerateImage
from serai.errors import InvalidInput
from serai.events import Event
from serai.registry.source import RemoteSource


def image_events(
    task: GenerateImage, source: RemoteSource, options: RemoteOptions, call: RemoteCall
) -> AsyncGenerator[Event]:
    """Return the events of a task: `Progress`, previews where there are any, each picture, `Done`.

    Besides what the task says, `Done` holds `reproducible` (never: the server answers for that) and `unused`,
    the settings that the server was not told because it knows none of the kind. Raises InvalidInput.
    """
    if task.adapter_scales:
        raise InvalidInput.at("settings.adapters", "are not possible with a model on another server")
    if task.max_sequence_length is not None:
        raise InvalidInput.at("settings.max_sequence_length", "is not known to the server behind this model")
    if task.mask is not None and task.source is None:
        raise InvalidInput.at("mask", "needs an image")
    if options.images == "fal":
        return fal_events(task, source, options, call)
    return openai_events(task, source, options, call)
