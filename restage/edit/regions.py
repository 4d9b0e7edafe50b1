"""Where a scene may change, as its user says it: masks of the views, or boxes on some of them."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.masks import keep_largest, lift_boxes, render_masks
from restage.edit.pictures import quantize, read_mask
from restage.records import InputError, read_json
from restage.scenes.capture import Capture
from restage.scenes.splats import Splats

__all__ = ["read_regions"]

FAINT = 0.05
"""Rendered masks fade out far around what they show; below this they are 0."""


def read_regions(path: Path, capture: Capture, splats: Splats) -> Float[Tensor, "n h w"]:
    """Read where each view of a capture may change: 1 inside, on the levels of a file.

    The path is a folder with a mask for each view, PNG by the view's name, or a JSON file of boxes on some views:
    `{name: [left, top, right, bottom]}` as shares of width and height. What lies inside all boxes is found among the
    splats, and its largest piece is what they mean.
    """
    cameras, names = capture.cameras, [Path(name).name for name in capture.file_names]
    if path.is_dir():
        masks = [read_mask(path / Path(name).with_suffix(".png")) for name in names]
        wrong = [name for name, mask in zip(names, masks, strict=True) if mask.shape != capture.images.shape[2:]]
        if wrong:
            size = f"{cameras.width}x{cameras.height}"
            raise InputError(f"{path}: the mask of {wrong[0]} has another size than the views, {size}")
        return torch.stack(masks)
    boxes = read_json(path, dict[str, tuple[float, float, float, float]])
    known = {name: box for name, box in boxes.items() if name in names}
    if not known or not all(0 <= a < c <= 1 and 0 <= b < d <= 1 for a, b, c, d in known.values()):
        raise InputError(
            f"{path}: expected boxes as [left, top, right, bottom], shares of the view's width and height, by names of "
            f"views such as {names[0]}"
        )
    drawn = torch.tensor(list(known.values())) * torch.tensor([cameras.width, cameras.height] * 2)
    chosen = [names.index(name) for name in known]
    region = keep_largest(splats, lift_boxes(splats, cameras[chosen], drawn))
    if not bool((region > 0).any()):
        raise InputError(f"{path}: no part of the scene lies inside all of the boxes")
    masks = render_masks(splats, cameras, region)
    return quantize(torch.where(masks < FAINT, 0.0, masks))
