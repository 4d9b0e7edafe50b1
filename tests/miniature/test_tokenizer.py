"""The tokenizer of the second edition: what fits in it, and that a folder keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniature.tokenizer import MAX_TOKENS, build_tokenizer, shared_tokenizer
from restage.diffusion.backbone import save_tokenizer
from restage.diffusion.loading import load_tokenizer
from restage.records import InputError
from restage.run.models import models_in
from restage.world import grammar, second
from restage.world.capture import camera_at
from restage.world.description import COLORS, KINDS, PATTERNS
from restage.world.places import RELATIONS, places_of


def test_captions_of_three_objects_with_places_fit_the_tokenizer(tokenizer) -> None:
    captions = []
    for seed in range(150):
        scene = second.sample_description(seed, num_objects=3)
        captions += [
            grammar.caption_of(scene, seed, place) for place in places_of(scene, camera_at(float(seed), 0.3, 4.0, 32))
        ]
    assert len(captions) > 1000 and max(len(ids) for ids in tokenizer(captions)["input_ids"]) <= MAX_TOKENS


def test_common_words_are_a_token_or_two_and_rarer_ones_several(tokenizer) -> None:
    lengths = {word: len(tokenizer(word)["input_ids"]) - 2 for word in ("between", "next", "side", "evening", "golden")}
    relations = {word for relation in RELATIONS.values() for form in relation.forms for word in form.split()} - {"{}"}
    lengths |= {word: len(tokenizer(word)["input_ids"]) - 2 for word in (*relations, *KINDS, *COLORS, *PATTERNS)}
    assert {word for word, length in lengths.items() if length > 2} == {"evening", "golden"}


def test_a_folder_with_a_tokenizer_of_the_first_edition_is_refused(tmp_path: Path) -> None:
    first = load_tokenizer(models_in().text_to_image / "tokenizer")
    first.model_max_length = 48
    save_tokenizer(first, tmp_path / "tokenizer")
    with pytest.raises(InputError, match="for 48 tokens"):
        shared_tokenizer(tmp_path)


def test_folder_keeps_its_tokenizer_when_the_world_changes(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniature.tokenizer.build_tokenizer", lambda: tokenizer)
    before = shared_tokenizer(tmp_path).get_vocab()
    monkeypatch.undo()
    monkeypatch.setattr("miniature.tokenizer._world_texts", lambda seed: ["another world altogether"] * 4)
    assert build_tokenizer().get_vocab() != before
    assert shared_tokenizer(tmp_path).get_vocab() == before
