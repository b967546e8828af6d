"""Adapters (LoRA) over a model of transformers, by peft: loaded once, switched between steps."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from serai.engines.base import AdapterUse
from serai.errors import InvalidInput, LoadFailed

Mix = tuple[AdapterUse, ...]


class Adapters:
    """The adapters that were used so far, and the mix that the model computes with now."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._names: dict[str, str] = {}
        self._current: Mix = ()

    def prepare(self, mix: Mix) -> None:
        """Load what is not there yet. Raises InvalidInput without peft, LoadFailed for a file that is no adapter."""
        if mix and find_spec("peft") is None:
            raise InvalidInput.at("adapters", "need peft", hint="pip install 'serai[torch]'")
        for use in mix:
            if use.id not in self._names:
                self._load(use)

    def switch(self, mix: Mix) -> None:
        """Compute with exactly these from now on."""
        if mix == self._current:
            return
        if not mix:
            self._model.disable_adapters()
        else:
            if not self._current:
                self._model.enable_adapters()
            names = [self._names[use.id] for use in mix]
            self._model.set_adapter(names)
            _set_scales(self._model, names, mix)
        self._current = mix

    def _load(self, use: AdapterUse) -> None:
        path = Path(use.path)
        folder = path if path.is_dir() else path.parent
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).is_file():
                raise LoadFailed(
                    f"The adapter {use.id!r} has no {name}.", hint="Adapters are folders as peft saves them."
                )
        name = f"adapter{len(self._names)}"
        try:
            self._model.load_adapter(str(folder), adapter_name=name)
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise LoadFailed(f"The adapter {use.id!r} does not fit the model: {_first_line(error)}") from None
        self._names[use.id] = name
        self._model.disable_adapters()
        self._current = ()


def _set_scales(model: Any, names: Sequence[str], mix: Mix) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name, use in zip(names, mix, strict=True):
                cast("Any", module).set_scale(name, use.scale)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
