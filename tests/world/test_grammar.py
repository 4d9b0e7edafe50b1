from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from restage.records import InputError, PromptPair, canonical_json, from_plain, to_plain
from restage.world.grammar import (
    EDIT_KINDS,
    HELD_OUT_COMBINATIONS,
    KINDS,
    TOUCH_RADIUS,
    Description,
    Edit,
    SceneObject,
    caption_of,
    possible_kinds,
    prompt_pair_of,
    request_of,
    sample_description,
    sample_edit,
)

SEEDS = range(300)


@functools.cache
def edits_of(seed: int) -> list[Edit]:
    """One edit of each kind that the scene of this seed allows."""
    description = sample_description(seed)
    return [sample_edit(description, seed, kind=kind) for kind in possible_kinds(description)]


def gaps(description: Description) -> list[float]:
    """Free space between the circles on the ground that hold the objects, for each pair."""
    return [
        math.hypot(a.x - b.x, a.y - b.y) - TOUCH_RADIUS * (a.scale + b.scale)
        for a, b in combinations(description.objects, 2)
    ]


def test_same_seed_gives_same_words_in_another_process() -> None:
    code = (
        "from restage.records import canonical_json\n"
        "from restage.world.grammar import *\n"
        "pairs = [prompt_pair_of(sample_edit(sample_description(s), s), s) for s in range(20)]\n"
        "print(canonical_json([[sample_description(s) for s in range(20)], pairs]), end='')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    pairs = [prompt_pair_of(sample_edit(sample_description(s), s), s) for s in range(20)]
    assert told.stdout == canonical_json([[sample_description(s) for s in range(20)], pairs])


def test_other_seeds_give_other_scenes() -> None:
    assert len({canonical_json(sample_description(seed)) for seed in SEEDS}) == len(SEEDS)


def test_circles_kept_free_around_objects_never_overlap_before_or_after_any_edit() -> None:
    for seed in SEEDS:
        for edit in edits_of(seed):
            assert min([*gaps(edit.before), *gaps(edit.after), 1.0]) > 0, (seed, edit.kind)


def test_objects_of_a_scene_differ_in_kind_and_color() -> None:
    for seed in SEEDS:
        for edit in edits_of(seed):
            for description in (edit.before, edit.after):
                count = len(description.objects)
                assert 1 <= count <= 3
                assert len({o.kind for o in description.objects}) == count
                assert len({o.color for o in description.objects}) == count


def test_training_scenes_and_their_edits_never_show_a_held_out_combination() -> None:
    for seed in SEEDS:
        for edit in edits_of(seed):
            shown = {(o.kind, o.color) for o in (*edit.before.objects, *edit.after.objects)}
            assert not shown & HELD_OUT_COMBINATIONS, (seed, edit.kind)


def test_unseen_scenes_show_held_out_combinations_only() -> None:
    for seed in SEEDS:
        shown = {(o.kind, o.color) for o in sample_description(seed, split="unseen").objects}
        assert shown <= HELD_OUT_COMBINATIONS


def test_every_kind_has_one_held_out_color() -> None:
    assert sorted(kind for kind, _ in HELD_OUT_COMBINATIONS) == sorted(KINDS)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_changes_what_its_kind_says_and_nothing_else(kind: str) -> None:
    seen = 0
    for seed in range(60):
        description = sample_description(seed)
        if kind not in possible_kinds(description):
            continue
        seen += 1
        edit = sample_edit(description, seed, kind=kind)
        before, after = set(edit.before.objects), set(edit.after.objects)
        lost, gained = len(before - after), len(after - before)
        expected = {"add": (0, 1), "remove": (1, 0), "ground": (0, 0), "time": (0, 0)}.get(kind, (1, 1))
        assert (lost, gained) == expected
        assert (edit.before.ground != edit.after.ground) == (kind == "ground")
        assert (edit.before.time != edit.after.time) == (kind == "time")
        assert edit.instruction.strip()
    assert seen > 10


def test_swaps_turn_the_source_caption_into_the_target() -> None:
    checked = 0
    for seed in SEEDS:
        for edit in edits_of(seed):
            pair = prompt_pair_of(edit, seed)
            if not pair.swaps:
                continue
            source, target = (caption.replace(",", "").split() for caption in (pair.source, pair.target))
            waiting = list(pair.swaps)
            for old, new in zip(source, target, strict=True):
                if old != new and {old, new} != {"a", "an"}:
                    assert waiting.pop(0) == (old, new)
            assert not waiting
            checked += 1
    assert checked > 500


def test_words_that_mark_the_region_are_in_one_of_the_captions() -> None:
    for seed in SEEDS:
        for edit in edits_of(seed):
            pair = prompt_pair_of(edit, seed)
            spoken = set(f"{pair.source} {pair.target}".replace(",", "").split())
            assert set(pair.words) <= spoken
            assert (pair.words == ()) == (edit.kind == "time")


def test_colours_mark_the_region_of_a_recoloured_object_and_of_no_other() -> None:
    cube, ball = SceneObject(kind="cube", color="red"), SceneObject(kind="ball", color="blue", x=1.5)
    before = Description(objects=(cube, ball), ground="sand", time="noon")
    recoloured = Description(objects=(replace(cube, color="green"), ball), ground="sand", time="noon")
    reshaped = Description(objects=(replace(cube, kind="cone"), ball), ground="sand", time="noon")
    for kind, after, words in (("recolour", recoloured, ("red", "green")), ("reshape", reshaped, ("cone",))):
        edit = Edit(kind=kind, instruction="change it", before=before, after=after)
        assert prompt_pair_of(edit, 0).words == ("cube", *words)


def test_undo_asks_for_what_was_there_before() -> None:
    cube, ball = SceneObject(kind="cube", color="red", size="big"), SceneObject(kind="ball", color="blue", x=1.5)
    before = Description(objects=(cube, ball), ground="sand", time="noon")
    after: dict[str, tuple[Description, tuple[str, ...]]] = {
        "recolour": (replace(before, objects=(replace(cube, color="green"), ball)), ("cube", "red")),
        "reshape": (replace(before, objects=(replace(cube, kind="cone"), ball)), ("cone", "cube")),
        "resize": (replace(before, objects=(replace(cube, size="small"), ball)), ("cube", "bigger")),
        "remove": (replace(before, objects=(ball,)), ("a big red cube",)),
        "add": (replace(before, objects=(cube, ball, replace(ball, kind="tree"))), ("tree",)),
        "ground": (replace(before, ground="snow"), ("sand",)),
        "time": (replace(before, time="fog"), ("noon",)),
    }
    for kind, (scene, words) in after.items():
        edit = Edit(kind=kind, instruction="change it", before=before, after=scene)
        pairs = [prompt_pair_of(edit, seed) for seed in range(20)]
        assert all(word in pair.undo for pair in pairs for word in words)
        assert len({pair.undo for pair in pairs}) > 1
        assert all(pair.id == replace(pair, undo="").id for pair in pairs)
    normal = replace(before, objects=(replace(cube, size=""), ball))
    shrunk = replace(before, objects=(replace(cube, size="small"), ball))
    edit = Edit(kind="resize", instruction="make the cube smaller", before=normal, after=shrunk)
    assert prompt_pair_of(edit, 0).undo == ""  # bigger would be big


def test_only_removals_say_what_is_behind_and_that_names_no_object() -> None:
    for seed in SEEDS:
        for edit in edits_of(seed):
            behind = prompt_pair_of(edit, seed).behind
            assert bool(behind) == (edit.kind == "remove")
            assert not set(behind.split()) & {*KINDS, *(item.color for item in edit.before.objects)}
            assert not behind or behind.startswith(edit.before.ground)


def test_captions_are_short_and_name_every_object() -> None:
    for seed in SEEDS:
        description = sample_description(seed)
        words = caption_of(description, seed).replace(",", "").split()
        assert len(words) <= 40
        assert {o.kind for o in description.objects} | {o.color for o in description.objects} <= set(words)
        assert description.ground in words


def test_instructions_and_requests_are_never_empty() -> None:
    for seed in range(40):
        for edit in edits_of(seed):
            request = request_of(edit, seed)
            assert request.instruction == edit.instruction
            assert request.source_caption != request.target_caption


def test_descriptions_edits_and_prompt_pairs_come_back_from_their_json_form() -> None:
    for seed in range(40):
        for edit in edits_of(seed):
            assert from_plain(to_plain(edit), Edit, where="an edit") == edit
            assert Description.from_plain(to_plain(edit.after)) == edit.after
            pair = prompt_pair_of(edit, seed)
            assert PromptPair.from_plain(to_plain(pair)) == pair


@pytest.mark.parametrize("change", [{"kind": "teapot"}, {"color": "beige"}, {"size": "huge"}])
def test_an_unknown_word_for_an_object_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown"):
        replace(SceneObject(kind="ball", color="red"), **change)


@pytest.mark.parametrize("change", [{"ground": "lava"}, {"time": "dawn"}])
def test_an_unknown_ground_or_time_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown"):
        replace(sample_description(0), **change)


def test_an_edit_that_the_scene_does_not_allow_is_refused() -> None:
    with pytest.raises(InputError, match="remove"):
        sample_edit(sample_description(0, num_objects=1), 0, kind="remove")
    with pytest.raises(InputError, match="add"):
        sample_edit(sample_description(0, num_objects=3), 0, kind="add")
