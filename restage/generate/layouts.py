"""What holds the layout of pictures from text: files of conditions, views of a scene, frames of a clip."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from restage.diffusion.branches import Branch
from restage.diffusion.conditions import Conditions, invert_depth, slots_of
from restage.diffusion.config import BranchSource
from restage.records import InputError
from restage.regions.files import list_regions, read_region
from restage.regions.masks import render_masks
from restage.run.layout import CAPTURE, SPLATS
from restage.run.models import ASSETS
from restage.scenes.cameras import Cameras
from restage.scenes.io import read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.layouts import read_condition, splat_depths
from restage.scenes.splats import Splats
from restage.scenes.stage import find_scene

__all__ = ["branch_sources", "layouts_like", "read_layouts"]


def branch_sources(texts: Sequence[str]) -> tuple[BranchSource, ...]:
    """Return the control branches that are named, or else the one that comes with the package."""
    if texts:
        return tuple(BranchSource.parse(text) for text in texts)
    shipped = ASSETS / "control"
    if not shipped.is_dir():
        raise InputError(
            "this package comes without a control branch; train one with restage miniature train control, or "
            "restage train-control, and name its folder with --branch"
        )
    return (BranchSource(folder=shipped),)


def read_layouts(control: Sequence[str], like: str, branches: Sequence[Branch]) -> list[Conditions]:
    """Read the conditions of one picture, or of several frames.

    Each of `control` is NAME=FILE, or NAME=FOLDER with a file for each frame; `like` is as in `layouts_like`. What is
    given once holds in all frames; what a file says goes before what a scene says.

    Raises:
        InputError: one is not readable, or the numbers of frames differ.
    """
    near = branches[0].near if branches else 1.0
    found: dict[str, list[Tensor]] = {}
    for conditions in layouts_like(like, near) if like else []:
        for name, condition in conditions.items():
            found.setdefault(name, []).append(condition)
    for text in control:
        name, sign, file = text.partition("=")
        if not name or not sign or not file:
            raise InputError(f"expected a condition as NAME=FILE, such as depth=depth.png, got {text!r}")
        path = Path(file)
        files = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
        as_picture = any(branch.takes_picture and name in branch.conditions for branch in branches)
        found[name] = [read_condition(name, one, near=near, as_picture=as_picture) for one in files]
    counts = {len(frames) for frames in found.values()} - {1}
    if len(counts) > 1 or 0 in counts:
        told = ", ".join(f"{len(frames)} of {name}" for name, frames in found.items())
        raise InputError(f"expected a condition of each kind, or as many as there are frames, got {told}")
    number = max(counts, default=1)
    return [{name: frames[i % len(frames)] for name, frames in found.items()} for i in range(number)]


def layouts_like(like: str, near: float) -> list[Conditions]:
    """Return depth, and ids if they are known, of RUN:VIEW, of all views of RUN, or of CLIP and CLIP:FRAME.

    RUN is a run with one fitted scene, or the scene's folder, VIEW the file name or number of a view; its depth is that
    of the splats, its ids those of the scene's regions. A region that is called `sky` or `ground` is that; what is in
    no region is ground where there are splats. A clip is a folder of `restage clip`, whose depth and ids are exact.
    """
    place, view = Path(like), ""
    if not place.exists():
        head, _, view = like.rpartition(":")
        place = Path(head)
        if not head or not place.exists():
            raise InputError(f"expected RUN:VIEW, RUN or the folder of a clip, got {like!r}, which is not there")
    if (place / "clip.json").is_file():
        frames = _frames_of(place, near)
        return [frames[_number(view, [f"frame_{i:03d}.png" for i in range(len(frames))], like)]] if view else frames
    scene = find_scene(place)
    if not (scene / CAPTURE).is_dir():
        raise InputError(f"{scene} holds splats without cameras; name the scene itself, RUN/scenes/SCENE")
    splats, capture = read_splats(scene / SPLATS), read_capture(scene / CAPTURE)
    cameras = capture.cameras
    if view:
        cameras = cameras[_number(view, capture.file_names, like)]
    return _views_of(scene, splats, cameras, near)


def _number(view: str, names: Sequence[str], like: str) -> int:
    if view in names:
        return list(names).index(view)
    if view.isdecimal() and int(view) < len(names):
        return int(view)
    raise InputError(f"{like}: expected a view out of {names[0]} to {names[-1]}, or 0 to {len(names) - 1}")


def _frames_of(clip: Path, near: float) -> list[Conditions]:
    try:
        with np.load(clip / "truth.npz", allow_pickle=False) as arrays:
            depths, ids = arrays["depths"].astype(np.float32), arrays["object_ids"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{clip / 'truth.npz'} is not readable as the truth of a clip: {str(error)[:200]}") from None
    # An object keeps its slot through the clip, also where it is hidden for a while.
    order = range(int(ids.max()) - 1)
    return [
        {"depth": invert_depth(torch.from_numpy(depth), near), "ids": slots_of(torch.from_numpy(frame), order)}
        for depth, frame in zip(depths, ids, strict=True)
    ]


def _views_of(scene: Path, splats: Splats, cameras: Cameras, near: float) -> list[Conditions]:
    run, name = scene.resolve().parents[1], scene.resolve().name
    regions = {region: read_region(run, name, region, splats).weights for region in list_regions(run, name)}
    depths = splat_depths(splats, cameras)
    found: list[Conditions] = [{"depth": invert_depth(depth, near)} for depth in depths]
    if not regions:
        return found
    ids: Int[Tensor, "n h w"] = torch.isfinite(depths).long()
    things = [region for region in regions if region not in ("sky", "ground")]
    for region, weights in regions.items():
        number = 2 + things.index(region) if region in things else int(region == "ground")
        ids[render_masks(splats, cameras, weights) > 0.5] = number
    order = range(len(things))
    return [{**conditions, "ids": slots_of(frame, order)} for conditions, frame in zip(found, ids, strict=True)]
