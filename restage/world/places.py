"""Places in words: relations between objects, whether one holds, and where a thing goes that is put there.

All but left and right mean the same from every view, so that they can be said of a scene that is seen from all sides;
left and right need the camera of a single picture. Called by `second`, which words scenes and edits with places, and by
benchmarks that judge them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array

from restage.world.description import COLORS, KINDS, PATTERNS, SIZES, TOWARD_SUN, Description, Place, SceneObject

if TYPE_CHECKING:
    from restage.scenes.cameras import Cameras

__all__ = ["RELATIONS", "can_carry", "carriers", "find_objects", "gap_between", "holds", "holds_in_picture", "name_of"]
__all__ += ["object_words", "phrase_of", "places_of", "possible_places", "read_place"]


class Relation(NamedTuple):
    """How a relation is said."""

    forms: tuple[str, ...]
    num_anchors: int = 1
    is_seen: bool = False
    """Whether it depends on the camera."""
    is_exact: bool = True
    """Whether it says where to put a thing; what is merely next to another may be on any side of it."""


RELATIONS = {
    "on": Relation(("on top of {}", "on {}")),
    "between": Relation(("between {} and {}",), 2),
    "toward": Relation(("next to {} on the side of {}",), 2),
    "away": Relation(("next to {} on the side away from {}",), 2),
    "front": Relation(("in front of the door of {}", "in front of the face of {}")),
    "back": Relation(("at the back of {}",)),
    "lit": Relation(("on the sunny side of {}",)),
    "shaded": Relation(("in the shadow of {}",)),
    "left": Relation(("to the left of {}", "left of {}"), is_seen=True),
    "right": Relation(("to the right of {}", "right of {}"), is_seen=True),
    "near": Relation(("next to {}", "beside {}"), is_exact=False),
}
"""`{}` stands for an anchor."""

_RADIUS = {"ball": 0.5, "cube": 0.57, "cylinder": 0.36, "cone": 0.5}
_RADIUS |= {"snowman": 0.4, "tree": 0.48, "mushroom": 0.5, "house": 0.63}
"""Radius of the circle around the axis in which an object of normal size lies."""
_FOOT = {"ball": 0.2, "cube": 0.4, "cylinder": 0.36, "cone": 0.5}
_FOOT |= {"snowman": 0.3, "tree": 0.11, "mushroom": 0.2, "house": 0.4}
"""Half the width of what it stands on."""
_TOP = {"cube": (0.8, 0.4), "cylinder": (1.0, 0.36)}
"""Height of a flat top and half its width; other kinds carry nothing."""
_FACED = {"house": 0, "snowman": 1}
"""Kinds with a front, and which form of `front` says it."""

GAP = 0.15
"""Free space between a thing that is put next to another and that other, in world units."""
MIN_GAP = 0.03
NEAR_GAP = 0.6
"""Free space up to which things count as next to each other."""
MAX_REACH = 2.1
"""Distance from the origin within which things are put, so that they stay in view."""


# --- references -----------------------------------------------------------------------------------------------------


def object_words(item: SceneObject) -> tuple[str, ...]:
    """Return what words can say of an object, in their order, such as `small red and white striped cube`."""
    words = [item.size, item.color if item.color in COLORS else ""]
    if item.pattern:
        # Two colors are said, or none: "a red striped cube" would leave the other one open.
        is_named = {item.color, item.second_color} <= set(COLORS)
        words[1:] = [item.color, "and", item.second_color, item.pattern] if is_named else [item.pattern]
    return tuple(word for word in (*words, item.kind) if word)


def find_objects(scene: Description, words: str) -> list[int]:
    """Return the objects that all of these words fit."""
    wanted = set(words.split())
    return [index for index, item in enumerate(scene.objects) if wanted <= set(object_words(item))]


def name_of(scene: Description, index: int) -> str:
    """Return the fewest words that single an object out, such as `cube`, or `red cube` where there are two.

    Of two objects that words cannot tell apart each is called by all that can be said of it.
    """
    item = scene.objects[index]
    described = [word for word in object_words(item)[:-1] if word != "and"]
    for count in range(len(described) + 1):
        # Color before size, since a size is said only of what is small or big.
        for chosen in sorted(itertools.combinations(described, count), key=lambda words: words[:1] == (item.size,)):
            name = " ".join((*chosen, item.kind))
            if find_objects(scene, name) == [index]:
                return name
    return " ".join(object_words(item))


# --- geometry -------------------------------------------------------------------------------------------------------


def _radius(item: SceneObject) -> float:
    return _RADIUS[item.kind] * item.scale


def gap_between(a: SceneObject, b: SceneObject) -> float:
    """Return the free space between two objects along the ground; negative where their circles overlap."""
    return math.hypot(a.x - b.x, a.y - b.y) - _radius(a) - _radius(b)


def can_carry(below: SceneObject, item: SceneObject) -> bool:
    """Return whether an object can stand on top of another: a flat top on the ground, nearly as wide as its foot."""
    width = _TOP[below.kind][1] * below.scale if below.kind in _TOP else 0.0
    return below.z == 0 and _FOOT[item.kind] * item.scale <= 1.15 * width


def _is_on(item: SceneObject, below: SceneObject) -> bool:
    if below.kind not in _TOP:
        return False
    height, width = (value * below.scale for value in _TOP[below.kind])
    return abs(item.z - below.z - height) < 1e-3 and math.hypot(item.x - below.x, item.y - below.y) < width


def carriers(scene: Description) -> set[int]:
    """Return the objects that another one stands on."""
    return {i for i, below in enumerate(scene.objects) if any(_is_on(item, below) for item in scene.objects)}


def _direction(
    relation: str, anchors: Sequence[SceneObject], scene: Description, camera: Cameras | None
) -> tuple[float, float] | None:
    """Return the unit vector along the ground to the side of the first anchor that is meant; None where none is."""
    first, last = anchors[0], anchors[-1]
    sign = -1.0 if relation in ("away", "back", "shaded", "left") else 1.0
    if relation in ("toward", "away"):
        x, y = last.x - first.x, last.y - first.y
    elif relation in ("front", "back") and first.kind in _FACED:
        x, y = math.sin(first.yaw_rad), -math.cos(first.yaw_rad)
    elif relation in ("lit", "shaded") and scene.time in ("noon", "sunset"):
        toward = complex(*TOWARD_SUN[scene.time][:2]) * complex(
            math.cos(scene.sun_turn_rad), math.sin(scene.sun_turn_rad)
        )
        x, y = toward.real, toward.imag
    elif relation in ("left", "right") and camera is not None:
        x, y = camera.camera_to_world[0, :2, 0].tolist()
    else:
        return None
    length = math.hypot(x, y)
    return (sign * x / length, sign * y / length) if length > 1e-6 else None


def _along(a: SceneObject, b: SceneObject, x: float, y: float) -> tuple[float, float]:
    """Return where (x, y) is on the way from a to b, as a share of it, and how far beside it, in world units."""
    dx, dy = b.x - a.x, b.y - a.y
    square = max(dx * dx + dy * dy, 1e-9)
    return ((x - a.x) * dx + (y - a.y) * dy) / square, abs((x - a.x) * dy - (y - a.y) * dx) / math.sqrt(square)


def _has_relation(
    relation: str, item: SceneObject, anchors: Sequence[SceneObject], scene: Description, camera: Cameras | None
) -> bool:
    first = anchors[0]
    if relation == "on":
        return _is_on(item, first)
    if any(abs(item.z - anchor.z) > 1e-3 for anchor in anchors):
        return False
    if relation == "near":
        return gap_between(item, first) <= NEAR_GAP
    if relation == "between":
        share, beside = _along(first, anchors[1], item.x, item.y)
        return 0.25 <= share <= 0.75 and beside <= 0.5 * _radius(item)
    direction = _direction(relation, anchors, scene, camera)
    if direction is None or (gap_between(item, first) > NEAR_GAP and not RELATIONS[relation].is_seen):
        return False
    x, y = item.x - first.x, item.y - first.y
    # On that side within 45 degrees to either hand.
    return x * direction[0] + y * direction[1] > abs(x * direction[1] - y * direction[0])


def holds(place: Place, scene: Description, camera: Cameras | None = None) -> bool:
    """Return whether a statement is true of a scene, by exact geometry.

    False where its words do not single out each of its objects; left and right are false without a camera (n = 1).
    """
    found = [find_objects(scene, words) for words in (place.subject, *place.anchors)]
    if any(len(indices) != 1 for indices in found):
        return False
    item, *anchors = (scene.objects[indices[0]] for indices in found)
    return item not in anchors and _has_relation(place.relation, item, anchors, scene, camera)


def _position(
    relation: str, item: SceneObject, anchors: Sequence[SceneObject], scene: Description, camera: Cameras | None
) -> tuple[float, float, float] | None:
    """Return where an item goes that is put there, with no choice left; None where it cannot go there."""
    first, last = anchors[0], anchors[-1]
    if relation == "on":
        return (first.x, first.y, _TOP[first.kind][0] * first.scale) if can_carry(first, item) else None
    if any(anchor.z > 0 for anchor in anchors):
        return None
    if relation == "between":
        room, length = gap_between(first, last), math.hypot(last.x - first.x, last.y - first.y)
        if room < 2 * (_radius(item) + MIN_GAP):
            return None
        share = (_radius(first) + 0.5 * room) / length
        return first.x + share * (last.x - first.x), first.y + share * (last.y - first.y), 0.0
    direction = _direction(relation, anchors, scene, camera)
    if direction is None:
        return None
    away = _radius(first) + _radius(item) + GAP
    return first.x + away * direction[0], first.y + away * direction[1], 0.0


class Spot(NamedTuple):
    """A place for an object, in words and in the scene."""

    relation: str
    anchors: tuple[int, ...]
    """Indices in the scene."""
    item: SceneObject
    """The object, put there."""


def possible_places(scene: Description, item: SceneObject, camera: Cameras | None = None) -> list[Spot]:
    """Return all places where an object can be put without touching any of the scene's, which lacks it."""
    found, full = [], carriers(scene)
    for relation, anchors in _tellings(len(scene.objects)):
        told = [scene.objects[index] for index in anchors]
        position = _position(relation, item, told, scene, camera) if RELATIONS[relation].is_exact else None
        if position is None or math.hypot(*position[:2]) > MAX_REACH or (relation == "on" and anchors[0] in full):
            continue
        # Turned as its anchor is: nothing says how, and that can be seen.
        put = replace(item, x=round(position[0], 4), y=round(position[1], 4), z=position[2], yaw_rad=told[0].yaw_rad)
        others = [o for o in scene.objects if relation != "on" or o is not told[0]]
        if all(gap_between(put, other) > MIN_GAP for other in others) and _has_relation(
            relation, put, told, scene, camera
        ):
            found.append(Spot(relation, anchors, put))
    return found


def _tellings(num_objects: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every relation with every choice of anchors; between one and another is between the other and the one."""
    for relation, (_, num_anchors, *_) in RELATIONS.items():
        choose = itertools.combinations if relation == "between" else itertools.permutations
        yield from ((relation, anchors) for anchors in choose(range(num_objects), num_anchors))


def places_of(scene: Description, camera: Cameras | None = None) -> list[Place]:
    """Return all statements that hold in a scene."""
    names = [name_of(scene, index) for index in range(len(scene.objects))]
    told = (
        Place(subject=names[i], relation=relation, anchors=tuple(names[k] for k in anchors))
        for relation, anchors in _tellings(len(scene.objects))
        for i in range(len(scene.objects))
        if i not in anchors
    )
    return [place for place in told if holds(place, scene, camera)]


# --- words ----------------------------------------------------------------------------------------------------------

_ADJECTIVES = "|".join((*filter(None, SIZES), *COLORS, *PATTERNS, "and"))
_NOUN = rf"(?:the|an?) ((?:(?:{_ADJECTIVES}) )*(?:{'|'.join(KINDS)}))"
_READERS = [
    (name, re.compile(rf"\b{_NOUN} {form.replace('{}', _NOUN)}\b"))
    for name, relation in RELATIONS.items()
    for form in relation.forms
]


def phrase_of(relation: str, anchors: Sequence[str], form: int = 0) -> str:
    """Say a relation; anchors are such as `the cube`, and `form` chooses a wording."""
    forms = RELATIONS[relation].forms
    if relation == "front":
        form = _FACED[anchors[0].split()[-1]]
    return forms[form % len(forms)].format(*anchors)


def read_place(text: str) -> Place | None:
    """Read the statement about a place in an instruction or a caption; None where there is none."""
    found = [(match, name) for name, reader in _READERS if (match := reader.search(text.replace(",", "")))]
    if not found:
        return None
    # "next to the ball on the side of the tree" says "next to the ball", too.
    match, name = max(found, key=lambda item: len(item[0][0]))
    subject, *anchors = match.groups()
    return Place(subject=subject, relation=name, anchors=tuple(anchors))


def holds_in_picture(place: Place, regions: Mapping[str, Bool[Array, "h w"]]) -> bool | None:
    """Return whether a picture shows a place, by the regions of its kinds of object alone; None if they cannot tell.

    For painted pictures, whose geometry nobody knows, on a grid as coarse as the probe's 16x16. What something stands
    on is told by the lower edge of its region, with heights stretched as if the camera looked down by 18 degrees.
    """
    if place.relation in ("front", "back", "lit", "shaded"):
        return None
    boxes = []
    for words in (place.subject, *place.anchors):
        region = regions.get(words.split()[-1])
        if region is None or not region.any():
            return False
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    (left, top, right, bottom), (a_left, a_top, a_right, a_bottom) = boxes[:2]
    aside, width = 0.5 * (left + right - a_left - a_right), 0.5 * (right - left + a_right - a_left)
    if place.relation == "on":
        is_above = top < a_top and a_top - 1 <= bottom <= a_top + 0.6 * (a_bottom - a_top) + 1
        return is_above and abs(aside) < 0.4 * (a_right - a_left)
    if place.relation in ("left", "right"):
        return (-aside if place.relation == "left" else aside) > 0.4 * width
    stretch = 1 / math.sin(math.radians(18))
    foot, *feet = [SceneObject(kind="ball", color="red", x=(b[0] + b[2]) / 2, y=stretch * b[3]) for b in boxes]
    down = stretch * max(0, abs(bottom - a_bottom) - 1)  # an edge is known to one cell
    is_near = math.hypot(aside, down) - width < NEAR_GAP * width + 1
    if place.relation == "near":
        return is_near
    share, beside = _along(feet[0], feet[1], foot.x, foot.y)
    if place.relation == "between":
        return 0.15 < share < 0.85 and beside < right - left + 1
    return is_near and (share > 0) == (place.relation == "toward")
