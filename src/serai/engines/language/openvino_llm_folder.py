"""The folder of a language model in OpenVINO's form: which files there are, and what they say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serai.errors import LoadFailed

MODEL = "openvino_model.xml"
TOKENIZER = "openvino_tokenizer.xml"
EXPORT = "serai_export.json"
MAX_JSON_BYTES = 64 * 1024 * 1024


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What our exporter notes beside a model, because the network itself does not say it."""

    exporter: int = 1
    architecture: str = ""
    quantization: str = ""
    salt_bits: int = 0
    """The network ignores the bits of a token's id from this one on (0: it does not). See `Salt`."""
    has_raw_penalties: bool = True
    """Whether logits of likely tokens are positive, which GenAI's presence and frequency penalties need."""


class GenerationDefaults(msgspec.Struct, frozen=True):
    """The members of generation_config.json that are needed; others are left to the caller."""

    eos_token_id: int | Sequence[int] | None = None


class ModelConfig(msgspec.Struct, frozen=True):
    """The members of config.json that are needed, under the names that the families give them."""

    eos_token_id: int | Sequence[int] | None = None
    vocab_size: int = 0
    max_position_embeddings: int = 0
    n_positions: int = 0
    architectures: Sequence[str] = ()

    @property
    def context_tokens(self) -> int:
        """The longest context that the model knows positions for; 0 if it does not say."""
        return self.max_position_embeddings or self.n_positions


def read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object of the folder, {} if there is no such file. Raises LoadFailed."""
    return read_as(path, dict[str, Any]) if path.exists() else {}


def read_as(path: Path, kind: Any) -> Any:
    """Return what a JSON file of the folder holds, as `kind`. Raises LoadFailed, without the folder's path."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise LoadFailed(f"{path.name} is larger than such a file can be.")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError:
        raise LoadFailed(f"{path.name} is missing from the model's folder.", hint="Pull the model again.") from None
    except msgspec.DecodeError as error:
        raise LoadFailed(f"{path.name} is not what it should be: {error}") from None


def end_ids(folder: Path, config: ModelConfig) -> frozenset[int]:
    """Return the tokens that end an answer: generation_config.json says, else config.json."""
    path = folder / "generation_config.json"
    said = read_as(path, GenerationDefaults).eos_token_id if path.exists() else None
    ids = said if said is not None else config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset((ids,) if isinstance(ids, int) else ids)


def read_export(folder: Path) -> Export:
    """Return what our exporter noted; for a model from elsewhere, that nothing is known."""
    path = folder / EXPORT
    return read_as(path, Export) if path.exists() else Export(exporter=0)
