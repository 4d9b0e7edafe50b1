"""The editor that knows the truth: hands out the true edited views of a scene, where such views exist.

It shows how good the 3D half of a method is alone, and anchors every comparison from above.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from restage.edit.editors.interface import Edited, EditorSource, KnownScores, ViewBatch
from restage.edit.pictures import read_image, read_mask
from restage.records import InputError

__all__ = ["ExactEditor"]


@dataclass(frozen=True)
class ExactEditor:
    """Looks the edited views up in a truth folder, reading only those that it is asked for."""

    truth: Path
    """Truth folder: images/ and masks/, by the file names of the views."""
    file_names: tuple[str, ...]
    """Of every view of the whole capture, in order."""

    @classmethod
    def open(cls, source: EditorSource) -> ExactEditor:
        """Make one for a scene with truth.

        Raises:
            InputError: there is no truth folder.
        """
        if source.truth is None or not (source.truth / "images").is_dir():
            raise InputError(f"the exact editor needs a truth folder with images/, got {source.truth}; use another one")
        return cls(truth=source.truth, file_names=source.file_names)

    def edit(self, batch: ViewBatch) -> Edited:
        """Give the true edited views and what truth changes in them, whatever is asked for and from whichever noise.

        Raises:
            InputError: a view's truth is missing or has another size.
        """
        names = [Path(self.file_names[index]).with_suffix(".png").name for index in batch.view_indices]
        images = torch.stack([read_image(self.truth / "images" / name) for name in names])
        masks = torch.stack([read_mask(self.truth / "masks" / name) for name in names])
        if images.shape != batch.originals.shape or masks.shape[1:] != images.shape[2:]:
            raise InputError(
                f"{self.truth}: expected truth of shape {tuple(batch.originals.shape)}, got {tuple(images.shape)}; "
                "make truth and capture at the same size"
            )
        return Edited(images, masks)

    def scores(self) -> KnownScores:
        """A model that knows the true views."""
        return KnownScores(self)
