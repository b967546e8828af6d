"""What the folder of an embedding model says: how its tokens become one vector. The form is sentence-transformers'.

| file | says |
|---|---|
| modules.json | the steps: Transformer, Pooling and, where vectors have length 1, Normalize |
| 1_Pooling/config.json | which pooling; several are put side by side |
| sentence_bert_config.json | tokens after which a text is cut, whether it is made lower-case |
| config_sentence_transformers.json | a text that goes before each, if one does by default |

A folder without modules.json says nothing of it: the mean of the tokens is taken, at length 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from serai.engines.language.openvino_llm_folder import read_as, read_json
from serai.errors import LoadFailed

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
MAX_CONTEXT_TOKENS = 8192
"""Of a text, where the model knows more: attention takes memory by the square of it."""

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The members of a pooling's config.json, in the order in which their vectors stand side by side."""

_UNKNOWN_TOKENS = 512
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Families whose first position comes after the padding's: the table holds so many more than a text may have."""


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        return self.type.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingShape:
    """What is done beside the network."""

    pooling: tuple[str, ...] = ("mean",)
    """Values of `POOLINGS`."""
    normalizes: bool = True
    """Whether vectors have length 1."""
    context_tokens: int = _UNKNOWN_TOKENS
    """Tokens of a text that count, special ones included."""
    pad_id: int = 0
    vocabulary: int = 0
    """0: not known."""
    prompt: str = ""
    """What goes before each text."""
    is_lower: bool = False
    """Whether texts are made lower-case."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what the files say. Raises LoadFailed, also for steps that no engine here makes."""
        config = read_json(folder / "config.json")
        pooling, normalizes, includes_prompt = _steps(folder)
        prompt = _prompt(read_json(folder / PROMPTS))
        if prompt and not includes_prompt:
            raise LoadFailed("The model's pooling leaves a prompt out, which no engine here does.")
        said = _sentence_config(folder)
        return cls(
            pooling=pooling,
            normalizes=normalizes,
            context_tokens=_context(folder, config, said),
            pad_id=_count(config, "pad_token_id") or 0,
            vocabulary=_count(config, "vocab_size") or 0,
            prompt=prompt,
            is_lower=said.get("do_lower_case") is True,
        )


def configuration_files(folder: Path) -> list[str]:
    """Return the paths of the files that `EmbeddingShape.read` reads and that are there, but for config.json."""
    names = [MODULES, PROMPTS, *sorted(path.name for path in folder.glob("sentence_*_config.json"))]
    names += [f"{module.path}/config.json" for module in _modules(folder) if module.path]
    return [name for name in names if (folder / name).is_file()]


def _modules(folder: Path) -> Sequence[_Module]:
    path = folder / MODULES
    if not path.is_file():
        return ()
    modules: list[_Module] = read_as(path, list[_Module])
    if any(Path(module.path).is_absolute() or ".." in Path(module.path).parts for module in modules):
        raise LoadFailed(f"{MODULES} names a folder outside of the model's.")
    return modules


def _steps(folder: Path) -> tuple[tuple[str, ...], bool, bool]:
    """Return the poolings, whether vectors are normalized, and whether a prompt's tokens count."""
    modules = _modules(folder)
    if not modules:
        return ("mean",), True, True
    kinds = [module.kind for module in modules]
    known = ["Transformer", "Pooling", "Normalize"]
    if kinds not in (known[:2], known) or modules[0].path:
        raise LoadFailed(
            f"The model is made of {', '.join(kinds) or 'no steps'}, which no engine here runs.",
            hint="Choose a model of Transformer, Pooling and, perhaps, Normalize.",
        )
    config = read_json(folder / modules[1].path / "config.json")
    return _poolings(config), kinds == known, config.get("include_prompt") is not False


def _poolings(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    wanted = named.split("+") if isinstance(named, str) else named if isinstance(named, list) else None
    if wanted is None:
        wanted = [name for member, name in POOLINGS.items() if config.get(member) is True]
    unknown = [str(name) for name in wanted if name not in POOLINGS.values()]
    if unknown or not wanted:
        raise LoadFailed(f"The model's pooling is {', '.join(unknown) or 'not said'}, which no engine here does.")
    return tuple(name for name in POOLINGS.values() if name in wanted)


def _prompt(config: Mapping[str, Any]) -> str:
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    found = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return found if isinstance(found, str) else ""


def _sentence_config(folder: Path) -> Mapping[str, Any]:
    found = sorted(folder.glob("sentence_*_config.json"))
    return read_json(found[0]) if found else {}


def _context(folder: Path, config: Mapping[str, Any], said: Mapping[str, Any]) -> int:
    """Return the least of what the files say; positions that the network does not have are never asked for."""
    positions = _count(config, "max_position_embeddings")
    if positions is not None and config.get("model_type") in _OFFSET_POSITIONS:
        positions -= (_count(config, "pad_token_id") or 0) + 1
    of_tokenizer = _count(read_json(folder / "tokenizer_config.json"), "model_max_length")
    told = [one for one in (_count(said, "max_seq_length"), of_tokenizer, positions) if one]
    return min(*told, MAX_CONTEXT_TOKENS) if told else _UNKNOWN_TOKENS


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
