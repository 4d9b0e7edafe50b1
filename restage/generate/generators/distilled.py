"""Distillation from nothing: render a view of a ball of splats, ask the model for a gradient, move the splats.

`sds` and `ism` differ in the gradient alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.backbone import Backbone, TextCondition
from restage.diffusion.sampling import guided, sample_images
from restage.diffusion.schedule import Schedule
from restage.edit.methods.distill import draw_timestep
from restage.edit.methods.idu import check_noise_range
from restage.generate.generators.blob import Blob, Start
from restage.generate.job import GenerateJob, GenerateStep
from restage.generate.rig import azimuth_rad
from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras
from restage.scenes.config import LearningRates
from restage.scenes.optimizer import SplatOptimizer
from restage.scenes.rasterize import splat_weights
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Distilled", "Draw", "view_words"]

MIN_SEEN = 0.05
"""Pixels, at least, that a splat must cover over all pictures to take its color from them."""

Latents = Float[Tensor, "1 c h w"]


class Draw(NamedTuple):
    """One rendered view at one noise level, as a gradient is made from it."""

    latents: Latents  # clean latents of the render
    noise: Latents
    timestep: int
    schedule: Schedule
    towards: Callable[[Tensor, int], Tensor]
    """Noise that the model sees in latents at a step of the schedule, guided towards the caption."""
    untold: Callable[[Tensor, int], Tensor]  # the same without a caption

    def noised(self) -> Latents:
        """The render with the noise of this level."""
        return self.schedule.add_noise(
            self.latents, self.noise, torch.tensor([self.timestep], device=self.latents.device)
        )


def view_words(cameras: Cameras) -> str:
    """What a caption is to say about the side that one camera (n = 1) sees, as in threestudio: a quarter turn each."""
    angle = abs(azimuth_rad(cameras))
    return "front view" if angle < math.pi / 4 else "back view" if angle > 3 * math.pi / 4 else "side view"


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Settings that both gradients share; learning rates are those of DreamGaussian, in units of the distance.

    Ground and sky are there from the start and only get colors; where a splat of the ball lies, how large and how
    opaque it is, is learned. No splats are born on the way: the ball has enough for pictures of 128 pixels.
    """

    num_steps: int = 700
    """Views that are rendered and moved."""
    guidance: float = 2.0
    """Guidance on the caption. Models that follow captions without much of it, as the miniature's does, take more for a
    wish to have more of everything that is green."""
    lowest_noise: float = 0.2
    highest_noise: float = 0.9
    """Range that the noise level is drawn from evenly, in shares of the schedule."""
    last_noise: float | None = 0.5
    """The highest noise falls to this over the run, linearly; None for a range that stays."""
    says_view: bool = False
    """Whether captions say which side is seen, as in DreamFusion; for models whose captions do."""
    blob: Blob = field(default_factory=Blob)
    """What it starts from."""
    num_pictures: int = 4
    """Pictures that the model makes of the caption, each as if from another side; ground, sky and ball get their colors
    from these, which agree on no more than that. 0 for none: they start gray."""
    means_decay: float = 0.02
    """Share of the learning rate of positions that is left at the end."""
    other_decay: float = 0.2
    """Share of all other learning rates that is left at the end, since every gradient is noise for the most part."""
    rates: ClassVar[LearningRates] = LearningRates(
        means=1e-3, log_scales=5e-3, rotations=5e-3, opacity_logits=5e-2, sh=1e-2
    )

    def __post_init__(self) -> None:
        check_noise_range(self.lowest_noise, self.highest_noise)
        check_noise_range(self.lowest_noise, self.highest_noise if self.last_noise is None else self.last_noise)
        if self.num_steps < 1 or self.num_pictures < 0 or not (0 < self.means_decay <= 1 and 0 < self.other_decay <= 1):
            raise InputError(f"expected at least one step, no pictures or some, and decays in (0, 1], got {self}")

    def _gradient(self, draw: Draw) -> Tensor:
        """Gradient in the latents of the render."""
        raise NotImplementedError

    @torch.no_grad()
    def _colored(self, start: Start, job: GenerateJob) -> Splats:
        """The splats to start from, each in the mean color of what pictures of the caption show where it is seen."""
        splats = start.splats.to(job.backbone.device)
        seeds = [derive_seed(job.seed, "picture", number) for number in range(self.num_pictures)]
        pictures = sample_images(job.backbone, [job.caption] * self.num_pictures, seeds=seeds)
        cameras = job.rig.ring(self.num_pictures, size=job.size)
        sums, weights = torch.zeros_like(splats.means), torch.zeros_like(splats.opacity_logits)
        for view, picture in enumerate(pictures):
            found = splat_weights(splats, cameras[view], picture)
            sums, weights = sums + found[0], weights + found[1]
        for part in (slice(0, start.num_around), slice(start.num_around, None)):
            shown, seen = sums[part], weights[part]
            # What no picture shows, such as the inside of the ball, is colored like the rest of its kind.
            mean = shown.sum(dim=0) / seen.sum().clamp_min(1e-6)
            colors = torch.where(seen[:, None] > MIN_SEEN, shown / seen[:, None].clamp_min(1e-6), mean)
            splats.sh[part, 0] = (colors - 0.5) / SH_C0
        return splats

    def run(self, job: GenerateJob, state: Mapping[str, Any] | None = None) -> Iterator[GenerateStep]:
        """Distill; see `Generator.run`."""
        backbone, schedule = job.backbone, job.backbone.schedule
        start = self.blob.make(job.rig, job.seed)
        around = start.splats[: start.num_around].to(backbone.device)
        begun, first = start.splats.to(backbone.device), 0
        if state is None and self.num_pictures:
            begun = self._colored(start, job)
        optimizer = SplatOptimizer(begun, self.rates, scene_size=job.rig.distance)
        if state is not None:
            optimizer.load_state(state["optimizer"])
            first = int(state["step"])
        empty = backbone.encode_prompts([""])
        encode = functools.cache(lambda text: backbone.encode_prompts([text]))
        untold = _predictor(backbone, empty)
        for step in range(first, self.num_steps):
            seed, share = derive_seed(job.seed, "distill", step), step / self.num_steps
            camera = job.rig.draw(seed, size=job.size)
            text = encode(f"{job.caption}, {view_words(camera)}" if self.says_view else job.caption)
            last = self.highest_noise if self.last_noise is None else self.last_noise
            t = draw_timestep(schedule, self.lowest_noise, (1 - share) * self.highest_noise + share * last, seed=seed)
            towards = _predictor(backbone, text, empty, self.guidance)

            def objective(color: Tensor, t: int = t, seed: int = seed, towards: _Predict = towards) -> Tensor:
                latents = backbone.encode_with_gradient(color[None].clamp(0, 1))
                with torch.no_grad():
                    generator = torch.Generator().manual_seed(seed)
                    noise = torch.randn(tuple(latents.shape), generator=generator).to(latents)
                    draw = Draw(latents.detach(), noise, t, schedule, towards, untold)
                    # This loss has the given gradient in the latents, and autograd carries it on to the splats.
                    target = latents.detach() - self._gradient(draw)
                return 0.5 * (latents - target).square().sum()

            rates = {name: rate * self.other_decay**share for name, rate in vars(self.rates).items()}
            optimizer.rates = replace(self.rates, **rates | {"means": self.rates.means * self.means_decay**share})
            loss = optimizer.descend(camera, objective)
            for name in ("means", "log_scales", "rotations", "opacity_logits"):
                optimizer.splats.parameters()[name][: len(around)] = getattr(around, name)

            def state_of(step: int = step) -> dict[str, Any]:
                return {"step": step + 1, "optimizer": optimizer.state()}

            note = f"distilling at step {t} of the noise schedule"
            yield GenerateStep(step + 1, self.num_steps, loss, optimizer.splats, note, state_of)
        if first >= self.num_steps:
            note, kept = "distilled before", dict(state or {})
            yield GenerateStep(self.num_steps, self.num_steps, 0.0, optimizer.splats, note, lambda: kept)


_Predict = Callable[[Tensor, int], Tensor]


def _predictor(
    backbone: Backbone, text: TextCondition, empty: TextCondition | None = None, guidance: float = 1.0
) -> _Predict:
    """Predicts noise under a text, with guidance away from another if there is one."""
    towards = None if empty is None else guided(backbone, text, empty, torch.tensor([guidance]))

    def predict(latents: Tensor, timestep: int) -> Tensor:
        t = torch.full((len(latents),), timestep, device=latents.device)
        return backbone.predict_noise(latents, t, text) if towards is None else towards(latents, t, 0)

    return predict
