"""What a reader hands over: posed photographs that are not decoded yet, sparse points, a split, and what to tell.

Every scene format is a `SceneFormat` in the menu of `scenes/io`; `views.py` makes a `Capture` of what it reads. All
positions are float64 here, since those of a geo-referenced capture do not fit into float32.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, NamedTuple

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.io import images
from restage.scenes.io.distortion import Lens
from restage.scenes.io.ply import Points
from restage.scenes.splats import rotation_matrices

__all__ = ["CamerasOnly", "Focal", "HOLD_OUT_EVERY", "MAX_FRAMES", "Number", "OPENGL_AXES", "Photo", "PictureFinder"]
__all__ += ["PosedPhotos", "ReadOptions", "SceneFormat", "Side", "Split", "TRAINED_CAMERAS"]
__all__ += ["check_once", "check_rigid", "no_points"]
__all__ += ["note", "open_photo", "read_similarity", "rotation_of", "split_every"]

HOLD_OUT_EVERY = 8
"""Without a split in the files, every 8th view by name is held out, as in the 3D Gaussian splatting benchmarks."""
MAX_FRAMES = 100_000
MIN_FOUND = 3
"""Pictures that must be left when others are missing."""
SHOWN_NAMES = 5
ROTATION_TOLERANCE = 1e-2
EXACT_ROTATION = 1e-6
Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A finite number in a file; msgspec refuses all else by the field's name."""
Focal = Annotated[float, msgspec.Meta(gt=0, le=1e300)]
Side = Annotated[float, msgspec.Meta(ge=1, le=1e6)]
"""A picture's width or height in pixels."""
UNKNOWN_HEAD = images.PictureHead(1, 1, 1)
"""Stands for that of a picture which is missing."""
OPENGL_AXES = torch.tensor([1.0, -1.0, -1.0, 1.0])
"""Column factors between OpenGL cameras (x right, y up, z back) and our OpenCV ones, both ways."""
TRAINED_CAMERAS = "cameras.json"
"""Written by 3D Gaussian splatting beside its splats (https://github.com/graphdeco-inria/gaussian-splatting)."""
SMALLER_COPIES = ("images_2", "images_4", "images_8")
"""Folders of smaller copies of the pictures in `images`, as Mip-NeRF 360 and nerfstudio have them; largest first."""


class Split(NamedTuple):
    """Indices of views; the two share none."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a reader makes of a capture."""

    size: int | None = None
    """Longer side of the images in pixels; they are only ever made smaller. None: as they are."""
    hold_out_every: int = HOLD_OUT_EVERY
    """Every n-th view by name is held out, where the capture has no split of its own; 0 holds out none."""
    follow_paths: bool = False
    """Whether pictures that a capture names outside of its folder are used."""
    needs_pictures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.hold_out_every < 0 or self.hold_out_every == 1:
            raise InputError(f"expected hold_out_every to be 0 or at least 2, got {self.hold_out_every}")


@dataclass(frozen=True, kw_only=True)
class CamerasOnly(ReadOptions):
    """Options that ask for cameras: pictures that nerfstudio's or COLMAP's files name may be missing, and are black."""

    needs_pictures: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One posed photograph, not decoded yet."""

    name: str  # its path as the capture's files give it, with forward slashes
    path: Path
    lens: Lens  # for the pixels as `orientation.before` leaves them
    camera_to_world: Float[Tensor, "4 4"]
    """OpenCV axes, float64; of the picture that `lens` is for."""
    orientation: images.Orientation = images.Orientation()
    mask_path: Path | None = None
    has_picture: bool = True
    """Whether there is a file; the view is black otherwise."""

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright picture."""
        width, height = self.lens.width, self.lens.height
        return (height, width) if self.orientation.quarters % 2 else (width, height)


@dataclass(frozen=True, kw_only=True)
class PosedPhotos:
    """A capture before its pixels are decoded."""

    photos: list[Photo]  # sorted by name
    points: Points
    """Sparse points in the frame of the cameras; float64 where the file has such numbers."""
    split: Split | None = None
    notes: tuple[str, ...] = ()
    """What the user should know: pictures that are missing, models that were passed over."""
    own_to_world: Float[Tensor, "4 4"] | None = None
    """How these coordinates were made from a user's own, if they are a run's."""
    workplace: tempfile.TemporaryDirectory[str] | None = None
    """Holds pictures that are not the user's own files, for as long as this record lives."""


class SceneFormat(NamedTuple):
    """One way in which people keep captures."""

    find: Callable[[Path], Path | None]
    """Returns where in a file or folder a capture of this format lies, from names alone; None if there is none."""
    read: Callable[[Path, str, ReadOptions], PosedPhotos]
    """Reads what was found; the name opens error messages."""
    expected: str  # what `find` looks for, to be listed where nothing is found
    finds_cameras: bool = False
    """Whether `read` computes the cameras from pictures, which takes minutes."""


def note(notes: list[str], message: str) -> None:
    """Warn, and keep the message for the capture's record."""
    notes.append(message)
    warnings.warn(message, stacklevel=3)


def no_points() -> Points:
    """No sparse points."""
    return Points(torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3))


def split_every(num_views: int, hold_out_every: int) -> Split:
    """Training and held-out views where a capture names none; a single view is never held out."""
    held_out = tuple(range(0, num_views, hold_out_every)) if hold_out_every and num_views > 1 else ()
    return Split(tuple(index for index in range(num_views) if index not in set(held_out)), held_out)


def rotation_of(wxyz: Sequence[float], where: str) -> Float[Tensor, "3 3"]:
    """Return the rotation matrix of a quaternion, float64."""
    quaternion = torch.tensor(wxyz, dtype=torch.float64)
    if not abs(float(quaternion.norm()) - 1) < 1e-2:
        raise InputError(f"{where}: expected a unit quaternion, got {[round(value, 4) for value in wxyz]}")
    return rotation_matrices(quaternion[None])[0]


def check_rigid(matrix: Float[Tensor, "4 4"], where: str) -> Float[Tensor, "4 4"]:
    """Return a rigid transform as it is; one that is off by rounding gets the nearest rotation."""
    if not torch.isfinite(matrix).all():
        raise InputError(f"{where}: expected a finite camera transform, got NaN or infinity")
    rotation = matrix[:3, :3]
    error = float((rotation @ rotation.T - torch.eye(3).to(matrix)).abs().max())
    if error > ROTATION_TOLERANCE or float(torch.linalg.det(rotation)) < 0:
        found = "one that scales or shears" if error > ROTATION_TOLERANCE else "a reflection"
        raise InputError(f"{where}: expected a rotation in the camera transform, got {found}")
    if error <= EXACT_ROTATION:
        return matrix
    left, _, right = torch.linalg.svd(rotation)
    nearest = matrix.clone()
    nearest[:3, :3] = left @ right
    return nearest


def read_similarity(rows: Sequence[Sequence[float]] | None, where: str) -> Tensor | None:
    """Return the 4x4 matrix of a similarity that Restage has written, float64; earlier versions left a 3x3 rotation."""
    if rows is None:
        return None
    side = len(rows)
    if side not in (3, 4) or any(len(row) != side for row in rows):
        raise InputError(f"{where}: expected a 4x4 matrix, got rows of {[len(row) for row in rows[:4]]} numbers")
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:side, :side] = torch.tensor(rows, dtype=torch.float64)
    scale = float(matrix[0, :3].norm())
    if not (torch.isfinite(matrix).all() and scale > 0):
        raise InputError(f"{where}: expected a finite similarity, got {str(rows)[:60]}")
    unscaled = matrix.clone()
    unscaled[:3, :3] /= scale
    matrix[:3, :3] = scale * check_rigid(unscaled, where)[:3, :3]
    return matrix


def open_photo(
    *,
    name: str,
    path: Path,
    lens: Callable[[images.PictureHead], Lens],
    camera_to_world: Float[Tensor, "4 4"],
    where: str,
    mask_path: Path | None = None,
    needs_picture: bool = True,
) -> Photo:
    """Read a picture's header and fit its lens to its pixels, whichever way up either of them is.

    `lens` makes the lens that the capture's files tell, given the picture's own size; the pose is float64 with OpenCV
    axes; `where` opens error messages. A picture that is not needed may be missing if the files tell its size.
    """
    has_picture = needs_picture or path.is_file()
    head = images.read_head(path) if has_picture else UNKNOWN_HEAD
    try:
        told = lens(head)
        if not has_picture:
            head = images.PictureHead(told.width, told.height, 1)
            if min(told.width, told.height) <= 1:
                raise InputError(f"expected the size of a view, w and h, since there is no picture {path.name[:80]!r}")
        orientation = images.orientation_of(head, told.width, told.height)
        fitted = told.to_size(*(head[:2] if orientation.before < 5 else (head.height, head.width)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Photo(
        name=name,
        path=path,
        lens=fitted,
        camera_to_world=check_rigid(camera_to_world, where),
        orientation=orientation,
        mask_path=mask_path if has_picture else None,
        has_picture=has_picture,
    )


def check_once(photos: Sequence[Photo], where: Path) -> None:
    """Refuse a picture that stands twice in a capture, since it could be trained on and held out at once."""
    seen: dict[Path, str] = {}
    for photo in photos:
        path = photo.path.resolve()
        if path in seen:
            other = "twice" if seen[path] == photo.name else f"as {seen[path]} too"
            raise InputError(f"{where}: expected each image once, got {photo.name} {other}")
        seen[path] = photo.name


class PictureFinder:
    """Finds the pictures that a capture's files name, on whatever machine they were written.

    A path is looked for as it stands below the capture's folder, then by ever shorter tails of it; in smaller copies
    (`images_2`, `images_4`, `images_8`) if `images` lacks it; and in another case of the letters. Backslashes count
    as slashes. What lies outside of the folder is used with `follow_paths` only; a link that the user made inside is
    the user's own affair.
    """

    def __init__(self, folder: Path, options: ReadOptions) -> None:
        self.folder = folder
        self.follow_paths, self.needs_pictures = options.follow_paths, options.needs_pictures
        self.missing: list[str] = []
        self.outside: list[str] = []
        self._names = functools.cache(_names_in)

    def find(self, name: str, *, by_tail: bool = True) -> Path | None:
        """Return where a picture is, or would be if none is needed; otherwise keep its name as missing."""
        written = PurePosixPath(name.replace("\\", "/"))
        path = self._inside(written, by_tail=by_tail) or self._outside(name, written)
        if path is None and not self.needs_pictures:
            # Below the folder whatever is written, so that nothing outside of it is read.
            return self.folder.joinpath(*(part for part in written.parts if part not in ("/", ".", "..")))
        if path is None:
            self.missing.append(name)
        return path

    def report(self, where: Path, notes: list[str], num_named: int) -> None:
        """Say which pictures are missing."""
        if not self.missing:
            return
        shown = ", ".join(repr(name[:80]) for name in self.missing[:SHOWN_NAMES])
        shown += ", ..." if len(self.missing) > SHOWN_NAMES else ""
        what = f"{where}: {len(self.missing)} of the {num_named} pictures that it names do not exist"
        if self.outside:
            what += f", of which {len(self.outside)} lie outside of {self.folder.name or self.folder}/"
            shown += "; --follow-paths uses pictures outside of the capture's folder"
        if num_named - len(self.missing) < MIN_FOUND:
            raise InputError(f"{what}: {shown}")
        note(notes, f"{what} and are left out: {shown}")

    def _inside(self, written: PurePosixPath, *, by_tail: bool = True) -> Path | None:
        parts = [part for part in written.parts if part not in ("/", ".") and not part.endswith(":")]
        while ".." in parts:  # a/../b is b; what leaves the folder is looked for by its tail
            at = parts.index("..")
            parts = parts[: max(at - 1, 0)] + parts[at + 1 :]
        for start in range(len(parts) if by_tail else min(1, len(parts))):
            found = self._existing(parts[start:])
            if found is not None:
                return found
        return None

    def _existing(self, parts: list[str]) -> Path | None:
        folders = [parts[:-1]]
        if parts[0] == "images" or len(parts) == 1:
            folders += [[copies, *parts[1:-1]] for copies in SMALLER_COPIES]
        for places in folders:
            folder = self.folder.joinpath(*places)
            names = self._names(folder)
            for name in (parts[-1], *(f"{parts[-1]}{suffix}" for suffix in images.IMAGE_SUFFIXES)):
                # Synthetic captures from Blender name their images without an ending.
                found = names.get(name) or names.get(name.lower())
                if found is not None:
                    return folder / found
        return None

    def _outside(self, name: str, written: PurePosixPath) -> Path | None:
        with contextlib.suppress(OSError, ValueError):  # a null byte, a name too long, a folder that may not be read
            for path in (self.folder / name, self.folder / written):
                if path.is_file():
                    self.outside.append(name)
                    return path if self.follow_paths else None
        return None

    def find_other(self, name: str, where: str) -> Path:
        """Return where a file that is no picture of its own is: points, a mask."""
        written = PurePosixPath(name.replace("\\", "/"))
        found = self._inside(written) or self._outside(name, written)
        if found is not None:
            return found
        path = images.path_inside(self.folder, name, where)
        raise InputError(f"{where}: {path} does not exist")


def _names_in(folder: Path) -> dict[str, str]:
    """Names of the files in a folder, by themselves and by their lower case."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except (OSError, ValueError):
        return {}
    return {name.lower(): name for name in names} | {name: name for name in names}
