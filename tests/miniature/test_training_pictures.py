"""The pictures and pairs that the miniature is trained on, and what their captions say."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import clip, pictures
from miniature.pictures import Pictures, make_pictures, picture_scene
from miniature.rendered_pairs import (
    PAIR_KINDS,
    TURNED,
    render_pairs,
    render_referenced_pair,
    render_referenced_pairs,
    write_pictured_prompts,
)
from restage.edit.pictures import read_image
from restage.prompts.store import read_prompts
from restage.records import InputError
from restage.train.examples import ExactPair, can_be_mirrored
from restage.world.capture import CHANGE_THRESHOLD
from restage.world.description import SECOND_EDIT_KINDS
from restage.world.grammar import object_phrase
from restage.world.places import carriers, places_of, read_place


@pytest.fixture(scope="module")
def exact_pairs() -> list[ExactPair]:
    """Two of each kind."""
    return list(render_pairs(2 * len(PAIR_KINDS), seed=3))


def test_pictures_made_in_two_sessions_are_those_of_one(
    training_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    next(make_pictures(tmp_path, 12))
    list(make_pictures(tmp_path, 12))
    for path in sorted((training_folder / "pictures").iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_pictures_of_another_edition_are_neither_read_nor_added_to(small_set: Pictures, tmp_path: Path) -> None:
    (tmp_path / "shard-00000.json").write_text("[]")  # the first edition's was a list of scenes
    np.save(tmp_path / "shard-00000.npy", small_set.shards[0])
    np.save(tmp_path / "shard-00000.ids.npy", small_set.object_ids[:6])
    for use in (lambda: Pictures(tmp_path), lambda: list(make_pictures(tmp_path, 12))):
        with pytest.raises(InputError, match="another edition of the world"):
            use()
    assert not (tmp_path / "shard-00001.json").exists()


def test_the_places_of_a_picture_hold_in_it_from_its_own_camera(training_folder: Path, small_set: Pictures) -> None:
    said = set()
    for index, places in enumerate(small_set.places):
        scene = picture_scene(index)
        assert places == places_of(scene.shown, scene.camera())
        told = [small_set.place(index, seed) for seed in range(8)]
        assert all(place in places for place in told if place is not None)
        assert None in told
        captions = [small_set.captions([index], seed)[0] for seed in range(8)]
        assert [read_place(caption) is None for caption in captions] == [place is None for place in told]
        said |= {place.relation for place in told if place is not None}
    assert len(said) > 4


def test_in_every_third_shard_one_object_is_gone_and_the_others_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    for index in range(36):
        scene = picture_scene(index)
        if index // 6 % 3 == 2:
            assert len(scene.shown.objects) == len(scene.laid_out.objects) - 1 >= 1
            assert set(scene.shown.objects) < set(scene.laid_out.objects)
            assert sum(item.z > 0 for item in scene.shown.objects) == len(carriers(scene.shown))  # nothing floats
        else:
            assert scene.shown == scene.laid_out
    parted = [scene for scene in map(picture_scene, range(12, 18)) if not carriers(scene.laid_out)]
    alone = [scene.shown.objects for scene in parted if len(scene.shown.objects) == 1]
    assert alone and all(math.hypot(item.x, item.y) > 0.1 for (item,) in alone)


def test_training_sets_show_several_objects_more_often_than_one(training_folder: Path, small_set: Pictures) -> None:
    counts = [len(description.objects) for description in small_set.descriptions]
    assert counts[:5] == list(pictures.NUM_OBJECTS) and min(counts[5:]) == 1


def test_pictures_are_drawn_in_the_shares_that_are_asked_for(small_set: Pictures) -> None:
    chances = small_set.chances((0.1, 0.3, 0.6))
    counts = torch.tensor([len(description.objects) for description in small_set.descriptions])
    shares = torch.stack([chances[counts == number].sum() for number in (1, 2, 3)]) / chances.sum()
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.6]))


def test_captions_from_the_left_name_objects_as_they_stand_in_the_picture(small_set: Pictures) -> None:
    several = [i for i, d in enumerate(small_set.descriptions) if len(d.objects) > 1]
    plain, seeds = 0, range(4)
    for index, seed in itertools.product(several, seeds):
        (caption,), (unordered,) = small_set.captions_from_the_left([index], seed), small_set.captions([index], seed)
        assert sorted(caption) == sorted(unordered)
        place = small_set.place(index, seed)
        # What a place tells stands at the end, and says the same in either order.
        assert read_place(caption) == read_place(unordered)
        ids, objects = small_set.object_ids[index], small_set.descriptions[index].objects
        middles = {o.kind: np.nonzero(ids == 2 + number)[1].mean() for number, o in enumerate(objects)}
        told = {words.split()[-1] for words in (place.subject, *place.anchors)} if place else set()
        named = sorted(middles.keys() - told, key=caption.index)
        assert [middles[kind] for kind in named] == sorted(middles[kind] for kind in named)
        plain += len(named) > 1
    assert plain > 3
    assert small_set.captions_from_the_left(several, 0) != small_set.captions(several, 0)


def test_wrong_captions_are_those_of_other_scenes(small_set: Pictures) -> None:
    indices, placed = list(range(len(small_set))), {True: 0, False: 0}
    for seed in range(10):
        for index, wrong in zip(indices, clip._wrong_captions(small_set, indices, seed), strict=True):
            scene, place = small_set.descriptions[index], read_place(wrong)
            is_of_scene = all(object_phrase(item) in wrong for item in scene.objects)
            is_of_scene &= scene.ground in wrong.split() or f"{scene.ground}," in wrong.split()
            if is_of_scene and place is not None and wrong.count(" a ") + wrong.count(" an ") >= len(scene.objects):
                placed[place in small_set.places[index]] += 1
            assert "#" not in wrong
    assert placed[False] > 5


def test_exact_pairs_come_of_every_kind_and_change_what_their_masks_say(exact_pairs: list[ExactPair]) -> None:
    assert set(PAIR_KINDS) - {TURNED} == set(SECOND_EDIT_KINDS) - {"look"}
    pairs = exact_pairs[: len(PAIR_KINDS)]
    assert [pair.prompt.kind for pair in pairs] == ["remove" if kind == TURNED else kind for kind in PAIR_KINDS]
    for pair in pairs:
        change = (pair.edited - pair.source).abs().amax(0)
        assert bool(((change > CHANGE_THRESHOLD) == (pair.mask > 0)).all())
        assert float(pair.mask.mean()) > 0.002
        assert pair.prompt.source != pair.prompt.target
        assert can_be_mirrored(pair.prompt) or re.search("left|right", str(pair.prompt))
        named = {word for text in (pair.prompt.source, pair.prompt.target) for word in text.replace(",", "").split()}
        assert set(pair.prompt.words) <= named
    turned = [pair.prompt for pair, kind in zip(pairs, PAIR_KINDS, strict=True) if kind == TURNED]
    for prompt in turned:  # undoing it adds at a place what the source says
        place = read_place(prompt.undo)
        assert place is not None and place.subject in prompt.source and place.subject not in prompt.target
    additions = [pair.prompt for pair in pairs if pair.prompt.kind in ("add", "move")]
    assert all(read_place(prompt.instruction) and read_place(prompt.target) for prompt in additions)


def test_pictured_prompts_show_one_side_of_which_half_of_the_removals_show_the_other(
    exact_pairs: list[ExactPair], tmp_path: Path
) -> None:
    list(write_pictured_prompts(tmp_path, len(exact_pairs), seed=3))
    pairs = read_prompts(tmp_path / "prompts.jsonl")
    after = [pair for pair in pairs if pair.pictured == "target"]
    removals = [pair for pair, kind in zip(pairs, 2 * PAIR_KINDS, strict=True) if kind == "remove"]
    assert 0.15 < len(after) / len(removals) < 0.85 and all(pair in removals for pair in after)
    assert all(pair.is_painted_behind for pair in pairs if pair.kind == "remove" and pair not in after)
    for pair, truth in zip(pairs, exact_pairs, strict=True):
        assert replace(pair, picture="", pictured="source") == truth.prompt
        expected = truth.edited if pair.pictured == "target" else truth.source
        torch.testing.assert_close(read_image(tmp_path / pair.picture), expected, rtol=0, atol=1 / 255)
    first = tmp_path / pairs[0].picture
    first.write_bytes((tmp_path / pairs[1].picture).read_bytes())  # what is there is kept
    list(write_pictured_prompts(tmp_path, 2, seed=3))
    assert first.read_bytes() == (tmp_path / pairs[1].picture).read_bytes()


def test_every_other_pair_refers_to_a_picture() -> None:
    pairs = list(render_referenced_pairs(16, seed=5))
    kinds = [pair.prompt.kind for pair in pairs]
    assert {"look", "swap", "recolour"} <= set(kinds)
    shown = [pair for pair in pairs if pair.reference is not None]
    assert 7 <= len(shown) <= 8
    for pair in pairs:
        change = (pair.edited - pair.source).abs().amax(0)
        assert bool(((change > CHANGE_THRESHOLD) == (pair.mask > 0)).all())
        assert (pair.reference is not None) or pair.prompt.kind not in ("look", "swap")
    torch.testing.assert_close(render_referenced_pair(3, 5).edited, pairs[3].edited)
