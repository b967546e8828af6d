"""Libraries that look for hosts of their own, or write to the console, are told not to.

`import openvino` starts a thread that looks up an outside host to count imports; Hugging Face's
libraries ask a hub what they could read from the folder. `quieten` is called before their first import
in every process that uses one. A test with an audit hook holds that nothing is looked up.
"""

import sys
from types import ModuleType
from typing import Any, cast


def quieten() -> None:
    """Keep the libraries that this process may import from calling out. May be called again.

    The environment is not touched: whoever starts the process may set HF_HUB_OFFLINE and the like, too.
    """
    modules = cast("dict[str, Any]", sys.modules)
    if not isinstance(modules.get("openvino_telemetry"), ModuleType):
        modules["openvino_telemetry"] = None  # importing it fails, and openvino does without


def quieten_transformers() -> None:
    """Tell transformers, once it may be imported, that there is no hub and no console."""
    quieten()
    from huggingface_hub import constants
    from transformers.utils import hub, logging

    constants.HF_HUB_OFFLINE = True
    if hasattr(hub, "_is_offline_mode"):
        hub._is_offline_mode = True  # noqa: SLF001 - it was read from the environment when it was imported
    untyped = cast("Any", logging)
    untyped.set_verbosity_error()
    untyped.disable_progress_bar()
