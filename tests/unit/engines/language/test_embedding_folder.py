"""How a folder says that its tokens become vectors: read from files alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from serai.engines.language.embedding_folder import MAX_CONTEXT_TOKENS, EmbeddingShape, configuration_files
from serai.errors import LoadFailed

STEPS = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def folder_of(root: Path, **documents: Any) -> Path:
    """Return a folder with JSON files; '__' stands for a slash."""
    for name, document in documents.items():
        path = root / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return root


def test_a_plain_checkpoint_is_pooled_by_its_mean(tmp_path: Path) -> None:
    """At length 1, with the usual length where nothing tells of any."""
    shape = EmbeddingShape.read(folder_of(tmp_path, config={"vocab_size": 9, "pad_token_id": 3}))
    assert shape == EmbeddingShape(
        pooling=("mean",), normalizes=True, context_tokens=512, pad_id=3, vocabulary=9, prompt="", is_lower=False
    )
    assert configuration_files(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "documents", "tokens"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, {}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 100, "pad_token_id": 1}, {}, 98),
        ({"max_position_embeddings": 512}, {"sentence_bert_config": {"max_seq_length": 256}}, 256),
        ({"max_position_embeddings": 512}, {"sentence_roberta_config": {"max_seq_length": 1024}}, 512),
        ({"max_position_embeddings": 512}, {"sentence_bert_config": {"max_seq_length": None}}, 512),
        ({"max_position_embeddings": 512}, {"tokenizer_config": {"model_max_length": 128}}, 128),
        ({"max_position_embeddings": 512}, {"tokenizer_config": {"model_max_length": 10**30}}, 512),
        ({"max_position_embeddings": 40960}, {}, MAX_CONTEXT_TOKENS),
        ({"max_position_embeddings": True}, {}, 512),
    ],
)
def test_the_least_length_counts(config: Any, documents: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    """Of the repository's, the tokenizer's, and the positions that there are behind the padding's."""
    assert EmbeddingShape.read(folder_of(tmp_path, config=config, **documents)).context_tokens == tokens


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode": "mean"}, ("mean",)),
    ],
)
def test_poolings_stand_in_the_order_of_sentence_transformers(
    pooling: Any, found: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever the order in the file; without the step Normalize lengths stay."""
    folder = folder_of(tmp_path, modules=STEPS[:2], **{"1_Pooling__config": pooling})
    shape = EmbeddingShape.read(folder)
    assert (shape.pooling, shape.normalizes) == (found, False)
    assert configuration_files(folder) == ["modules.json", "1_Pooling/config.json"]


def test_what_could_not_be_followed_is_refused(tmp_path: Path) -> None:
    """A folder outside, another order, a prompt that the pooling leaves out."""
    mean = {"pooling_mode_mean_tokens": True}
    prompts = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    outside = [STEPS[0], {**STEPS[1], "path": "../elsewhere"}]
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "outside": ({"modules": outside}, "outside"),
        "order": ({"modules": STEPS[::-1]}, "Normalize, Pooling, Transformer"),
        "below": ({"modules": [{**STEPS[0], "path": "0_Transformer"}, STEPS[1]]}, "no engine here"),
        "prompt": (
            {"modules": STEPS, "1_Pooling__config": {**mean, "include_prompt": False}}
            | {"config_sentence_transformers": prompts},
            "prompt",
        ),
    }
    for name, (documents, words) in cases.items():
        (tmp_path / name).mkdir()
        with pytest.raises(LoadFailed, match=words):
            EmbeddingShape.read(folder_of(tmp_path / name, **documents))
    kept = folder_of(
        tmp_path / "order", modules=STEPS, **{"1_Pooling__config": mean, "config_sentence_transformers": prompts}
    )
    assert (EmbeddingShape.read(kept).prompt, EmbeddingShape.read(kept).normalizes) == ("query: ", True)
