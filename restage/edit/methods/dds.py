"""Delta denoising score: the pull on the edited view minus the pull on the unedited one, which leaves the edit."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from restage.edit.methods.distill import Distillation, Draw

__all__ = ["Dds", "dds_gradient"]


@dataclass(frozen=True, kw_only=True)
class Dds(Distillation):
    """Gradient `eps_hat(z_e, y_e) - eps_hat(z_s, y_s)`, both at one noise level with one noise.

    Hertz et al. 2023 (arXiv 2304.07090, equation 3): what the model dislikes about both views cancels. Published: t
    from 50 to 948 of 1,000, guidance 7.5 with a text-to-image model, 200 steps on one picture. Here as many steps as
    the miniature's fit is long, and the guidance of editing where the model is an edit model; its source branch is
    told nothing and keeps its guidance on the original view.

    Memory: that of a fit step, of two views in the model, and of the latents of all training views.
    """

    lowest_noise: float = 0.05
    highest_noise: float = 0.949
    """The noise level is drawn evenly between these shares of the schedule: 50 to 948 of 1,000."""

    def _gradient(self, draw: Draw) -> Tensor:
        return dds_gradient(*draw.predictions(self.guidance))


def dds_gradient(edited: Float[Tensor, "1 c h w"], source: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
    """Difference of the two predictions of noise."""
    return edited - source
