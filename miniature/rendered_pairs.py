"""Edits of rendered scenes for the edit model: pairs that are exact, and prompt pairs that name a rendered picture.

The text-to-image model makes the other side of the latter, as it does for a user's photographs. Pictures that it makes
by itself are softer than renders, which is what the edit model will be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from restage.prompts.store import write_prompts
from restage.records import Progress, PromptPair, derive_seed, write_atomically
from restage.scenes.cameras import Cameras
from restage.scenes.io.images import to_uint8
from restage.scenes.references import ShownPicture
from restage.train.examples import ExactPair
from restage.world.capture import change_mask, sample_camera, sample_pictured_edit
from restage.world.description import Edit
from restage.world.grammar import undo_of
from restage.world.references import render_reference, sample_referenced_edit
from restage.world.render import render_view
from restage.world.second import caption_of, prompt_pair_of, reference_scene

__all__ = ["PAIR_KINDS", "TURNED", "render_pair", "render_pairs", "render_referenced_pair", "render_referenced_pairs"]
__all__ += ["write_pictured_prompts"]

TURNED = "add, turned"
"""Removals of what an addition has put at a place in words, so that undoing them adds it there: in a pair made of a
picture it is then a render that shows the addition, where a painted one would be softer."""
PAIR_KINDS = (
    *("recolour", "reshape", "remove", TURNED, "move", "recolour", "add", "ground", "reshape", "remove", "pattern"),
    *("recolour", TURNED, "time", "remove", "move", "recolour", "add", "reshape", TURNED, "pattern", "resize"),
)
"""Kinds of edit of the pairs, in turn. Grounds and lights are learned from few pairs; recolours of objects that were
not trained on stay twice as wrong as of those that were, so they come most often, then shapes
(docs/log/2026-11-27-edit-model.md)."""


class _Sample(NamedTuple):
    """What one pair shows."""

    edit: Edit
    camera: Cameras
    """Shows both scenes well."""
    prompt: PromptPair
    is_after_pictured: bool


def _sample(index: int, seed: int) -> _Sample:
    kind, item = PAIR_KINDS[index % len(PAIR_KINDS)], derive_seed("exact pair", seed, index)
    edit, camera = sample_pictured_edit("add" if kind == TURNED else kind, item)
    prompt = prompt_pair_of(edit, item, camera)
    if kind == TURNED:
        there, back = edit.instruction, prompt.undo
        edit = Edit(kind="remove", instruction=back, before=edit.after, after=edit.before)
        prompt = replace(prompt_pair_of(edit, item, camera), undo=there)
    return _Sample(edit, camera, prompt, kind == "remove" and item % 2 == 0)


def render_pairs(count: int, *, seed: int) -> Iterator[ExactPair]:
    """Render exact pairs, kinds of edit in turn, each seen by one camera that shows both scenes well."""
    return (render_pair(index, seed) for index in range(count))


def render_pair(index: int, seed: int) -> ExactPair:
    """Render the exact pair whose scenes are those of the prompt pair of this index; see `write_pictured_prompts`."""
    edit, camera, prompt, _ = _sample(index, seed)
    before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
    mask = torch.from_numpy(change_mask(before, after))
    return ExactPair(torch.from_numpy(before), torch.from_numpy(after), mask, prompt)


REFERENCED = ("look", "", "swap", "", "look", "", "another view", "", "swap", "")
"""What the reference of a pair shows, in turn: the look of an object, a thing to be put in an object's place, or the
edited scene from another side; empty for an ordinary pair without a reference. Half of them are ordinary, since the
model that comes of it is the one for words as well."""
UNMASKED_SHARE = 0.3
"""Share of references, among those with nothing but the object that is meant, that come without its mask."""


def render_referenced_pairs(count: int, *, seed: int) -> Iterator[ExactPair]:
    """Render exact pairs with references, and ordinary ones among them, by `REFERENCED` in turn."""
    return (render_referenced_pair(index, seed) for index in range(count))


def render_referenced_pair(index: int, seed: int) -> ExactPair:
    """Render the exact pair of this index, and what its instruction refers to."""
    shown, item = REFERENCED[index % len(REFERENCED)], derive_seed("referenced pair", seed, index)
    if not shown:
        return render_pair(index // len(REFERENCED), item)
    if shown == "another view":
        kind = ("recolour", "pattern", "reshape", "add")[index // len(REFERENCED) % 4]
        edit, camera = sample_pictured_edit(kind, item)
        prompt = prompt_pair_of(edit, item, camera)
        aside = sample_camera(edit.after, derive_seed("another view", item))
        before, after = render_view(edit.before, aside).image, render_view(edit.after, aside).image
        changed = torch.from_numpy(change_mask(before, after))
        # Where another object hides all of it, there is nothing to refer to.
        reference = ShownPicture(torch.from_numpy(after), changed) if changed.any() else None
    else:
        edit, camera = sample_referenced_edit(shown, item)
        prompt = PromptPair(
            source=caption_of(edit.before, item, camera),
            target=caption_of(edit.after, item, camera),
            instruction=edit.instruction,
            kind=edit.kind,
            undo=undo_of(edit, item) if shown == "look" else "",
        )
        reference = render_reference(edit, item)
        is_alone = len(reference_scene(edit, item).objects) == 1
        if is_alone and item % 100 < 100 * UNMASKED_SHARE:
            reference = reference._replace(mask=None)
    before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
    mask = torch.from_numpy(change_mask(before, after))
    return ExactPair(torch.from_numpy(before), torch.from_numpy(after), mask, prompt, reference)


def write_pictured_prompts(folder: Path, count: int, *, seed: int) -> Iterator[Progress]:
    """Write `<folder>/prompts.jsonl` and the pictures that it names; pictures that are there are kept.

    Kinds come in turn. The picture shows the scene before the edit; of half of the removals, but for `TURNED` ones, the
    one after. There what has to be made is the object, softer than a render's own; in the others it is what was behind.
    """
    pairs: list[PromptPair] = []
    for index in range(count):
        edit, camera, prompt, is_target = _sample(index, seed)
        name = f"pictures/{index:06d}.png"
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            view = render_view(edit.after if is_target else edit.before, camera)
            with write_atomically(path) as temporary:
                Image.fromarray(to_uint8(torch.from_numpy(view.image))).save(temporary, format="PNG")
        pairs.append(replace(prompt, picture=name, pictured="target" if is_target else "source"))
        if index % 100 == 99 or index + 1 == count:
            yield Progress(stage="pictured prompts", done=index + 1, total=count)
    write_prompts(folder / "prompts.jsonl", pairs)
