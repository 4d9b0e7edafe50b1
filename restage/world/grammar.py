"""Scenes, their captions, and edits of them: the text side of the procedural world.

An edit is a change of a description, so the scene after it is known exactly. Called by the renderer's users, by the
grammar prompt writer, and by the training recipes of the miniature. This is the first edition, whose seeds keep their
scenes and words; `second` builds on it and says places.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from restage.records import EditRequest, InputError, PromptPair, derive_seed
from restage.world.description import (
    COLORS,
    EDIT_KINDS,
    GROUNDS,
    KINDS,
    SIZES,
    TIMES,
    Description,
    Edit,
    Place,
    SceneObject,
)
from restage.world.looks import HELD_OUT_PATTERNS
from restage.world.places import can_carry, carriers, find_objects, name_of, object_words, phrase_of

__all__ = ["COLORS", "EDIT_KINDS", "GROUNDS", "HELD_OUT_COMBINATIONS", "KINDS", "TIMES", "Description", "Edit"]
__all__ += ["SceneObject", "caption_of", "prompt_pair_of", "sample_description", "sample_edit"]


HELD_OUT_COMBINATIONS = frozenset((kind, COLORS[(3 * i + 1) % len(COLORS)]) for i, kind in enumerate(KINDS))
"""One color a kind that no training scene shows, so that composition can be told from memory."""

FOOTPRINT_RADIUS = 0.64
"""Radius, in world units, of the circle on the ground that an object of normal size keeps free when it is placed."""

TOUCH_RADIUS = 0.63
"""Radius inside which the objects of normal size themselves lie."""


def find_room(rng: np.random.Generator, taken: list[SceneObject], scale: float) -> tuple[float, float]:
    """Find a place near the middle that touches no object; the circle grows until there is one."""
    reach = 0.12 if not taken else 0.75
    kept_free = [(o.x, o.y, FOOTPRINT_RADIUS * (scale + o.scale)) for o in taken]
    while True:
        for _ in range(30):
            angle, radius = rng.uniform(0, 2 * math.pi), reach * math.sqrt(rng.uniform())
            x, y = radius * math.cos(angle), radius * math.sin(angle)
            if all(math.hypot(x - other_x, y - other_y) > apart for other_x, other_y, apart in kept_free):
                return round(x, 4), round(y, 4)
        reach += 0.08


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str], without: set[str] | None = None) -> str:
    allowed = [option for option in options if option not in (without or set())]
    return allowed[int(rng.integers(len(allowed)))]


def _sample_object(rng: np.random.Generator, taken: list[SceneObject], is_unseen: bool | None) -> SceneObject:
    """Sample an object; `is_unseen` None allows every combination, else only held-out ones or only the others."""
    while True:
        kind = _pick(rng, KINDS, {o.kind for o in taken})
        color = _pick(rng, COLORS, {o.color for o in taken})
        if is_unseen is None or ((kind, color) in HELD_OUT_COMBINATIONS) == is_unseen:
            break
    size = ("small", "", "", "", "big")[int(rng.integers(5))]
    x, y = find_room(rng, taken, SIZES[size])
    yaw = round(float(rng.uniform(0, 2 * math.pi)), 4)
    return SceneObject(kind=kind, color=color, size=size, x=x, y=y, yaw_rad=yaw)


def center(objects: list[SceneObject]) -> tuple[SceneObject, ...]:
    """Move the objects together so that their middle is the origin."""
    x = sum(o.x for o in objects) / len(objects)
    y = sum(o.y for o in objects) / len(objects)
    return tuple(replace(o, x=round(o.x - x, 4), y=round(o.y - y, 4)) for o in objects)


def sample_description(seed: int, *, num_objects: int | None = None, split: str = "train") -> Description:
    """Sample a scene; the same arguments give the same scene on any machine.

    One to three objects, mostly one or two, unless `num_objects` says how many. The split `train` never shows a
    held-out combination of kind and color, `unseen` shows only those.
    """
    rng = np.random.default_rng(derive_seed("description", seed, split))
    count = num_objects or (1, 1, 1, 2, 2, 3)[int(rng.integers(6))]
    objects: list[SceneObject] = []
    for _ in range(count):
        objects.append(_sample_object(rng, objects, split == "unseen"))
    return Description(objects=center(objects), ground=_pick(rng, GROUNDS), time=_pick(rng, TIMES))


# --- captions -------------------------------------------------------------------------------------------------------

# Wordings of one slot have the same number of words for every value, so that a swap of values is a swap of words.
_GROUND_FORMS = ("on {}", "on the {}", "standing on {}", "on a floor of {}")
_TIME_FORMS = (
    {"noon": "at noon", "sunset": "at sunset", "night": "at night", "fog": "in fog"},
    {"noon": "in the noon", "sunset": "in the sunset", "night": "in the night", "fog": "in the fog"},
    {"noon": "on a sunny day", "sunset": "on a golden evening", "night": "on a dark night", "fog": "on a foggy day"},
)
_ORDERS = ("{objects} {ground} {time}", "{objects} {ground}, {time}", "{time}, {objects} {ground}")
_OPENINGS = ("", "", "", "a photo of ", "a picture of ")


def object_phrase(item: SceneObject) -> str:
    """Name an object as a caption does, such as `a big red cube`."""
    words = " ".join(object_words(item))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption_of(description: Description, seed: int, place: Place | None = None) -> str:
    """Write a caption; the seed chooses the wording, so captions with one seed differ only where the scenes do.

    `place`, where given, is said as well; it must hold in the scene.
    """
    rng = np.random.default_rng(derive_seed("caption", seed))
    ground = _GROUND_FORMS[int(rng.integers(len(_GROUND_FORMS)))].format(description.ground)
    time = _TIME_FORMS[int(rng.integers(len(_TIME_FORMS)))][description.time]
    order = _ORDERS[int(rng.integers(len(_ORDERS)))]
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    phrases = [object_phrase(item) for item in description.objects]
    if place is not None:
        index, *anchors = (find_objects(description, words)[0] for words in (place.subject, *place.anchors))
        where = phrase_of(place.relation, [phrases[i] for i in anchors], int(rng.integers(2)))
        others = [phrase for i, phrase in enumerate(phrases) if i not in (index, *anchors)]
        phrases = [*others, f"{phrases[index]} {where}"]
    objects = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    if order.startswith("{time}"):
        opening = ""
    return opening + order.format(objects=objects, ground=ground, time=time)


# --- edits ----------------------------------------------------------------------------------------------------------

_RECOLOUR = (
    "make the {kind} {color}",
    "turn the {kind} {color}",
    "paint the {kind} {color}",
    "change the {kind} to {color}",
)
_RESHAPE = ("replace the {kind} with a {new}", "turn the {kind} into a {new}", "make the {kind} a {new}")
_ADD = ("add {phrase}", "put {phrase} there", "place {phrase} in the scene")
_REMOVE = ("remove the {kind}", "take away the {kind}", "delete the {kind}")
_GROUND = ("change the ground to {new}", "make the ground {new}", "replace the {old} with {new}", "put it on {new}")
_TIME = ("make it {new}", "turn it to {new}", "change the light to {new}")
_RESIZE = ("make the {kind} {new}", "turn the {kind} {new}")
_SIZE_WORDS = {"small": "smaller", "big": "bigger"}


def is_allowed(kind: str, color: str, split: str, pattern: str = "") -> bool:
    """Return whether an edit of this split may lead to an object that looks so."""
    return split != "train" or not {(kind, color), (kind, pattern)} & (HELD_OUT_COMBINATIONS | HELD_OUT_PATTERNS)


def _with_object(description: Description, index: int, **changes: Any) -> Description:
    objects = list(description.objects)
    objects[index] = replace(objects[index], **changes)
    return replace(description, objects=tuple(objects))


def _possible_sizes(description: Description) -> list[tuple[int, str]]:
    """List the objects and new sizes at which they still touch no other object."""
    found = []
    for index, item in enumerate(description.objects):
        others = [o for i, o in enumerate(description.objects) if i != index]
        for size in ("small", "big"):
            room = [math.hypot(item.x - o.x, item.y - o.y) - TOUCH_RADIUS * (SIZES[size] + o.scale) for o in others]
            if size != item.size and min(room, default=1.0) > 0:
                found.append((index, size))
    return found


def possible_kinds(description: Description) -> tuple[str, ...]:
    """Return the kinds of edit that this scene allows: a full one takes no object, one of one object keeps it."""
    count = len(description.objects)
    impossible = {"add": count >= 3, "remove": count < 2, "resize": not _possible_sizes(description)}
    impossible["reshape"] = not any(_new_kinds(description, index, "train") for index in range(count))
    return tuple(kind for kind in EDIT_KINDS if not impossible.get(kind, False))


def _edit_object(rng: np.random.Generator, scene: Description, kind: str, split: str) -> tuple[str, Description]:
    """Sample an edit of one object: its instruction and the scene after it."""
    # What carries another object keeps its shape and stays; in the first edition nothing does.
    free = [i for i in range(len(scene.objects)) if kind == "recolour" or i not in carriers(scene)]
    if kind == "reshape":
        free = [i for i in free if _new_kinds(scene, i, split)]
    index = free[int(rng.integers(len(free)))]
    item, name = scene.objects[index], name_of(scene, index)
    if kind == "recolour":
        colors = [c for c in COLORS if c != item.color and is_allowed(item.kind, c, split)]
        color = _pick(rng, colors, {o.color for o in scene.objects})
        after = _with_object(scene, index, color=color, pattern="", second_color="")
        return _pick(rng, _RECOLOUR).format(kind=name, color=color), after
    if kind == "reshape":
        new = _pick(rng, _new_kinds(scene, index, split))
        return _pick(rng, _RESHAPE).format(kind=name, new=new), _with_object(scene, index, kind=new)
    if kind == "resize":
        sizes = _possible_sizes(scene)
        index, new = sizes[int(rng.integers(len(sizes)))]
        instruction = _pick(rng, _RESIZE).format(kind=name_of(scene, index), new=_SIZE_WORDS[new])
        return instruction, _with_object(scene, index, size=new)
    objects = tuple(o for i, o in enumerate(scene.objects) if i != index)
    return _pick(rng, _REMOVE).format(kind=name), replace(scene, objects=objects)


def _new_kinds(scene: Description, index: int, split: str) -> list[str]:
    """Return the kinds that an object can become, and still stand where it does; what carries another keeps its own."""
    if index in carriers(scene):
        return []
    item, there = scene.objects[index], {o.kind for o in scene.objects}
    allowed = [k for k in KINDS if k not in there and is_allowed(k, item.color, split, item.pattern)]
    return [k for k in allowed if _stands_as(scene, index, k)]


def _stands_as(scene: Description, index: int, kind: str) -> bool:
    item = scene.objects[index]
    below = [o for i, o in enumerate(scene.objects) if i != index and math.hypot(o.x - item.x, o.y - item.y) < 0.1]
    return item.z == 0 or any(can_carry(other, replace(item, kind=kind)) for other in below)


def sample_edit(description: Description, seed: int, *, kind: str | None = None, split: str = "train") -> Edit:
    """Sample an edit of a scene.

    The kind is one of `EDIT_KINDS`, sampled among those that the scene allows where None; the split `train` never leads
    to a held-out combination of kind and color.

    Raises:
        InputError: the scene does not allow this kind.
    """
    rng = np.random.default_rng(derive_seed("edit", seed, kind or "any", split))
    allowed = possible_kinds(description)
    kind = kind or _pick(rng, allowed)
    if kind not in allowed:
        raise InputError(f"no edit of kind '{kind}' for this scene; possible: {', '.join(allowed)}")
    if kind == "add":
        item = _sample_object(rng, list(description.objects), False if split == "train" else None)
        instruction = _pick(rng, _ADD).format(phrase=object_phrase(item))
        after = replace(description, objects=(*description.objects, item))
    elif kind == "ground":
        new = _pick(rng, GROUNDS, {description.ground})
        instruction = _pick(rng, _GROUND).format(old=description.ground, new=new)
        after = replace(description, ground=new)
    elif kind == "time":
        new = _pick(rng, TIMES, {description.time})
        instruction = _pick(rng, _TIME).format(new=new)
        after = replace(description, time=new)
    else:
        instruction, after = _edit_object(rng, description, kind, split)
    return Edit(kind=kind, instruction=instruction, before=description, after=after)


def _edit_words(edit: Edit) -> tuple[str, ...]:
    """Return the words whose attention marks the region that changes; empty where that is the whole picture.

    Of an object that is painted or removed also its looks, unless another shares them: the word "house" looks at the
    roof, and it is the walls that are painted.
    """
    if edit.kind == "ground":
        return edit.before.ground, edit.after.ground
    if edit.kind == "time":
        return ()
    gone = [o for o in edit.before.objects if o not in edit.after.objects]
    come = [o for o in edit.after.objects if o not in edit.before.objects]
    kinds, looks = [o.kind for o in gone] + [o.kind for o in come], list[str]()
    if edit.kind in ("recolour", "remove", "pattern", "look"):
        others = {word for o in edit.before.objects if o not in gone for word in object_words(o)}
        said = [word for o in gone + come for word in (o.color, o.second_color, o.pattern) if word in object_words(o)]
        looks = [word for word in said if word not in others]
    return tuple(dict.fromkeys(kinds + looks))


def prompt_pair_of(
    edit: Edit,
    seed: int,
    *,
    form: str = "grammar",
    places: tuple[Place | None, Place | None] = (None, None),
    undo: str | None = None,
) -> PromptPair:
    """Write an edit as a prompt pair: captions in one wording, the swapped words, the words that mark the region.

    Args:
        edit: What changes.
        seed: Chooses the wording.
        form: The pair's `form` field.
        places: What the captions say about places before and after.
        undo: The instruction that leads back; default: `undo_of`.
    """
    source, target = (caption_of(*told) for told in ((edit.before, seed, places[0]), (edit.after, seed, places[1])))
    words = [text.replace(",", "").split() for text in (source, target)]
    swaps: tuple[tuple[str, str], ...] = ()
    if len(words[0]) == len(words[1]):
        swaps = tuple((old, new) for old, new in zip(*words, strict=True) if old != new)
        # An article follows its word ("a red", "an orange"); it names nothing.
        swaps = tuple(swap for swap in swaps if set(swap) != {"a", "an"})
    return PromptPair(
        source=source,
        target=target,
        instruction=edit.instruction,
        kind=edit.kind,
        swaps=swaps,
        words=_edit_words(edit),
        form=form,
        undo=undo_of(edit, seed) if undo is None else undo,
        behind=background_of(edit.after, seed) if edit.kind == "remove" else "",
    )


def background_of(description: Description, seed: int) -> str:
    """Write a caption of ground and light alone; the seed chooses the wording."""
    rng = np.random.default_rng(derive_seed("background", seed))
    return f"{description.ground} {_TIME_FORMS[int(rng.integers(len(_TIME_FORMS)))][description.time]}"


def undo_of(edit: Edit, seed: int) -> str:
    """Write the instruction that leads back; empty where none does, as to a size between small and big.

    What is painted gets its color back, if that was one and has a name.
    """
    rng = np.random.default_rng(derive_seed("undo", seed))
    before, after = edit.before, edit.after
    if edit.kind == "ground":
        return _pick(rng, _GROUND).format(old=after.ground, new=before.ground)
    if edit.kind == "time":
        return _pick(rng, _TIME).format(new=before.time)
    gone = [i for i, item in enumerate(before.objects) if item not in after.objects]
    come = [i for i, item in enumerate(after.objects) if item not in before.objects]
    if edit.kind == "remove":
        was = before.objects[gone[0]]
        return _pick(rng, _ADD).format(phrase=object_phrase(was)) if was.color in COLORS else ""
    name = name_of(after, come[0])
    if edit.kind == "add":
        return _pick(rng, _REMOVE).format(kind=name)
    was = before.objects[gone[0]]
    if edit.kind in ("recolour", "pattern", "look"):
        is_plain = was.color in COLORS and not was.pattern
        return _pick(rng, _RECOLOUR).format(kind=name, color=was.color) if is_plain else ""
    if edit.kind == "reshape":
        return _pick(rng, _RESHAPE).format(kind=name, new=was.kind)
    return _pick(rng, _RESIZE).format(kind=name, new=_SIZE_WORDS[was.size]) if was.size else ""


def request_of(edit: Edit, seed: int) -> EditRequest:
    """Write an edit as the request that an editor gets."""
    return EditRequest(
        instruction=edit.instruction,
        source_caption=caption_of(edit.before, seed),
        target_caption=caption_of(edit.after, seed, edit.place),
    )
