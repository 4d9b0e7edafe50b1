"""Splats that were trained elsewhere become the fit of a run: with their capture, or with cameras placed around them.

Without photographs, renders of the splats stand for them, so that every edit method can work. `fit.json` says which
file the splats came from, and its hash.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from restage.records import InputError, Progress, content_id, read_json, to_plain, write_record
from restage.run.folder import open_run, working
from restage.run.layout import CAPTURE, FIT_RECORD, SOURCE, SPLATS
from restage.run.reading import FitRecord
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import psnr, render_views
from restage.scenes.io import (
    SCENE_FORMATS,
    capture_name,
    read_capture,
    read_splats,
    recognize_capture,
    write_capture,
    write_splats,
)
from restage.scenes.io.posed import CamerasOnly, ReadOptions, split_every
from restage.scenes.io.sog import find_unpacked
from restage.scenes.io.splat_files import splats_sha256
from restage.scenes.io.views import make_capture
from restage.scenes.splats import SH_C0, Splats
from restage.scenes.stage import SourceCheck, capture_sha256, clear_fit, measure_fit
from restage.scenes.turning import move_splats

__all__ = ["Placed", "Placement", "UP_AXES", "Up", "capture_around", "place_cameras", "splats_name", "take_splats"]

Up = Literal["guess", "x", "-x", "y", "-y", "z", "-z"]
UP_AXES: dict[str, tuple[float, float, float]] = {
    "x": (1.0, 0.0, 0.0),
    "-x": (-1.0, 0.0, 0.0),
    "y": (0.0, 1.0, 0.0),
    "-y": (0.0, -1.0, 0.0),
    "z": (0.0, 0.0, 1.0),
    "-z": (0.0, 0.0, -1.0),
}
USUAL_UP = ("x", "-y", "z")
"""Up along each axis, where a world has it: COLMAP's and most PLYs' has y down, nerfstudio's z up."""
FLAT = 0.5
"""Share of the middle variance that the least one stays below, where a scene is flat enough to show what is up."""
ELEVATIONS_RAD = (math.radians(12), math.radians(35))
FOV_RAD = math.radians(50)
SIDE_PX, MAX_SIDE_PX = 256, 4096
NUM_VIEWS = 24
OPAQUE = 0.3
MAX_POINTS = 10_000
OTHER_FRAME_DB = 10.0
"""Splats that render the training views worse than this are of another frame or scene: a gray picture does better."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How cameras are placed around splats."""

    up: Up = "guess"
    """Which axis of the file is up; guess: the one that the scene is flattest along, if it is flat."""
    num_views: int = NUM_VIEWS
    size: int = SIDE_PX
    """Width and height in pixels."""

    def __post_init__(self) -> None:
        if self.up not in ("guess", *UP_AXES):
            raise InputError(f"expected up to be guess or one of {', '.join(UP_AXES)}, got {self.up!r}")
        if self.num_views < 3 or not 16 <= self.size <= MAX_SIDE_PX:
            limits = f"16 to {MAX_SIDE_PX} px"
            raise InputError(f"expected 3 views or more of {limits}, got {self.num_views} of {self.size} px")


class _Middle(NamedTuple):
    """Where a scene is dense."""

    center: Float[Tensor, " 3"]
    reach: float  # nine tenths of what is near lie within
    points: Float[Tensor, "m 3"]


class Placed(NamedTuple):
    """Splats in a world with z up, and cameras around them."""

    cameras: Cameras
    splats: Splats
    change: Float[Tensor, "4 4"]  # rotation from the file's world to this one, float64
    up: tuple[float, float, float]  # direction that is up in the file


def place_cameras(splats: Splats, placement: Placement, file: Path) -> Placed:
    """Turn splats so that z is up, and let two rings of cameras look at their dense middle."""
    up = _guess_up(_middle_of(splats).points) if placement.up == "guess" else UP_AXES[placement.up]
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] = torch.from_numpy(Rotation.align_vectors([[0, 0, 1]], [up])[0].as_matrix())
    moved = move_splats(splats, change)
    upright = replace(moved, means=moved.means.float())
    center, reach, _ = _middle_of(upright)
    if not 0 < reach < 1e6:
        raise InputError(f"{file}: expected splats that fill some space, got nine tenths within {reach:.3g} units")
    # The ball that holds the middle fills the picture.
    distance = reach / math.sin(FOV_RAD / 2)
    counts = (placement.num_views - placement.num_views // 2, placement.num_views // 2)
    rings = [
        orbit(
            count,
            distance * math.cos(elevation),
            height=float(center[2]) + distance * math.sin(elevation),
            target=center,
            start_rad=index * math.pi / max(count, 1),  # the upper ring stands between the cameras of the lower one
        )
        for index, (count, elevation) in enumerate(zip(counts, ELEVATIONS_RAD, strict=True))
    ]
    intrinsics = intrinsics_from_fov(FOV_RAD, placement.size, placement.size)
    poses = torch.cat(rings)
    cameras = Cameras(poses, intrinsics.expand(len(poses), 3, 3).contiguous(), placement.size, placement.size)
    return Placed(cameras, upright, change, up)


def capture_around(splats: Splats, name: str, placement: Placement, file: Path) -> tuple[Capture, Splats]:
    """Return renders by the cameras of `place_cameras`, and the splats in their world."""
    cameras, upright, change, up = place_cameras(splats, placement, file)
    split = split_every(len(cameras), ReadOptions().hold_out_every)
    shown = upright[torch.sigmoid(upright.opacity_logits) > OPAQUE]
    shown = shown[:: len(shown) // MAX_POINTS + 1]
    capture = Capture(
        name=name,
        cameras=cameras,
        images=render_views(upright, cameras).clamp(0, 1),
        file_names=tuple(f"around_{index:03d}.png" for index in range(len(cameras))),
        points=shown.means,
        point_colors=(0.5 + SH_C0 * shown.sh[:, 0]).clamp(0, 1),
        train_indices=split.train,
        held_out_indices=split.held_out,
        own_to_world=change,
        notes=(f"renders of {file.name} stand for photographs; cameras were placed around it, up is {_named(up)}",),
    )
    return capture, upright


def _middle_of(splats: Splats) -> _Middle:
    """Find the dense middle by medians, again among what is near, so that floaters and far backgrounds do not count."""
    is_opaque = torch.sigmoid(splats.opacity_logits) > OPAQUE
    points = splats.means[is_opaque if int(is_opaque.sum()) > 3 else slice(None)].double()
    for _ in range(3):
        center = points.median(dim=0).values
        distances = (points - center).norm(dim=1)
        points = points[distances <= 3 * distances.median()]
    center = points.median(dim=0).values
    distances = (points - center).norm(dim=1).sort().values
    return _Middle(center.float(), float(distances[int(0.9 * (len(distances) - 1))]), points)


def _guess_up(points: Float[Tensor, "m 3"]) -> tuple[float, float, float]:
    variances, axes = torch.linalg.eigh(torch.cov(points.T)) if len(points) > 3 else (torch.ones(3), torch.eye(3))
    is_flat = float(variances[0]) < FLAT * float(variances[1])
    return UP_AXES[USUAL_UP[int(axes[:, 0].abs().argmax())] if is_flat else "-y"]


def _named(up: tuple[float, float, float]) -> str:
    return next(name for name, axis in UP_AXES.items() if axis == up)


def splats_name(file: Path) -> str:
    """Return the name of the scene that splats become: that of their file or folder, without endings."""
    meta = find_unpacked(file)
    return (file if meta is None else meta.resolve().parent).name.split(".")[0] or "splats"


def take_splats(
    file: Path,
    folder: Path,
    *,
    capture: Path | None = None,
    cameras: Path | None = None,
    placement: Placement = Placement(),  # noqa: B008
    options: ReadOptions = ReadOptions(),  # noqa: B008
    again: bool = False,
) -> Iterator[Progress]:
    """Take a file of splats as the fit of the only scene of a run, which is made if it does not exist.

    Args:
        file: Splats of any format that is read, in the frame of the capture, if there is one.
        folder: Folder of the run.
        capture: The capture that they were trained on; its pictures are the originals.
        cameras: A capture of which only the cameras are used, and which may lack its pictures; renders are the
            originals.
        placement: How cameras are placed, with neither of them.
        options: How the capture is read.
        again: Whether a finished fit of another capture or other splats is thrown away.
    """
    started_s = time.perf_counter()
    scene_folder = folder / "scenes" / (capture_name(capture) if capture else splats_name(file))
    splats = read_splats(file)
    source = None if capture is None else SourceCheck(capture, scene_folder, options, again=again)
    others = None if cameras is None else _read_cameras(cameras, options)
    sha256 = splats_sha256(file)
    how = {
        "splats_sha256": sha256,
        "has_photographs": source is not None,
        "cameras_sha256": None if others is None else capture_sha256(others),
        "placement": placement if source is None and others is None else None,
    }
    config = to_plain(how)
    identity = content_id("fit", config)
    if (scene_folder / FIT_RECORD).exists() and not (again and source is not None):
        if read_json(scene_folder / FIT_RECORD, FitRecord).id != identity:
            way = "fit it anew with --again, or elsewhere with --out" if source else f"move {folder} away first"
            raise InputError(f"{scene_folder} holds another fit, or other splats; {way}")
        yield Progress(stage="scenes", done=1, total=1, note="taken before")
        return
    if source is None and (scene_folder / SOURCE).is_file():
        raise InputError(f"{scene_folder} holds a capture whose fit has begun; choose another --out")
    if source is not None:
        seen = source.capture or read_capture(scene_folder / CAPTURE)
        upright = _in_frame_of(seen, splats)
        _check_frame(upright, seen, file)
    elif others is not None:
        upright = _in_frame_of(others, splats)
        note = f"renders of {file.name} stand for photographs; the cameras are those of {others.name}"
        images = render_views(upright, others.cameras).clamp(0, 1)
        seen = replace(others, name=scene_folder.name, images=images, masks=None, notes=(note,))
    else:
        seen, upright = capture_around(splats, scene_folder.name, placement, file)
    with working(open_run(folder), "scenes"):
        if source is not None:
            source.write()
        else:
            clear_fit(scene_folder)
            write_capture(seen, scene_folder / CAPTURE)
        write_splats(upright, scene_folder / SPLATS)
        written = read_capture(scene_folder / CAPTURE)
        record = measure_fit(written, scene_folder, read_splats(scene_folder / SPLATS))
        record |= {
            "id": identity,
            "capture_sha256": capture_sha256(written),
            "config": config,
            "steps": 0,
            "splats_from": {"file": file.name, "sha256": sha256},
        }
        record["seconds"] = time.perf_counter() - started_s
        files = [scene_folder / SPLATS, *scene_folder.glob("held_out*.png"), *scene_folder.glob("held_out/*.png")]
        write_record(scene_folder / FIT_RECORD, record, files=files)
        yield Progress(stage="scenes", done=1, total=1, note=f"{len(upright)} splats taken from {file.name}")


def _read_cameras(path: Path, options: ReadOptions) -> Capture:
    source, only = recognize_capture(path), CamerasOnly(**asdict(options))
    return make_capture(source.name, SCENE_FORMATS[source.form].read(source.path, source.name, only), only)


def _in_frame_of(capture: Capture, splats: Splats) -> Splats:
    moved = splats if capture.own_to_world is None else move_splats(splats, capture.own_to_world)
    return replace(moved, means=moved.means.float())


def _check_frame(splats: Splats, capture: Capture, file: Path) -> None:
    views = list(capture.train_indices[:4])
    weights = None if capture.masks is None else capture.masks[views]
    value = float(psnr(render_views(splats, capture.cameras[views]), capture.images[views], weights).mean())
    if value < OTHER_FRAME_DB:
        raise InputError(
            f"{file}: expected splats in the frame of {capture.name}'s cameras, got a PSNR of {value:.1f} dB on its "
            "views; give the frame's own transforms.json or COLMAP model as the capture"
        )
