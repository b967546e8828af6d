"""A folder that is there as a whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from serai.errors import Conflict


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that gets the target's name when the block ends well. Raises Conflict if one has it."""
    if target.exists():
        raise Conflict("The target of the conversion exists already.")
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        yield made
        made.rename(target)
