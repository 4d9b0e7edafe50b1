"""Noise predictions of a model that knows one picture only, so that editors without a model can be distilled too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import Branches, Editor, PredictNoise, ViewBatch
from restage.records import EditRequest

__all__ = ["KnownScores"]


@dataclass(frozen=True)
class KnownScores:
    """The best denoiser there is if all pictures in the world were the edited view (or, of the source, the original).

    With clean picture x the noise in `z = sqrt(abar) x + sqrt(1 - abar) noise` is known without a network. Latents are
    pixels in [-1, 1]; guidance has no meaning here and is ignored, since nothing is left to be made clearer.
    """

    editor: Editor
    """Its edit from full noise is the picture."""

    @cached_property
    def schedule(self) -> Schedule:
        """The cosine schedule of 1,000 steps, as the miniature has it."""
        return Schedule.from_config({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000})

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels in [-1, 1]."""
        return images * 2 - 1

    def branches(
        self, original: Float[Tensor, "1 3 h w"], request: EditRequest, *, view_index: int, seed: int
    ) -> Branches:
        """Ask the editor for the view, once."""
        batch = ViewBatch(original, original, request=request, view_indices=(view_index,), noise_level=1.0, seed=seed)
        edited = self.editor.edit(batch)
        return Branches(self._predictor(edited.images), self._predictor(original))

    def _predictor(self, image: Tensor) -> PredictNoise:
        clean = self.encode(image)

        def predict(latents: Tensor, timestep: int, guidance: float | None) -> Tensor:
            signal, sigma = self.schedule.coefficients(torch.tensor([timestep]), latents)
            return (latents - signal * clean) / sigma

        return predict
