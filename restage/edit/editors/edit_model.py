"""The trained edit model as an editor: a batch of views goes through one guided denoising loop."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from restage.diffusion.editor import EditModel, EditSettings, edit_images
from restage.edit.editors.interface import Edited, noise_seeds
from restage.records import EditRequest

__all__ = ["ModelEditor"]


@dataclass(frozen=True)
class ModelEditor:
    """Edits views with the edit model; guidance as in InstructPix2Pix (arXiv 2211.09800, equation 3)."""

    model: EditModel
    settings: EditSettings | None = None
    """Steps and guidance; the edit model's own defaults if None."""

    def edit(
        self,
        views: Float[Tensor, "b 3 h w"],
        originals: Float[Tensor, "b 3 h w"],
        request: EditRequest,
        *,
        view_indices: tuple[int, ...],
        noise_level: float,
        seed: int,
        noise_keys: tuple[int, ...] | None = None,
    ) -> Edited:
        """Edit a batch of views; see `Editor.edit`."""
        edited = edit_images(
            self.model,
            views,
            originals,
            request.instruction,
            noise_level=noise_level,
            seeds=noise_seeds(seed, view_indices, noise_keys),
            settings=self.settings,
        )
        return Edited(edited.images, edited.masks)
