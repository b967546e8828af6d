"""Adapters (LoRA) over a pipeline of diffusers: loaded once, switched between steps, the oldest dropped."""

import contextlib
import hashlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from peft.tuners.tuners_utils import BaseTunerLayer

from serai.engines.base import AdapterUse
from serai.errors import InvalidInput, LoadFailed

Mix = tuple[tuple[str, float], ...]
"""Ids of adapters with their scales, none of which is 0."""

_USUAL_FILE = "pytorch_lora_weights.safetensors"
_MAX_HEADER_BYTES = 32 * 1024 * 1024


class Adapters:
    """The adapters that are in memory, and the mix that the model computes with now."""

    def __init__(self, pipeline: Any, max_adapters: int) -> None:
        self._pipeline = pipeline
        self._max_adapters = max_adapters
        self._ids: dict[str, None] = {}
        """Those in memory, the one used longest ago first."""
        self._current: Mix | None = ()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Ids of the adapters in memory, the one used longest ago first."""
        return tuple(self._ids)

    def prepare(self, uses: Collection[AdapterUse], in_use: Collection[str]) -> None:
        """Load what is not there yet; what is over the bound and not `in_use` (ids of other runs') goes first.

        Raises InvalidInput for more adapters than may be, LoadFailed for a file that is no adapter of this model.
        """
        if not uses:
            return
        if not hasattr(self._pipeline, "load_lora_weights"):
            raise InvalidInput.at("adapters", "cannot be laid over this pipeline")
        wanted = {use.id for use in uses}
        if len(wanted) > self._max_adapters:
            raise InvalidInput.at(
                "adapters",
                f"are {len(wanted)}, and this model keeps {self._max_adapters} at once",
                hint="Raise max_adapters among the version's engine_options, or set some scales to 0.",
            )
        for use in uses:
            if use.id not in self._ids:
                self.trim(wanted | set(in_use), room=1)
                self._load(use)
            self._ids[use.id] = self._ids.pop(use.id, None)

    def trim(self, in_use: Collection[str], room: int = 0) -> None:
        """Drop those used longest ago, until `room` more would fit; those in use stay, were they too many."""
        for name in [name for name in self._ids if name not in in_use]:
            if len(self._ids) + room <= self._max_adapters:
                return
            self._drop(name)

    def switch(self, mix: Mix) -> None:
        """Compute with exactly these from now on; with none, bit for bit as the base does."""
        if mix == self._current:
            return
        self._current = None  # so it stays if this breaks off half-way
        if not mix:
            if self._ids:
                self._pipeline.disable_lora()
        else:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters([_name(name) for name, _ in mix], [scale for _, scale in mix])
        self._current = mix

    def clear(self) -> None:
        """Drop all of them."""
        for name in self.loaded:
            self._drop(name)

    def _load(self, use: AdapterUse) -> None:
        file = _file_of(use)
        self._current = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that there is another adapter already
                self._pipeline.load_lora_weights(
                    str(file.parent),
                    weight_name=file.name,
                    adapter_name=_name(use.id),
                    local_files_only=True,
                    use_safetensors=True,
                )
            self._check_fit(use, file)
        except MemoryError:
            raise
        except LoadFailed:
            self._remove_layers(_name(use.id))
            raise
        except Exception as error:
            self._remove_layers(_name(use.id))
            if type(error).__name__ == "OutOfMemoryError":
                raise
            reason = _first_line(error, file.parent)
            raise _unfit(use, reason) from None
        self._ids[use.id] = None

    def _check_fit(self, use: AdapterUse, file: Path) -> None:
        """Raise LoadFailed where the model has taken less than the file holds: what did not fit was left out."""
        name = _name(use.id)
        found = sum(name in getattr(layer, "lora_A", {}) for layer in self._layers())
        if not found and not any(name in names for names in self._pipeline.get_list_adapters().values()):
            raise _unfit(use, "it has no weights for any of the model's layers")
        # In these keys there is one for each layer; other forms of files are split and joined while they are read.
        if found < (held := sum(key.endswith(".lora_A.weight") for key in _keys(file))):
            raise _unfit(use, f"the model has only {found} of the {held} layers that it changes")

    def _drop(self, name: str) -> None:
        del self._ids[name]
        self._current = None
        self._pipeline.delete_adapters([_name(name)])
        if not self._ids:
            self._pipeline.unload_lora_weights()
            self._current = ()

    def _remove_layers(self, name: str) -> None:
        """Undo a load that broke off half-way."""
        for layer in self._layers():
            with contextlib.suppress(KeyError, ValueError):
                layer.delete_adapter(name)
        for component in self._pipeline.components.values():
            getattr(component, "peft_config", {}).pop(name, None)
        if not self._ids:
            self._pipeline.unload_lora_weights()
            self._current = ()

    def _layers(self) -> Iterator[Any]:
        for part in self._pipeline._lora_loadable_modules:  # noqa: SLF001 - where diffusers looks for them itself
            component = getattr(self._pipeline, part, None)
            if component is not None:
                yield from (module for module in component.modules() if isinstance(module, BaseTunerLayer))


def mix_of(uses: Collection[AdapterUse], scales: Mapping[str, float]) -> tuple[tuple[AdapterUse, ...], Mix]:
    """Return the adapters that do something, and their scales. Raises InvalidInput for a scale of an unknown one."""
    unknown = sorted(set(scales) - {use.name for use in uses})
    if unknown:
        known = ", ".join(sorted(use.name for use in uses)) or "none"
        raise InvalidInput.at("adapter_scales", f"names an unknown adapter {unknown[0]!r}", hint=f"Known: {known}")
    effective: dict[str, float] = {}
    for use in uses:  # one file under two names acts with the sum of both: its change of the weights is linear
        effective[use.id] = effective.get(use.id, 0.0) + float(scales.get(use.name, use.scale))
    mix = tuple((name, scale) for name, scale in effective.items() if scale != 0)
    files = {use.id: use for use in uses}
    return tuple(files[name] for name, _ in mix), mix


def _name(adapter: str) -> str:
    """Return the name of an adapter within the model, where a dot would be part of a path."""
    return "lora_" + hashlib.sha256(adapter.encode()).hexdigest()[:16]


def _file_of(use: AdapterUse) -> Path:
    path = Path(use.path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        usual = path / _USUAL_FILE
        path = usual if usual in files else files[0] if len(files) == 1 else path
    if path.suffix != ".safetensors" or not path.is_file():
        raise _unfit(use, "there is no single safetensors file of that name")
    return path


def _keys(file: Path) -> list[str]:
    """Return the names of a file's tensors. The format: a length of 8 bytes, then so much JSON."""
    with file.open("rb") as opened:
        length = min(int.from_bytes(opened.read(8), "little"), _MAX_HEADER_BYTES)
        return list(msgspec.json.decode(opened.read(length), type=dict[str, msgspec.Raw]))


def _unfit(use: AdapterUse, reason: str) -> LoadFailed:
    return LoadFailed(
        f"The adapter {use.name or use.id!r} does not fit the model: {reason}",
        hint="An adapter is a LoRA file (safetensors) that was trained on the same base model.",
    )


def _first_line(error: Exception, folder: Path) -> str:
    return (str(error) or type(error).__name__).replace(str(folder), "its folder").strip().split("\n", 1)[0][:200]
