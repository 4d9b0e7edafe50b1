from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from restage.records import InputError, PromptPair, canonical_json, from_plain, to_plain
from restage.scenes.cameras import Cameras
from restage.world import grammar, second
from restage.world.capture import clearness_of, sample_camera, sample_pictured_edit
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.description import COLORS, KINDS, PATTERNS, Description, Edit, SceneObject
from restage.world.looks import HELD_OUT_PATTERNS, color_distance
from restage.world.places import carriers, find_objects, gap_between, holds, name_of, read_place
from restage.world.stage import sample_scene

SEEDS = range(120)


@cache
def edits_of(seed: int) -> list[tuple[Edit, Cameras | None]]:
    """One edit of each kind that the scene of this seed allows, every other seed for a picture."""
    scene = second.sample_description(seed)
    camera = sample_camera(scene, seed, size=32) if seed % 2 else None
    kinds = second.possible_kinds(scene, camera)
    return [(second.sample_edit(scene, seed, kind=kind, camera=camera), camera) for kind in kinds]


def test_same_seed_gives_same_words_in_another_process() -> None:
    code = (
        "from restage.records import canonical_json\n"
        "from restage.world.second import *\n"
        "edits = [sample_edit(sample_description(s), s) for s in range(12)]\n"
        "print(canonical_json([edits, [prompt_pair_of(e, s) for s, e in enumerate(edits)]]), end='')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    edits = [second.sample_edit(second.sample_description(s), s) for s in range(12)]
    assert told.stdout == canonical_json([edits, [second.prompt_pair_of(e, s) for s, e in enumerate(edits)]])


def test_what_is_added_or_moved_goes_where_the_instruction_says() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        for edit, camera in edits_of(seed):
            assert (edit.place is not None) == (edit.kind in ("add", "move"))
            if edit.place is None:
                continue
            told = read_place(edit.instruction)
            assert told is not None and told.relation == edit.place.relation
            for place in (told, edit.place):
                assert holds(place, edit.after, camera) and not holds(place, edit.before, camera)
            assert all(len(find_objects(edit.after, words)) == 1 for words in (told.subject, *told.anchors))
            seen[told.relation] += 1
    assert len(seen) == 10 and seen.total() > 100


def test_places_of_scenes_without_a_camera_mean_the_same_from_every_view() -> None:
    for seed in SEEDS:
        assert all(e.place is None or e.place.relation not in ("left", "right") for e, c in edits_of(seed) if c is None)


def test_nothing_touches_floats_or_is_cut_off_by_an_edit() -> None:
    for seed in SEEDS:
        for edit, _ in edits_of(seed):
            for scene in (edit.before, edit.after):
                loaded = carriers(scene)
                assert sum(item.z > 0 for item in scene.objects) == len(loaded)
                standing = [item for item in scene.objects if item.z == 0]
                for i, item in enumerate(standing):
                    room = min([1.0, *(gap_between(item, other) for other in standing[:i])])
                    # A reshaped object may be wider than it was; additions and moves keep clear.
                    assert room > (0 if edit.kind in ("add", "move") else -0.25), (seed, edit.kind)


def test_a_move_changes_an_objects_place_alone() -> None:
    for seed in SEEDS:
        for edit, _ in edits_of(seed):
            if edit.kind == "move":
                (old,), (new,) = (
                    [o for o in a.objects if o not in b.objects]
                    for a, b in ((edit.before, edit.after), (edit.after, edit.before))
                )
                assert old == replace(new, x=old.x, y=old.y, z=old.z)


def test_training_scenes_never_show_what_is_held_out_and_unseen_ones_only_that() -> None:
    patterned = Counter[str]()
    for seed in SEEDS:
        scenes = [scene for edit, _ in edits_of(seed) for scene in (edit.before, edit.after)]
        for item in (item for scene in scenes for item in scene.objects):
            assert (item.kind, item.color) not in grammar.HELD_OUT_COMBINATIONS
            assert (item.kind, item.pattern) not in HELD_OUT_PATTERNS
            patterned[item.pattern] += 1
        for item in second.sample_description(seed, split="unseen").objects:
            assert (item.kind, item.color) in grammar.HELD_OUT_COMBINATIONS
            assert not item.pattern or (item.kind, item.pattern) in HELD_OUT_PATTERNS
    assert set(patterned) == {"", *PATTERNS}
    assert sorted(kind for kind, _ in HELD_OUT_PATTERNS) == sorted(KINDS)


def test_some_looks_have_no_words_and_their_colors_are_like_no_word() -> None:
    items = [item for seed in range(200) for item in second.sample_description(seed).objects]
    unnamed = [item for item in items if item.color not in COLORS]
    assert 0.1 < len(unnamed) / len(items) < 0.4
    for item in unnamed:
        assert min(color_distance(item.color, name) for name in COLORS) > 0.2
        assert "#" not in grammar.object_phrase(item)
    assert grammar.object_phrase(replace(unnamed[0], kind="cube", size="", pattern="")) == "a cube"
    striped = SceneObject(kind="cube", color="red", pattern="striped", second_color="white")
    assert grammar.object_phrase(striped) == "a red and white striped cube"
    assert grammar.object_phrase(replace(striped, second_color="#102030")) == "a striped cube"


def test_captions_say_a_place_that_holds_or_none() -> None:
    placed = 0
    for seed in range(200):
        scene = second.sample_description(seed)
        camera = sample_camera(scene, seed, size=32)
        caption = second.caption_of(scene, seed, camera)
        place = read_place(caption)
        assert (place is not None) == (second.sample_place(scene, seed, camera) is not None)
        assert place is None or holds(place, scene, camera)
        assert len(caption.split()) <= 45
        placed += place is not None
    assert placed > 60


def test_pairs_say_places_that_hold_before_and_after() -> None:
    for seed in SEEDS:
        for edit, camera in edits_of(seed):
            pair = second.prompt_pair_of(edit, seed, camera)
            assert PromptPair.from_plain(to_plain(pair)) == pair
            for caption, scene in ((pair.source, edit.before), (pair.target, edit.after)):
                place = read_place(caption)
                assert place is None or holds(place, scene, camera)
            assert edit.place is None or read_place(pair.target) is not None
            assert "#" not in f"{pair.source} {pair.target} {pair.instruction} {pair.undo} {pair.words}"


def test_captions_of_an_addition_name_what_they_share_in_one_order() -> None:
    seen = 0
    for seed in SEEDS:
        for edit, camera in edits_of(seed):
            if edit.kind == "add":
                pair, kinds = second.prompt_pair_of(edit, seed, camera), [item.kind for item in edit.before.objects]
                assert sorted(kinds, key=pair.source.index) == sorted(kinds, key=pair.target.index)
                seen += len(kinds) > 1
    assert seen > 5


def test_what_stands_on_another_becomes_only_what_can_stand_there() -> None:
    small, tree = SceneObject(kind="cylinder", color="red", size="small"), SceneObject(kind="tree", color="green")
    top = replace(tree, size="big", z=0.74)
    ball = SceneObject(kind="ball", color="blue", x=1.5)
    scene = Description(objects=(small, top, ball), ground="sand", time="noon")
    assert carriers(scene) == {0}
    # A mushroom is all that could stand there beside the ball, and a green one is never shown in training.
    for seed in range(12):
        assert top in second.sample_edit(scene, seed, kind="reshape").after.objects
    alone = replace(scene, objects=(small, top))
    assert second.sample_edit(alone, 0, kind="reshape").after.objects[1].kind in ("ball", "mushroom")


def test_undo_leads_back_to_where_things_were() -> None:
    seen = Counter[str]()
    for seed in SEEDS:
        for edit, camera in edits_of(seed):
            undo = second.prompt_pair_of(edit, seed, camera).undo
            place = read_place(undo)
            if edit.kind in ("remove", "move") and undo:
                assert place is not None and holds(place, edit.before, camera)
                seen[edit.kind] += 1
            assert edit.kind != "look" or place is None
    assert seen["remove"] > 5 and seen["move"] > 5


def test_two_of_a_kind_are_told_apart_in_every_instruction() -> None:
    twins = 0
    for seed in range(60):
        scene = second.sample_description(seed, num_objects=3, has_twins=True)
        assert all(find_objects(scene, name_of(scene, i)) == [i] for i in range(3)), seed
        twins += len({item.kind for item in scene.objects}) < 3
        for kind in ("recolour", "move", "pattern"):
            if kind in second.possible_kinds(scene):
                edit = second.sample_edit(scene, seed, kind=kind)
                index = next(i for i, o in enumerate(scene.objects) if o not in edit.after.objects)
                assert f" {name_of(scene, index)}" in edit.instruction
    assert twins > 20


def test_a_reference_shows_the_look_elsewhere() -> None:
    for seed in range(30):
        scene = second.sample_description(seed)
        edit = second.sample_edit(scene, seed, kind="look")
        (wanted,) = (item for item in edit.after.objects if item not in edit.before.objects)
        shown = second.reference_scene(edit, seed)
        item = shown.objects[0]
        assert (item.color, item.pattern, item.second_color) == (wanted.color, wanted.pattern, wanted.second_color)
        assert shown.ground != scene.ground and 1 <= len(shown.objects) <= 2


def test_edits_and_descriptions_come_back_from_their_json_form_and_old_ones_say_nothing_new() -> None:
    for seed in range(20):
        for edit, _ in edits_of(seed):
            assert from_plain(to_plain(edit), Edit, where="an edit") == edit
            assert Description.from_plain(to_plain(edit.after)) == edit.after
    plain = to_plain(SceneObject(kind="ball", color="red"))
    assert set(plain) == {"kind", "color", "size", "x", "y", "yaw_rad"}


@pytest.mark.parametrize("change", [{"pattern": "plaid"}, {"color": "#12"}, {"pattern": "striped"}])
def test_an_unknown_look_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(InputError, match="unknown"):
        replace(SceneObject(kind="ball", color="red"), **change)


def test_an_edit_that_the_scene_does_not_allow_is_refused() -> None:
    with pytest.raises(InputError, match="move"):
        second.sample_edit(second.sample_description(0, num_objects=1), 0, kind="move")


@pytest.mark.parametrize("kind", ["add", "move"])
def test_a_pictured_edit_is_shown_well_before_and_after(kind: str) -> None:
    for seed in range(4):
        edit, camera = sample_pictured_edit(kind, seed, size=32)
        assert edit.kind == kind and edit.place is not None and holds(edit.place, edit.after, camera)
        assert min(clearness_of(scene, camera) for scene in (edit.before, edit.after)) >= 1


def test_the_stage_takes_the_edition_that_its_config_names() -> None:
    capture = CaptureConfig(num_views=4, held_out_every=2, size=24)
    config = WorldConfig(edition=2, edit_kinds=("move", "add", "pattern"), capture=capture)
    _, edits = sample_scene(config, name="x", seed=1)
    assert [edit.kind for edit in edits] == ["move", "add", "pattern"]
    with pytest.raises(InputError, match="expected different kinds"):
        WorldConfig(edit_kinds=("move",))
    with pytest.raises(InputError, match="edition"):
        WorldConfig(edition=3)
