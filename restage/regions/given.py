"""Where a scene may change, as its user says it: a region, masks of views, or boxes on some of them."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.records import InputError, content_id, file_sha256, read_json
from restage.regions.files import is_region_name, load_region, read_record, region_path
from restage.regions.masks import INSIDE, keep_largest, lift_boxes, lift_masks
from restage.regions.region import Region, render_region
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io.images import quantize, read_mask
from restage.scenes.splats import Splats

__all__ = ["content_mark", "find_region", "has_all_masks", "read_given", "read_regions", "region_of_boxes"]
__all__ += ["region_of_masks"]

SAME_SHAPE = 0.02
"""Share by which the shape of a mask may differ from that of the views."""


def find_region(given: Path, scene_folder: Path) -> Path:
    """The file or folder that a user means: the region of this name in the scene, or else the path as it is."""
    if is_region_name(str(given)) and (path := region_path(scene_folder, str(given))).is_file():
        return path
    if given.exists():
        return given
    raise InputError(
        f"{given} is no region of {scene_folder.name} and no file or folder; list regions with: "
        f"restage region {scene_folder.parent.parent}"
    )


def read_regions(path: Path, capture: Capture, splats: Splats) -> Float[Tensor, "n h w"]:
    """Read where each view of a capture may change: 1 inside, on the levels of a file.

    The path is a region's file, a JSON file of boxes (`region_of_boxes`), or a folder of masks, PNG by the views'
    names. Masks of all views are taken as they are, those of some as `region_of_masks` takes them.
    """
    if has_all_masks(path, capture):
        return quantize(torch.stack(list(_read_masks(path, capture).values())))
    region = read_given(path, capture, splats)
    region.check_fits(splats, str(path))
    return render_region(region, splats, capture.cameras)


def has_all_masks(path: Path, capture: Capture) -> bool:
    """Whether a path is a folder with a mask for every view of a capture."""
    return path.is_dir() and all((path / name).is_file() for name in _mask_names(capture))


def content_mark(path: Path) -> str:
    """What tells apart what lies at a path that `read_regions` takes, now and after it was changed."""
    if path.suffix == ".npz":
        return read_record(path).id[-8:]
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    return content_id("where", [[file.name, file_sha256(file)] for file in files])[-8:]


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
    """Make the region that masks of some views show, PNG by the views' names: most of what a splat shows is in them.

    Masks may be larger than the views, as the photographs were that these were made of.
    """
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
            found[view] = _at_size(torch.from_numpy(read_mask(folder / name)), capture.cameras, folder / name)
    return found


def _at_size(mask: Float[Tensor, "_ _"], views: Cameras, path: Path) -> Float[Tensor, "h w"]:
    """A mask at the size of the views, if it has that or is larger and of the same shape."""
    height, width = mask.shape
    is_alike = abs(width * views.height / max(height * views.width, 1) - 1) <= SAME_SHAPE
    if not is_alike or height < views.height or width < views.width:
        raise InputError(
            f"{path.parent}: the mask of {path.name} has another size than the views: expected "
            f"{views.width}x{views.height} or larger in the same shape, got {width}x{height}"
        )
    if (height, width) == (views.height, views.width):
        return mask
    return functional.interpolate(mask[None, None], (views.height, views.width), mode="area")[0, 0]
