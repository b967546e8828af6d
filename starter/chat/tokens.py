"""The tokenizer: byte-level BPE made from the training questions, and the chat template."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from starter.chat.conversations import SYSTEM, Conversation, pool
from starter.chat.questions import GUIDE, Questions

VOCABULARY = 4096
MAX_POSITIONS = 2048
PAD, END, ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, END, ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT)
# Between the special tokens stands the bare text, so that each part is split alone, here and in training.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('The starter chat knows the roles system, user and assistant.') -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
_DROPOUT = 0.1  # of merges, for questions in training: words are seen in other pieces too (arXiv:1910.13267)
_DROPOUT_SHARE = 0.25
# The end of an answer follows from its beginning: in most samples it is cut off, which saves time.
_CUT, _CUT_SHARE = 12, 0.7


def make_tokenizer(questions: Questions, seed: int, conversations: int = 60_000) -> Tokenizer:
    """Train the tokenizer on the answers and on questions of a seed of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(questions, seed, conversations), trainer)
    return tokenizer


def number_of(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token."""
    number = tokenizer.token_to_id(token)
    assert isinstance(number, int)
    return number


def _texts(questions: Questions, seed: int, conversations: int) -> Iterator[str]:
    for _ in range(200):
        yield from (intent.answer for intent in questions.intents.values())
        yield from (GUIDE, *SYSTEM)
    for number in range(conversations // 1000):
        for conversation in pool(questions, seed, -1 - number, 1000):
            yield from (turn.question for turn in conversation.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Token ids of a conversation; `learned[i]` tells whether the model is to predict `ids[i]`.

    `asked` holds (place, intent) of the tokens behind which an answer begins, if the question alone tells the intent.
    """

    ids: list[int]
    learned: list[bool]
    asked: list[tuple[int, str]]


class Encoder:
    """Encodes conversations for training. Equal to the chat template, apart from the dropped merges."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain = tokenizer
        dropping = Tokenizer.from_str(tokenizer.to_str())
        dropping.model.dropout = _DROPOUT
        self._dropping = dropping
        self._ids = {token: number_of(tokenizer, token) for token in SPECIAL}

    def encode(self, conversation: Conversation, rng: random.Random | None = None) -> Sample:
        """Return the sample; with `rng`, for training, some questions lose merges and some last answers their end."""
        sample, begun = Sample(ids=[], learned=[], asked=[]), 0
        if conversation.system:
            self._add(sample, ROLE_SYSTEM, conversation.system, self._plain)
        for turn in conversation.turns:
            dropped = rng is not None and rng.random() < _DROPOUT_SHARE
            self._add(sample, ROLE_USER, turn.question, self._dropping if dropped else self._plain)
            if turn.intent:
                sample.asked.append((len(sample.ids), turn.intent))
            begun = len(sample.ids)
            self._add(sample, ROLE_ASSISTANT, turn.answer, self._plain, learned=True)
        if rng is not None and rng.random() < _CUT_SHARE:
            del sample.ids[begun + 1 + _CUT :]
            del sample.learned[begun + 1 + _CUT :]
        return sample

    def _add(self, sample: Sample, role: str, text: str, tokenizer: Tokenizer, *, learned: bool = False) -> None:
        pieces = tokenizer.encode(text.strip(), add_special_tokens=False).ids
        sample.ids.extend((self._ids[role], *pieces, self._ids[END]))
        sample.learned.extend((False, *([learned] * (len(pieces) + 1))))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` with the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "pad_token": PAD,
        "eos_token": END,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": [ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": TEMPLATE,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")
