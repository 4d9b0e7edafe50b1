"""COLMAP models, text or binary: cameras, images and points of `sparse/0` beside a folder of images.

The formats are few and fixed (https://colmap.github.io/format.html; camera models: `src/colmap/sensor/models.h`), so
they are read here rather than through pycolmap, whose wheel is large; `tests/scenes/test_io_colmap.py` compares with
it where it is installed. Counts are checked against a file's length before anything is allocated.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from restage.records import InputError
from restage.scenes.io import posed
from restage.scenes.io.distortion import Lens, LensModel
from restage.scenes.io.images import list_images
from restage.scenes.io.ply import Points

__all__ = ["COLMAP", "ModelCamera", "ModelFiles", "ModelImage", "find_model", "lens_of", "pose_of", "read_cameras"]
__all__ += ["read_colmap_points", "read_images", "read_points"]

MODELS = (
    *(("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8)),
    *(("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12)),
)
"""Camera models and how many parameters they have, in the order of COLMAP's ids."""
NUM_PARAMS = dict(MODELS)
POINT_COLUMNS = np.dtype([("id", "u8"), *((name, "f8") for name in "xyz"), *((name, "i8") for name in "rgb")])
MAX_NAME_BYTES = 4096
MAX_LINE = 65536


class ModelCamera(NamedTuple):
    """A lens as COLMAP has it."""

    model: str  # a key of `NUM_PARAMS`
    width: int
    height: int
    params: tuple[float, ...]


class ModelImage(NamedTuple):
    """A posed image as COLMAP has it."""

    name: str
    camera_id: int
    rotation_wxyz: tuple[float, ...]  # world to camera, OpenCV axes
    translation: tuple[float, ...]


def read_cameras(path: Path) -> dict[int, ModelCamera]:
    """Cameras by id, from `cameras.bin` or `cameras.txt`."""
    cameras: dict[int, ModelCamera] = {}
    rows = _binary_cameras(path) if path.suffix == ".bin" else _text_cameras(path)
    for camera_id, model, width, height, params in rows:
        if not 0 < width < 1_000_000 or not 0 < height < 1_000_000:
            raise InputError(f"{path}: expected camera {camera_id} with a size in pixels, got {width}x{height}")
        cameras[camera_id] = ModelCamera(model, width, height, params)
    return cameras


def read_images(path: Path) -> list[ModelImage]:
    """Images that have a pose, from `images.bin` or `images.txt`; observations of points are passed over."""
    return list(_binary_images(path) if path.suffix == ".bin" else _text_images(path))


def read_points(path: Path) -> Points:
    """Points of `points3D.bin` or `points3D.txt` by id, float64; tracks are passed over."""
    rows = _binary_points(path) if path.suffix == ".bin" else _text_points(path)
    try:
        table = np.sort(np.fromiter(rows, dtype=POINT_COLUMNS), order="id")
    except OverflowError:
        raise InputError(f"{path}: expected ids and colors in their ranges, got a number that is too large") from None
    positions = np.stack([table[name] for name in "xyz"], axis=1)
    colors = np.stack([table[name] for name in "rgb"], axis=1)
    if not np.isfinite(positions).all():
        raise InputError(f"{path}: expected finite positions, got NaN or infinity")
    if len(colors) and not 0 <= colors.min() <= colors.max() <= 255:
        raise InputError(f"{path}: expected colors from 0 to 255, got {colors.min()} to {colors.max()}")
    return Points(torch.from_numpy(positions), torch.from_numpy(colors).float() / 255)


class _Reader:
    """Reads a binary file from front to back, with one clear error where it ends too early."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.offset = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        self.need(layout.size)
        values = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return values

    def count(self, min_bytes: int) -> int:
        """Read a count of records of at least `min_bytes` each, which the rest of the file must have room for."""
        (number,) = self.take(struct.Struct("<Q"))
        self.need(number * min_bytes)
        return number

    def skip_records(self, num_bytes: int) -> None:
        """Pass over a count and as many records of this size."""
        num_records = self.count(num_bytes)
        self.offset += num_records * num_bytes

    def text(self) -> str:
        end = self.data.find(b"\0", self.offset, self.offset + MAX_NAME_BYTES)
        if end < 0:
            raise InputError(f"{self.path}: expected a name that ends with a null byte at byte {self.offset}, got none")
        raw, self.offset = self.data[self.offset : end], end + 1
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: expected a name in UTF-8, got {raw[:40]!r}") from None

    def need(self, num_bytes: int) -> None:
        if self.offset + num_bytes > len(self.data):
            raise InputError(
                f"{self.path}: expected {num_bytes} bytes after byte {self.offset}, "
                f"got {len(self.data) - self.offset}; the file is cut off or not a COLMAP model"
            )

    def end(self) -> None:
        if self.offset != len(self.data):
            extra = len(self.data) - self.offset
            raise InputError(f"{self.path}: expected the end at byte {self.offset}, got {extra} more; no COLMAP model")


def _binary_cameras(path: Path) -> Iterator[tuple[int, str, int, int, tuple[float, ...]]]:
    reader, head = _Reader(path), struct.Struct("<iiQQ")
    for _ in range(reader.count(head.size)):
        camera_id, model_id, width, height = reader.take(head)
        if not 0 <= model_id < len(MODELS):
            raise InputError(f"{path}: expected a camera of {', '.join(NUM_PARAMS)}, got model number {model_id}")
        model, _ = MODELS[model_id]
        yield camera_id, model, width, height, reader.take(struct.Struct(f"<{NUM_PARAMS[model]}d"))
    reader.end()


def _binary_images(path: Path) -> Iterator[ModelImage]:
    reader, head = _Reader(path), struct.Struct("<i7di")
    for _ in range(reader.count(head.size + 1 + 8)):
        _, *pose, camera_id = reader.take(head)
        name = reader.text()
        yield ModelImage(name, camera_id, tuple(pose[:4]), tuple(pose[4:]))
        reader.skip_records(24)  # observations
    reader.end()


def _binary_points(path: Path) -> Iterator[tuple[float, ...]]:
    reader, head = _Reader(path), struct.Struct("<Q3d3Bd")
    for _ in range(reader.count(head.size + 8)):
        yield reader.take(head)[:7]
        reader.skip_records(8)  # the track
    reader.end()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments; empty ones are kept, since an image without observations has one.

    Lines are cut at MAX_LINE bytes: only tracks and observations, which nobody reads, may be longer.
    """
    try:
        with path.open("rb") as file:
            for number in itertools.count(1):
                line = rest = file.readline(MAX_LINE)
                while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE)
                if not line:
                    return
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", "ignore" if rest is not line else "strict")
                if not text.startswith("#"):
                    yield number, text.strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, got {error}") from None


def _broken(path: Path, number: int, expected: str, line: str) -> InputError:
    return InputError(f"{path}, line {number}: expected {expected}, got {line[:60]!r}")


def _parse(path: Path, number: int, line: str, kinds: Sequence[Callable[[str], Any]], expected: str) -> list[Any]:
    """The first words of a line, each as its kind; what a last kind of text gets may hold spaces."""
    words = line.split(maxsplit=len(kinds) - (kinds[-1] in (str, _floats)))
    try:
        return [kind(word) for kind, word in zip(kinds, words[: len(kinds)], strict=True)]
    except ValueError:
        raise _broken(path, number, expected, line) from None


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split())


def _text_cameras(path: Path) -> Iterator[tuple[int, str, int, int, tuple[float, ...]]]:
    kinds = (int, str, int, int, _floats)
    for number, line in _lines(path):
        if line:
            row = _parse(path, number, line, kinds, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS")
            camera_id, model, width, height, params = row
            if model not in NUM_PARAMS:
                raise _broken(path, number, f"a camera of {', '.join(NUM_PARAMS)}", line)
            if len(params) != NUM_PARAMS[model]:
                raise _broken(path, number, f"{NUM_PARAMS[model]} parameters of {model}", line)
            yield camera_id, model, width, height, params


def _text_images(path: Path) -> Iterator[ModelImage]:
    lines, kinds = _lines(path), (int, *(float,) * 7, int, str)
    for number, line in lines:
        if line:
            row = _parse(path, number, line, kinds, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
            _, *pose, camera_id, name = row
            if len(name) > MAX_NAME_BYTES:
                raise _broken(path, number, f"a name of at most {MAX_NAME_BYTES} characters", name)
            yield ModelImage(name, camera_id, tuple(pose[:4]), tuple(pose[4:]))
            next(lines, None)  # the observations: often empty, and then missing at the end of a file that was trimmed


def _text_points(path: Path) -> Iterator[tuple[float, ...]]:
    kinds = (int, float, float, float, int, int, int)
    for number, line in _lines(path):
        if line:
            yield tuple(_parse(path, number, line, kinds, "POINT3D_ID X Y Z R G B ERROR TRACK"))


MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "0")
"""Where a model lies, seen from the folder that a user names."""
IMAGE_FOLDERS = ("images", "input", *posed.SMALLER_COPIES)
"""Names of image folders; `input` is that of the converter of 3D Gaussian splatting."""
LENS_MODELS: dict[str, LensModel] = {
    **dict.fromkeys(("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"), "fisheye"),
    "FOV": "fov",
    "THIN_PRISM_FISHEYE": "thin_prism_fisheye",
}
"""All other models of COLMAP are Brown's, or parts of it."""
MAX_LEVELS_UP = 3
"""Number of folders between `colmap/sparse/0` and the one that holds the images."""
ENOUGH = 0.5
"""Share of the pictures that should have found a place in the model."""


class ModelFiles(NamedTuple):
    """A COLMAP model: a folder with cameras, images and points3D, all as `.bin` or all as `.txt`."""

    folder: Path
    suffix: str


def find_model(folder: Path) -> ModelFiles | None:
    """Return the model in a folder or in one of the usual places below it, or None; binary is preferred."""
    found = (_model_in(folder / place) for place in MODEL_FOLDERS)
    return next((model for model in (*found, *_numbered(folder)) if model is not None), None)


def _model_in(folder: Path) -> ModelFiles | None:
    both = [s for s in (".bin", ".txt") if all((folder / f"{n}{s}").is_file() for n in ("cameras", "images"))]
    return ModelFiles(folder, both[0]) if both else None


def _numbered(folder: Path) -> list[ModelFiles]:
    """The models beside each other in folders 0, 1, 2, ...: parts of a scene that COLMAP could not connect."""
    for place in ("sparse", "colmap/sparse", ""):
        folders = [path for path in (folder / place).glob("*") if path.name.isdecimal()]
        found = [_model_in(path) for path in sorted(folders, key=lambda path: int(path.name))]
        if any(found):
            return [model for model in found if model is not None]
    return []


def _read_colmap(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read the model with the most images, its images, and masks where `masks/<image name>.png` lies beside them.

    The world stays as it is, which with COLMAP is seldom upright; `turn_upright` of `scenes/capture.py` makes it so.
    """
    first = find_model(path)
    assert first is not None
    notes: list[str] = []
    siblings = _numbered(path) if _model_in(path) is None else []
    candidates = siblings if first in siblings else [first]
    models = [(model, read_images(model.folder / f"images{model.suffix}")) for model in candidates]
    model, images = max(models, key=lambda pair: len(pair[1]))
    images = sorted(images, key=lambda image: image.name)
    if len(models) > 1:
        counts = ", ".join(f"{other.folder.name} with {len(found)}" for other, found in models)
        posed.note(notes, f"{name}: of {len(models)} models (sparse/{counts} images), {model.folder.name} is used")
    place = model.folder / f"images{model.suffix}"
    if not 0 < len(images) <= posed.MAX_FRAMES:
        raise InputError(f"{place}: expected 1 to {posed.MAX_FRAMES} images with a pose, got {len(images)}")
    cameras = read_cameras(model.folder / f"cameras{model.suffix}")
    finder = posed.PictureFinder(_find_images(model.folder, images, options), options)
    found = (_make_photo(image, cameras, finder, place) for image in images)
    photos = [photo for photo in found if photo is not None]
    finder.report(place, notes, len(images))
    posed.check_once(photos, place)
    num_pictures = sum(len(list_images(place)) for place in {photo.path.parent for photo in photos})
    if len(photos) < ENOUGH * num_pictures:
        posed.note(
            notes,
            f"{name}: ONLY {len(photos)} OF {num_pictures} PICTURES have a place in the model; what the others show "
            "is missing from the scene",
        )
    return posed.PosedPhotos(photos=photos, points=read_colmap_points(model), notes=tuple(notes))


COLMAP = posed.SceneFormat(
    lambda path: path if path.is_dir() and find_model(path) is not None else None,
    _read_colmap,
    "a COLMAP model (cameras.bin, images.bin, or .txt; here or in sparse/0)",
)


def read_colmap_points(model: ModelFiles) -> Points:
    """Return the sparse points in COLMAP's own world, float64; none if the model has no file of points."""
    path = model.folder / f"points3D{model.suffix}"
    return read_points(path) if path.is_file() else posed.no_points()


def _find_images(folder: Path, images: Sequence[ModelImage], options: posed.ReadOptions) -> Path:
    """The folder that the images lie in: `images` or `input` beside the model or up to three levels above."""
    levels = [folder, *folder.resolve().parents[:MAX_LEVELS_UP]]
    places = [level / place for level in levels for place in (*IMAGE_FOLDERS, "") if (level / place).is_dir()]
    # By whole names before tails of them, which could be found in the wrong folder; the first images may be missing.
    for by_tail, image in itertools.product((False, True), images[:5]):
        for place in places:
            if posed.PictureFinder(place, posed.ReadOptions()).find(image.name, by_tail=by_tail) is not None:
                return place
    named = [place for place in places if place.name in IMAGE_FOLDERS]
    if named or not options.needs_pictures:
        return (named or [folder])[0]
    raise InputError(
        f"{folder}: expected a folder 'images' with {images[0].name[:80]!r} beside the model or above, got none"
    )


def _make_photo(
    image: ModelImage, cameras: dict[int, ModelCamera], finder: posed.PictureFinder, path: Path
) -> posed.Photo | None:
    where = f"{path}, image {image.name[:80]!r}"
    if image.camera_id not in cameras:
        raise InputError(f"{where}: expected its camera in the model, got {image.camera_id}; write the model anew")
    picture = finder.find(image.name)
    if picture is None:
        return None
    mask_path = finder.folder.parent / "masks" / f"{image.name}.png"
    return posed.open_photo(
        name=image.name.replace("\\", "/"),
        path=picture,
        lens=lambda _: lens_of(cameras[image.camera_id]),
        camera_to_world=pose_of(image, where),
        where=where,
        mask_path=mask_path if mask_path.is_file() else None,
        needs_picture=finder.needs_pictures,
    )


def pose_of(image: ModelImage, where: str) -> Tensor:
    """Return `camera_to_world` of an image of a model, float64."""
    world_to_camera = torch.eye(4, dtype=torch.float64)
    world_to_camera[:3, :3] = posed.rotation_of(image.rotation_wxyz, where)
    world_to_camera[:3, 3] = torch.tensor(image.translation, dtype=torch.float64)
    world_to_camera = posed.check_rigid(world_to_camera, where)
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3, :3] = world_to_camera[:3, :3].T
    camera_to_world[:3, 3] = -camera_to_world[:3, :3] @ world_to_camera[:3, 3]
    return camera_to_world


def lens_of(camera: ModelCamera) -> Lens:
    """The lens of a camera of a model."""
    has_one_focal = camera.model.startswith(("SIMPLE", "RADIAL"))
    focal_x, focal_y, center_x, center_y, *rest = (camera.params[0],) * has_one_focal + camera.params
    return Lens(
        width=camera.width,
        height=camera.height,
        focal_x_px=focal_x,
        focal_y_px=focal_y,
        center_x_px=center_x,
        center_y_px=center_y,
        coefficients=tuple(rest),
        model=LENS_MODELS.get(camera.model, "brown"),
    )
