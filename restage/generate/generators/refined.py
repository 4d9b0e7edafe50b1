"""The generator of this project: a scene by another one, then its views painted again together, and fitted to again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from restage.generate.generators.sds import Sds
from restage.generate.generators.views import Views
from restage.generate.job import GenerateJob, GenerateStep, Generator
from restage.generate.view_sampler import ViewSampler
from restage.records import InputError, derive_seed
from restage.scenes.config import RefineConfig
from restage.scenes.fit import refine_splats, render_views
from restage.scenes.optimizer import Targets
from restage.scenes.splats import Splats

__all__ = ["Refined"]


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A scene by `views` (by `sds` where there is no add-on), then made clearer by the machinery of editing.

    In each round views are rendered from between those of the last, noised lightly with noise that belongs to the
    scene's surfaces, denoised together under the caption, and fitted to. What a view shows wrongly is then judged by a
    model that sees all others; as in SDEdit (arXiv 2108.01073) little noise keeps what is right.
    """

    num_steps: int = 500
    """Steps of the first scene."""
    noise_levels: tuple[float, ...] = (0.5, 0.3)
    """Share of the schedule that each round starts at."""
    num_views: int = 8
    """Views that are painted again together in a round."""
    steps_per_round: int = 250
    """Fit steps after each round."""
    sampler: ViewSampler = field(default_factory=ViewSampler)
    """How views are painted."""

    def __post_init__(self) -> None:
        if not self.noise_levels or not all(0 < level <= 1 for level in self.noise_levels):
            raise InputError(f"expected at least one noise level, all in (0, 1], got {self.noise_levels}")
        if min(self.num_steps, self.num_views, self.steps_per_round) < 1:
            raise InputError(f"expected steps and views of at least 1, got {self}")

    def run(self, job: GenerateJob, state: Mapping[str, Any] | None = None) -> Iterator[GenerateStep]:
        """Make the first scene, then refine it; see `Generator.run`."""
        first: Generator = Sds(num_steps=self.num_steps) if job.views is None else Views(num_steps=self.num_steps)
        extra = len(self.noise_levels) * self.steps_per_round
        begun = dict(state or {})
        if "splats" in begun:
            splats = Splats(**begun["splats"]).to(job.backbone.device)
            round_from, before = begun["round"], begun["before"]
        else:
            step = None
            for step in first.run(job, begun.get("first")):
                kept = step.state
                yield step._replace(
                    num_steps=step.num_steps + extra, state=lambda kept=kept: {"first": kept()}, views=None
                )
            assert step is not None
            splats, round_from, before = step.splats.clone(), 0, step.num_steps
        total = before + extra
        views = None
        for number in range(round_from, len(self.noise_levels)):
            level, start = self.noise_levels[number], splats
            cameras = job.rig.ring(self.num_views, size=job.size, start_rad=torch.pi * (number + 1) / self.num_views)

            def state_of(number: int = number, start: Splats = start) -> dict[str, Any]:
                return {"splats": start.parameters(), "round": number, "before": before}

            done = before + number * self.steps_per_round
            latents = None
            for painted in self.sampler.paint(job, cameras, splats=splats, level=level, number=number + 1):
                latents, note = painted.latents, f"round {number + 1}: painting {self.num_views} views again together"
                yield GenerateStep(done, total, 0.0, splats, note, state_of)
            assert latents is not None
            images = job.backbone.decode_latents(latents)
            config = RefineConfig(
                steps=self.steps_per_round, cooldown_share=0.5, seed=derive_seed(job.seed, "round", number)
            )
            for fitted in refine_splats(splats, Targets(cameras, images), config=config):
                if (is_last := fitted.step == config.steps) and number + 1 == len(self.noise_levels):
                    views = (images, render_views(fitted.splats, cameras))
                note = f"round {number + 1}: fitting, noise was {level}"
                yield GenerateStep(done + fitted.step, total, fitted.loss, fitted.splats, note, state_of, views)
                if is_last:
                    splats = fitted.splats.clone()
