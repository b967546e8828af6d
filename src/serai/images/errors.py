"""What making pictures can fail of, beyond what serving and the settings say."""

from serai.errors import EngineFailed, WorkerCrashed


class ImageWorkerLost(WorkerCrashed):
    """The process that drew the picture ended while it worked: killed, out of memory, or silent for too long.

    The job is run again a bounded number of times; after the last one this is why it failed.
    """

    code = "IMAGE_WORKER_LOST"
    may_pass = True
    default_hint = "It was tried several times. Ask for smaller or fewer pictures, or see the server's models.log."


class WrongPictures(EngineFailed):
    """A model made fewer or more pictures than it was asked for, or one that cannot be opened."""

    code = "WRONG_PICTURES"
    default_hint = "Try another model; an admin finds the details in the server's models.log."
