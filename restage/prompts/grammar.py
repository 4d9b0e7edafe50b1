"""The writer that knows the procedural world: samples a scene and an edit of it, and puts both into words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from restage.prompts.captions import features_of_edit, parse_caption
from restage.prompts.form import GRAMMAR_SPACE, Form
from restage.prompts.orders import Answer, Order, Writer, WriterSettings
from restage.records import InputError, PromptPair, content_id, derive_seed
from restage.world.grammar import (
    EDIT_KINDS,
    Edit,
    SceneObject,
    possible_kinds,
    prompt_pair_of,
    sample_description,
    sample_edit,
)

__all__ = ["GrammarWriter", "sample_grammar_edit", "write_caption_pair", "write_form_pair", "write_grammar_pair"]

MAX_SCENES = 400
"""Number of scenes that are drawn for a form before it is taken to be empty."""
EDITS_PER_SCENE = 8
"""Number of edits that are tried for a fitting scene before another one is drawn."""


def _check_kind(kind: str) -> None:
    if kind not in EDIT_KINDS:
        raise InputError(f"unknown kind of edit {kind!r}; known: {', '.join(EDIT_KINDS)}")


def sample_grammar_edit(kind: str, seed: int) -> Edit:
    """Sample the edit that belongs to a seed; scenes are drawn until one allows this kind.

    Raises:
        InputError: the world has no such kind of edit.
    """
    _check_kind(kind)
    draw = 0
    while True:
        description = sample_description(derive_seed(seed, "scene", draw))
        if kind in possible_kinds(description):
            return sample_edit(description, derive_seed(seed, "edit", draw), kind=kind)
        draw += 1


def write_grammar_pair(kind: str, seed: int) -> PromptPair:
    """Write the pair that belongs to a seed, with the edit that `sample_grammar_edit` samples.

    Raises:
        InputError: the world has no such kind of edit.
    """
    return prompt_pair_of(sample_grammar_edit(kind, seed), derive_seed(seed, "caption"))


def _fits_object(item: SceneObject, fixed: dict[str, str]) -> bool:
    size = item.size or "normal"
    return fixed.get("noun", item.kind) == item.kind and fixed.get("size", size) == size


def _sample_form_edit(form: Form, seed: int) -> Edit | None:
    """Draw scenes and edits until one has the form's features; None after `MAX_SCENES` scenes.

    Some forms hardly exist, such as a small object that has room to grow beside two others.
    """
    fixed = form.as_dict
    # Rejecting what does not fit, instead of building it, gives each edit that has the features its natural share.
    num_objects = int(fixed["objects"]) if "objects" in fixed else None
    for draw in range(MAX_SCENES):
        scene = sample_description(derive_seed(seed, "scene", draw), num_objects=num_objects)
        scene = replace(scene, time=fixed.get("time", scene.time))
        if form.kind in possible_kinds(scene) and (
            form.kind == "add" or any(_fits_object(item, fixed) for item in scene.objects)
        ):
            for attempt in range(EDITS_PER_SCENE):
                edit = sample_edit(scene, derive_seed(seed, "edit", draw, attempt), kind=form.kind)
                if form.fits(features_of_edit(edit)):
                    return edit
    return None


def write_form_pair(form: Form, seed: int, *, form_text: str = "") -> PromptPair | None:
    """Write the pair that belongs to a seed and a form of `GRAMMAR_SPACE`; None if the world hardly has such a pair.

    Args:
        form: what is fixed.
        seed: chooses everything else.
        form_text: the pair's `form` field; by default the form.

    Raises:
        InputError: the world has no such kind of edit.
    """
    _check_kind(form.kind)
    edit = _sample_form_edit(form, seed)
    return prompt_pair_of(edit, derive_seed(seed, "caption"), form=form_text or str(form)) if edit else None


def write_caption_pair(caption: str, kind: str, seed: int) -> PromptPair | None:
    """Write an edit of a user's caption, in the caption's own wording.

    Returns:
        The pair, whose `parent` is the id of the caption; None if the grammar cannot read the caption, or if its scene
        does not allow this kind of edit.

    Raises:
        InputError: the world has no such kind of edit.
    """
    _check_kind(kind)
    found = parse_caption(caption)
    if found is None or kind not in possible_kinds(found.description):
        return None
    edit = sample_edit(found.description, seed, kind=kind, split="all")
    return replace(prompt_pair_of(edit, found.wording_seed), parent=content_id("caption", caption))


class GrammarWriter(Writer):
    """Answers every order by itself, at once."""

    form_space = GRAMMAR_SPACE
    is_endless = True

    def __init__(self, settings: WriterSettings) -> None:
        """Needs no settings."""

    def write(self, chunks: Sequence[Sequence[Order]]) -> Iterator[Answer]:
        """Answer the orders one by one."""
        for order in (order for chunk in chunks for order in chunk):
            yield self._answer(order)

    def _answer(self, order: Order) -> Answer:
        if order.caption:
            pair = write_caption_pair(order.caption, order.kind, order.seed)
            if pair is None:
                is_read = parse_caption(order.caption) is not None
                reason = f"its scene allows no {order.kind}" if is_read else "the grammar cannot read this caption"
                return Answer(order, reason=reason, raw=order.caption, is_final=True)
            return Answer(order, pair)
        if order.form is not None:
            pair = write_form_pair(order.form, order.seed, form_text=order.form_text)
            reason = "" if pair else "the world has hardly any such pair"
            return Answer(order, pair, reason, is_final=pair is None)
        return Answer(order, write_grammar_pair(order.kind, order.seed))
