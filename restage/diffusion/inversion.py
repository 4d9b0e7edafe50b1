"""From a picture back to noise: the latents that a deterministic sampler would have come from.

DDIM inversion (Song et al. 2021, arXiv 2010.02502, section 4.3) with each step solved by fixed-point iteration (as Pan
et al. 2023, arXiv 2309.04907): a step up asks for the noise at its end, which is not known yet. Without iteration a
trajectory of few steps ends far from unit noise. The branch of a pair that shows the picture then holds to what was
found (direct inversion, Ju et al. 2023, arXiv 2310.01506), so that it ends as exactly the picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone, TextCondition

__all__ = ["invert_latents"]


def invert_latents(
    backbone: Backbone,
    latents: Float[Tensor, "batch channels height width"],
    text: TextCondition,
    *,
    num_steps: int,
    num_iterations: int = 2,
) -> Float[Tensor, "levels batch channels height width"]:
    """Find the latents at all noise levels of a trajectory that ends at the given ones, without guidance.

    Costs `num_steps` times `num_iterations` UNet evaluations.

    Returns:
        The latents before each of the `num_steps` sampling steps, noise first, and the given ones after the last.

    Raises:
        InputError: there are not as many captions as pictures, or no iteration.
    """
    if len(text) != len(latents) or num_iterations < 1:
        raise InputError(
            f"expected a caption for each of {len(latents)} pictures and at least one iteration, got {len(text)} and "
            f"{num_iterations}"
        )
    schedule = backbone.schedule
    found, noise = [latents], torch.zeros_like(latents)
    signal, sigma = torch.ones(1).to(latents), torch.zeros(1).to(latents)  # of the clean end
    for timestep in reversed(schedule.timesteps(num_steps)):
        t = torch.full((len(latents),), timestep, device=latents.device)
        signal_up, sigma_up = schedule.coefficients(t, latents)
        # The step up is x_up = signal_up x0 + sigma_up e, with e the noise that the model sees in x_up itself. Starting
        # from the noise of the step below, each round asks at the x_up that the last one led to.
        for _ in range(num_iterations):
            clean = (found[-1] - sigma * noise) / signal
            noise = backbone.predict_noise(signal_up * clean + sigma_up * noise, t, text)
        clean = (found[-1] - sigma * noise) / signal
        # Clean latents go by this last noise, too: so a sampling step down from here, which predicts it again, ends at
        # the latents that this one started from.
        found.append(signal_up * clean + sigma_up * noise)
        signal, sigma = signal_up, sigma_up
    return torch.stack(found[::-1])
