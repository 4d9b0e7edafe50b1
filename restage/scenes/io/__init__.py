"""Captures and splats as files: captures of many forms in, nerfstudio's out; splats in six formats.

A scene format is a `SceneFormat` and its line of `SCENE_FORMATS`; `read_capture` asks them in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from restage.records import InputError
from restage.run.layout import RUN_RECORD, SPLATS
from restage.scenes.capture import Capture
from restage.scenes.io.colmap import COLMAP
from restage.scenes.io.nerfstudio import BLENDER, NERFSTUDIO, write_capture
from restage.scenes.io.photographs import PHOTOGRAPHS, VIDEO
from restage.scenes.io.pinholes import GAUSSIAN_SPLATTING, LLFF, POLYCAM, RECORD3D
from restage.scenes.io.ply import read_points, write_points
from restage.scenes.io.posed import HOLD_OUT_EVERY, ReadOptions, SceneFormat
from restage.scenes.io.splat_files import SPLAT_FORMATS, read_splats, splats_in, write_splats
from restage.scenes.io.views import make_capture

__all__ = [
    "CaptureSource",
    "SCENE_FORMATS",
    "SPLAT_FORMATS",
    "capture_name",
    "is_capture",
    "read_capture",
    "read_points",
]
__all__ += ["read_points", "read_splats", "recognize_capture", "write_capture", "write_points", "write_splats"]

SCENE_FORMATS: dict[str, SceneFormat] = {
    "nerfstudio": NERFSTUDIO,
    "blender": BLENDER,
    "colmap": COLMAP,
    "llff": LLFF,
    "polycam": POLYCAM,
    "record3d": RECORD3D,
    "gaussian-splatting": GAUSSIAN_SPLATTING,
    "video": VIDEO,
    "photographs": PHOTOGRAPHS,
}
"""Asked in this order: formats with cameras before plain photographs, which most of the others hold too."""

PLACE_NAMES = ("capture", "images", "input", "sparse", "colmap", "keyframes", "0")
"""Folder names that say where in a capture something lies, not which capture it is."""


class CaptureSource(NamedTuple):
    """What a path turned out to be."""

    form: str  # a key of `SCENE_FORMATS`
    path: Path  # what the format's `find` has found
    name: str


def capture_name(path: Path) -> str:
    """Return a capture's name by its path: the innermost folder with a name of its own, or the video's file name."""
    resolved = path.resolve()
    if VIDEO.find(resolved) is not None:
        return resolved.stem
    folder = resolved.parent if resolved.is_file() else resolved
    named = [place.name for place in (folder, *folder.parents) if place.name and place.name not in PLACE_NAMES]
    return named[0] if named else "capture"


def is_capture(path: Path) -> bool:
    """Whether a path is a capture of a known form, and not a run or a fitted scene, which have pictures too."""
    if any((path / name).exists() for name in (RUN_RECORD, SPLATS)):
        return False
    try:
        recognize_capture(path)
    except InputError:
        return False
    return True


def recognize_capture(path: Path) -> CaptureSource:
    """Say what a path is, from names of files alone: the first of `SCENE_FORMATS` that finds something there."""
    if not path.exists():
        raise InputError(f"{path} is not a folder and not a file; give the folder of a capture, or a video")
    is_unpacked = path.is_dir() and bool(splats_in(path))  # a SOG, whose pictures are no photographs
    for form, scene_format in () if is_unpacked else SCENE_FORMATS.items():
        found = scene_format.find(path)
        if found is not None:
            return CaptureSource(form, found, capture_name(path))
    if content := splats_in(path):
        raise InputError(
            f"{path} holds splats or points ({content}); a fit needs the pictures and their cameras: give their folder"
        )
    if path.is_file():
        raise InputError(f"{path}: expected a folder, a transforms.json or a video, got another file")
    expected = "; ".join(scene_format.expected for scene_format in SCENE_FORMATS.values())
    raise InputError(f"{path} holds no capture; expected one of these: {expected}")


def read_capture(
    path: Path, size: int | None = None, *, hold_out_every: int = HOLD_OUT_EVERY, follow_paths: bool = False
) -> Capture:
    """Read a capture of any form in `SCENE_FORMATS`; lens distortion is taken out, and every view is upright.

    Args:
        path: A folder, a transforms.json or a video. The cameras of photographs and of videos are found with pycolmap,
            which takes minutes.
        size: Longer side of the images in pixels; they are only ever made smaller. Default: as they are.
        hold_out_every: Every n-th view by name is held out, unless the files have a split; 0 holds out none.
        follow_paths: Whether pictures outside of the folder are used where the files name them.

    Raises:
        InputError: anything that is missing, broken or absurd, in one line that names the file.
    """
    options = ReadOptions(size=size, hold_out_every=hold_out_every, follow_paths=follow_paths)
    source = recognize_capture(path)
    return make_capture(source.name, SCENE_FORMATS[source.form].read(source.path, source.name, options), options)
