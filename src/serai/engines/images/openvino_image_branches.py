"""Room for adapters in a network: beside each linear layer a branch whose two matrices are inputs.

    layer(x) + (x · downᵀ) · upᵀ

Adapters are switched by setting these inputs, without compiling anything. A branch hangs behind the layer's
bias, so that what the plugin fuses stays fused: with zeros in its matrices a network in float32 computes what
it computes without branches, bit for bit. In 16 bits it does not: there a fused sum is rounded once less.
"""

from dataclasses import dataclass
from typing import Any

from serai.engines.images.image_adapters import Layer, canonical
from serai.engines.quiet import quieten

quieten()

import openvino as ov  # noqa: E402 - no library is imported before its telemetry is off
from openvino import opset13  # noqa: E402 - the same

_PASSED = frozenset({"Convert", "Multiply", "Subtract", "Reshape", "Transpose"})
"""What may stand between a layer and its constant weights, where these are compressed."""
_TO_LAST, _TO_SECOND = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A layer that adapters can be added to."""

    layer: Layer
    node: Any
    """The product itself."""
    out_size: int
    in_size: int
    is_convolution: bool
    """Over single pixels: channels stand second instead of last."""


def down_name(layer: Layer) -> str:
    """Return the name of the input that takes a layer's narrowing matrix, rank × in."""
    return f"{layer[1]}/down"


def up_name(layer: Layer) -> str:
    """Return the name of the input that takes a layer's widening matrix, out × rank."""
    return f"{layer[1]}/up"


def find_targets(model: ov.Model, part: str) -> list[Target]:
    """Return the linear layers of a network, by the paths that OpenVINO's frontends leave in the nodes' names."""
    targets: dict[Layer, Target] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Convolution") or not _is_constant(node.input_value(1)):
            continue
        layer = canonical(part, _module(node.get_friendly_name(), part))
        sizes = _sizes(node, kind)
        if sizes is not None and layer not in targets:
            targets[layer] = Target(
                layer=layer, node=node, out_size=sizes[0], in_size=sizes[1], is_convolution=kind == "Convolution"
            )
    return list(targets.values())


def add_branches(model: ov.Model, targets: list[Target]) -> None:
    """Give each target its branch; the new inputs are called `down_name` and `up_name`, their rank is free."""
    parameters = []
    for target in targets:
        down = _parameter([-1, target.in_size], down_name(target.layer))
        up = _parameter([target.out_size, -1], up_name(target.layer))
        source = target.node.input_value(0)
        if target.is_convolution:
            source = opset13.transpose(source, opset13.constant(_TO_LAST, dtype=ov.Type.i64))
        inner = opset13.matmul(source, down, False, True)
        branch = opset13.matmul(inner, up, False, True)
        if target.is_convolution:
            branch = opset13.transpose(branch, opset13.constant(_TO_SECOND, dtype=ov.Type.i64))
        end = _with_bias(target.node)
        users = list(end.output(0).get_target_inputs())
        joined = opset13.add(end, branch)
        for user in users:
            user.replace_source_output(joined.output(0))
        parameters += [down, up]
    model.add_parameters(parameters)
    model.validate_nodes_and_infer_types()


def _parameter(shape: list[int], name: str) -> Any:
    parameter = opset13.parameter(ov.PartialShape(shape), ov.Type.f32, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _module(name: str, part: str) -> str:
    """Return a module's path: from '__module.unet.mid_block.proj/aten::linear/MatMul' or '/mid_block/proj/MatMul'."""
    if name.startswith("/"):
        path = name.strip("/").rpartition("/")[0].replace("/", ".")
    else:
        path = name.partition("/")[0].removeprefix("__module.")
    return path.removeprefix(f"{part}.")


def _is_constant(output: Any) -> bool:
    node = output.get_node()
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _sizes(node: Any, kind: str) -> tuple[int, int] | None:
    """Return what comes out of a layer and what goes in; None where it is no linear layer."""
    shape = node.input_value(1).get_partial_shape()
    if shape.is_dynamic:
        return None
    sizes = [int(one) for one in shape.to_shape()]
    if kind == "Convolution":
        return (sizes[0], sizes[1]) if len(sizes) == 4 and sizes[2:] == [1, 1] and _is_plain(node) else None
    if len(sizes) != 2:
        return None
    is_transposed = bool(node.get_attributes().get("transpose_b"))
    return (sizes[0], sizes[1]) if is_transposed else (sizes[1], sizes[0])


def _is_plain(node: Any) -> bool:
    return list(node.get_attributes().get("strides", [])) == [1, 1]


def _with_bias(node: Any) -> Any:
    """Return the node behind the layer's bias, or the layer where it has none."""
    users = list(node.output(0).get_target_inputs())
    if len(users) != 1:
        return node
    follower = users[0].get_node()
    is_bias = follower.get_type_name() == "Add" and any(
        _is_constant(follower.input_value(at)) for at in range(follower.get_input_size())
    )
    return follower if is_bias else node
