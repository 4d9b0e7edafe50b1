"""The writer that knows the procedural world: puts a scene and an edit of it into words, and reads captions back."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from restage.prompts.config import PROMPT_KINDS
from restage.prompts.forms import GRAMMAR_SPACE, Form
from restage.prompts.orders import Answer, Order, Writer, WriterSettings
from restage.prompts.store import open_lines
from restage.records import InputError, PromptPair, content_id, derive_seed
from restage.world import grammar as world
from restage.world.description import PATTERNS, SIZES, Place
from restage.world.editions import EDITIONS
from restage.world.places import find_objects, name_of, read_place

__all__ = ["GrammarWriter", "ReadCaption", "features_of_captions", "features_of_edit", "parse_caption"]
__all__ += ["read_captions", "sample_grammar_edit", "write_caption_pair", "write_form_pair", "write_grammar_pair"]

_SIZES, _COLORS, _PATTERNS = ("|".join(filter(None, words)) for words in (SIZES, world.COLORS, PATTERNS))
_LOOK = rf"(?:({_COLORS}) )?(?:and ({_COLORS}) )?(?:({_PATTERNS}) )?"
_OBJECT = re.compile(rf"\ban? (?:({_SIZES}) )?{_LOOK}({'|'.join(world.KINDS)})\b")
_GROUND = re.compile(rf"\b({'|'.join(world.GROUNDS)})\b")
_TIME_WORDS = {"noon": "noon", "sunny": "noon", "sunset": "sunset", "golden": "sunset", "night": "night", "fog": "fog"}
_TIME = re.compile(rf"\b({'|'.join(_TIME_WORDS)}|foggy)\b(?! side)")
_WHOLE_SCENE = ("ground", "time")
MAX_OBJECTS = 3
NAMELESS = ("#808080", "#404040")
"""Colors of what a caption gives none."""
SPACING = 2.0
"""Distance in world units between the objects of a scene known by its caption alone: enough for any size."""


class ReadCaption(NamedTuple):
    """What a caption says, and how."""

    description: world.Description
    """The scene; its objects stand in a row, whatever the caption says of their places."""
    wording_seed: int  # `caption_of(description, wording_seed, place)` is the caption
    place: Place | None = None


@functools.cache
def _wording_seeds() -> tuple[int, ...]:
    """One caption seed for each of the grammar's wordings, of places as well."""
    objects = tuple(world.SceneObject(kind=kind, color="red") for kind in ("cube", "ball"))
    probe = world.Description(objects=objects, ground="grass", time="noon")
    place = Place(subject="cube", relation="near", anchors=("ball",))
    seeds: dict[str, int] = {}
    for seed in range(3000):
        seeds.setdefault(world.caption_of(probe, seed, place), seed)
    return tuple(seeds.values())


def _describe(text: str) -> world.Description | None:
    """Return the scene that a caption describes; None if objects, ground or time are missing."""
    found = _OBJECT.findall(text)
    ground, time = _GROUND.search(text), _TIME.search(text)
    if not 1 <= len(found) <= MAX_OBJECTS or ground is None or time is None:
        return None
    middle = (len(found) - 1) / 2
    objects = tuple(
        world.SceneObject(
            kind=kind,
            color=color or NAMELESS[0],
            size=size,
            x=SPACING * (index - middle),
            pattern=pattern,
            second_color=second_color or (NAMELESS[1] if pattern else ""),
        )
        for index, (size, color, second_color, pattern, kind) in enumerate(found)
    )
    return world.Description(objects=objects, ground=ground[1], time=_TIME_WORDS.get(time[1], "fog"))


def parse_caption(caption: str) -> ReadCaption | None:
    """Read a caption that the grammar could have written, in any case, spacing or ending; None for any other."""
    text = " ".join(caption.casefold().split()).removesuffix(".")
    description = _describe(text)
    if description is None:
        return None
    place = read_place(text)
    if place:
        told = [find_objects(description, words) for words in (place.subject, *place.anchors)]
        if any(len(indices) != 1 for indices in told):
            return None
        subject, *anchors = (name_of(description, index) for (index,) in told)
        place = Place(subject=subject, relation=place.relation, anchors=tuple(anchors))
    for seed in _wording_seeds():
        if world.caption_of(description, seed, place) == text:
            return ReadCaption(description, seed, place)
    return None


def _features(kind: str, before: world.Description, after: world.Description) -> dict[str, str]:
    features = {"kind": kind, "objects": str(len(before.objects)), "time": before.time}
    if kind in _WHOLE_SCENE:
        return features
    old = [_words(item) for item in before.objects]
    new = [_words(item) for item in after.objects]
    edited = [item for item in old if item not in new] or [item for item in new if item not in old]
    if edited:
        size, noun = edited[0][:2]
        features |= {"noun": noun, "size": size or "normal"}
    return features


def _words(item: world.SceneObject) -> tuple[str, ...]:
    return item.size, item.kind, item.color, item.second_color, item.pattern


def features_of_edit(edit: world.Edit) -> dict[str, str]:
    """Return all features of an edit that forms can fix; `noun` and `size` describe the edited object before it."""
    return _features(edit.kind, edit.before, edit.after)


def features_of_captions(kind: str, source: str, target: str) -> dict[str, str]:
    """Return the same for a pair of captions; only the kind if the grammar could not have written them."""
    before, after = _describe(source), _describe(target)
    if before is None or after is None:
        return {"kind": kind}
    return _features(kind, before, after)


def read_captions(path: Path) -> tuple[str, ...]:
    """Read a user's captions, one a line; blank lines, lines that start with # and repeats are skipped."""
    lines = (" ".join(line.split()) for line in open_lines(path) if not line.startswith("#"))
    captions = dict.fromkeys(line for line in lines if line)
    if not captions:
        raise InputError(f"{path} holds no caption; expected one a line")
    return tuple(captions)


MAX_SCENES = 400
"""Number of scenes that are drawn for a form before it is taken to be empty."""
EDITS_PER_SCENE = 8
"""Number of edits that are tried for a fitting scene before another one is drawn."""


def _check_kind(kind: str, edition: int) -> None:
    if kind not in PROMPT_KINDS[edition]:
        raise InputError(f"unknown kind of edit {kind!r}; known: {', '.join(PROMPT_KINDS[edition])}")


def sample_grammar_edit(kind: str, seed: int, *, edition: int = 1) -> world.Edit:
    """Sample the edit that belongs to a seed; scenes are drawn until one allows this kind."""
    _check_kind(kind, edition)
    grammar = EDITIONS[edition]
    draw = 0
    while True:
        description = grammar.sample_description(derive_seed(seed, "scene", draw))
        if kind in grammar.possible_kinds(description):
            return grammar.sample_edit(description, derive_seed(seed, "edit", draw), kind=kind)
        draw += 1


def write_grammar_pair(kind: str, seed: int, *, edition: int = 1) -> PromptPair:
    """Write the pair that belongs to a seed, with the edit that `sample_grammar_edit` samples."""
    edit = sample_grammar_edit(kind, seed, edition=edition)
    return EDITIONS[edition].prompt_pair_of(edit, derive_seed(seed, "caption"))


def _sample_form_edit(form: Form, seed: int, edition: int) -> world.Edit | None:
    """Draw scenes and edits until one has the form's features; None after `MAX_SCENES` scenes.

    Some forms hardly exist, such as a small object that has room to grow beside two others.
    """
    fixed, grammar = form.as_dict, EDITIONS[edition]
    # Rejecting what does not fit, instead of building it, gives each edit that has the features its natural share.
    num_objects = int(fixed["objects"]) if "objects" in fixed else None
    for draw in range(MAX_SCENES):
        scene = grammar.sample_description(derive_seed(seed, "scene", draw), num_objects=num_objects)
        scene = replace(scene, time=fixed.get("time", scene.time))
        shown = [{"noun": item.kind, "size": item.size or "normal"} for item in scene.objects]
        fits = [all(fixed.get(name, value) == value for name, value in item.items()) for item in shown]
        if (form.kind == "add" or any(fits)) and form.kind in grammar.possible_kinds(scene):
            for attempt in range(EDITS_PER_SCENE):
                edit = grammar.sample_edit(scene, derive_seed(seed, "edit", draw, attempt), kind=form.kind)
                if form.fits(features_of_edit(edit)):
                    return edit
    return None


def write_form_pair(form: Form, seed: int, *, form_text: str = "", edition: int = 1) -> PromptPair | None:
    """Write the pair that belongs to a seed and a form of `GRAMMAR_SPACE`; None if the world hardly has such a pair."""
    _check_kind(form.kind, edition)
    edit = _sample_form_edit(form, seed, edition)
    if edit is None:
        return None
    return replace(EDITIONS[edition].prompt_pair_of(edit, derive_seed(seed, "caption")), form=form_text or str(form))


def write_caption_pair(caption: str, kind: str, seed: int, *, edition: int = 1) -> PromptPair | None:
    """Write an edit of a user's caption, in the caption's own wording.

    Returns:
        The pair, whose `parent` is the id of the caption; None if the grammar cannot read the caption, or if its scene
        does not allow this kind of edit.
    """
    _check_kind(kind, edition)
    found, grammar = parse_caption(caption), EDITIONS[edition]
    if found is None or kind not in grammar.possible_kinds(found.description):
        return None
    edit, place = grammar.sample_edit(found.description, seed, kind=kind, split="all"), found.place
    still = place and all(len(find_objects(edit.after, words)) == 1 for words in (place.subject, *place.anchors))
    places = (place, edit.place or (place if still else None))
    # Where an object stands is not known from a caption, so that nothing can be told to go back there.
    undo = "" if edition == 2 and kind in ("move", "remove") else None
    pair = world.prompt_pair_of(edit, found.wording_seed, places=places, undo=undo)
    return replace(pair, parent=content_id("caption", caption))


class GrammarWriter(Writer):
    """Answers every order by itself, at once."""

    form_space = GRAMMAR_SPACE
    is_endless = True

    def __init__(self, settings: WriterSettings) -> None:
        self.edition = settings.edition

    def write(self, chunks: Sequence[Sequence[Order]]) -> Iterator[Answer]:
        """Answer the orders one by one."""
        for order in (order for chunk in chunks for order in chunk):
            yield self._answer(order)

    def _answer(self, order: Order) -> Answer:
        if order.caption:
            pair = write_caption_pair(order.caption, order.kind, order.seed, edition=self.edition)
            if pair is None:
                is_read = parse_caption(order.caption) is not None
                reason = f"its scene allows no {order.kind}" if is_read else "the grammar cannot read this caption"
                return Answer(order, reason=reason, raw=order.caption, is_final=True)
            return Answer(order, pair)
        if order.form is not None:
            pair = write_form_pair(order.form, order.seed, form_text=order.form_text, edition=self.edition)
            reason = "" if pair else "the world has hardly any such pair"
            return Answer(order, pair, reason, is_final=pair is None)
        return Answer(order, write_grammar_pair(order.kind, order.seed, edition=self.edition))
