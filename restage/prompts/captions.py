"""Captions of the miniature world, read back: from a text to the scene that it describes.

Called by the grammar writer for a user's captions, and by `trials` to see which features a finished pair has.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from restage.prompts.store import open_lines
from restage.records import InputError
from restage.world.grammar import COLORS, GROUNDS, KINDS, SIZES, Description, Edit, SceneObject, caption_of

__all__ = ["ReadCaption", "features_of_captions", "features_of_edit", "parse_caption", "read_captions"]

_SIZES = "|".join(size for size in SIZES if size)
_OBJECT = re.compile(rf"\ban? (?:({_SIZES}) )?({'|'.join(COLORS)}) ({'|'.join(KINDS)})\b")
_GROUND = re.compile(rf"\b({'|'.join(GROUNDS)})\b")
_TIME_WORDS = {"noon": "noon", "sunny": "noon", "sunset": "sunset", "golden": "sunset", "night": "night", "fog": "fog"}
_TIME = re.compile(rf"\b({'|'.join(_TIME_WORDS)}|foggy)\b")
_WHOLE_SCENE = ("ground", "time")
MAX_OBJECTS = 3
SPACING = 2.0
"""Distance in world units between the objects of a scene known by its caption alone: enough for any size."""


class ReadCaption(NamedTuple):
    """What a caption says, and how."""

    description: Description
    """The scene; its objects stand in a row, since a caption names no places."""
    wording_seed: int
    """`caption_of(description, wording_seed)` is the caption."""


@functools.cache
def _wording_seeds() -> tuple[int, ...]:
    """One caption seed for each of the grammar's wordings."""
    probe = Description(objects=(SceneObject(kind="cube", color="red"),), ground="grass", time="noon")
    seeds: dict[str, int] = {}
    for seed in range(3000):
        seeds.setdefault(caption_of(probe, seed), seed)
    return tuple(seeds.values())


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _describe(text: str) -> Description | None:
    """Return the scene that a caption describes; None if objects, ground or time are missing."""
    found = _OBJECT.findall(text)
    ground, time = _GROUND.search(text), _TIME.search(text)
    if not 1 <= len(found) <= MAX_OBJECTS or ground is None or time is None:
        return None
    middle = (len(found) - 1) / 2
    objects = tuple(
        SceneObject(kind=kind, color=color, size=size, x=SPACING * (index - middle))
        for index, (size, color, kind) in enumerate(found)
    )
    return Description(objects=objects, ground=ground[1], time=_TIME_WORDS.get(time[1], "fog"))


def parse_caption(caption: str) -> ReadCaption | None:
    """Read a caption that the grammar could have written, in any case, spacing or ending; None for any other."""
    text = _normalise(caption)
    description = _describe(text)
    if description is None:
        return None
    for seed in _wording_seeds():
        if caption_of(description, seed) == text:
            return ReadCaption(description, seed)
    return None


def _features(kind: str, before: Description, after: Description) -> dict[str, str]:
    features = {"kind": kind, "objects": str(len(before.objects)), "time": before.time}
    if kind in _WHOLE_SCENE:
        return features
    old = [_words(item) for item in before.objects]
    new = [_words(item) for item in after.objects]
    edited = [item for item in old if item not in new] or [item for item in new if item not in old]
    if edited:
        size, _, noun = edited[0]
        features |= {"noun": noun, "size": size or "normal"}
    return features


def _words(item: SceneObject) -> tuple[str, str, str]:
    return item.size, item.color, item.kind


def features_of_edit(edit: Edit) -> dict[str, str]:
    """Return all features of an edit that forms can fix; `noun` and `size` describe the edited object before it."""
    return _features(edit.kind, edit.before, edit.after)


def features_of_captions(kind: str, source: str, target: str) -> dict[str, str]:
    """Return the same for a pair of captions; only the kind if the grammar could not have written them."""
    before, after = _describe(source), _describe(target)
    if before is None or after is None:
        return {"kind": kind}
    return _features(kind, before, after)


def read_captions(path: Path) -> tuple[str, ...]:
    """Read a user's captions, one a line; blank lines, lines that start with # and repeats are skipped.

    Raises:
        InputError: the file is missing, is not text, or holds no caption.
    """
    lines = (" ".join(line.split()) for line in open_lines(path) if not line.startswith("#"))
    captions = dict.fromkeys(line for line in lines if line)
    if not captions:
        raise InputError(f"{path} holds no caption; expected one a line")
    return tuple(captions)
