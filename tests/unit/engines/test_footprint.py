"""The estimate of memory: near what was measured, and built from the files alone."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from serai.engines.footprint import MIB, Weights, cache_bytes_per_token, estimate
from serai.engines.weights import weights_in

QWEN = {
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "hidden_size": 1024, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
MB = 1_000_000


def ir(size_mb: int) -> Weights:
    files = {"openvino_model.bin": size_mb * MB, "openvino_model.xml": MB, "openvino_tokenizer.bin": 5 * MB}
    return Weights(files=files, tensors={}, config=QWEN)


@pytest.mark.parametrize(("file_mb", "measured_mb"), [(569, 1787), (367, 1406), (1136, 2908)])
def test_it_is_near_what_was_measured(file_mb: int, measured_mb: int) -> None:
    """For the 0.6B shape on OpenVINO, with a small cache as measured: within 20 %."""
    told = estimate(
        ir(file_mb), engine="openvino-genai", device_kind="cpu", quantization="int8", options={"cache_tokens": 512}
    )
    assert told.bytes == pytest.approx(measured_mb * MB, rel=0.2)


def test_the_cache_is_counted() -> None:
    """Keys and values of the 0.6B shape: 2 × 28 layers × 8 heads × 128 × 2 bytes a token."""
    assert cache_bytes_per_token(QWEN) == 2 * 28 * 8 * 128 * 2
    small, large = (
        estimate(ir(100), engine="openvino-genai", device_kind="cpu", quantization="none", options={"cache_tokens": n})
        for n in (100, 1100)
    )
    assert large.bytes - small.bytes == 1000 * cache_bytes_per_token(QWEN)


def test_the_type_at_the_load_counts() -> None:
    """transformers widens bf16 to float32 on a CPU, keeps it on CUDA, and shrinks it to a third in 4 bits."""
    weights = Weights(files={"m.safetensors": 1192 * MB}, tensors={"BF16": 1192 * MB}, config=QWEN)

    def held(device_kind: str, quantization: str = "none", **options: Any) -> float:
        told = estimate(
            weights, engine="transformers", device_kind=device_kind, quantization=quantization, options=options
        )
        return told.weights / weights.tensors["BF16"]

    assert (held("cuda"), held("cpu"), held("cpu", dtype="bfloat16")) == (1, 2, 1)
    assert held("cuda", "nf4") == held("cuda", load_in_4bit=True) == pytest.approx(1 / 3, rel=0.05)


MINILM = {
    "num_hidden_layers": 6, "num_attention_heads": 12, "hidden_size": 384, "vocab_size": 30522,
    "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    ("quantization", "file_mib", "measured_mib"), [("fp32", 85, 265), ("fp16", 42, 203), ("int8", 21, 151)]
)
def test_an_embedding_model_takes_no_more_than_expected(quantization: str, file_mib: int, measured_mib: int) -> None:
    """For MiniLM's shape with texts of 512 tokens, measured after them; and not many times as much."""
    weights = Weights(files={"openvino_model.bin": file_mib * MIB}, tensors={}, config=MINILM)
    told = estimate(weights, engine="openvino-embed", device_kind="cpu", quantization=quantization)
    assert measured_mib * MIB < told.bytes < 2.2 * measured_mib * MIB


def test_longer_texts_take_more() -> None:
    """By the square of their length; an option that cuts them takes less."""
    config = {**MINILM, "max_position_embeddings": 8192}
    weights = Weights(files={"model.safetensors": MIB}, tensors={"F32": MIB}, config=config)

    def activations(**options: int) -> int:
        told = estimate(weights, engine="transformers-embed", device_kind="cpu", quantization="none", options=options)
        return told.activations

    assert activations() > 4 * 12 * 8192**2 > 10 * activations(context_tokens=1024)


def test_networks_without_a_configuration() -> None:
    """A network is weights, activations and the process; even a tiny one takes the process."""
    told = estimate(
        Weights(files={"net.onnx": 1000}, tensors={}, config={}),
        engine="openvino", device_kind="cpu", quantization="none",
    )  # fmt: skip
    assert 180 * MIB < told.bytes < 300 * MIB


def test_the_fake_engine_takes_what_it_is_told() -> None:
    """`bytes` and the process."""
    empty = Weights(files={}, tensors={}, config={})
    plain, large = (
        estimate(empty, engine="fake", device_kind="cpu", quantization="none", options={"bytes": size})
        for size in (0, 500 * MIB)
    )
    assert large.bytes - plain.bytes == 500 * MIB


def test_other_servers_take_nothing() -> None:
    """A remote model needs no memory here."""
    empty = Weights(files={}, tensors={}, config={})
    assert estimate(empty, engine="remote", device_kind="remote", quantization="none").bytes == 0


@pytest.mark.parametrize("value", ["many", -1, None, True, 1.5, [], {}])
def test_odd_configurations_do_no_harm(value: Any) -> None:
    """A configuration is somebody else's file: nonsense in it counts as absent."""
    config = dict.fromkeys(QWEN, value)
    weights = Weights(files={"m.bin": MB}, tensors={}, config=config)
    assert estimate(weights, engine="openvino-genai", device_kind="cpu", quantization="none").bytes > MB


def safetensors(path: Path, header: dict[str, Any] | bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else msgspec.json.encode(header)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(1000))


def test_headers_are_read(tmp_path: Path) -> None:
    """Tensors are counted by type over all files; adapters are not the weights; text_config is the language part."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [10, 10], "data_offsets": [0, 200]},
        "b": {"dtype": "F32", "shape": [100], "data_offsets": [200, 600]},
    }
    safetensors(tmp_path / "model.safetensors", header)
    (tmp_path / "adapters").mkdir()
    safetensors(tmp_path / "adapters" / "lora.safetensors", header)
    (tmp_path / "config.json").write_bytes(msgspec.json.encode({"text_config": {"vocab_size": 5}}))
    weights = weights_in(tmp_path)
    assert weights.tensors == {"BF16": 200, "F32": 400}
    assert weights.config == {"vocab_size": 5}
    assert set(weights.files) == {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2**63),
        (b"not json", None),
        (b'{"a": {"dtype": "F32"}}', None),
        (b'{"a": {"dtype": "F32", "data_offsets": [0, 99999999]}}', None),
        (b"[" * 5000, None),
        (b"\xff\xfe", None),
    ],
    ids=["length", "text", "incomplete", "beyond", "deep", "encoding"],
)
def test_damaged_headers_count_as_absent(tmp_path: Path, header: bytes, length: int | None) -> None:
    """Then the sizes of the files count, so an estimate there always is."""
    safetensors(tmp_path / "model.safetensors", header, length)
    (tmp_path / "config.json").write_bytes(header)
    weights = weights_in(tmp_path)
    assert weights.tensors == {}
    told = estimate(weights, engine="transformers", device_kind="cpu", quantization="none")
    assert told.weights == weights.files["model.safetensors"]


SD_UNET = {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280]}
SD_VAE = {"block_out_channels": [128, 256, 512, 512]}


def pipeline(files: dict[str, int], config: dict[str, Any] | None = None, **tensors: int) -> Weights:
    parts = {"unet": SD_UNET, "vae": SD_VAE} if config is None else config
    return Weights(files=files, tensors=tensors, config=parts)


def test_pipelines_on_openvino_are_held_in_32_bits() -> None:
    """Beside the mapped file, whatever that is in; the parts lie in folders; 16 bits of arithmetic hold half."""
    files = {"unet/openvino_model.bin": 1720 * MB, "vae_decoder/openvino_model.bin": 100 * MB}

    def held(quantization: str, **options: Any) -> float:
        told = estimate(
            pipeline(files), engine="openvino-image", device_kind="cpu", quantization=quantization, options=options
        )
        return told.weights / sum(files.values())

    assert (held("fp32"), held("fp16"), held("none")) == (2, 3, 3)
    assert held("fp16", precision="bf16") == 2
    assert 4 < held("int8") < 5


@pytest.mark.parametrize("engine", ["openvino-image", "diffusers"])
def test_larger_pictures_take_more(engine: str) -> None:
    """Activations of a pipeline grow with the pictures that it was trained for, four times for twice the side."""
    files = {"unet/a.safetensors": 1720 * MB}

    def activations(**unet: Any) -> int:
        weights = pipeline(files, {"unet": {**SD_UNET, **unet}, "vae": SD_VAE})
        return estimate(weights, engine=engine, device_kind="cpu", quantization="none").activations

    usual, large = activations(), activations(sample_size=128)
    assert 1.5 * 10**9 < usual < 3 * 10**9
    assert 2 < large / usual <= 4
    assert 64 * MIB <= activations(sample_size=8, block_out_channels=[32, 64]) < usual / 8


def test_pipelines_by_diffusers_are_held_as_they_are_loaded() -> None:
    """In 32 bits on a CPU, in 16 on CUDA; quantizing is of the denoiser alone; the safety checker is not loaded."""
    files = {"unet/a.safetensors": 800 * MB, "vae/a.safetensors": 200 * MB, "safety_checker/a.safetensors": 600 * MB}
    weights = pipeline(files, F16=1600 * MB)

    def held(device_kind: str, **options: Any) -> int:
        told = estimate(weights, engine="diffusers", device_kind=device_kind, quantization="none", options=options)
        return told.weights // MB

    assert (held("cuda"), held("cpu"), held("cpu", dtype="bfloat16")) == (1000, 2000, 1000)
    assert held("cuda", quantize="nf4") == 200 + int(400 * 0.66)
    told = estimate(weights, engine="diffusers", device_kind="cuda", quantization="none")
    assert told.activations >= 3 * 2**30
    assert (
        held("cpu")
        == 2 * estimate(pipeline(files), engine="diffusers", device_kind="cuda", quantization="none").weights // MB
    )


@pytest.mark.parametrize("value", ["many", -1, None, True, [], {}, [{}], ["a", -5, 2**40]])
def test_odd_configurations_of_pipelines_do_no_harm(value: Any) -> None:
    """Nonsense counts as absent, in the configuration of a part as in a model's."""
    config = {"unet": dict.fromkeys(SD_UNET, value), "vae": value, "transformer": value}
    for engine in ("openvino-image", "diffusers"):
        weights = pipeline({"unet/a.safetensors": MB}, config)
        told = estimate(weights, engine=engine, device_kind="cpu", quantization="none")
        assert MB < told.bytes < 20 * 2**30


def test_the_parts_of_a_pipeline_are_read(tmp_path: Path) -> None:
    """With model_index.json the configurations of the parts count, under their folders' names."""
    (tmp_path / "model_index.json").write_text("{}")
    for part, config in (("unet", SD_UNET), ("vae_decoder", SD_VAE), ("text_encoder", {"vocab_size": 5})):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_bytes(msgspec.json.encode(config))
        (tmp_path / part / "openvino_model.bin").write_bytes(bytes(100))
    weights = weights_in(tmp_path)
    assert weights.config == {"unet": SD_UNET, "vae_decoder": SD_VAE}
    told = estimate(weights, engine="openvino-image", device_kind="cpu", quantization="fp32")
    assert told.weights == 600
