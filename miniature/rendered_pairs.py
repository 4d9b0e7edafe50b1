"""Edits of rendered scenes for the edit model: pairs that are exact, and prompt pairs that name a rendered picture.

The text-to-image model makes the other side of the latter, as it does for a user's photographs. Pictures that it makes
by itself are softer than renders, which is what the edit model will be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from restage.pairs.encoding import to_uint8
from restage.prompts.grammar import sample_grammar_edit
from restage.prompts.store import write_prompts
from restage.records import Progress, PromptPair, derive_seed, write_atomically
from restage.scenes.cameras import Cameras
from restage.train.examples import ExactPair
from restage.world.capture import change_mask, sample_camera
from restage.world.grammar import Edit, prompt_pair_of
from restage.world.render import render_view

__all__ = ["PAIR_KINDS", "render_pairs", "write_pictured_prompts"]

PAIR_KINDS = (
    *("recolour", "reshape", "remove", "recolour", "ground", "reshape", "remove"),
    *("recolour", "add", "time", "remove", "recolour", "reshape", "resize"),
)
"""Kinds of edit of the pairs, in turn. Grounds and lights are learned from few pairs; recolours of objects that were
not trained on stay twice as wrong as of those that were, so they come most often, then shapes
(docs/log/2026-11-27-edit-model.md)."""


def _seed(index: int, seed: int) -> int:
    return derive_seed("exact pair", seed, index)


def _edit(index: int, seed: int) -> Edit:
    """Return the edit of one pair; kinds come in turn."""
    return sample_grammar_edit(PAIR_KINDS[index % len(PAIR_KINDS)], _seed(index, seed))


def render_pairs(count: int, *, seed: int) -> Iterator[ExactPair]:
    """Render exact pairs, kinds of edit in turn, each seen by one camera that shows the scene before well."""
    for index in range(count):
        edit, item = _edit(index, seed), _seed(index, seed)
        camera = sample_camera(edit.before, item)
        before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
        mask = torch.from_numpy(change_mask(before, after))
        yield ExactPair(torch.from_numpy(before), torch.from_numpy(after), mask, prompt_pair_of(edit, item))


def _camera(edit: Edit, item: int) -> Cameras:
    """Choose a camera that shows the scene with more objects well, so that there is room for what is added."""
    return sample_camera(edit.after if edit.kind == "add" else edit.before, item)


def write_pictured_prompts(folder: Path, count: int, *, seed: int) -> Iterator[Progress]:
    """Write `<folder>/prompts.jsonl` and the pictures that it names; pictures that are there are kept.

    Kinds come in turn. The picture shows the scene before the edit; of half of the removals the one after. There what
    has to be made is the object, softer than a render's own; in the others it is what was behind it.
    """
    pairs: list[PromptPair] = []
    for index in range(count):
        edit, item = _edit(index, seed), _seed(index, seed)
        is_target = edit.kind == "remove" and item % 2 == 0
        name = f"pictures/{index:06d}.png"
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            view = render_view(edit.after if is_target else edit.before, _camera(edit, item))
            with write_atomically(path) as temporary:
                Image.fromarray(to_uint8(torch.from_numpy(view.image))).save(temporary, format="PNG")
        pictured = "target" if is_target else "source"
        pairs.append(replace(prompt_pair_of(edit, item), picture=name, pictured=pictured))
        if index % 100 == 99 or index + 1 == count:
            yield Progress(stage="pictured prompts", done=index + 1, total=count)
    write_prompts(folder / "prompts.jsonl", pairs)
