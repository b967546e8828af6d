"""What is looked at before a worker is started, so that nothing is begun that cannot end well."""

import os
from collections.abc import Mapping

from serai.engines.base import EngineInfo, EngineSpec
from serai.engines.errors import EngineMissing, EngineUnknown
from serai.errors import LoadFailed


def check(spec: EngineSpec, catalogue: Mapping[str, EngineInfo]) -> EngineInfo:
    """Return what is known of the engine that `spec` names. Blocks a little: it looks for packages.

    Raises EngineUnknown, EngineMissing, InvalidInput for options, and LoadFailed for a budget of
    threads that this machine does not have or an engine that does not run in workers.
    """
    info = catalogue.get(spec.engine)
    if info is None:
        raise EngineUnknown(f"There is no engine {spec.engine!r}.", hint=f"There are: {', '.join(sorted(catalogue))}.")
    if not info.target:
        raise LoadFailed(f"The engine {spec.engine!r} has nothing to load: its models are on other servers.")
    processors = len(os.sched_getaffinity(0))
    if not 1 <= spec.threads <= processors:
        raise LoadFailed(
            f"A model cannot have {spec.threads} threads on this machine.",
            hint=f"Give it 1 to {processors}: as many as the server may use processors.",
        )
    if info.missing:
        raise EngineMissing(f"The engine {spec.engine!r} needs {', '.join(info.missing)}.", hint=info.remedy or None)
    info.check_options(spec.options)
    return info
