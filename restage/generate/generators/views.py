"""Several views at once by a model that is told the cameras, then the ordinary fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from restage.generate.generators.blob import Blob
from restage.generate.job import GenerateJob, GenerateStep
from restage.generate.view_sampler import ViewSampler
from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.fit import SplatFit, render_views

__all__ = ["NO_ADD_ON", "Views"]


NO_ADD_ON = (
    "the generator views needs an add-on that makes several views at once; name its folder with --views, or choose "
    "another generator, such as sds"
)


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views all around are painted together from noise, and splats are fitted to them as to photographs.

    After MVDream (Shi et al. 2023, arXiv 2308.16512), whose model attends over four views and is told their cameras,
    and MV-Adapter (Huang et al. 2024, arXiv 2412.03632), whose add-on leaves the model's weights as they are. Needs the
    add-on: `restage miniature train views`, or --views FOLDER.
    """

    num_steps: int = 900
    """Steps of the fit."""
    num_views: int = 8
    """Views that are painted together; None better than those that the add-on was trained on."""
    sampler: ViewSampler = field(default_factory=ViewSampler)
    """How they are painted."""
    blob: Blob = field(default_factory=lambda: Blob(opacity=0.3))
    """What the fit starts from: few views agree on few points, and splats at random depths hide a scene."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How splats are fitted to the views; the number of steps is `num_steps`."""

    def __post_init__(self) -> None:
        if self.num_views < 2 or self.num_steps < 1:
            raise InputError(f"expected at least two views and one step, got {self.num_views} and {self.num_steps}")

    def run(self, job: GenerateJob, state: Mapping[str, Any] | None = None) -> Iterator[GenerateStep]:
        """Paint, then fit; see `Generator.run`."""
        if job.views is None:
            raise InputError(NO_ADD_ON)
        device = job.backbone.device
        cameras = job.rig.ring(self.num_views, size=job.size)
        start = self.blob.make(job.rig, job.seed).splats.to(device)
        total = self.sampler.num_steps + self.num_steps
        if state:
            images = state["images"].to(device)
        else:
            latents = None
            for painted in self.sampler.paint(job, cameras):
                latents, note = painted.latents, f"painting {self.num_views} views together"
                yield GenerateStep(painted.step, total, 0.0, start, note, dict)
            assert latents is not None
            images = job.backbone.decode_latents(latents)
        capture = capture_of_views(cameras, images)
        config = replace(self.fit, steps=self.num_steps, seed=derive_seed(job.seed, "fit"))
        fit = SplatFit(capture, config, initial=start, device=str(device))
        if state:
            fit.load_state(state["fit"])
        done = self.sampler.num_steps
        note, loss = f"fitting splats to {self.num_views} views", 0.0
        while True:
            if not fit.is_done:
                loss = fit.step().loss
            is_done, splats = fit.is_done, fit.optimizer.splats
            shown = (images, render_views(splats, cameras)) if is_done else None
            step = done + fit.schedule.step
            yield GenerateStep(step, total, loss, splats, note, lambda: {"images": images, "fit": fit.state()}, shown)
            if is_done:
                return


def capture_of_views(cameras: Cameras, images: Float[Tensor, "n 3 h w"]) -> Capture:
    """Painted views as a capture to fit to, none of them held out."""
    return Capture(
        name="painted",
        cameras=cameras,
        images=images.cpu(),
        file_names=tuple(f"view_{index:03d}.png" for index in range(len(images))),
        points=torch.zeros(0, 3),
        point_colors=torch.zeros(0, 3),
        train_indices=tuple(range(len(images))),
        held_out_indices=(),
    )
