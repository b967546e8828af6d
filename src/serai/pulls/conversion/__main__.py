"""The program: one request as JSON in its argument, messages as JSON lines on its standard output."""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from serai.engines.quiet import quieten
from serai.errors import InvalidInput, OutOfMemory, SeraiError
from serai.pulls.conversion import Message, Refused, Request, Step
from serai.runtime.worker.isolation import die_with_parent

_NICENESS = 10
"""Conversion is background work: answers come first."""


def main() -> int:
    """Convert as the argument says; the exit code is 0 if it was done."""
    die_with_parent(signal.SIGKILL)
    say = _speaker()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    quieten()
    try:
        request = _request(sys.argv[1:])
        from serai.pulls.conversion.export import convert  # openvino is imported here, when it is quiet

        done = convert(
            Path(request.source),
            Path(request.target),
            quantization=request.quantization,
            threads=request.threads,
            task=request.task,
            report=lambda stage, fraction: say(Step(stage=stage, fraction=fraction)),
        )
    except MemoryError:
        say(_refusal(OutOfMemory("Converting the model needs more memory than there is.")))
        return 1
    except SeraiError as error:
        say(_refusal(error))
        return 1
    say(done)
    return 0


def _speaker() -> Callable[[Message], None]:
    """Return how to say a message. What libraries print goes to stderr: the output is the protocol's."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(message: Message) -> None:
        output.write(msgspec.json.encode(message) + b"\n")

    return say


def _request(arguments: list[str]) -> Request:
    try:
        return msgspec.json.decode(arguments[0], type=Request)
    except (IndexError, msgspec.DecodeError) as error:
        raise InvalidInput(f"The request of a conversion is not one: {error}") from None


def _refusal(error: SeraiError) -> Refused:
    return Refused(code=error.code, message=error.message, hint=error.hint)


if __name__ == "__main__":
    sys.exit(main())
