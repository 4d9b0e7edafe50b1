"""One affine color transform for each training view, for captures whose brightness or white balance changes.

A fit with `fits_exposure` holds an `Exposures`; the optimizer's step applies it to the render before it is compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Exposures"]

BETAS = (0.9, 0.999)
EPSILON = 1e-15


def _identity(num_views: int) -> Tensor:
    return torch.eye(3, 4).repeat(num_views, 1, 1)


@dataclass
class Exposures:
    """Transforms E of colors, "3 4" a view: a rendered pixel c becomes E (c, 1), as in the 3D Gaussian splatting code.

    Their mean over the views is held at the identity, which splats could otherwise undo. Held-out views are rendered
    without a transform: with the mean exposure of the training views.
    """

    num_views: int
    rate: float = 3e-2
    """Adam's step at the start of the fit; 0.01 in the 3D Gaussian splatting code, which sees a view more often."""
    pull: float = 1e-2
    """Weight of the squared distance from the identity in the loss."""
    transforms: Float[Tensor, "n 3 4"] = field(init=False)
    moments: tuple[Tensor, Tensor] = field(init=False)
    """Adam's moments of each view."""
    num_updates: Tensor = field(init=False)
    """Number of updates of each view."""

    def __post_init__(self) -> None:
        self.transforms = _identity(self.num_views)
        self.moments = (torch.zeros_like(self.transforms), torch.zeros_like(self.transforms))
        self.num_updates = torch.zeros(self.num_views)

    def transform_of(self, view: int) -> Float[Tensor, "3 4"]:
        """A copy of one view's transform, to be differentiated."""
        return self.transforms[view].clone().requires_grad_()

    @staticmethod
    def apply(transform: Float[Tensor, "3 4"], color: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """Colors as the view's camera would have taken them; not clamped."""
        height, width = color.shape[1:]
        return (transform[:, :3] @ color.reshape(3, -1) + transform[:, 3:]).reshape(3, height, width)

    def penalty(self, transform: Float[Tensor, "3 4"]) -> Float[Tensor, ""]:
        """What the loss takes for being away from the identity."""
        return self.pull * (transform - torch.eye(3, 4)).square().sum()

    @torch.no_grad()
    def update(self, view: int, gradient: Float[Tensor, "3 4"], *, decay: float = 1.0) -> None:
        """Move one view's transform by a step of Adam, then all of them so that their mean is the identity."""
        self.num_updates[view] += 1
        count = int(self.num_updates[view])
        first, second = self.moments[0][view], self.moments[1][view]
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        denominator = (second / (1 - BETAS[1] ** count)).sqrt() + EPSILON
        self.transforms[view] -= self.rate * decay / (1 - BETAS[0] ** count) * first / denominator
        # Otherwise all views could darken together while the splats brighten.
        self.transforms -= self.transforms.mean(0) - torch.eye(3, 4)

    def state(self) -> dict[str, Any]:
        """Everything that changes, for `torch.save`."""
        return {"transforms": self.transforms, "moments": self.moments, "num_updates": self.num_updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.transforms, self.num_updates = state["transforms"], state["num_updates"]
        self.moments = (state["moments"][0], state["moments"][1])
