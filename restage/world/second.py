"""The grammar's second edition: scenes and edits that say places, with patterns, and colors that no word names.

Questions are fair: what is added or moved goes to a place that the words leave no choice of. Called where the first
edition's functions of the same names are (`grammar`), whose wordings, and edits that need no place, it shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from restage.records import InputError, PromptPair, derive_seed
from restage.world import grammar
from restage.world.description import (
    COLORS,
    EDIT_KINDS,
    GROUNDS,
    KINDS,
    PATTERNS,
    SECOND_EDIT_KINDS,
    TIMES,
    Description,
    Edit,
    Place,
    SceneObject,
)
from restage.world.looks import HELD_OUT_PATTERNS, MIN_CONTRAST, Look, color_distance, sample_look
from restage.world.places import (
    Spot,
    carriers,
    find_objects,
    holds,
    name_of,
    object_words,
    phrase_of,
    places_of,
    possible_places,
)

if TYPE_CHECKING:
    from restage.scenes.cameras import Cameras

__all__ = ["caption_of", "choose_place", "possible_kinds", "prompt_pair_of", "reference_scene"]
__all__ += ["sample_description", "sample_edit", "sample_place"]

LAID_OUT_SHARE = 0.55
"""Share of objects, after a scene's first, that stand in a relation to others; the rest stand anywhere."""
PLACED_CAPTIONS = 0.6
"""Share of captions that say a place, where there is one to say."""
UNDO_REACH = 0.12
"""Distance from its old place up to which an object that is put back by words counts as put back."""
MAX_TRIES = 300


# --- scenes ---------------------------------------------------------------------------------------------------------


def _sample_object(
    rng: np.random.Generator, taken: Sequence[SceneObject], split: str, *, has_twins: bool = False
) -> SceneObject:
    """Sample an object without a place; with `has_twins`, half of them are of a kind that is there already."""
    kinds = {o.kind for o in taken}
    is_twin = has_twins and bool(kinds) and bool(rng.uniform() < 0.5)
    kind = str(rng.choice(sorted(kinds) if is_twin else [k for k in KINDS if k not in kinds]))
    used = {c for o in taken for c in (o.color, o.second_color)}
    is_held_out = split == "unseen"
    colors = [c for c in COLORS if ((kind, c) in grammar.HELD_OUT_COMBINATIONS) == is_held_out or split == "all"]
    patterns = [p for p in PATTERNS if ((kind, p) in HELD_OUT_PATTERNS) == is_held_out or split == "all"]
    free = [c for c in colors if c not in used] or colors
    if any(o.pattern for o in taken):  # one a scene, for its words are as many as another object's
        patterns = []
    look = sample_look(rng, free, patterns, is_named=True if is_held_out or is_twin else None)
    size = ("small", "", "", "", "big")[int(rng.integers(5))]
    return SceneObject(kind=kind, size=size, yaw_rad=round(float(rng.uniform(0, 2 * math.pi)), 4), **look._asdict())


def _choose_spot(rng: np.random.Generator, spots: Sequence[Spot]) -> Spot:
    """Choose a relation first, since two anchors can be combined in more ways than one."""
    relation = str(rng.choice(sorted({spot.relation for spot in spots})))
    fitting = [spot for spot in spots if spot.relation == relation]
    return fitting[int(rng.integers(len(fitting)))]


def _put(rng: np.random.Generator, objects: Sequence[SceneObject], item: SceneObject, time: str) -> SceneObject:
    """Put an object among others: in a relation to them, or anywhere."""
    scene = Description(objects=tuple(objects), ground=GROUNDS[0], time=time)
    if objects and rng.uniform() < LAID_OUT_SHARE:
        spots = possible_places(scene, item)
        if spots:
            return replace(_choose_spot(rng, spots).item, yaw_rad=item.yaw_rad)
    if objects and rng.uniform() < 0.5:
        # Farther off, so that something fits between.
        angle, way = rng.uniform(0, 2 * math.pi), rng.uniform(1.6, 2.5)
        x, y = objects[0].x + way * math.cos(angle), objects[0].y + way * math.sin(angle)
        if all(math.hypot(x - o.x, y - o.y) > 1.3 * max(item.scale, o.scale) for o in objects):
            return replace(item, x=round(x, 4), y=round(y, 4))
    x, y = grammar.find_room(rng, list(objects), item.scale)
    return replace(item, x=x, y=y)


def sample_description(
    seed: int, *, num_objects: int | None = None, split: str = "train", has_twins: bool = False
) -> Description:
    """Sample a scene; the same arguments give the same scene on any machine.

    As in the first edition, the split `train` never shows a held-out combination of kind and color, or of kind and
    pattern, `unseen` shows only those, and `all` any. With `has_twins` a kind may come twice, told apart by looks.
    """
    rng = np.random.default_rng(derive_seed("second description", seed, split, int(has_twins)))
    count = num_objects or (1, 1, 2, 2, 2, 3)[int(rng.integers(6))]
    time, ground = str(rng.choice(TIMES)), str(rng.choice(GROUNDS))
    objects: list[SceneObject] = []
    while len(objects) < count:
        item = _sample_object(rng, objects, split, has_twins=has_twins)
        words = [set(object_words(o)) - {item.size, o.size} for o in (item, *objects)]
        if not any(words[0] <= other or words[0] >= other for other in words[1:]):
            objects.append(_put(rng, objects, item, time))
    return Description(objects=grammar.center(objects), ground=ground, time=time)


def choose_place(found: Sequence[Place], seed: int) -> Place | None:
    """Choose which of a scene's `places_of` a caption says; None for one in `1 - PLACED_CAPTIONS` of the seeds."""
    rng = np.random.default_rng(derive_seed("place", seed))
    if rng.uniform() >= PLACED_CAPTIONS or not found:
        return None
    relation = str(rng.choice(sorted({place.relation for place in found})))
    fitting = [place for place in found if place.relation == relation]
    return fitting[int(rng.integers(len(fitting)))]


def sample_place(scene: Description, seed: int, camera: Cameras | None = None) -> Place | None:
    """Sample a place to say in a caption, where there is one; with a camera (n = 1) it may be left or right."""
    return choose_place(places_of(scene, camera), seed)


def caption_of(scene: Description, seed: int, camera: Cameras | None = None) -> str:
    """Write a caption, with a place where `sample_place` finds one."""
    return grammar.caption_of(scene, seed, sample_place(scene, seed, camera))


# --- edits ----------------------------------------------------------------------------------------------------------

_ADD = ("add {phrase} {place}", "put {phrase} {place}", "place {phrase} {place}")
_MOVE = ("put the {name} {place}", "place the {name} {place}", "set the {name} {place}")
_PATTERN = ("give the {name} {paint}", "paint {paint} on the {name}", "put {paint} on the {name}")
_LOOK = ("make the {name} look like the picture", "paint the {name} as in the picture")
_PAINTS = {"striped": "{} stripes", "checked": "{} checks", "dotted": "{} dots", "banded": "{article} {} band"}


def _distance(a: SceneObject, b: SceneObject) -> float:
    return math.dist((a.x, a.y, a.z), (b.x, b.y, b.z))


def _place_of(scene: Description, index: int, spot: Spot) -> Place:
    """State that an object of a scene is where a spot is, whose anchors count in that scene."""
    anchors = tuple(name_of(scene, anchor) for anchor in spot.anchors)
    return Place(subject=name_of(scene, index), relation=spot.relation, anchors=anchors)


def _where(place: Place) -> str:
    return phrase_of(place.relation, [f"the {name}" for name in place.anchors])


def _moves(scene: Description, camera: Cameras | None) -> list[tuple[int, Spot]]:
    """List which objects can go where; a spot's anchors count in the whole scene."""
    found = []
    for index in sorted(set(range(len(scene.objects))) - carriers(scene)):
        item = scene.objects[index]
        others = [i for i in range(len(scene.objects)) if i != index]
        rest = replace(scene, objects=tuple(scene.objects[i] for i in others))
        for spot in possible_places(rest, item, camera):
            anchors = tuple(others[i] for i in spot.anchors)
            moved = Spot(spot.relation, anchors, replace(spot.item, yaw_rad=item.yaw_rad))
            if _distance(item, moved.item) > 0.4 and not holds(_place_of(scene, index, moved), scene, camera):
                found.append((index, moved))
    return found


def _has_room(scene: Description, camera: Cameras | None) -> bool:
    free = set(KINDS) - {o.kind for o in scene.objects}
    smallest = [SceneObject(kind=kind, color="red", size="small") for kind in sorted(free)]
    return any(possible_places(scene, item, camera) for item in smallest)


def possible_kinds(scene: Description, camera: Cameras | None = None) -> tuple[str, ...]:
    """Return the kinds of edit that this scene allows, with left and right where there is a camera."""
    first = grammar.possible_kinds(scene)
    is_free = len(carriers(scene)) < len(scene.objects)
    possible = {
        **{kind: kind in first for kind in EDIT_KINDS},
        "add": "add" in first and _has_room(scene, camera),
        "remove": "remove" in first and is_free,
        "move": bool(_moves(scene, camera)),
        "pattern": any(item.color in COLORS for item in scene.objects),
        "look": True,
    }
    return tuple(kind for kind in SECOND_EDIT_KINDS if possible[kind])


def sample_edit(
    scene: Description, seed: int, *, kind: str | None = None, split: str = "train", camera: Cameras | None = None
) -> Edit:
    """Sample an edit of a scene; with a camera (n = 1) places may be left and right of something in its picture.

    Kinds and splits are as in the first edition, with `move`, `pattern` and `look` beside them.

    Raises:
        InputError: the scene does not allow this kind.
    """
    rng = np.random.default_rng(derive_seed("second edit", seed, kind or "any", split))
    allowed = possible_kinds(scene, camera)
    kind = kind or str(rng.choice(allowed))
    if kind not in allowed:
        raise InputError(f"no edit of kind '{kind}' for this scene; possible: {', '.join(allowed)}")
    if kind == "add":
        return _sample_addition(rng, scene, split, camera)
    if kind == "move":
        return _sample_move(rng, scene, camera)
    if kind in ("pattern", "look"):
        return _sample_paint(rng, scene, kind, split)
    return grammar.sample_edit(scene, derive_seed("second edit", seed), kind=kind, split=split)


def _sample_addition(rng: np.random.Generator, scene: Description, split: str, camera: Cameras | None) -> Edit:
    for _ in range(MAX_TRIES):
        item = _sample_object(rng, scene.objects, "train" if split == "train" else "all")
        if item.color not in COLORS:  # words must say what is added
            continue
        if spots := possible_places(scene, item, camera):
            spot = _choose_spot(rng, spots)
            after = replace(scene, objects=(*scene.objects, spot.item))
            place = _place_of(after, len(scene.objects), spot)
            if holds(place, after, camera):
                phrase = grammar.object_phrase(spot.item)
                instruction = str(rng.choice(_ADD)).format(phrase=phrase, place=_where(place))
                return Edit(kind="add", instruction=instruction, before=scene, after=after, place=place)
    raise InputError("found no object that can be added to this scene; take another scene")


def _sample_move(rng: np.random.Generator, scene: Description, camera: Cameras | None) -> Edit:
    moves = _moves(scene, camera)
    chosen = _choose_spot(rng, [spot for _, spot in moves])
    index = next(index for index, spot in moves if spot is chosen)
    after = replace(scene, objects=(*scene.objects[:index], chosen.item, *scene.objects[index + 1 :]))
    place = _place_of(after, index, chosen)
    instruction = str(rng.choice(_MOVE)).format(name=place.subject, place=_where(place))
    return Edit(kind="move", instruction=instruction, before=scene, after=after, place=place)


def _sample_paint(rng: np.random.Generator, scene: Description, kind: str, split: str) -> Edit:
    """Sample a pattern that words say, over the color that is there, or a look that only a picture shows."""
    named = [i for i, item in enumerate(scene.objects) if kind == "look" or item.color in COLORS]
    index = named[int(rng.integers(len(named)))]
    item, name = scene.objects[index], name_of(scene, index)
    patterns = [p for p in PATTERNS if grammar.is_allowed(item.kind, "", split, p)]
    colors = [c for c in COLORS if grammar.is_allowed(item.kind, c, split)]
    if kind == "look":
        look = old = Look(item.color, item.pattern, item.second_color)
        while look == old:
            look = sample_look(rng, colors, patterns, is_named=bool(rng.uniform() < 0.2))
        instruction = str(rng.choice(_LOOK)).format(name=name)
        changes = look._asdict()
    else:
        pattern = str(rng.choice([p for p in patterns if p != item.pattern]))
        second = str(rng.choice([c for c in COLORS if color_distance(c, item.color) > MIN_CONTRAST]))
        paint = _PAINTS[pattern].format(second, article="an" if second[0] in "aeiou" else "a")
        instruction = str(rng.choice(_PATTERN)).format(name=name, paint=paint)
        changes = {"pattern": pattern, "second_color": second}
    objects = (*scene.objects[:index], replace(item, **changes), *scene.objects[index + 1 :])
    return Edit(kind=kind, instruction=instruction, before=scene, after=replace(scene, objects=objects))


def reference_scene(edit: Edit, seed: int) -> Description:
    """Return another world that shows what a `look` asks for: on its first object, of any kind, on other ground.

    Half of them show a second object that has nothing to do with it. Of an edit of another kind, which changes the
    shape as well, the first object has the shape, too.
    """
    (item,) = (o for o in edit.after.objects if o not in edit.before.objects)
    rng = np.random.default_rng(derive_seed("reference", seed))
    kind = item.kind if edit.kind != "look" or rng.uniform() < 0.5 else str(rng.choice(KINDS))
    shown = replace(item, kind=kind, size="", x=0.0, y=0.0, z=0.0, yaw_rad=round(float(rng.uniform(0, 6.2832)), 4))
    objects, time = [shown], str(rng.choice(TIMES))
    if rng.uniform() < 0.5:
        objects.append(_put(rng, objects, _sample_object(rng, objects, "train"), time))
    ground = str(rng.choice([g for g in GROUNDS if g != edit.after.ground]))
    return Description(objects=grammar.center(objects), ground=ground, time=time)


# --- pairs ----------------------------------------------------------------------------------------------------------


def prompt_pair_of(edit: Edit, seed: int, camera: Cameras | None = None) -> PromptPair:
    """Write an edit as a prompt pair; captions say the place that the edit is about, or one that it leaves true."""
    source, target = None, edit.place
    if target is None:
        source = target = sample_place(edit.before, seed, camera)
        if source is not None and not holds(source, edit.after, camera):
            source = target = None
    elif edit.kind == "move":
        was = [p for p in places_of(edit.before, camera) if p.subject == target.subject]
        source = was[seed % len(was)] if was else None
    if target is not None and source is None:
        # In the order in which the target names them, so that what the captions share stands in both alike.
        anchors = [find_objects(edit.before, words)[0] for words in target.anchors]
        first = [o for i, o in enumerate(edit.before.objects) if i not in anchors]
        objects = (*first, *(edit.before.objects[i] for i in anchors))
        edit = replace(edit, before=replace(edit.before, objects=objects))
    return grammar.prompt_pair_of(edit, seed, places=(source, target), undo=_undo_of(edit, seed, camera))


def _undo_of(edit: Edit, seed: int, camera: Cameras | None) -> str:
    """Write the instruction that leads back; empty where words cannot say what was there."""
    rng = np.random.default_rng(derive_seed("second undo", seed))
    gone = [i for i, item in enumerate(edit.before.objects) if item not in edit.after.objects]
    if edit.kind not in ("move", "remove"):
        return grammar.undo_of(edit, seed)
    was = edit.before.objects[gone[0]]
    rest = replace(edit.after, objects=tuple(o for o in edit.after.objects if o in edit.before.objects))
    back = [spot for spot in possible_places(rest, was, camera) if _distance(spot.item, was) < UNDO_REACH]
    if not back or (edit.kind == "remove" and was.color not in COLORS):
        return ""
    before = replace(rest, objects=(*rest.objects, was))
    place = _place_of(before, len(rest.objects), back[int(rng.integers(len(back)))])
    if edit.kind == "remove":
        return str(rng.choice(_ADD)).format(phrase=grammar.object_phrase(was), place=_where(place))
    return str(rng.choice(_MOVE)).format(name=place.subject, place=_where(place))
