from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at
from restage.world import second
from restage.world.capture import sample_camera
from restage.world.description import Description, Place, SceneObject
from restage.world.places import (
    RELATIONS,
    find_objects,
    gap_between,
    holds,
    holds_in_picture,
    name_of,
    phrase_of,
    places_of,
    possible_places,
    read_place,
)
from restage.world.render import render_view

CUBE = SceneObject(kind="cube", color="red")
TREE = SceneObject(kind="tree", color="green", x=2.0)
CONE = SceneObject(kind="cone", color="blue", size="small")


def scene_of(*objects: SceneObject, time: str = "noon") -> Description:
    return Description(objects=objects, ground="sand", time=time)


def place(subject: str, relation: str, *anchors: str) -> Place:
    return Place(subject=subject, relation=relation, anchors=anchors)


def camera_from(x: float, y: float) -> Cameras:
    pose = look_at(torch.tensor([x, y, 1.5]), torch.tensor([0.0, 0.0, 0.5]))
    return Cameras(pose[None], intrinsics_from_fov(math.radians(46), 64, 64)[None], 64, 64)


# The cube stands at the origin, the tree two units along x; noon's sun stands at x = .45, y = .35.
@pytest.mark.parametrize(
    ("relation", "anchors", "x", "y", "z", "is_there"),
    [
        ("on", ["cube"], 0.0, 0.0, 0.8, True),
        ("on", ["cube"], 0.0, 0.0, 0.0, False),
        ("on", ["cube"], 0.9, 0.0, 0.8, False),
        ("on", ["tree"], 2.0, 0.0, 0.8, False),
        ("between", ["cube", "tree"], 1.05, 0.0, 0.0, True),
        ("between", ["tree", "cube"], 1.05, 0.1, 0.0, True),
        ("between", ["cube", "tree"], 1.05, 0.9, 0.0, False),
        ("between", ["cube", "tree"], -1.05, 0.0, 0.0, False),
        ("toward", ["cube", "tree"], 1.05, 0.2, 0.0, True),
        ("toward", ["cube", "tree"], -1.05, 0.0, 0.0, False),
        ("toward", ["cube", "tree"], 0.2, 1.05, 0.0, False),
        ("away", ["cube", "tree"], -1.05, 0.2, 0.0, True),
        ("away", ["cube", "tree"], -2.5, 0.0, 0.0, False),
        ("lit", ["cube"], 0.8, 0.7, 0.0, True),
        ("shaded", ["cube"], 0.8, 0.7, 0.0, False),
        ("shaded", ["cube"], -0.8, -0.7, 0.0, True),
        ("near", ["cube"], 0.0, -1.2, 0.0, True),
        ("near", ["cube"], 0.0, -2.0, 0.0, False),
        ("front", ["cube"], 0.0, -1.0, 0.0, False),
    ],
)
def test_a_place_holds_where_its_words_say(
    relation: str, anchors: Sequence[str], x: float, y: float, z: float, is_there: bool
) -> None:
    scene = scene_of(CUBE, TREE, replace(CONE, x=x, y=y, z=z))
    assert holds(place("cone", relation, *anchors), scene) == is_there


def test_the_sunny_side_follows_the_sun_and_fog_has_none() -> None:
    scene = scene_of(CUBE, replace(CONE, x=0.8, y=0.7))
    assert holds(place("cone", "lit", "cube"), scene)
    assert holds(place("cone", "shaded", "cube"), replace(scene, sun_turn_rad=math.pi))
    assert not holds(place("cone", "lit", "cube"), replace(scene, time="fog"))


@pytest.mark.parametrize("kind", ["house", "snowman"])
def test_front_and_back_turn_with_the_object(kind: str) -> None:
    house = SceneObject(kind=kind, color="white", yaw_rad=math.pi / 2)
    scene = scene_of(house, replace(CONE, x=1.1))
    assert holds(place("cone", "front", kind), scene) and not holds(place("cone", "back", kind), scene)
    turned = scene_of(replace(house, yaw_rad=-math.pi / 2), scene.objects[1])
    assert holds(place("cone", "back", kind), turned) and not holds(place("cone", "front", kind), turned)


def test_left_and_right_are_the_pictures_and_need_a_camera() -> None:
    scene = scene_of(CUBE, replace(CONE, y=1.2))
    for camera, side, other in ((camera_from(4.0, 0.0), "right", "left"), (camera_from(-4.0, 0.0), "left", "right")):
        ids = render_view(scene, camera).object_ids
        columns = [np.nonzero(ids == 2 + index)[1].mean() for index in (0, 1)]
        assert (columns[1] > columns[0]) == (side == "right")
        assert holds(place("cone", side, "cube"), scene, camera)
        assert not holds(place("cone", other, "cube"), scene, camera)
    assert not holds(place("cone", "right", "cube"), scene)
    assert not holds(place("cone", "left", "cube"), scene)


def test_a_name_singles_out_one_of_two_cubes() -> None:
    other = SceneObject(kind="cube", color="blue", size="small", x=-2.0)
    scene = scene_of(CUBE, other, replace(CONE, z=0.8))
    assert [name_of(scene, index) for index in range(3)] == ["red cube", "blue cube", "cone"]
    assert find_objects(scene, "cube") == [0, 1] and find_objects(scene, "small cube") == [1]
    assert holds(place("cone", "on", "red cube"), scene)
    assert not holds(place("cone", "on", "cube"), scene)
    unnamed = scene_of(replace(CUBE, color="#123456"), replace(other, color="#654321"))
    assert name_of(unnamed, 1) == "small cube"


def test_every_possible_place_holds_is_free_and_is_the_only_one_of_its_words() -> None:
    relations = set()
    for seed in range(60):
        scene = second.sample_description(seed)
        camera = sample_camera(scene, seed, size=32)
        kind = next(kind for kind in ("cone", "tree", "mushroom", "ball") if not find_objects(scene, kind))
        item = SceneObject(kind=kind, color="red", size="small")
        spots = possible_places(scene, item, camera)
        assert len({(spot.relation, spot.anchors) for spot in spots}) == len(spots)
        for spot in spots:
            after = replace(scene, objects=(*scene.objects, spot.item))
            names = [name_of(after, index) for index in spot.anchors]
            assert holds(place(name_of(after, len(scene.objects)), spot.relation, *names), after, camera)
            below = [scene.objects[index] for index in spot.anchors] if spot.relation == "on" else []
            assert all(gap_between(spot.item, other) > 0 for other in scene.objects if other not in below)
            relations.add(spot.relation)
    assert relations == {name for name, relation in RELATIONS.items() if relation.is_exact}


def test_a_place_is_read_back_from_every_wording() -> None:
    for name, relation in RELATIONS.items():
        anchors = ["house", "red and white striped cube"][: relation.num_anchors]
        for article, form in (("the", 0), ("a", 0), ("the", 1), ("a", 1)):
            where = phrase_of(name, [f"{article} {anchor}" for anchor in anchors], form)
            for text in (f"put a small blue cone {where}", f"at noon, a tree and a small blue cone {where}, on sand"):
                assert read_place(text) == place("small blue cone", name, *anchors)
    assert read_place("a red cube on sand at noon") is None


def test_statements_of_a_scene_all_hold_and_name_each_relation_that_does() -> None:
    scene = scene_of(CUBE, TREE, replace(CONE, x=1.05))
    told = places_of(scene)
    assert all(holds(one, scene) for one in told)
    assert place("cone", "between", "cube", "tree") in told and place("cone", "toward", "cube", "tree") in told


def test_regions_tell_the_places_of_a_picture_mostly() -> None:
    right: dict[str, list[bool]] = {}
    for seed in range(160):
        scene = second.sample_description(seed, num_objects=2 + seed % 2)
        camera = sample_camera(scene, seed, size=128)
        ids = render_view(scene, camera).object_ids[4::8, 4::8]
        regions = {item.kind: ids == 2 + index for index, item in enumerate(scene.objects)}
        for one in places_of(scene, camera):
            told = holds_in_picture(one, regions)
            assert (told is None) == (one.relation in ("front", "back", "lit", "shaded"))
            right.setdefault(one.relation, []).append(bool(told))
    assert all(np.mean(right[name]) > 0.7 for name in ("on", "between", "toward", "away", "near"))
    assert all(np.mean(right[name]) > 0.95 for name in ("left", "right"))
    assert holds_in_picture(place("cone", "on", "cube"), {"cube": np.ones((4, 4), bool)}) is False
