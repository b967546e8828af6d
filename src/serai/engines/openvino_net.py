"""Networks that turn arrays into arrays, by OpenVINO: IR, ONNX and tflite files.

The network says what its inputs are; what does not match is refused by name before anything is computed.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from serai.engines.base import EngineSpec, Footprint, Run
from serai.engines.catalogue import check_options
from serai.engines.options import OpenvinoOptions
from serai.engines.quiet import quieten
from serai.engines.tasks import Array, Infer
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import Done, Event, Failed

quieten()

import numpy as np  # noqa: E402 - no library is imported before its telemetry is off
import openvino as ov  # noqa: E402 - the same

_SUFFIXES = (".xml", ".onnx", ".tflite")
_WAIT_MS = 20
"""How long one step waits for a result: a cancellation is looked at as often."""
_DTYPES = {
    ov.Type.f16: "float16",
    ov.Type.f32: "float32",
    ov.Type.f64: "float64",
    ov.Type.i8: "int8",
    ov.Type.i16: "int16",
    ov.Type.i32: "int32",
    ov.Type.i64: "int64",
    ov.Type.u8: "uint8",
    ov.Type.u16: "uint16",
    ov.Type.u32: "uint32",
    ov.Type.u64: "uint64",
    ov.Type.boolean: "bool",
}


class OpenvinoNet:
    """The engine `openvino`."""

    def __init__(self) -> None:
        self._compiled: ov.CompiledModel | None = None
        self._names: dict[str, str] = {}
        self._free: list[ov.InferRequest] = []
        self._running: dict[int, ov.InferRequest] = {}
        self._inputs: dict[int, dict[int, np.ndarray[Any, Any]]] = {}

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read, compile and, where its shapes are fixed, run the network once."""
        options = cast(OpenvinoOptions, check_options("openvino", spec.options))
        if spec.device != "cpu":
            raise LoadFailed(f"The engine openvino does not run on {spec.device}.")
        network = _file_in(Path(spec.folder), options.file)
        report(0.0)
        if network.suffix == ".xml" and not is_ir(network):
            # OpenVINO would try its readers of other formats on it.
            raise LoadFailed(f"{network.name} is no network in OpenVINO's format.")
        try:
            core = ov.Core()
            model = core.read_model(network)
            report(0.3)
            self._compiled = core.compile_model(model, "CPU", _settings(spec.threads, options))
        except RuntimeError as error:
            raise load_failure(network.name, error) from error
        self._check_types()
        report(0.8)
        self._free = [self._compiled.create_infer_request() for _ in range(options.max_runs)]
        self._warm_up()
        report(1.0)
        return Footprint(max_runs=options.max_runs, facts=self._facts(core))

    def start(self, run: Run) -> None:
        """Check the inputs and begin; the result comes from `step`."""
        if not isinstance(run.task, Infer):
            raise InvalidInput.at("task", "must be infer: this model turns arrays into arrays")
        if run.adapters:
            raise EngineFailed("The engine openvino takes no adapters.")
        inputs = self._checked(run.task.inputs)
        request = self._free.pop()
        try:
            request.start_async(inputs, share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            self._free.append(request)
            raise EngineFailed("The network could not be started on these inputs.") from error
        self._running[run.id] = request
        # OpenVINO computes on this very memory, so it must live as long as the run.
        self._inputs[run.id] = inputs

    def step(self) -> Sequence[tuple[int, Event]]:
        """Wait a moment for the oldest run, and return the results of all that are through."""
        events: list[tuple[int, Event]] = []
        for number, (run, request) in enumerate(tuple(self._running.items())):
            try:
                if not request.wait_for(0 if number else _WAIT_MS):
                    continue
                event: Event = Done(result={"outputs": self._outputs(request)})
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise MemoryError from error
                event = Failed.of(EngineFailed("The network could not be run on these inputs."))
            self._release(run)
            events.append((run, event))
        return events

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Refuse the message: all that a network needs is in its task."""
        raise InvalidInput("This model takes nothing while it computes.")

    def cancel(self, run: int) -> None:
        """Stop the computation between two of the network's layers."""
        request = self._running.get(run)
        if request is None:
            return
        request.cancel()
        with contextlib.suppress(RuntimeError):  # this is how a cancelled request ends
            request.wait()
        self._release(run)

    def close(self) -> None:
        """Stop every run and free the network."""
        for run in tuple(self._running):
            self.cancel(run)
        self._free.clear()
        self._compiled = None

    def _release(self, run: int) -> None:
        self._free.append(self._running.pop(run))
        del self._inputs[run]

    def _check_types(self) -> None:
        assert self._compiled is not None, "the network is compiled"
        if not self._compiled.outputs:
            raise LoadFailed("The network has no outputs.")
        for port in (*self._compiled.inputs, *self._compiled.outputs):
            if port.element_type not in _DTYPES:
                raise LoadFailed(f"The network has inputs or outputs of type {port.element_type.get_type_name()}.")

    def _warm_up(self) -> None:
        """Run once on zeros: the first run allocates what later ones use."""
        assert self._compiled is not None, "the network is compiled"
        ports = self._compiled.inputs
        if any(port.partial_shape.is_dynamic for port in ports):
            return
        inputs = {
            _name(port, at): np.zeros(tuple(port.shape), _DTYPES[port.element_type]) for at, port in enumerate(ports)
        }
        try:
            for request in self._free:
                request.infer(list(inputs.values()))
        except RuntimeError as error:
            raise load_failure("the network", error) from error

    def _facts(self, core: ov.Core) -> dict[str, Any]:
        assert self._compiled is not None, "the network is compiled"
        return {
            "device": core.get_property("CPU", "FULL_DEVICE_NAME").strip(),
            "precision": self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
            "openvino": ov.get_version().partition("-")[0],
            "inputs": [_described(port, at) for at, port in enumerate(self._compiled.inputs)],
            "outputs": [_described(port, at) for at, port in enumerate(self._compiled.outputs)],
        }

    def _checked(self, given: Mapping[str, Array]) -> dict[int, np.ndarray[Any, Any]]:
        """Return the inputs by their place. Raises InvalidInput naming the first that is wrong."""
        assert self._compiled is not None, "runs come after the load"
        ports = {_name(port, at): (at, port) for at, port in enumerate(self._compiled.inputs)}
        for name in given:
            if name not in ports:
                raise InvalidInput.at(f"inputs.{name}", f"is no input of this model; it has {', '.join(ports)}")
        checked = {}
        for name, (at, port) in ports.items():
            if name not in given:
                raise InvalidInput.at(f"inputs.{name}", "is missing")
            checked[at] = _array(name, given[name], port)
        return checked

    def _outputs(self, request: ov.InferRequest) -> dict[str, dict[str, Any]]:
        outputs = {}
        for at, port in enumerate(request.model_outputs):
            values = np.ascontiguousarray(request.get_output_tensor(at).data)
            told = Array(dtype=_DTYPES[port.element_type], shape=tuple(values.shape), data=values.tobytes())
            outputs[_name(port, at)] = told.document
        return outputs


def _settings(threads: int, options: OpenvinoOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": min(options.max_runs, threads),
        # Pinned threads of two workers would sit on the same cores while others are idle.
        "ENABLE_CPU_PINNING": False,
    }
    if options.precision:
        settings["INFERENCE_PRECISION_HINT"] = options.precision
    return settings


def _file_in(folder: Path, name: str) -> Path:
    """Return the network's file. Raises LoadFailed where there is none, or several and none is named."""
    if name:
        path, relative = folder / name, PurePosixPath(name)
        leads_out = relative.is_absolute() or ".." in relative.parts
        if leads_out or path.suffix not in _SUFFIXES or not path.is_file():
            raise LoadFailed(f"There is no network {name!r} among the version's files.")
        return path
    found = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    if len(found) != 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found[:10])
        raise LoadFailed(
            f"The version has several networks: {names}." if found else "The version has no network for OpenVINO.",
            hint="Name one in the engine option `file`." if found else "OpenVINO reads IR (.xml), ONNX and tflite.",
        )
    return found[0]


def is_ir(path: Path) -> bool:
    """Say whether a file begins as a network in OpenVINO's format does. Blocks."""
    with path.open("rb") as file:
        return file.read(256).lstrip().startswith((b"<?xml", b"<net "))


def _array(name: str, value: Array, port: ov.ConstOutput) -> np.ndarray[Any, Any]:
    field, dtype = f"inputs.{name}", _DTYPES[port.element_type]
    if value.dtype != dtype:
        raise InvalidInput.at(field, f"must be of type {dtype}, not {value.dtype[:20]}")
    expected = port.partial_shape
    if expected.rank.is_static and len(value.shape) != len(expected):
        raise InvalidInput.at(field, f"must have {len(expected)} dimensions, not {len(value.shape)}")
    for at, size in enumerate(value.shape):
        wanted = expected[at] if expected.rank.is_static else None
        if size < 0 or (wanted is not None and not _fits(size, wanted)):
            raise InvalidInput.at(field, f"must have the shape {_shape(expected)}, and has {size} in dimension {at}")
    if len(value.data) != math.prod(value.shape) * np.dtype(dtype).itemsize:
        raise InvalidInput.at(field, "has more or fewer bytes than its shape and type say")
    return np.frombuffer(value.data, dtype).reshape(value.shape)


def _fits(size: int, wanted: ov.Dimension) -> bool:
    if wanted.is_static:
        return bool(size == wanted.get_length())
    most = wanted.get_max_length()
    return bool(size >= wanted.get_min_length() and (most < 0 or size <= most))


def _shape(shape: ov.PartialShape) -> str:
    return str(shape).replace("?", "any")


def _name(port: ov.ConstOutput, at: int) -> str:
    """Return the name of an input or output; one without a name is called by its place."""
    names = sorted(port.names)
    return names[0] if names else f"{at}"


def _described(port: ov.ConstOutput, at: int) -> dict[str, Any]:
    return {"name": _name(port, at), "dtype": _DTYPES[port.element_type], "shape": _shape(port.partial_shape)}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether OpenVINO's error is for want of memory."""
    return any(words in str(error).lower() for words in ("bad_alloc", "bad allocation", "out of memory"))


def load_failure(name: str, error: RuntimeError) -> Exception:
    """Return what to raise for OpenVINO's error at the load of `name`: LoadFailed or MemoryError."""
    if is_out_of_memory(error):
        return MemoryError()
    return LoadFailed(f"OpenVINO cannot load {name}: it is damaged, or has an operation that is not known.")
