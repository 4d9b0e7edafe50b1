"""The miniature's tokenizer: CLIP's byte-level BPE, trained on the captions and instructions of the second edition.

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
from restage.records import InputError, derive_seed
from restage.world import second
from restage.world.capture import camera_at, scene_radius
from restage.world.places import RELATIONS, phrase_of

__all__ = ["MAX_TOKENS", "build_tokenizer", "shared_tokenizer"]

MAX_TOKENS = 56
NUM_MERGES = 172
"""Enough for the frequent words of the world; the others keep two to five tokens."""
_NUM_SCENES, _NUM_CAPTIONS, _NUM_PHRASES = 700, 2, 3


def _world_texts(seed: int) -> list[str]:
    texts = []
    for index in range(_NUM_SCENES):
        item = derive_seed("tokenizer", seed, index)
        scene = second.sample_description(item)
        camera = camera_at(float(item % 360), 0.3, scene_radius(scene), 32)  # from any side
        texts.append(second.sample_edit(scene, item, camera=camera).instruction)
        texts += [second.caption_of(scene, derive_seed(item, number), camera) for number in range(_NUM_CAPTIONS)]
        # Some relations hold in few scenes, and their words would fall to letters: each is said equally often beside.
        for number in range(_NUM_PHRASES * index, _NUM_PHRASES * (index + 1)):
            form, relation = divmod(number, len(RELATIONS))
            anchors = ("the house", "the snowman") if form % 2 else ("the snowman", "the house")
            texts.append(phrase_of(list(RELATIONS)[relation], anchors, form))
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

    Raises:
        InputError: the folder's tokenizer is too short for today's captions, as that of the first edition is.
    """
    path = folder / "tokenizer"
    if not (path / "tokenizer.json").exists():
        save_tokenizer(build_tokenizer(), path)
    tokenizer: Any = load_tokenizer(path)
    if tokenizer.model_max_length != MAX_TOKENS:
        raise InputError(
            f"{path} holds a tokenizer for {tokenizer.model_max_length} tokens, as models of another edition of the "
            f"world have; expected {MAX_TOKENS}; train in another --folder"
        )
    return tokenizer
