"""The miniature's tokenizer: CLIP's byte-level BPE, trained on the world's captions and instructions.

The vocabulary is kept small, so that rarer words split into several tokens, as they do in Stable Diffusion.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from restage.diffusion.backbone import save_tokenizer
from restage.diffusion.loading import load_tokenizer
from restage.records import derive_seed
from restage.world.grammar import caption_of, sample_description, sample_edit

__all__ = ["MAX_TOKENS", "build_tokenizer", "shared_tokenizer"]

MAX_TOKENS = 48
NUM_MERGES = 104
"""Enough for the frequent words of the world; the others keep two to four tokens."""
_NUM_SCENES = 4000


def _world_texts(seed: int) -> list[str]:
    texts = []
    for index in range(_NUM_SCENES):
        item = derive_seed("tokenizer", seed, index)
        description = sample_description(item)
        texts += [caption_of(description, item), sample_edit(description, item).instruction]
    return texts


def build_tokenizer(*, seed: int = 0) -> CLIPTokenizer:
    """Train it on captions and instructions of the training split, which takes seconds."""
    blank = CLIPTokenizer()
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = blank.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=100_000,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_world_texts(seed), trainer)
    merges: Any = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:NUM_MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {token: index for index, token in enumerate(tokens)}
    with TemporaryDirectory() as folder:
        built = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
        built.save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(Path(folder))


def shared_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer of all models that are trained in a folder: built once, kept in `<folder>/tokenizer`.

    A later change of the world's texts would build another one, which a half-trained model could not read.
    """
    path = folder / "tokenizer"
    if not (path / "tokenizer.json").exists():
        save_tokenizer(build_tokenizer(), path)
    return load_tokenizer(path)
