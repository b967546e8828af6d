"""Embedding models by transformers, on any device: what runs where nothing faster does."""

import gc
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from serai.engines.base import EngineSpec, Footprint
from serai.engines.catalogue import check_options
from serai.engines.options import TransformersEmbedOptions
from serai.engines.quiet import quieten
from serai.errors import LoadFailed

quieten()
import torch  # noqa: E402 - what the fork server is to have imported
import transformers  # noqa: E402 - after quieten

from serai.engines.language.embedding import Batch, Embedding, Numbers  # noqa: E402 - after quieten
from serai.engines.torch_device import take_device  # noqa: E402 - after quieten


class TransformersEmbed(Embedding):
    """The engine `transformers-embed`. A step is a batch, so a cancellation waits for the batch that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._device = "cpu"
        self._model: Any = None

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read safetensors onto the device and embed one text."""
        options = cast(TransformersEmbedOptions, check_options("transformers-embed", spec.options))
        folder, self._device = Path(spec.folder), spec.device
        take_device(spec)
        self._prepare(folder, options)
        report(0.1)
        self._model = _load_model(folder, spec, options)
        report(0.9)
        self._warm_up()
        report(1.0)
        is_cuda = self._device.startswith("cuda")
        return Footprint(
            bytes=torch.cuda.memory_allocated(self._device) if is_cuda else None,
            max_runs=options.max_runs,
            facts={
                **self._facts(),
                "precision": str(self._model.dtype).removeprefix("torch."),
                "threads": spec.threads,
                "device": spec.device,
                "transformers": transformers.__version__,
                "torch": str(torch.__version__),
            },
        )

    def close(self) -> None:
        """Drop what goes on, and the model."""
        super().close()
        self._model = None
        gc.collect()

    def _hidden(self, batch: Batch) -> Generator[None, None, Numbers]:
        yield
        try:
            with torch.inference_mode():
                ids, mask = (torch.from_numpy(one).to(self._device) for one in (batch.ids, batch.mask))
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                numbers: Numbers = hidden.float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise MemoryError from None
        return numbers


def _load_model(folder: Path, spec: EngineSpec, options: TransformersEmbedOptions) -> Any:
    """Return the model on its device. Raises LoadFailed, MemoryError."""
    is_cuda = spec.device.startswith("cuda")
    dtype = options.dtype or ("bfloat16" if is_cuda else "float32")
    try:
        model: Any = transformers.AutoModel.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=spec.allow_remote_code,
        )
        model.config.use_cache = False  # a decoder's: nothing is gone on from
        return model.to(spec.device).eval()
    except torch.OutOfMemoryError:
        raise MemoryError from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).replace(str(folder), "the model's folder").strip().split("\n", 1)[0][:300]
        raise LoadFailed(f"transformers cannot load the model: {reason}") from None
