"""The one sampling loop: from noise, or from latents at any noise level, to clean latents, as a stream of steps.

`denoise` serves any predictor of noise; `sample_latents` and `sample_images` put text and guidance around it, and
`sample_pairs` runs source and edit branches side by side under attention control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.attention import PairControl, StepControl, WordMaps
from restage.diffusion.schedule import Schedule
from restage.records import InputError

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone

__all__ = [
    "SOLVERS",
    "LocalBlend",
    "PairSample",
    "SampleStep",
    "blend_masks",
    "denoise",
    "initial_noise",
    "latent_shape",
    "sample_images",
    "sample_latents",
    "sample_pairs",
]

SOLVERS = ("dpmpp_2m", "ddim")


class SampleStep(NamedTuple):
    """State after one step of `denoise`."""

    step: int
    """Counted from 1."""
    num_steps: int
    timestep: int
    """The step of the schedule that the model was asked at."""
    latents: Float[Tensor, "batch channels height width"]
    """After this step; those of the last step are clean."""
    x0: Float[Tensor, "batch channels height width"]
    """The clean latents as predicted at this step."""


class _Level(NamedTuple):
    """Signal, noise and half log signal-to-noise ratio of one step; the clean end has noise 0."""

    alpha: float
    sigma: float
    log_snr: float


def _level(schedule: Schedule, timestep: int | None) -> _Level:
    if timestep is None:
        return _Level(1.0, 0.0, math.inf)
    kept = float(schedule.alphas_cumprod[timestep])
    return _Level(math.sqrt(kept), math.sqrt(1 - kept), 0.5 * math.log(kept / (1 - kept)))


def _solver_step(latents: Tensor, x0: Tensor, slope: Tensor | None, *, now: _Level, to: _Level) -> Tensor:
    """DPM-Solver++ step (Lu et al. 2022, arXiv 2211.01095): first order without `slope`, which then is DDIM.

    `x <- sigma_to/sigma_now x - alpha_to (exp(-h) - 1) (x0 + slope/2)`, h the gain in half log signal-to-noise ratio.
    """
    gain = to.alpha * -math.expm1(now.log_snr - to.log_snr)
    aim = x0 if slope is None else x0 + 0.5 * slope
    return (to.sigma / now.sigma) * latents + gain * aim


def denoise(
    schedule: Schedule,
    latents: Float[Tensor, "batch channels height width"],
    *,
    predict: Callable[[Tensor, Tensor, int], Tensor],
    timesteps: Sequence[int],
    solver: str = "dpmpp_2m",
    adjust: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[SampleStep]:
    """Bring latents at noise level `timesteps[0]` to clean ones, one model call a step; deterministic, no gradients.

    Args:
        schedule: the noise schedule that the model was trained with.
        latents: at the noise of `timesteps[0]` (unit noise if that is the end of the schedule).
        predict: (latents, timesteps "batch" int, step from 0) -> epsilon, any float type.
        timesteps: descending, as `Schedule.timesteps` makes them.
        solver: `dpmpp_2m` (second order multistep, the last step first order) or `ddim` (first order).
        adjust: (step from 0, latents) -> latents, called after each step on the latents and on the kept prediction;
            must be linear in the latents, so that the multistep history stays consistent (local blend is).

    Raises:
        InputError: the solver is not known or the steps do not fall.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver must be one of {SOLVERS}, got {solver!r}")
    if not timesteps or any(a <= b for a, b in zip(timesteps, timesteps[1:], strict=False)):
        raise InputError(f"timesteps must fall and not be empty, got {list(timesteps)}")
    levels = [_level(schedule, t) for t in timesteps] + [_level(schedule, None)]
    latents = latents.float()
    previous = None
    for step, timestep in enumerate(timesteps):
        now, to = levels[step], levels[step + 1]
        t = torch.full((latents.shape[0],), timestep, dtype=torch.long, device=latents.device)
        with torch.no_grad():
            x0 = schedule.to_x0(predict(latents, t, step).float(), latents, t)
            slope = None
            if solver == "dpmpp_2m" and previous is not None and to.sigma > 0:
                ratio = (to.log_snr - now.log_snr) / (now.log_snr - levels[step - 1].log_snr)
                slope = (x0 - previous) * ratio
            latents = _solver_step(latents, x0, slope, now=now, to=to)
            if adjust is not None:
                latents, x0 = adjust(step, latents), adjust(step, x0)
        previous = x0
        yield SampleStep(step + 1, len(timesteps), timestep, latents, x0)


def initial_noise(shape: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "batch channels height width"]:
    """Unit noise of one item's `shape` (c, h, w) for each seed; an item's noise depends on its seed only."""
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def _guided(
    backbone: Backbone,
    text: Tensor,
    empty_text: Tensor,
    guidance: Tensor,
    control: Callable[[int], StepControl] | None = None,
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Predictor with classifier-free guidance, `e0 + g (e1 - e0)`, both halves in one call."""
    both = torch.cat([empty_text.expand(text.shape[0], -1, -1), text])
    scale = guidance.to(text.device).float().view(-1, 1, 1, 1)

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        step_control = None if control is None else control(step)
        doubled = torch.cat([latents, latents])
        epsilon = backbone.predict_noise(doubled, torch.cat([t, t]), both, control=step_control)
        unconditional, conditional = epsilon.float().chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return predict


def sample_latents(
    backbone: Backbone,
    latents: Float[Tensor, "batch channels height width"],
    *,
    text: Float[Tensor, "batch tokens text_width"],
    guidance: Float[Tensor, " batch"],
    timesteps: Sequence[int],
    solver: str = "dpmpp_2m",
) -> Iterator[SampleStep]:
    """Denoise under text with classifier-free guidance, its strength per item (1 = none)."""
    predict = _guided(backbone, text, backbone.encode_text([""]), guidance)
    yield from denoise(backbone.schedule, latents, predict=predict, timesteps=timesteps, solver=solver)


def sample_images(
    backbone: Backbone, captions: Sequence[str], *, seeds: Sequence[int], steps: int = 18, guidance: float = 4.0
) -> Float[Tensor, "batch 3 height width"]:
    """Text to images in [0, 1]; an image depends on its caption and seed (and, in the last bits, on the batch).

    Raises:
        InputError: there is not one seed for each caption.
    """
    if len(captions) != len(seeds) or not captions:
        raise InputError(f"expected one seed for each caption, got {len(captions)} captions and {len(seeds)} seeds")
    with torch.no_grad():
        text = backbone.encode_text(list(captions))
    latents = initial_noise(latent_shape(backbone), seeds).to(text.device)
    scales = torch.full((len(captions),), float(guidance))
    table = backbone.schedule.timesteps(steps)
    for state in sample_latents(backbone, latents, text=text, guidance=scales, timesteps=table):
        latents = state.latents
    with torch.no_grad():
        return backbone.decode_latents(latents).float().clamp(0, 1)


def latent_shape(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the UNet was trained on."""
    config: Any = backbone.unet.config
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


@dataclass(frozen=True, kw_only=True)
class LocalBlend:
    """Settings of local blend: what no chosen word attends to is kept as in the source (Prompt-to-Prompt)."""

    threshold: float = 0.3
    """Share of its maximum above which a word map counts, in (0, 1)."""
    start: float = 0.2
    """Share of the steps after which blending begins, in [0, 1]; 1 = never."""
    map_sizes: tuple[int, ...] = (16,)
    """Sizes (queries a side) of the cross-attention layers whose maps are used."""


def blend_masks(
    maps: Float[Tensor, "items size size"],
    control: PairControl,
    *,
    size: tuple[int, int],
    threshold: float = 0.3,
) -> Float[Tensor, "pairs height width"]:
    """Where each pair may change, 0 or 1, from the word maps of its source and edit branch (their union).

    Prompt-to-Prompt's recipe: 3x3 max-pool, resize to `size`, divide by the maximum, threshold. A pair without words
    may change everywhere.

    Args:
        maps: as `WordMaps.mean` gives them, [source x n | edit x n].
        control: the pairs.
        size: height and width of the masks.
        threshold: in (0, 1).
    """
    pooled = F.max_pool2d(maps[:, None].float(), kernel_size=3, stride=1, padding=1)
    resized = F.interpolate(pooled, size, mode="bilinear")[:, 0]
    peak = resized.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    is_on = resized / peak > threshold
    source, edit = is_on.chunk(2)
    return ((source | edit) | ~control.has_words[:, None, None]).float()


class PairSample(NamedTuple):
    """A batch of pairs while it is sampled."""

    step: int
    num_steps: int
    source_latents: Float[Tensor, "pairs channels height width"]
    edit_latents: Float[Tensor, "pairs channels height width"]
    maps: Float[Tensor, "items size size"] | None
    """Word maps so far, [source x n | edit x n]; None if no pair has words."""


def sample_pairs(
    backbone: Backbone,
    control: PairControl,
    *,
    source_text: Float[Tensor, "pairs tokens text_width"],
    edit_text: Float[Tensor, "pairs tokens text_width"],
    seeds: Sequence[int],
    guidance: Float[Tensor, " pairs"],
    num_steps: int = 18,
    blend: LocalBlend | None = None,
) -> Iterator[PairSample]:
    """Sample source and edit branch of each pair from the same noise, the edit branch under `control`."""
    blend = blend or LocalBlend()
    text = torch.cat([source_text, edit_text])
    control = control.to(text.device)
    maps = WordMaps(blend.map_sizes) if bool(control.has_words.any()) else None
    noise = initial_noise(latent_shape(backbone), seeds).to(text.device)
    size = (noise.shape[2], noise.shape[3])

    def blend_latents(step: int, latents: Tensor) -> Tensor:
        if maps is None or step < blend.start * num_steps:
            return latents
        mask = blend_masks(maps.mean(), control, size=size, threshold=blend.threshold)[:, None]
        source, edit = latents.chunk(2)
        return torch.cat([source, source + mask * (edit - source)])

    predict = _guided(
        backbone,
        text,
        backbone.encode_text([""]),
        torch.cat([guidance, guidance]),
        lambda step: control.at_step(step, num_steps, maps),
    )
    states = denoise(
        backbone.schedule,
        torch.cat([noise, noise]),
        predict=predict,
        timesteps=backbone.schedule.timesteps(num_steps),
        adjust=blend_latents,
    )
    for state in states:
        source, edit = state.latents.chunk(2)
        yield PairSample(state.step, state.num_steps, source, edit, None if maps is None else maps.mean())
