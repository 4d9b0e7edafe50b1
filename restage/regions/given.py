"""Where a scene may change, as its user says it: a region, masks of views, or boxes on some of them."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, read_json
from restage.regions.files import load_region, region_path
from restage.regions.masks import INSIDE, keep_largest, lift_boxes, lift_masks
from restage.regions.region import Region, render_region
from restage.scenes.capture import Capture
from restage.scenes.io.images import quantize, read_mask
from restage.scenes.splats import Splats

__all__ = ["find_region", "read_given", "read_regions", "region_of_boxes", "region_of_masks"]


def find_region(given: Path, scene_folder: Path) -> Path:
    """The file or folder that a user means: the region of this name in the scene, or else the path as it is."""
    if given.exists():
        return given
    if len(given.parts) == 1 and (path := region_path(scene_folder, given.name)).is_file():
        return path
    raise InputError(
        f"{given} is no region of {scene_folder.name} and no file or folder; list regions with: "
        f"restage region {scene_folder.parent.parent}"
    )


def read_regions(path: Path, capture: Capture, splats: Splats) -> Float[Tensor, "n h w"]:
    """Read where each view of a capture may change: 1 inside, on the levels of a file.

    The path is a region's file, a JSON file of boxes (`region_of_boxes`), or a folder of masks, PNG by the views'
    names. Masks of all views are taken as they are, those of some as `region_of_masks` takes them.
    """
    if path.suffix == ".npz":
        return render_region(load_region(path, splats), splats, capture.cameras)
    if path.is_dir():
        masks = _read_masks(path, capture)
        if len(masks) == len(capture.file_names):
            return quantize(torch.stack(list(masks.values())))
        return render_region(region_of_masks(path, capture, splats), splats, capture.cameras)
    return render_region(region_of_boxes(path, capture, splats), splats, capture.cameras)


def read_given(path: Path, capture: Capture, splats: Splats) -> Region:
    """Read which splats are meant from the paths that `read_regions` takes."""
    if path.suffix == ".npz":
        return load_region(path)
    return (region_of_masks if path.is_dir() else region_of_boxes)(path, capture, splats)


def region_of_boxes(path: Path, capture: Capture, splats: Splats) -> Region:
    """Make the region of boxes on some views, from JSON: `{name: [left, top, right, bottom]}`.

    Numbers are shares of width and height. What lies inside all boxes is found among the splats, and its largest piece
    is what they mean.
    """
    cameras, names = capture.cameras, [Path(name).name for name in capture.file_names]
    boxes = read_json(path, dict[str, tuple[float, float, float, float]])
    known = {name: box for name, box in boxes.items() if name in names}
    if not known or not all(0 <= a < c <= 1 and 0 <= b < d <= 1 for a, b, c, d in known.values()):
        raise InputError(
            f"{path}: expected boxes as [left, top, right, bottom], shares of the view's width and height, by names of "
            f"views such as {names[0]}"
        )
    drawn = torch.tensor(list(known.values())) * torch.tensor([cameras.width, cameras.height] * 2)
    chosen = [names.index(name) for name in known]
    weights = keep_largest(splats, lift_boxes(splats, cameras[chosen], drawn))
    if not bool((weights > 0).any()):
        raise InputError(f"{path}: no part of the scene lies inside all of the boxes")
    return Region.of(splats, weights, by="boxes", boxes=known)


def region_of_masks(path: Path, capture: Capture, splats: Splats) -> Region:
    """Make the region that masks of some views show, PNG by the views' names: most of what a splat shows is in them."""
    masks = _read_masks(path, capture)
    if not masks:
        raise InputError(f"{path}: expected masks as PNG by the names of views, such as {_mask_names(capture)[0]}")
    lifted = lift_masks(splats, capture.cameras[list(masks)], torch.stack(list(masks.values())).to(splats.means.device))
    if not bool((lifted >= INSIDE).any()):
        raise InputError(f"{path}: no splat shows mostly what is inside of the masks")
    return Region.of(splats, lifted, by="masks", views=[capture.file_names[view] for view in masks])


def _mask_names(capture: Capture) -> list[str]:
    return [Path(name).with_suffix(".png").name for name in capture.file_names]


def _read_masks(folder: Path, capture: Capture) -> dict[int, Float[Tensor, "h w"]]:
    """The masks of a folder by the index of their view."""
    found = {}
    for view, name in enumerate(_mask_names(capture)):
        if (folder / name).is_file():
            found[view] = torch.from_numpy(read_mask(folder / name))
            if found[view].shape != capture.images.shape[2:]:
                size = f"{capture.cameras.width}x{capture.cameras.height}"
                raise InputError(f"{folder}: the mask of {name} has another size than the views, {size}")
    return found
