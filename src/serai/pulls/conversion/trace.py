"""Tracing a causal language model of transformers into a stateful network."""

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import openvino
import torch
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation
from openvino.frontend.pytorch import patch_model
from torch import nn
from torch.jit._trace import TracerWarning
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

_TRACED_PAST, _TRACED_NEW = 3, 2
"""Lengths of the example that is traced; both stay free in the network."""
_PROBE_TOKENS = 24

Report = Callable[[str, float], None]


def salt_bits(vocabulary: int) -> int:
    """Return how many low bits hold any token's id."""
    return max(1, (vocabulary - 1).bit_length())


class CausalStep(nn.Module):
    """One step of a model with all its state in the arguments, as the network is to have it.

    input_ids, position_ids: (batch, new); attention_mask: (batch, past + new); then key and value of each
    layer: (batch, heads, past, size). Returns logits (batch, new, vocabulary) and the longer keys and values.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.id_mask = (1 << salt_bits(model.config.vocab_size)) - 1

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Ignore the bits of ids above the vocabulary's, mask explicitly, and run the model."""
        cache = _cache_of(past)
        output = self.model(
            input_ids=torch.bitwise_and(input_ids, self.id_mask),
            attention_mask=causal_mask(attention_mask, input_ids.shape[1]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        states = [state for layer in output.past_key_values.layers for state in (layer.keys, layer.values)]
        return (output.logits.float(), *states)


def _cache_of(past: Sequence[torch.Tensor]) -> Any:
    """Return a cache that holds these keys and values, with no empty tensor put before them."""
    layers: list[Any] = []
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = cast("Any", DynamicLayer)()
        layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
        layer.is_initialized = True
        layers.append(layer)
    return Cache(layers=layers)


def causal_mask(attention_mask: torch.Tensor, new: Any) -> torch.Tensor:
    """Return what is added to scores, (batch, 1, new, total) float32: 0 where a token may look, else very little."""
    total = attention_mask.shape[1]
    columns = torch.arange(total)
    rows = torch.arange(total)[total - new :]
    allowed = (columns[None, :] <= rows[:, None])[None, None] & attention_mask[:, None, None, :].bool()
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


def trace(source: Path, quantization: str, report: Report, threads: int) -> tuple[Any, bool]:
    """Return the network, and whether the logits of likely tokens are positive (see `Export`)."""
    torch.set_num_threads(threads)
    dtype = torch.float32 if quantization == "fp32" else "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
    )
    model.eval()
    model.config.use_cache = True
    report("trace", 0.2)
    with torch.inference_mode():
        are_positive = _has_positive_logits(model)
    if next(model.parameters()).dtype != torch.float32:
        make_traceable(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # what it takes for a constant is one here
        network = openvino.convert_model(CausalStep(model), example_input=_example(model))
    heads, size = _key_shape(model)
    del model
    gc.collect()
    _name(network, heads, size)
    return network, are_positive


def make_traceable(model: Any) -> None:
    """Let 16-bit weights stay as they are and be computed with in 32 bits; OpenVINO's own way, which is private."""
    patch_model.__dict__["__make_16bit_traceable"](model)


def _has_positive_logits(model: Any) -> bool:
    """Say whether the likeliest token's logit is positive after most of a few tokens spread over the vocabulary."""
    vocabulary = model.config.vocab_size
    ids = torch.arange(_PROBE_TOKENS) * (vocabulary // _PROBE_TOKENS)
    logits = model(input_ids=ids[None], use_cache=False).logits
    return bool(logits.amax(-1).median() > 0)


def _key_shape(model: Any) -> tuple[int, int]:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, size


def _example(model: Any) -> tuple[torch.Tensor, ...]:
    """Return arguments to trace with. States and mask are float32 whatever the weights are."""
    heads, size = _key_shape(model)
    ids = torch.ones((2, _TRACED_NEW), dtype=torch.int64)
    mask = torch.ones((2, _TRACED_PAST + _TRACED_NEW), dtype=torch.int64)
    positions = torch.arange(_TRACED_PAST, _TRACED_PAST + _TRACED_NEW)[None].expand(2, -1)
    states = [torch.zeros((2, heads, _TRACED_PAST, size)) for _ in range(2 * model.config.num_hidden_layers)]
    return (ids, mask, positions, *states)


def _name(network: Any, heads: int, size: int) -> None:
    """Give inputs and outputs their names and shapes, and make the keys and values state of the network."""
    states = [f"{kind}.{layer}" for layer in range((len(network.inputs) - 3) // 2) for kind in ("key", "value")]
    past, present = [f"past.{name}" for name in states], [f"present.{name}" for name in states]
    _set_names(network.inputs, ["input_ids", "attention_mask", "position_ids", *past])
    _set_names(network.outputs, ["logits", *present])
    for number, port in enumerate(network.inputs):
        node = port.get_node()
        node.set_partial_shape(openvino.PartialShape([-1, -1] if number < 3 else [-1, heads, -1, size]))
        node.set_friendly_name(next(iter(port.get_names())))
    network.validate_nodes_and_infer_types()
    _reorder_by_beam(network)
    apply_make_stateful_transformation(network, dict(zip(past, present, strict=True)))
    _start_states_empty(network, heads, size)


def _set_names(ports: Sequence[Any], names: Sequence[str]) -> None:
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})


def _reorder_by_beam(network: Any) -> None:
    """Put a gather by beam_idx behind each past state."""
    beam = opset13.parameter(openvino.PartialShape([-1]), openvino.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    axis = opset13.constant(0, dtype=openvino.Type.i64)
    for port in network.inputs[3:]:
        parameter = port.get_node()
        users = list(parameter.output(0).get_target_inputs())
        gathered = opset13.gather(parameter, beam, axis)
        for user in users:
            user.replace_source_output(gathered.output(0))
    network.add_parameters([beam])
    network.validate_nodes_and_infer_types()


def _start_states_empty(network: Any, heads: int, size: int) -> None:
    """Give each state its first value: no keys and values yet, for as many sequences as there are."""
    shape = opset13.shape_of(network.input("input_ids"), output_type="i64")
    zero = opset13.constant(0, dtype=openvino.Type.i64)
    batch = opset13.gather(shape, opset13.constant([0], dtype=openvino.Type.i64), zero)
    rest = opset13.constant([heads, 0, size], dtype=openvino.Type.i64)
    empty = opset13.broadcast(opset13.constant(0.0, dtype=openvino.Type.f32), opset13.concat([batch, rest], axis=0))
    for node in network.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty])
    network.validate_nodes_and_infer_types()
