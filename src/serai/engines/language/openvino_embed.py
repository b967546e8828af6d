"""Embedding models by OpenVINO: encoders as IR or ONNX, with their tokenizer.json."""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path, PurePosixPath
from typing import Any, cast

from serai.engines.base import EngineSpec, Footprint
from serai.engines.catalogue import check_options
from serai.engines.options import OpenvinoEmbedOptions
from serai.engines.quiet import quieten
from serai.errors import EngineFailed, LoadFailed

quieten()

import numpy as np  # noqa: E402 - no library is imported before its telemetry is off
import openvino as ov  # noqa: E402 - the same

from serai.engines.language.embedding import Batch, Embedding, Numbers  # noqa: E402 - the same
from serai.engines.openvino_net import is_ir, is_out_of_memory, load_failure  # noqa: E402 - the same

_PLACES = ("openvino_model.xml", "openvino/openvino_model.xml", "model.onnx", "onnx/model.onnx")
"""Where repositories keep the network, the one that is taken first."""
_SUFFIXES = (".xml", ".onnx")
_HIDDEN = ("last_hidden_state", "token_embeddings")
_WAIT_MS = 20
"""How long one step waits for a batch: a cancellation is looked at as often."""


class OpenvinoEmbed(Embedding):
    """The engine `openvino-embed`. Runs take turns batch by batch, so each has all the threads while it computes."""

    def __init__(self) -> None:
        super().__init__()
        self._compiled: ov.CompiledModel | None = None
        self._request: ov.InferRequest | None = None
        self._inputs: tuple[str, ...] = ()
        self._output = 0
        self._is_busy = False

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read and compile the network, and embed one text."""
        options = cast(OpenvinoEmbedOptions, check_options("openvino-embed", spec.options))
        if spec.device != "cpu":
            raise LoadFailed(f"The engine openvino-embed does not run on {spec.device}.")
        folder = Path(spec.folder)
        report(0.0)
        self._prepare(folder, options)
        network = _network_in(folder, options.file)
        try:
            core = ov.Core()
            model = core.read_model(network)
            report(0.3)
            self._compiled = core.compile_model(model, "CPU", _settings(spec.threads, options))
        except RuntimeError as error:
            raise load_failure(network.name, error) from error
        del model
        self._take_ports()
        report(0.8)
        self._request = self._compiled.create_infer_request()
        self._warm_up()
        report(1.0)
        return Footprint(
            max_runs=options.max_runs,
            facts={
                **self._facts(),
                "device": core.get_property("CPU", "FULL_DEVICE_NAME").strip(),
                "precision": self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
                "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
                "openvino": ov.get_version().partition("-")[0],
            },
        )

    def close(self) -> None:
        """Stop every run and free the network."""
        super().close()
        self._request = self._compiled = None

    def _hidden(self, batch: Batch) -> Generator[None, None, Numbers]:
        assert self._request is not None, "runs come after the load"
        while self._is_busy:
            yield
        request, self._is_busy = self._request, True
        try:
            inputs = {name: _input(name, batch) for name in self._inputs}
            request.start_async(inputs, share_inputs=True)
            while not request.wait_for(_WAIT_MS):
                yield
            return np.array(request.get_output_tensor(self._output).data, np.float32)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            raise EngineFailed("The network could not be run on these texts.") from error
        finally:
            # Where the run was cancelled, OpenVINO still computes on `inputs`, and on the one request.
            request.cancel()
            with contextlib.suppress(RuntimeError):
                request.wait()
            self._is_busy = False

    def _take_ports(self) -> None:
        """Find what the network asks for, and where its hidden states are. Raises LoadFailed."""
        assert self._compiled is not None, "the network is compiled"
        known = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        names = [next(iter(known & port.names), port.any_name) for port in self._compiled.inputs]
        if "input_ids" not in names or not known.issuperset(names):
            raise LoadFailed(f"The network asks for {', '.join(sorted(names))}, and is no encoder of texts.")
        self._inputs = tuple(names)
        outputs = self._compiled.outputs
        named = [at for name in _HIDDEN for at, port in enumerate(outputs) if name in port.names]
        of_rank = [at for at, port in enumerate(outputs) if port.partial_shape.rank.get_length() == 3]
        if not (named or of_rank):
            raise LoadFailed("The network gives no hidden states of its tokens, from which vectors could be made.")
        self._output = (named or of_rank)[0]


def _input(name: str, batch: Batch) -> Numbers:
    match name:
        case "input_ids":
            return batch.ids
        case "attention_mask":
            return batch.mask
        case "token_type_ids":
            return batch.type_ids
        case _:
            return np.ascontiguousarray(np.broadcast_to(np.arange(batch.ids.shape[1]), batch.ids.shape))


def _settings(threads: int, options: OpenvinoEmbedOptions) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinned threads of two workers would sit on the same cores while others are idle.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": options.precision,
    }


def _network_in(folder: Path, name: str) -> Path:
    """Return the network's file. Raises LoadFailed where there is none, or several and none is named."""
    if name:
        leads_out = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        if leads_out or not name.endswith(_SUFFIXES) or not (folder / name).is_file():
            raise LoadFailed(f"There is no network {name!r} among the version's files.")
        return _checked(folder / name)
    for place in _PLACES:
        if (folder / place).is_file():
            return _checked(folder / place)
    found = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and "tokenizer" not in path.name)
    if len(found) != 1:
        raise LoadFailed(
            "The version has several networks." if found else "The version has no network for OpenVINO.",
            hint="Name one in the engine option `file`." if found else "OpenVINO reads IR (.xml) and ONNX.",
        )
    return _checked(found[0])


def _checked(path: Path) -> Path:
    if path.suffix == ".xml" and not is_ir(path):
        raise LoadFailed(f"{path.name} is no network in OpenVINO's format.")
    return path
