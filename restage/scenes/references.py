"""Pictures that requests refer to: taken from a user, kept in the folder of a scene by their content, read again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import EditRequest, InputError, Reference, file_sha256, write_atomically
from restage.run.layout import REFERENCES
from restage.scenes.io.images import open_picture, path_inside, read_alpha, read_head, read_image, read_mask, unexif

__all__ = ["GivenPicture", "ShownPicture", "is_as_named", "read_references"]


class ShownPicture(NamedTuple):
    """A picture as an editor is shown it."""

    picture: Float[Tensor, "3 _ _"]
    mask: Float[Tensor, "_ _"] | None = None
    """Where its subject is, in [0, 1]; None where nothing says."""


def _name_of(content: bytes, what: str) -> str:
    with open_picture(content, what) as image:
        kind = (image.format or "png").lower()
    return f"{hashlib.sha256(content).hexdigest()}.{'jpg' if kind == 'jpeg' else kind}"


@dataclass(frozen=True)
class GivenPicture:
    """A picture that a user gives with a request, as the bytes of its file."""

    picture: bytes
    mask: bytes = b""
    """A mask of its subject, white inside; empty for none."""
    name: str = "the reference"
    """What error messages call it."""

    @classmethod
    def read_all(cls, pictures: Sequence[Path], masks: Sequence[Path] = ()) -> tuple[GivenPicture, ...]:
        """Read pictures from files, and a mask for each if there are masks.

        Raises:
            InputError: a file is no picture, or there are masks but not one for each picture.
        """
        if masks and len(masks) != len(pictures):
            raise InputError(f"expected a mask for each of {len(pictures)} references, or none, got {len(masks)}")
        for path in (*pictures, *masks):
            open_picture(path).close()
        contents = [path.read_bytes() for path in masks] or [b""] * len(pictures)
        given = zip(pictures, contents, strict=True)
        return tuple(cls(path.read_bytes(), mask, str(path)) for path, mask in given)

    @property
    def reference(self) -> Reference:
        """What a request says of it."""
        mask = _name_of(self.mask, f"the mask of {self.name}") if self.mask else ""
        return Reference(picture=_name_of(self.picture, self.name), mask=mask)

    def keep(self, scene_folder: Path) -> Reference:
        """Write the files into a scene's folder, where `read_references` finds them.

        Raises:
            InputError: they are no pictures, or picture and mask differ in size.
        """
        reference = self.reference
        if self.mask:
            head, of_mask = read_head(self.picture, self.name), read_head(self.mask, f"the mask of {self.name}")
            stored, size = (head.width, head.height), (of_mask.width, of_mask.height)
            if size not in (stored, stored[::-1] if head.orientation >= 5 else stored):
                found, expected = ("{}x{}".format(*sides) for sides in (size, stored))
                raise InputError(f"the mask of {self.name} has {found} pixels, expected {expected} as the picture")
        for name, content in ((reference.picture, self.picture), (reference.mask, self.mask)):
            path = scene_folder / REFERENCES / name
            if name and not path.exists():
                with write_atomically(path) as temporary:
                    temporary.write_bytes(content)
        return reference


def read_references(scene_folder: Path, request: EditRequest) -> tuple[ShownPicture, ...]:
    """Read the pictures that a request refers to, upright, from the folder of its scene.

    The opacity of a picture that is transparent in parts, such as a thing that was cut out, is its mask unless it has
    another one.

    Raises:
        InputError: a file is not there, or is not the one that the request names.
    """
    folder, shown = scene_folder / REFERENCES, []
    for reference in request.references:
        picture = _checked(folder, reference.picture)
        turn = read_head(picture).orientation
        image = torch.from_numpy(unexif(read_image(picture), turn)).permute(2, 0, 1).contiguous()
        with open_picture(picture) as opened:
            alpha = read_alpha(opened)
        mask = None if alpha is None else torch.from_numpy(unexif(alpha, turn))
        if reference.mask:
            values = read_mask(_checked(folder, reference.mask))
            # A mask of pixels as they are stored is turned with them; most are made of the picture as it is shown.
            is_stored = values.shape != image.shape[1:]
            mask = torch.from_numpy(unexif(values, turn) if is_stored else values)
        shown.append(ShownPicture(image, mask))
    return tuple(shown)


def _checked(folder: Path, name: str) -> Path:
    path = path_inside(folder, name, "a request's reference")
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a picture that the request refers to")
    if not is_as_named(path):
        raise InputError(f"{path} is not the picture that the request refers to: its content does not fit its name")
    return path


def is_as_named(path: Path) -> bool:
    """Whether a kept picture's content is the one that its name says."""
    return file_sha256(path) == path.stem
