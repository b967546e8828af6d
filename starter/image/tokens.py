"""The tokenizer: CLIP's kind of byte-pair encoding, learned from captions, in the files that CLIPTokenizer loads."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from starter.image.captions import caption
from starter.image.scenes import draw_scene

START = "<|startoftext|>"
END = "<|endoftext|>"
LONGEST = 32
"""Tokens of a prompt, with start and end."""
PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer with the numbers that the networks need."""

    tokenizer: Tokenizer

    @property
    def size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    @property
    def start(self) -> int:
        return int(self.tokenizer.token_to_id(START))

    @property
    def end(self) -> int:
        return int(self.tokenizer.token_to_id(END))

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return LONGEST ids for each text, cut or filled up with the end."""
        return [one.ids for one in self.tokenizer.encode_batch(list(texts))]


def make_tokenizer(seed: int, captions: int = 30_000) -> Tokenizer:
    """Return a tokenizer that knows every byte and the words of the captions."""
    rng = random.Random(f"{seed}:tokenizer")
    texts = [caption(draw_scene(rng), rng, held_out=rng.random() < 0.1) for _ in range(captions)]
    tokenizer = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=1024,
        initial_alphabet=alphabet,
        special_tokens=[START, END, *sorted(f"{letter}</w>" for letter in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def padded(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer set up to give LONGEST ids, as the pipeline asks it to."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding(length=LONGEST, pad_id=end, pad_token=END)
    return tokenizer


def save_tokenizer(words: Words, folder: Path) -> Path:
    """Write the files that CLIPTokenizer loads, old ones and new ones, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    told = json.loads(words.tokenizer.to_str())
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in told["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(told["model"]["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    words.tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LONGEST,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return folder
