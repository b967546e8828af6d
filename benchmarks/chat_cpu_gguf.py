"""The weights of the chat benchmark as a GGUF file, for llama.cpp. Runs where the package `gguf` is installed.

    python benchmarks/chat_cpu_gguf.py FOLDER FILE q8_0|q4_0|bf16

Every matrix is quantized, the embedding, which is the head too, among them: the fastest that llama.cpp can do.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(folder: Path, file: Path, kind: str) -> None:
    """Write the file, whole or not at all."""
    import gguf
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    scratch = file.with_suffix(".part")
    writer = gguf.GGUFWriter(scratch, "qwen3")
    writer.add_name("chat-cpu")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    quantized = getattr(gguf.GGMLQuantizationType, kind.upper())
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.upper()}"))
    _add_tokenizer(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, layers)
    for name, tensor in _tensors(folder / "model.safetensors"):
        told = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 1:
            writer.add_tensor(told, tensor)
        else:
            writer.add_tensor(told, gguf.quants.quantize(tensor, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scratch.rename(file)
    print(f"{file.name}: {file.stat().st_size / 2**20:.0f} MiB with numpy {np.__version__}")


def _add_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    import gguf

    told = json.loads((folder / "tokenizer.json").read_text())
    ids = {id_: text for text, id_ in told["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in told["added_tokens"]}
    tokens, kinds = [], []
    for id_ in range(vocabulary):
        tokens.append(special.get(id_) or ids.get(id_) or f"[PAD{id_}]")
        kind = "CONTROL" if id_ in special else "NORMAL" if id_ in ids else "UNUSED"
        kinds.append(getattr(gguf.TokenType, kind))
    merges = [" ".join(one) if isinstance(one, list) else one for one in told["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    end, pad = max(special), min(special)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(pad)
    writer.add_bos_token_id(pad)
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a safetensors file in bfloat16, as float32."""
    import numpy as np

    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        begin = stream.tell()
        for name, entry in header.items():
            if name in {"__metadata__", "lm_head.weight"}:  # the head is the embedding
                continue
            if entry["dtype"] != "BF16":
                raise ValueError(f"{name} is {entry['dtype']}")
            first, last = entry["data_offsets"]
            stream.seek(begin + first)
            halves = np.frombuffer(stream.read(last - first), dtype=np.uint16)
            yield name, (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    else:
        print(__doc__)
