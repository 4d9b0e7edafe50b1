"""From the clean latents that a model predicts at one noise level to the latents at the next.

`Solver` holds what a trajectory has to remember; `denoise` is the loop for any predictor of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.records import InputError

__all__ = ["SOLVERS", "SampleStep", "Solver", "denoise"]

SOLVERS = ("dpmpp_2m", "ddim", "euler_ancestral")
"""Second order multistep; first order; first order with new noise at each step."""

Latents = Float[Tensor, "batch channels height width"]


class SampleStep(NamedTuple):
    """State after one step of `denoise`."""

    step: int
    """Counted from 1."""
    num_steps: int
    timestep: int
    """The step of the schedule that the model was asked at."""
    latents: Latents
    """After this step; those of the last step are clean."""
    x0: Latents
    """The clean latents as predicted at this step."""


class _Level(NamedTuple):
    """Signal, noise and half the log signal-to-noise ratio at one step; the clean end has noise 0."""

    alpha: float
    sigma: float
    log_snr: float


def _level(schedule: Schedule, timestep: int | None) -> _Level:
    if timestep is None:
        return _Level(1.0, 0.0, math.inf)
    kept = float(schedule.alphas_cumprod[timestep])
    return _Level(math.sqrt(kept), math.sqrt(1 - kept), 0.5 * math.log(kept / (1 - kept)))


def _deterministic(latents: Tensor, x0: Tensor, slope: Tensor | None, *, now: _Level, to: _Level) -> Tensor:
    """DPM-Solver++ step (Lu et al. 2022, arXiv 2211.01095): first order without `slope`, which then is DDIM.

    `x <- sigma_to/sigma_now x - alpha_to (exp(-h) - 1) (x0 + slope/2)`, h the gain in half log signal-to-noise ratio.
    """
    # Steps that are close together have nearly the same ratio: exp(-h) - 1 would cancel, expm1 does not. At the clean
    # end the ratio is infinite and the gain exactly 1, which makes the last step the prediction itself.
    gain = to.alpha * -math.expm1(now.log_snr - to.log_snr)
    aim = x0 if slope is None else x0 + 0.5 * slope
    return (to.sigma / now.sigma) * latents + gain * aim


def _ancestral(latents: Tensor, x0: Tensor, noise: Tensor, *, now: _Level, to: _Level) -> Tensor:
    """Euler ancestral step (Karras et al. 2022, arXiv 2206.00364, as k-diffusion has it), with `s = sigma/alpha`.

    `s_up^2 = s_to^2 (s^2 - s_to^2) / s^2`, down to `sqrt(s_to^2 - s_up^2)` along the prediction, then up by new noise.
    """
    # k-diffusion samples x / alpha, whose noise s grows without bound; in these terms the step is Euler's.
    ratio, ratio_to = now.sigma / now.alpha, to.sigma / to.alpha
    up = math.sqrt(max(0.0, ratio_to**2 * (ratio**2 - ratio_to**2) / ratio**2))
    down = math.sqrt(max(0.0, ratio_to**2 - up**2))
    return to.alpha * (x0 + (latents / now.alpha - x0) * (down / ratio) + up * noise)


class Solver:
    """One trajectory of a batch: deterministic, or with the noise that the caller gives."""

    def __init__(
        self,
        schedule: Schedule,
        timesteps: Sequence[int],
        name: str = "dpmpp_2m",
        *,
        step_noise: Callable[[int], Latents] | None = None,
    ) -> None:
        """Begin a trajectory through descending timesteps; `euler_ancestral` alone asks for the noise of each step.

        Raises:
            InputError: the solver is not known or lacks its noise, or the steps do not fall.
        """
        if name not in SOLVERS:
            raise InputError(f"solver must be one of {SOLVERS}, got {name!r}")
        if name == "euler_ancestral" and step_noise is None:
            raise InputError("euler_ancestral adds noise at each step; give it step_noise")
        if not timesteps or any(a <= b for a, b in zip(timesteps, timesteps[1:], strict=False)):
            raise InputError(f"timesteps must fall and not be empty, got {list(timesteps)}")
        self.schedule, self.timesteps, self.name = schedule, tuple(timesteps), name
        self._step_noise = step_noise
        self._levels = [_level(schedule, t) for t in timesteps] + [_level(schedule, None)]
        self._previous: Tensor | None = None

    def step(self, step: int, latents: Latents, x0: Latents) -> Latents:
        """Return the latents after step `step` (from 0), given those before it and the clean ones predicted there."""
        now, to = self._levels[step], self._levels[step + 1]
        if self.name == "euler_ancestral":
            assert self._step_noise is not None
            moved = _ancestral(latents, x0, self._step_noise(step), now=now, to=to) if to.sigma > 0 else x0
        else:
            # The first step has nothing to extrapolate from; the gain of the last one is infinite.
            slope = None
            if self.name == "dpmpp_2m" and self._previous is not None and to.sigma > 0:
                ratio = (to.log_snr - now.log_snr) / (now.log_snr - self._levels[step - 1].log_snr)
                slope = (x0 - self._previous) * ratio
            moved = _deterministic(latents, x0, slope, now=now, to=to)
        self._previous = x0
        return moved

    def adjust(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the remembered prediction as the latents were changed; `change` must be linear in them."""
        if self._previous is not None:
            self._previous = change(self._previous)

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Go on with these rows of the batch only."""
        if self._previous is not None:
            self._previous = self._previous[rows]


def denoise(
    schedule: Schedule,
    latents: Latents,
    *,
    predict: Callable[[Tensor, Tensor, int], Tensor],
    timesteps: Sequence[int],
    solver: str = "dpmpp_2m",
    step_noise: Callable[[int], Tensor] | None = None,
) -> Iterator[SampleStep]:
    """Bring latents at noise level `timesteps[0]` to clean ones, one model call a step, without gradients.

    `predict` takes latents, the timestep of each, and the number of the step from 0; it returns epsilon.

    Raises:
        InputError: as `Solver`.
    """
    trajectory = Solver(schedule, timesteps, solver, step_noise=step_noise)
    latents = latents.float()
    for step, timestep in enumerate(timesteps):
        t = torch.full((latents.shape[0],), timestep, dtype=torch.long, device=latents.device)
        with torch.no_grad():
            x0 = schedule.to_x0(predict(latents, t, step).float(), latents, t)
            latents = trajectory.step(step, latents, x0)
        yield SampleStep(step + 1, len(timesteps), timestep, latents, x0)
