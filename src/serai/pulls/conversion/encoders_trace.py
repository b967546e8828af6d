"""Tracing an embedding model of transformers into a network."""

import warnings
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import nn
from torch.jit._trace import TracerWarning
from transformers import AutoModel

from serai.pulls.conversion.trace import causal_mask, make_traceable

_DECODERS = frozenset({"qwen3"})
"""Families that look back alone: the last token of a text has seen all of it."""


class Encoder(nn.Module):
    """A model whose tokens look at each other: input_ids and attention_mask, batch × length → hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return batch × length × width, float32."""
        hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=self.mask(attention_mask))[0]
        return hidden.float()

    def mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mask in the form in which the model takes it."""
        return attention_mask


class Decoder(Encoder):
    """A model whose tokens look back, without its head."""

    def mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        return causal_mask(attention_mask, attention_mask.shape[1])


def trace_encoder(source: Path, quantization: str, threads: int) -> Any:
    """Return the network: input_ids and attention_mask of any batch and length; last_hidden_state."""
    torch.set_num_threads(threads)
    dtype = torch.float32 if quantization == "fp32" else "auto"
    model: Any = AutoModel.from_pretrained(source, dtype=dtype, use_safetensors=True, local_files_only=True)
    model.eval()
    model.config.use_cache = False
    if next(model.parameters()).dtype != torch.float32:
        make_traceable(model)
    # Ids that are no padding's in any family, and a mask that has some: a whole one would be left out.
    ids, mask = torch.full((2, 6), 5, dtype=torch.int64), torch.ones((2, 6), dtype=torch.int64)
    mask[1, 4:] = 0
    module = (Decoder if model.config.model_type in _DECODERS else Encoder)(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # what it takes for a constant is one here
        network = openvino.convert_model(module, example_input=(ids, mask))
    for port, name in zip(network.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
        port.get_node().set_friendly_name(name)
    network.outputs[0].get_tensor().set_names({"last_hidden_state"})
    network.validate_nodes_and_infer_types()
    return network
