"""Edits that a picture asks for, and that picture: another scene that shows the look, or the thing, that is meant.

Camera, light and ground of the picture are others than the edited scene's, and half of the pictures show a second
object; a mask says which one is meant. Called by the world stage, by the edit model's recipe and by benchmarks.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from restage.records import derive_seed
from restage.scenes.io.images import to_uint8
from restage.scenes.references import GivenPicture, ShownPicture
from restage.world.capture import PicturedEdit, clearness_of, sample_camera, sample_pictured_edit
from restage.world.description import KINDS, Edit
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.places import name_of
from restage.world.render import render_view
from restage.world.second import reference_scene

__all__ = ["REFERENCED_KINDS", "SWAP", "give_picture", "render_reference", "sample_referenced_edit", "swap_of"]

SWAP = "swap"
"""Kind of the edits that put the thing of a picture in the place of an object."""
REFERENCED_KINDS = ("look", SWAP)
_SWAPS = ("replace the {name} with the thing in the picture", "put the thing in the picture in place of the {name}")


def swap_of(edit: Edit, seed: int) -> Edit:
    """Make an edit of the kind `look` also change the shape of its object, to a kind that the scene does not have."""
    rng = np.random.default_rng(derive_seed("swap", seed))
    (index,) = (i for i, item in enumerate(edit.after.objects) if item not in edit.before.objects)
    kind = str(rng.choice([kind for kind in KINDS if kind not in {item.kind for item in edit.before.objects}]))
    item = replace(edit.after.objects[index], kind=kind)
    objects = (*edit.after.objects[:index], item, *edit.after.objects[index + 1 :])
    instruction = str(rng.choice(_SWAPS)).format(name=name_of(edit.before, index))
    return Edit(kind=SWAP, instruction=instruction, before=edit.before, after=replace(edit.after, objects=objects))


def sample_referenced_edit(kind: str, seed: int, *, split: str = "train", size: int = 128) -> PicturedEdit:
    """Sample an edit of one of `REFERENCED_KINDS` for a single picture; see `sample_pictured_edit`."""
    for draw in itertools.count():
        item = derive_seed("referenced edit", seed, draw)
        edit, camera = sample_pictured_edit("look", item, split=split, size=size)
        if kind != SWAP:
            return PicturedEdit(edit, camera)
        swap = swap_of(edit, item)
        if clearness_of(swap.after, camera) >= 1:
            return PicturedEdit(swap, camera)
    raise AssertionError("a count does not end")


def render_reference(edit: Edit, seed: int, *, size: int = 128) -> ShownPicture:
    """Render the picture that an edit of `REFERENCED_KINDS` refers to, and the mask of the object that is meant."""
    scene = reference_scene(edit, seed)
    view = render_view(scene, sample_camera(scene, derive_seed("reference camera", seed), size=size))
    return ShownPicture(torch.from_numpy(view.image), torch.from_numpy(view.object_ids == FIRST_OBJECT_ID).float())


def give_picture(shown: ShownPicture) -> GivenPicture:
    """Write a picture and its mask as the bytes of PNG files, as a user would give them."""
    mask = b"" if shown.mask is None else _png(to_uint8(shown.mask[None])[..., 0])
    return GivenPicture(_png(to_uint8(shown.picture)), mask)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
