"""The noise schedule: how much of a clean latent is left at each step, and what a model's prediction means there.

Read from the config of any diffusers scheduler, without the scheduler: nothing here has state, and step tables are
built on request. Used by the sampler, by training and by the distillation methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Float64, Int
from msgspec import Meta
from torch import Tensor

from restage.records import InputError, from_plain, read_json

__all__ = ["PREDICTION_TYPES", "Schedule"]

Items = Float[Tensor, "batch ..."]
Times = Int[Tensor, " batch"]
"""Of any kind of item, one timestep each."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class _Config:
    """What is read of a scheduler's config; the defaults are those of diffusers."""

    num_train_timesteps: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: list[float] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False


def _betas(config: _Config) -> Float64[Tensor, " steps"]:
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float64)
    num_steps, kind = config.num_train_timesteps, config.beta_schedule
    first, last = config.beta_start, config.beta_end
    if kind == "linear":
        return torch.linspace(first, last, num_steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(math.sqrt(first), math.sqrt(last), num_steps, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021 (arXiv 2102.09672), section 3.2
        edges = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        left = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)
    raise InputError(f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, got {kind!r}")


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving schedule: `x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`, t = 0 nearly clean."""

    alphas_cumprod: Float64[Tensor, " num_train_timesteps"]
    """abar: share of the clean latent's variance that is left, falling with t, in (0, 1)."""
    prediction_type: str = "epsilon"  # what the UNet was trained to predict: one of `PREDICTION_TYPES`

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(f"prediction_type must be one of {PREDICTION_TYPES}, got {self.prediction_type!r}")
        kept = self.alphas_cumprod
        if kept.numel() == 0 or not bool(((kept > 0) & (kept < 1)).all()) or bool((kept.diff() > 0).any()):
            raise InputError("alphas_cumprod must fall within (0, 1); check the betas of the scheduler's config")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, where: object = "the scheduler's config") -> Schedule:
        """Read a diffusers scheduler config."""
        found = from_plain(config, _Config, where=where)
        try:
            if found.rescale_betas_zero_snr:
                raise InputError("rescale_betas_zero_snr is not supported; use a scheduler config without it")
            return cls(torch.cumprod(1 - _betas(found), dim=0), found.prediction_type)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> tuple[Schedule, dict[str, Any]]:
        """Read a `scheduler_config.json`; returns the whole config, too."""
        config = read_json(path, dict[str, Any])
        return cls.from_config(config, where=path), config

    @property
    def num_train_timesteps(self) -> int:
        """Number of steps in the schedule (t runs from 0 to this minus one)."""
        return self.alphas_cumprod.numel()

    def timesteps(self, num_steps: int, start: float = 1.0) -> tuple[int, ...]:
        """Build a table of evenly spaced steps, descending; after the last one comes the clean latent.

        The first step is `round(start * T) - 1`, the others are spaced back from there ("trailing" in arXiv 2305.08891,
        table 2).
        """
        if not 0 < start <= 1:
            raise InputError(f"the noise level to start at must be in (0, 1], got {start}")
        top = round(start * self.num_train_timesteps)
        if not 1 <= num_steps <= top:
            raise InputError(f"between 1 and {top} steps fit below noise level {start}, got {num_steps}")
        return tuple(round(top * (num_steps - step) / num_steps) - 1 for step in range(num_steps))

    def coefficients(self, t: Times, like: Items) -> tuple[Items, Items]:
        """Signal and noise coefficients, `sqrt(abar_t)` and `sqrt(1 - abar_t)`, shaped to multiply `like`."""
        kept = self.alphas_cumprod.to(t.device)[t.long()].reshape(-1, *(1 for _ in like.shape[1:]))
        return kept.sqrt().to(like), (1 - kept).sqrt().to(like)

    def add_noise(self, x0: Items, noise: Items, t: Times) -> Items:
        """Clean latents brought to step t with the given unit noise."""
        signal, sigma = self.coefficients(t, x0)
        return signal * x0 + sigma * noise

    def velocity(self, x0: Items, noise: Items, t: Times) -> Items:
        """`v = sqrt(abar) noise - sqrt(1 - abar) x0` (Salimans and Ho 2022, arXiv 2202.00512, appendix D)."""
        signal, sigma = self.coefficients(t, x0)
        return signal * noise - sigma * x0

    def target(self, x0: Items, noise: Items, t: Times) -> Items:
        """What a UNet of this `prediction_type` is trained towards."""
        if self.prediction_type == "v_prediction":
            return self.velocity(x0, noise, t)
        return noise if self.prediction_type == "epsilon" else x0

    def to_epsilon(self, prediction: Items, latents: Items, t: Times) -> Items:
        """The noise that a prediction of this `prediction_type` stands for, at noisy `latents`."""
        if self.prediction_type == "epsilon":
            return prediction
        signal, sigma = self.coefficients(t, latents)
        if self.prediction_type == "v_prediction":
            return signal * prediction + sigma * latents
        return (latents - signal * prediction) / sigma

    def to_x0(self, epsilon: Items, latents: Items, t: Times) -> Items:
        """The clean latents that a noise prediction stands for, at noisy `latents`."""
        signal, sigma = self.coefficients(t, latents)
        return (latents - sigma * epsilon) / signal
