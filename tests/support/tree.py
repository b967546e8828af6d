"""The classes of the package as a whole, for tests that hold a rule over all of them."""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache

import serai
from serai.errors import SeraiError

# Running these does something; the entry point and the migrations are tested where they run.
_NOT_IMPORTED = ("serai.__main__", "serai.storage.migrations.")


@cache
def import_everything() -> tuple[str, ...]:
    """Import every module of the package that this machine has the libraries for; return their names."""
    names = []
    for module in pkgutil.walk_packages(serai.__path__, "serai."):
        if module.name.startswith(_NOT_IMPORTED):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed; a module of ours must be there
            if (error.name or "").partition(".")[0] == "serai":
                raise
        else:
            names.append(module.name)
    return tuple(names)


def all_errors() -> list[type[SeraiError]]:
    """Return every error of the package, families and leaves, without the root."""
    import_everything()
    found = {kind for kind in _below(SeraiError) if kind.__module__.partition(".")[0] == "serai"}
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


def _below(kind: type[SeraiError]) -> Iterator[type[SeraiError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
