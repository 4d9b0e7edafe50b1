"""Reads a capture in whatever form people have it: looks at a path, says what it is, and calls that form's reader."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from restage.records import InputError
from restage.scenes.capture import Capture
from restage.scenes.io.colmap import find_model, read_colmap
from restage.scenes.io.images import IMAGE_SUFFIXES, list_images
from restage.scenes.io.nerfstudio import read_nerfstudio
from restage.scenes.io.photographs import read_photographs
from restage.scenes.io.views import HOLD_OUT_EVERY, ReadOptions

__all__ = ["CaptureSource", "capture_name", "is_capture", "read_capture", "recognize_capture"]

PLACE_NAMES = ("capture", "images", "input", "sparse", "colmap", "0")
"""Folder names that say where in a capture something lies, not which capture it is."""


class CaptureSource(NamedTuple):
    """What a path turned out to be."""

    form: Literal["nerfstudio", "colmap", "photographs"]
    path: Path
    """The JSON file, the folder that the model is found from, or the folder of photographs."""
    name: str
    """Of the capture."""


def capture_name(path: Path) -> str:
    """The name that a capture gets from its path: the innermost folder with a name of its own."""
    resolved = path.resolve()
    folder = resolved.parent if resolved.is_file() else resolved
    named = [place.name for place in (folder, *folder.parents) if place.name and place.name not in PLACE_NAMES]
    return named[0] if named else "capture"


def is_capture(path: Path) -> bool:
    """Whether a path is a capture of a known form, and not a run or a fitted scene, which have pictures too."""
    if any((path / name).exists() for name in ("run.json", "splats.ply")):
        return False
    try:
        recognize_capture(path)
    except InputError:
        return False
    return True


def recognize_capture(path: Path) -> CaptureSource:
    """Say what a path is, from the names of files alone.

    In this order: a JSON file or a folder with `transforms.json` (nerfstudio); a COLMAP model, or a folder with one
    in `sparse/0`, `sparse`, `colmap/sparse/0` or `colmap/sparse`; a folder of images, or one with images in `images`.

    Raises:
        InputError: it is none of these.
    """
    name = capture_name(path)
    if path.is_file():
        if path.suffix.lower() == ".json":
            return CaptureSource("nerfstudio", path, name)
        raise InputError(f"{path}: expected a folder or a transforms.json, got another file; give the capture's folder")
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give the folder of a capture, or its transforms.json")
    if (path / "transforms.json").is_file():
        return CaptureSource("nerfstudio", path / "transforms.json", name)
    if find_model(path) is not None:
        return CaptureSource("colmap", path, name)
    for folder in (path, path / "images", path / "input"):
        if list_images(folder):
            return CaptureSource("photographs", folder, name)
    raise InputError(
        f"{path} holds no capture: expected transforms.json, a COLMAP model (cameras.bin, images.bin, or .txt; here or "
        f"in sparse/0), or photographs ({' '.join(IMAGE_SUFFIXES)})"
    )


def read_capture(path: Path, size: int | None = None, *, hold_out_every: int = HOLD_OUT_EVERY) -> Capture:
    """Read a capture of any form that `recognize_capture` knows; lens distortion is taken out.

    Args:
        path: A nerfstudio folder or its JSON file, a COLMAP project or model, or a folder of photographs, whose cameras
            are then found with pycolmap (minutes).
        size: Longer side of the images in pixels; they are only ever made smaller. Default: as they are.
        hold_out_every: Every so many-th view by name is held out, unless the files have a split; 0 holds out none.

    Raises:
        InputError: anything that is missing, broken or absurd, in one line that names the file.
    """
    options = ReadOptions(size=size, hold_out_every=hold_out_every)
    source = recognize_capture(path)
    if source.form == "nerfstudio":
        return read_nerfstudio(source.path, source.name, options)
    if source.form == "photographs":
        return read_photographs(source.path, source.name, options)
    model = find_model(source.path)
    assert model is not None
    return read_colmap(model, source.name, options)
