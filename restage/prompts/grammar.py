"""The writer that knows the procedural world: samples a scene and an edit of it, and words both."""

from __future__ import annotations

from restage.records import InputError, PromptPair, derive_seed
from restage.world.grammar import EDIT_KINDS, possible_kinds, prompt_pair_of, sample_description, sample_edit

__all__ = ["write_grammar_pair"]


def write_grammar_pair(kind: str, seed: int) -> PromptPair:
    """Write the pair of one seed; scenes are drawn until one allows this kind of edit.

    Raises:
        InputError: the world has no such kind of edit.
    """
    if kind not in EDIT_KINDS:
        raise InputError(f"unknown kind of edit {kind!r}; known: {', '.join(EDIT_KINDS)}")
    draw = 0
    while True:
        description = sample_description(derive_seed(seed, "scene", draw))
        if kind in possible_kinds(description):
            edit = sample_edit(description, derive_seed(seed, "edit", draw), kind=kind)
            return prompt_pair_of(edit, derive_seed(seed, "caption"))
        draw += 1
