"""What holds the layout of pictures from text: files of conditions, views of a scene, frames of a clip."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.branches import Branch, near_of
from restage.diffusion.conditions import Conditions, invert_depth, near_depth, slots_of
from restage.records import InputError
from restage.regions.files import list_regions
from restage.regions.ids import render_ids
from restage.run.layout import CAPTURE, SPLATS, counting_order
from restage.scenes.cameras import Cameras
from restage.scenes.io import read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.layouts import read_condition, read_ids, splat_depths
from restage.scenes.splats import Splats
from restage.scenes.stage import find_scene

__all__ = ["layouts_like", "read_layouts"]


def read_layouts(control: Sequence[str], like: str, branches: Sequence[Branch]) -> list[Conditions]:
    """Read the conditions of one picture, or of several frames.

    Each of `control` is NAME=FILE, or NAME=FOLDER with a file for each frame; `like` is as in `layouts_like`. What is
    given once holds in all frames; what a file says goes before what a scene says.

    Raises:
        InputError: one is not readable, is given twice or taken by no branch, or the numbers of frames differ.
    """
    near, taken = near_of(branches), {name for branch in branches for name in branch.conditions}
    found: dict[str, list[Tensor]] = {}
    for conditions in layouts_like(like, near, takes_ids="ids" in taken) if like else []:
        for name, condition in conditions.items():
            found.setdefault(name, []).append(condition)
    given: set[str] = set()
    for text in control:
        name, sign, file = text.partition("=")
        if not name or not sign or not file:
            raise InputError(f"expected a condition as NAME=FILE, such as depth=depth.png, got {text!r}")
        if name not in taken:
            raise InputError(f"no control branch takes {name}; expected {' or '.join(sorted(taken))}")
        if name in given:
            raise InputError(f"{name} is given twice; for several frames, name a folder with a file for each")
        given.add(name)
        files = _files_of(Path(file))
        as_picture = any(branch.takes_picture and name in branch.conditions for branch in branches)
        if name == "ids" and not as_picture and files:
            found[name] = read_ids(files)
        else:
            found[name] = [read_condition(name, one, near=near, as_picture=as_picture) for one in files]
    counts = {len(frames) for frames in found.values()} - {1}
    if len(counts) > 1 or 0 in counts:
        told = ", ".join(f"{len(frames)} of {name}" for name, frames in found.items())
        raise InputError(f"expected a condition of each kind, or as many as there are frames, got {told}")
    number = max(counts, default=1)
    return [{name: frames[i % len(frames)] for name, frames in found.items()} for i in range(number)]


def _files_of(path: Path) -> list[Path]:
    """A file, or those of a folder, counted as people do: `depth-7` before `depth-11`."""
    if not path.is_dir():
        return [path]
    found = (one for one in path.iterdir() if one.is_file() and one.name[0] != ".")
    return sorted(found, key=lambda one: counting_order(one.name))


def layouts_like(like: str, near: float | None, *, takes_ids: bool = True) -> list[Conditions]:
    """Return depth, and ids if they are known, of RUN:VIEW, of all views of RUN, or of CLIP and CLIP:FRAME.

    `near` is the z depth that counts as 1; None for that of `near_depth`.

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
        frames = _frames_of(place, near, takes_ids=takes_ids)
        return [frames[_number(view, [f"frame_{i:03d}.png" for i in range(len(frames))], like)]] if view else frames
    scene = find_scene(place)
    if not (scene / CAPTURE).is_dir():
        raise InputError(f"{scene} holds splats without cameras; name the scene itself, RUN/scenes/SCENE")
    splats, capture = read_splats(scene / SPLATS), read_capture(scene / CAPTURE)
    cameras = capture.cameras
    if view:
        cameras = cameras[_number(view, capture.file_names, like)]
    return _views_of(scene, splats, cameras, near, takes_ids=takes_ids)


def _number(view: str, names: Sequence[str], like: str) -> int:
    if view in names:
        return list(names).index(view)
    if view.isdecimal() and int(view) < len(names):
        return int(view)
    raise InputError(f"{like}: expected a view out of {names[0]} to {names[-1]}, or 0 to {len(names) - 1}")


def _frames_of(clip: Path, near: float | None, *, takes_ids: bool) -> list[Conditions]:
    try:
        with np.load(clip / "truth.npz", allow_pickle=False) as arrays:
            depths, ids = arrays["depths"].astype(np.float32), arrays["object_ids"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{clip / 'truth.npz'} is not readable as the truth of a clip: {str(error)[:200]}") from None
    found = _inverted(torch.from_numpy(depths), near)
    if not takes_ids:
        return found
    # An object keeps its slot through the clip, also where it is hidden for a while.
    order = range(int(ids.max()) - 1)
    return [
        {**conditions, "ids": slots_of(torch.from_numpy(frame), order)}
        for conditions, frame in zip(found, ids, strict=True)
    ]


def _inverted(depths: Float[Tensor, "n h w"], near: float | None) -> list[Conditions]:
    near = near_depth(depths) if near is None else near
    return [{"depth": invert_depth(depth, near)} for depth in depths]


def _views_of(
    scene: Path, splats: Splats, cameras: Cameras, near: float | None, *, takes_ids: bool
) -> list[Conditions]:
    depths = splat_depths(splats, cameras)
    found = _inverted(depths, near)
    if not takes_ids:
        return found
    if not list_regions(scene.resolve().parents[1], scene.resolve().name):
        return found
    ids, num_things = render_ids(scene, splats, cameras, depths)
    order = range(num_things)
    return [{**conditions, "ids": slots_of(frame, order)} for conditions, frame in zip(found, ids, strict=True)]
