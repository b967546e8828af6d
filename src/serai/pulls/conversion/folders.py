"""A folder that is there as a whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serai.errors import Conflict


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that gets the target's name when the block ends well. Raises Conflict if one has it.

    It lies beside the target under a name of the target's own: what a killed process left there is removed.
    """
    if target.exists():
        raise Conflict("The target of the conversion exists already.")
    made = target.with_name(f".{target.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        yield made
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
