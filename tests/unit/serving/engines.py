"""The fake engine under the names of others: one that loads, and some that do not."""

from collections.abc import Callable

from serai.engines.base import EngineSpec, Footprint, Run
from serai.engines.fake import Fake
from serai.engines.stepwise import Turns
from serai.errors import EngineFailed, LoadFailed, WorkerCrashed


class Plain(Fake):
    """Does as the fake engine."""


class Unloadable(Fake):
    """Cannot be loaded."""

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        raise LoadFailed("This engine cannot read these weights.")


class Killed(Fake):
    """Ends while it loads."""

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        raise WorkerCrashed("This engine fell over these weights.")


class Failing(Fake):
    """Loads, and fails each run."""

    def begin(self, run: Run) -> Turns:
        raise EngineFailed("This engine fails.")
