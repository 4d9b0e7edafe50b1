"""The three files of a COLMAP model, binary (little endian) and text, as plain records.

Formats: https://colmap.github.io/format.html and, for the ids of camera models, `src/colmap/sensor/models.h`.
`colmap.py` makes a capture of them. Counts are checked against the file's length before anything is allocated.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from restage.records import InputError
from restage.scenes.io.ply import Points

__all__ = ["ModelCamera", "ModelImage", "read_cameras", "read_images", "read_points"]

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

    model: str
    """A key of `NUM_PARAMS`."""
    width: int
    height: int
    params: tuple[float, ...]


class ModelImage(NamedTuple):
    """A posed image as COLMAP has it."""

    name: str
    camera_id: int
    rotation_wxyz: tuple[float, ...]
    """World to camera, OpenCV axes."""
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
