"""The networks of an image pipeline in OpenVINO's form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serai.engines.images.image_adapters import Adapter, Shapes, combined
from serai.engines.images.openvino_image_branches import add_branches, down_name, find_targets, up_name
from serai.engines.quiet import quieten
from serai.errors import EngineFailed, LoadFailed

quieten()

import openvino as ov  # noqa: E402 - no library is imported before its telemetry is off

FloatArray = NDArray[Any]
"""float32."""
Mix = Sequence[tuple[Adapter, float]]
"""Adapters and their scales."""

_FILE = "openvino_model.xml"
_DTYPES = {ov.Type.f32: np.float32, ov.Type.f16: np.float16, ov.Type.i32: np.int32, ov.Type.i64: np.int64}
_FREE = {4: (0, 2, 3), 3: (0, 1), 2: (0, 1), 1: (0,)}
"""Which sizes of an input of so many dimensions must be free: all but channels and the texts' width."""


class Network:
    """One network, compiled. Adapters need a branch at each layer; it is compiled anew with them when the first comes.

    Most versions have no adapters: theirs stays as it is, and as fast. In float32 the network with branches
    does for both then, so that there is one at a time; in 16 bits, where it rounds otherwise, both are kept.
    """

    def __init__(self, core: ov.Core, folder: Path, inputs: Sequence[str], properties: Mapping[str, Any]) -> None:
        """`folder`: that of the network, whose name is the part's. Raises LoadFailed, MemoryError."""
        self._core, self._folder, self._inputs, self._properties = core, folder, tuple(inputs), properties
        self._part = folder.name
        self._dtypes: dict[str, Any] = {}
        model = self._read()
        self.shapes: Shapes = {one.layer: (one.out_size, one.in_size) for one in find_targets(model, self._part)}
        """Of the layers that adapters can be added to."""
        self._plain: Any = self._compiled(model)
        self._branched: Any = None
        self._request: Any = self._plain
        self._worn: Mix = ()

    def __call__(self, **inputs: NDArray[Any]) -> FloatArray:
        """Return the first output as float32. Raises EngineFailed, MemoryError."""
        given = {name: inputs[name].astype(self._dtypes[name], copy=False) for name in self._inputs}
        try:
            self._request.infer(given, share_inputs=True)
        except RuntimeError as error:
            raise _failure(error, EngineFailed(f"The network {self._part} cannot be run at this size.")) from error
        output: FloatArray = self._request.get_output_tensor(0).data
        return output.astype(np.float32)

    def wear(self, mix: Mix) -> None:
        """Compute with these adapters from now on; none is as if there had never been any, bit for bit."""
        if not mix and self._plain is not None:
            self._request = self._plain
            return
        if self._branched is None:
            self._branch()
        if self._worn != mix:
            self._set(mix)
        self._request = self._branched

    def _branch(self) -> None:
        if self._properties["INFERENCE_PRECISION_HINT"] == "f32":
            self._request = self._plain = None  # it goes before the other is made
        model = self._read()
        add_branches(model, find_targets(model, self._part))
        self._branched = self._compiled(model)
        self._set(())

    def _set(self, mix: Mix) -> None:
        for layer, (out_size, in_size) in self.shapes.items():
            pair = combined(mix, layer)
            # Zeros of rank 1, not of rank 0: a product over nothing may be left undone, and its memory is any.
            down = np.zeros((1, in_size), np.float32) if pair is None else pair.down
            up = np.zeros((out_size, 1), np.float32) if pair is None else pair.up
            self._branched.set_tensor(down_name(layer), ov.Tensor(down))
            self._branched.set_tensor(up_name(layer), ov.Tensor(up))
        self._worn = mix

    def _read(self) -> Any:
        path = self._folder / _FILE
        what = f"{self._folder.name}/{_FILE}"
        if not path.is_file() or not _is_ir(path):
            raise LoadFailed(f"The pipeline has no {what} in OpenVINO's format.", hint="Pull it with quantize=auto.")
        try:
            model = self._core.read_model(path)
            self._free_sizes(model)
        except RuntimeError as error:
            raise _failure(error, LoadFailed(f"OpenVINO cannot read {what}: it is damaged, or not known.")) from error
        return model

    def _free_sizes(self, model: Any) -> None:
        """Check the inputs, and let every size be free that differs from call to call."""
        ports = {name: port for port in model.inputs for name in port.get_names() if name in self._inputs}
        if len(model.inputs) != len(ports) or set(ports) != set(self._inputs):
            found = ", ".join(sorted(min(port.get_names(), default="?") for port in model.inputs))
            raise LoadFailed(
                f"The network {self._folder.name} takes {found}, and not {', '.join(self._inputs)}: "
                "it is not of Stable Diffusion's shape."
            )
        shapes = {}
        for name, port in ports.items():
            shape = list(port.get_partial_shape())
            if len(shape) not in _FREE:
                raise LoadFailed(f"The input {name} of {self._folder.name} has {len(shape)} dimensions.")
            for at in _FREE[len(shape)]:
                shape[at] = ov.Dimension(-1)
            shapes[port] = ov.PartialShape(shape)
            if name == "timestep":  # some samplers' times lie between whole ones
                port.get_node().set_element_type(ov.Type.f32)
        model.reshape(shapes)

    def _compiled(self, model: Any) -> Any:
        for port in model.inputs:
            for name in port.get_names() & set(self._inputs):
                if port.get_element_type() not in _DTYPES:
                    raise LoadFailed(f"The input {name} of {self._folder.name} is of a type that is not known.")
                self._dtypes[name] = _DTYPES[port.get_element_type()]
        try:
            return self._core.compile_model(model, "CPU", dict(self._properties)).create_infer_request()
        except RuntimeError as error:
            raise _failure(error, LoadFailed(f"OpenVINO cannot compile {self._folder.name}.")) from error


def properties_of(threads: int, precision: str) -> dict[str, Any]:
    """Return how the networks are compiled: one call at a time, with all of the threads."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinned threads of two workers would sit on the same cores while others are idle.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision or "f32",
        # Most of the work is convolutions, which gain nothing by it, and with adapters it rounds otherwise.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _is_ir(path: Path) -> bool:
    """Look at the file's beginning: OpenVINO would try its readers of other formats on anything else."""
    with path.open("rb") as file:
        return file.read(256).lstrip().startswith((b"<?xml", b"<net "))


def _failure(error: RuntimeError, otherwise: Exception) -> Exception:
    is_memory = any(words in str(error).lower() for words in ("bad_alloc", "bad allocation", "out of memory"))
    return MemoryError() if is_memory else otherwise
