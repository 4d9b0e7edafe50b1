"""The editor that knows the truth, and one that makes another worse in a controlled way.

They show how good the 3D half of a method is alone, and how it stands what 2D editors do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from restage.edit.editors.interface import Edited, Editor, EditorSource, KnownScores, ViewBatch
from restage.edit.pictures import read_image, read_mask
from restage.records import InputError, derive_seed

__all__ = ["ExactEditor", "NoisyEditor"]


@dataclass(frozen=True)
class ExactEditor:
    """Looks the edited views up in a truth folder, reading only those that it is asked for."""

    truth: Path  # truth folder: images/ and masks/, by the file names of the views
    file_names: tuple[str, ...]  # of every view of the whole capture, in order
    takes_references: ClassVar[bool] = True

    @classmethod
    def open(cls, source: EditorSource) -> ExactEditor:
        """Make one for a scene with truth."""
        if source.truth is None or not (source.truth / "images").is_dir():
            raise InputError(f"the exact editor needs a truth folder with images/, got {source.truth}; use another one")
        return cls(truth=source.truth, file_names=source.file_names)

    def edit(self, batch: ViewBatch) -> Edited:
        """Give the true edited views and what truth changes in them, whatever is asked for and from whichever noise."""
        names = [Path(self.file_names[index]).with_suffix(".png").name for index in batch.view_indices]
        images = torch.stack([read_image(self.truth / "images" / name) for name in names])
        masks = torch.stack([read_mask(self.truth / "masks" / name) for name in names])
        if images.shape != batch.originals.shape or masks.shape[1:] != images.shape[2:]:
            raise InputError(
                f"{self.truth}: expected truth of shape {tuple(batch.originals.shape)}, got {tuple(images.shape)}; "
                "make truth and capture at the same size"
            )
        return Edited(images, masks).to(batch.originals.device)

    def scores(self) -> KnownScores:
        """A model that knows the true views."""
        return KnownScores(self)


COLOR_STD, SHIFT_SHARE, MISS_SHARE = 0.3, 0.1, 0.5
"""Of strength 1."""


@dataclass(frozen=True, kw_only=True)
class NoisyEditor:
    """Disturbs the edits of another editor, each view by itself, from the seed and the view alone."""

    editor: Editor
    color_std: float = 0.0
    """Standard deviation of what is added to each color channel inside the mask, one number a view and channel."""
    shift_share: float = 0.0
    """Standard deviation of the shift of the edit across the view, as a share of the view's width, for each axis."""
    miss_share: float = 0.0
    """Share of views that come back unedited, with an empty mask."""

    def __post_init__(self) -> None:
        if not (self.color_std >= 0 and self.shift_share >= 0 and 0 <= self.miss_share <= 1):
            raise InputError(f"expected color_std and shift_share >= 0 and miss_share in [0, 1], got {self}")

    @classmethod
    def of(cls, editor: Editor, strength: float) -> NoisyEditor:
        """All three disturbances in fixed proportion.

        Strength 1 puts colors off by 0.3 and positions by a tenth of the width, and leaves half of the views unedited.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"expected a strength of the noise in [0, 1], got {strength}")
        return cls(
            editor=editor,
            color_std=strength * COLOR_STD,
            shift_share=strength * SHIFT_SHARE,
            miss_share=strength * MISS_SHARE,
        )

    @property
    def takes_references(self) -> bool:
        """Whether the other one looks at pictures beside the view."""
        return getattr(self.editor, "takes_references", False)

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit and disturb; see `Editor.edit`.

        Views with equal noise keys are disturbed differently all the same: real editors disagree between views that
        start from the same noise, too.
        """
        edited = self.editor.edit(batch)
        disturbed = [
            self._disturb(image, mask, original, seed=derive_seed(batch.seed, "disturbed view", index))
            for image, mask, original, index in zip(
                edited.images, edited.masks, batch.originals, batch.view_indices, strict=True
            )
        ]
        images, masks = (torch.stack(parts) for parts in zip(*disturbed, strict=True))
        return edited._replace(images=images, masks=masks)

    def _disturb(self, image: Tensor, mask: Tensor, original: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        # All is drawn before anything is decided, so that no share changes how another view is moved or colored.
        is_missed = float(torch.rand((), generator=generator)) < self.miss_share
        color = self.color_std * torch.randn(3, 1, 1, generator=generator)
        shift = 2 * self.shift_share * torch.randn(2, generator=generator)  # grids run from -1 to 1
        if is_missed:
            return original, torch.zeros_like(mask)
        layers = torch.cat([(image + color.to(image)).clamp(0, 1), mask[None]])[None]
        if self.shift_share:
            moved = torch.cat([torch.eye(2), shift[:, None]], dim=1)[None]
            grid = functional.affine_grid(moved, list(layers.shape), align_corners=False).to(layers)
            layers = functional.grid_sample(layers, grid, padding_mode="border", align_corners=False)
        mask = layers[0, 3].clamp(0, 1)
        return torch.lerp(original, layers[0, :3], mask), mask

    def scores(self) -> KnownScores:
        """A model that knows the disturbed views."""
        return KnownScores(self)
