"""Compressing a network's weights, and the tokenizer as networks. None of this needs torch."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import openvino
import openvino_tokenizers
from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

from serai.errors import InvalidInput

_GROUP = 128
_TOKENIZER_NETWORKS = ("openvino_tokenizer", "openvino_detokenizer")

Report = Callable[[str, float], None]
_log = logging.getLogger(__name__)


def compress(source: Path, target: Path, *, quantization: str, report: Report) -> None:
    """Write the network at `source` (an .xml) with int8 or int4 weights to `target`; the same input, the same bytes.

    int8: 8 bits per channel, asymmetric: close to the original. int4: 4 bits in groups of 128 in every
    layer, embedding and head, too: twice as fast for one client, and less exact.
    """
    if quantization not in {"int8", "int4"}:
        raise InvalidInput.at("quantization", "of a compressed network must be int8 or int4")
    nncf.set_log_level(logging.ERROR)
    report("compress", 0.7)
    model = openvino.Core().read_model(source)
    if quantization == "int8":
        compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        compressed = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=_GROUP,
            all_layers=True,
            advanced_parameters=AdvancedCompressionParameters(group_size_fallback_mode=GroupSizeFallbackMode.ADJUST),
        )
    report("save", 0.9)
    openvino.save_model(compressed, target, compress_to_fp16=True)


def save_tokenizer_networks(source: Path, target: Path) -> None:
    """Write the tokenizer as networks, which GenAI needs for grammars alone; a tokenizer it cannot do is left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    try:
        networks: Any = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception:  # noqa: BLE001 - its errors are of many kinds; without it only grammars are missing
        _log.warning("the tokenizer cannot be converted: the model will not follow grammars", exc_info=True)
        return
    for name, network in zip(_TOKENIZER_NETWORKS, networks, strict=True):
        openvino.save_model(network, target / f"{name}.xml")


def copy_tokenizer_networks(source: Path, target: Path) -> None:
    """Copy the tokenizer's networks, where there are any."""
    for name in _TOKENIZER_NETWORKS:
        for suffix in (".xml", ".bin"):
            if (source / f"{name}{suffix}").is_file():
                shutil.copyfile(source / f"{name}{suffix}", target / f"{name}{suffix}")
