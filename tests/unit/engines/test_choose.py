"""Which engine runs a version: by machine, by weights, by what is installed, by what the call needs."""

from typing import Any

import pytest

from serai.engines.choose import Choices, choose, formats_of, tasks_for
from serai.engines.errors import EngineMissing, EngineUnknown
from serai.registry.source import HubSource, PackageSource, RemoteSource

CHAT = tasks_for("chat")
SAFETENSORS = frozenset({"safetensors"})
IR = frozenset({"ir"})
NOTHING = frozenset({"none"})


def chosen(**given: Any) -> Choices:
    defaults: dict[str, Any] = {
        "engine": None, "tasks": CHAT, "formats": SAFETENSORS, "device_kinds": {"cpu"}, "missing": {},
    }  # fmt: skip
    return choose(**(defaults | given))


def names(choices: Choices) -> list[tuple[str, str]]:
    return [(one.engine.name, one.device_kind) for one in choices.order]


def test_on_cuda_vllm_comes_first() -> None:
    """vLLM, then transformers on CUDA, then transformers on the CPU; the sentence says so."""
    choices = chosen(device_kinds={"cpu", "cuda"})
    assert names(choices) == [("vllm", "cuda"), ("transformers", "cuda"), ("transformers", "cpu")]
    assert choices.explanation.startswith("vllm on cuda: it is the fastest on CUDA. If it fails: transformers on cuda.")


def test_on_a_cpu_openvino_comes_first() -> None:
    """IR runs on OpenVINO GenAI; a checkpoint on transformers; vLLM is passed over for want of a device."""
    assert names(chosen(formats=IR)) == [("openvino-genai", "cpu")]
    choices = chosen(formats=IR | SAFETENSORS)
    assert names(choices) == [("openvino-genai", "cpu"), ("transformers", "cpu")]
    assert {one.engine: one.why for one in choices.passed_over}["vllm"] == "there is no cuda device"


def test_what_is_not_installed_is_passed_over_with_its_remedy() -> None:
    """The next one is taken; the explanation names what is missing."""
    missing = {"openvino-genai": ("openvino_genai",)}
    choices = chosen(formats=IR | SAFETENSORS, missing=missing)
    assert names(choices) == [("transformers", "cpu")]
    assert "Not openvino-genai: openvino_genai not installed." in choices.explanation
    nothing = chosen(formats=IR, missing=missing)
    with pytest.raises(EngineMissing) as refused:
        nothing.first()
    assert refused.value.hint is not None
    assert "pip install openvino" in refused.value.hint


def test_a_named_engine_is_the_only_one() -> None:
    """The version's own engine is taken, or nothing."""
    choices = chosen(engine="transformers", device_kinds={"cpu", "cuda"})
    assert names(choices) == [("transformers", "cuda"), ("transformers", "cpu")]
    assert choices.order[0].why == "the version names it"
    assert names(chosen(engine="vllm")) == []
    assert names(chosen(engine="fake", formats=NOTHING)) == [("fake", "cpu")]
    with pytest.raises(EngineUnknown):
        chosen(engine="torchy")


def test_the_fake_engine_is_never_chosen() -> None:
    """Nothing answers with the fake engine unless its version names it."""
    for formats in (NOTHING, SAFETENSORS, IR):
        assert "fake" not in {name for name, _ in names(chosen(formats=formats))}


def test_networks_run_on_openvino() -> None:
    """A model that is no chat is a network; its language engines are passed over because they do not do that."""
    choices = chosen(tasks=tasks_for("background-removal"), formats=IR)
    assert names(choices) == [("openvino", "cpu")]
    assert {one.engine for one in choices.passed_over} >= {"vllm", "transformers", "openvino-genai"}


def test_other_servers_run_what_is_theirs() -> None:
    """A remote source needs no device and no file; chats go to `remote`, others to `http`."""
    for task, engine in (("chat", "remote"), ("embedding", "remote"), ("background-removal", "http")):
        choices = chosen(tasks=tasks_for(task), formats=NOTHING, device_kinds=(), is_remote=True)
        assert names(choices) == [(engine, "remote")]


def test_what_a_call_needs_is_looked_at() -> None:
    """A call with logit_bias passes over an engine that has none."""
    choices = chosen(formats=IR | SAFETENSORS, needs=frozenset({"logit_bias"}))
    assert names(choices) == [("transformers", "cpu")]
    assert "Not openvino-genai: it cannot do logit_bias." in choices.explanation


def test_unreadable_weights_are_said() -> None:
    """GGUF is read by no engine: the error names the reason for each, and where to look."""
    with pytest.raises(EngineMissing, match="the weights are gguf") as refused:
        chosen(formats=frozenset({"gguf"})).first()
    assert refused.value.hint


def test_formats_come_from_names() -> None:
    """Files tell their form; what needs no files is 'none'; what has none yet is nothing."""
    hub = HubSource(repo="a/b")
    assert formats_of(hub, ["model-00001-of-00002.safetensors", "config.json"]) == SAFETENSORS
    assert formats_of(hub, ["openvino_model.XML", "openvino_model.bin", "a/net.onnx"]) == {"ir", "onnx"}
    assert formats_of(hub, []) == frozenset()
    assert formats_of(None, []) == NOTHING
    assert formats_of(RemoteSource(endpoint="https://x.example", model="m"), []) == NOTHING
    assert formats_of(PackageSource(name="starter-chat"), ["openvino_model.xml"]) == IR


def test_embedding_models_have_engines_of_their_own() -> None:
    """OpenVINO for IR and ONNX, transformers for checkpoints; no engine of language models or networks."""
    embedding = tasks_for("embedding")
    for form in ("ir", "onnx"):
        assert names(chosen(tasks=embedding, formats=frozenset({form}))) == [("openvino-embed", "cpu")]
    choices = chosen(tasks=embedding, device_kinds={"cpu", "cuda"})
    assert names(choices) == [("transformers-embed", "cuda"), ("transformers-embed", "cpu")]
