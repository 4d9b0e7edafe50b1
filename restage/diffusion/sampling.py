"""From noise to clean latents and back: first noise, solvers, guidance, inversion.

`Solver` holds what a trajectory has to remember; `denoise` is the loop for any predictor of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.records import InputError, derive_seed

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone, TextCondition

__all__ = ["Edited", "SOLVERS", "SampleStep", "Solver", "denoise", "guided", "initial_noise", "invert_latents"]
__all__ += ["latent_shape", "sample_images", "sample_latents", "step_noise"]


class Edited(NamedTuple):
    """Edited pictures and the soft masks of what was meant to change."""

    images: Float[Tensor, "batch 3 height width"]  # RGB in [0, 1]
    masks: Float[Tensor, "batch height width"]
    """In [0, 1], soft: 1 where the editor says that the picture is to change."""
    left_out: Mapping[int, str] = MappingProxyType({})
    """Reasons why pictures could not be edited, by their places in the batch; there the picture is as it was, the mask
    0, and nothing may be fitted to it."""
    drifts: Mapping[int, float] = MappingProxyType({})
    """How far the editor had moved pictures that were then put back, as shares of their width, by their places."""

    @property
    def answered(self) -> list[int]:
        """Places in the batch of the pictures that were edited."""
        return [place for place in range(len(self.images)) if place not in self.left_out]

    def to(self, device: str | torch.device) -> Edited:
        """The same on a device."""
        return self._replace(images=self.images.to(device), masks=self.masks.to(device))


def initial_noise(shape: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "batch channels height width"]:
    """Unit noise of one item's `shape` (c, h, w) for each seed; an item's noise depends on its seed only."""
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def step_noise(shape: Sequence[int], seeds: Sequence[int], step: int) -> Float[Tensor, "batch channels height width"]:
    """Unit noise of step `step` (from 0) for each seed, for solvers that add noise on their way."""
    return initial_noise(shape, [derive_seed(seed, "step", step) for seed in seeds])


def latent_shape(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the UNet was trained on."""
    config: Any = backbone.unet.config
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def guided(
    backbone: Backbone, text: TextCondition, empty_text: TextCondition, guidance: Float[Tensor, " batch"]
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Predictor with classifier-free guidance, `e0 + g (e1 - e0)`, both halves in one call."""
    both = empty_text.expand(len(text)).cat(text)
    scale = guidance.to(backbone.device).float().view(-1, 1, 1, 1)

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        epsilon = backbone.predict_noise(torch.cat([latents, latents]), torch.cat([t, t]), both)
        unconditional, conditional = epsilon.float().chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return predict


SOLVERS = ("dpmpp_2m", "ddim", "euler_ancestral")
"""Second order multistep; first order; first order with new noise at each step."""

Latents = Float[Tensor, "batch channels height width"]


class SampleStep(NamedTuple):
    """State after one step of `denoise`."""

    step: int  # counted from 1
    num_steps: int
    timestep: int  # the step of the schedule that the model was asked at
    latents: Latents  # after this step; those of the last step are clean
    x0: Latents  # the clean latents as predicted at this step


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
        """Begin a trajectory through descending timesteps; `euler_ancestral` alone asks for the noise of each step."""
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
    """
    trajectory = Solver(schedule, timesteps, solver, step_noise=step_noise)
    latents = latents.float()
    for step, timestep in enumerate(timesteps):
        t = torch.full((latents.shape[0],), timestep, dtype=torch.long, device=latents.device)
        with torch.no_grad():
            x0 = schedule.to_x0(predict(latents, t, step).float(), latents, t)
            latents = trajectory.step(step, latents, x0)
        yield SampleStep(step + 1, len(timesteps), timestep, latents, x0)


def sample_latents(
    backbone: Backbone,
    captions: Sequence[str],
    *,
    seeds: Sequence[int],
    guidance: Float[Tensor, " batch"],
    num_steps: int = 15,
    solver: str = "dpmpp_2m",
) -> Iterator[SampleStep]:
    """Denoise under captions with classifier-free guidance, its strength per item (1 = none).

    Raises:
        InputError: there is not one seed for each caption, or a caption is too long.
    """
    if len(captions) != len(seeds) or not captions:
        raise InputError(f"expected one seed for each caption, got {len(captions)} captions and {len(seeds)} seeds")
    shape = latent_shape(backbone)
    predict = guided(backbone, backbone.encode_prompts(captions), backbone.encode_prompts([""]), guidance)
    yield from denoise(
        backbone.schedule,
        initial_noise(shape, seeds).to(backbone.device),
        predict=predict,
        timesteps=backbone.schedule.timesteps(num_steps),
        solver=solver,
        step_noise=lambda step: step_noise(shape, seeds, step).to(backbone.device),
    )


def sample_images(
    backbone: Backbone,
    captions: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 15,
    guidance: float = 5.0,
    solver: str = "dpmpp_2m",
) -> Float[Tensor, "batch 3 height width"]:
    """Text to images in [0, 1]; an image depends on its caption and seed (and, in the last bits, on the batch).

    Raises:
        InputError: as `sample_latents`.
    """
    scales = torch.full((len(captions),), float(guidance))
    *_, last = sample_latents(backbone, captions, seeds=seeds, guidance=scales, num_steps=steps, solver=solver)
    return backbone.decode_latents(last.latents)


def invert_latents(
    backbone: Backbone,
    latents: Float[Tensor, "batch channels height width"],
    text: TextCondition,
    *,
    num_steps: int,
    num_iterations: int = 2,
) -> Float[Tensor, "levels batch channels height width"]:
    """Find the latents at all noise levels of a trajectory that ends at the given ones, without guidance.

    Costs `num_steps` times `num_iterations` UNet evaluations. The latents before each sampling step come noise first,
    and the given ones after the last.
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
