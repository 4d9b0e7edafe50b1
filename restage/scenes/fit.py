"""Fit splats to a capture, and go on fitting given splats to other targets: what editing does.

Both are generators that yield a `FitStep` after every step; the caller shows, stops, or replaces targets in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import derive_seed
from restage.run.profile import timed
from restage.run.threads import small_tensors
from restage.scenes.cameras import Cameras, project_points
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig, RefineConfig
from restage.scenes.initial import Surroundings, initial_splats, surroundings_of, with_points
from restage.scenes.optimizer import Exposures, SplatOptimizer, Targets
from restage.scenes.rasterize import rasterize
from restage.scenes.splats import Splats

__all__ = ["FitStep", "Schedule", "SplatFit", "Targets", "fit_splats"]
__all__ += ["psnr", "refine_splats", "render_views", "view_at"]


@dataclass
class Schedule:
    """Share of a fit that is done, in [0, 1], and whether it should end.

    Without a budget the share is that of the steps. With one it is that of the time if that is further on, so that
    whatever falls with the share, such as learning rates, has fallen when the time is up. How many steps are done by
    then depends on the machine and its load: a fit with a budget is not the same bit for bit when done again.
    """

    num_steps: int
    num_views: int
    budget_s: float | None = None
    """Seconds of fitting, without the first step, which may compile kernels; None for as long as the steps take."""
    patience: int = 3  # passes through the views that are compared with those before them
    min_gain: float = 0.0
    """The loss has levelled off if the last passes are not better than those before by this share; 0: never."""
    clock: Callable[[], float] = time.perf_counter
    step: int = 0
    elapsed_s: float = 0.0  # seconds since the first step of this and earlier sessions
    passes: list[float] = field(default_factory=list)
    """Mean training loss of each pass through all views."""
    pass_loss: float = 0.0
    last_s: float = math.nan

    def advance(self, loss: float) -> None:
        """Take note of a step and its loss."""
        now_s = self.clock()
        if not math.isnan(self.last_s):
            self.elapsed_s += now_s - self.last_s
        self.last_s = now_s
        self.step += 1
        self.pass_loss += loss
        if self.step % self.num_views == 0:
            self.passes.append(self.pass_loss / self.num_views)
            self.pass_loss = 0.0

    @property
    def share(self) -> float:
        """Share of the fit that is done, in [0, 1]."""
        by_steps = self.step / self.num_steps
        by_time = 0.0 if self.budget_s is None else self.elapsed_s / self.budget_s
        return min(max(by_steps, by_time), 1.0)

    @property
    def has_levelled_off(self) -> bool:
        """Whether the mean loss of the last passes, which all see every view, is hardly below that of those before."""
        if not self.min_gain or len(self.passes) < 2 * self.patience:
            return False
        before = sum(self.passes[-2 * self.patience : -self.patience])
        last = sum(self.passes[-self.patience :])
        return last > (1 - self.min_gain) * before

    @property
    def is_over(self) -> bool:
        """Whether steps or time are used up, or the loss has levelled off."""
        return self.share >= 1.0 or self.has_levelled_off

    def state(self) -> dict[str, Any]:
        """Everything that changes, for `torch.save`."""
        return {name: getattr(self, name) for name in ("step", "elapsed_s", "passes", "pass_loss")}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the time in between does not count."""
        vars(self).update(state, last_s=math.nan)


class FitStep(NamedTuple):
    """The state after a step."""

    step: int  # steps done, from 1 to num_steps
    num_steps: int
    loss: float
    splats: Splats  # the tensors of the loop, which later steps change: clone what you keep


def view_at(seed: int, step: int, num_views: int) -> int:
    """View of step 0, 1, ...: each pass goes through all views, in an order of its own that the seed gives."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "view order", step // num_views))
    return int(torch.randperm(num_views, generator=generator)[step % num_views])


class SplatFit:
    """A fit that can be stepped, saved and resumed; `fit_splats` is the plain loop over it."""

    def __init__(
        self, capture: Capture, config: FitConfig, *, initial: Splats | None = None, device: str = "cpu"
    ) -> None:
        """Prepare a fit to the training views of a capture, from sparse points unless `initial` is given.

        All that is fitted lies on the device, wherever the capture does.
        """
        if initial is None:
            names = ("sh_degree", "shell_share", "shell_radius", "scale_share", "seed")
            settings = {name: getattr(config, name) for name in names}
            capture = with_points(capture.to("cpu"), config.num_splats)
            initial = initial_splats(capture, config.num_splats, **settings)
        self.notes = capture.notes  # what was found out about the capture
        self.config = config
        self.targets = _training_targets(capture, device)
        halved = self.targets.halved() if config.coarse_share or config.quarter_share else None
        quartered = halved.halved() if halved and config.quarter_share else None
        self.pyramid = ((config.quarter_share, quartered), (config.coarse_share, halved), (math.inf, self.targets))
        self.surroundings = surroundings_of(self.targets.cameras)
        self.optimizer = SplatOptimizer(
            initial.to(device),
            config.rates,
            scene_size=self.surroundings.size,
            center=self.surroundings.center if config.has_rates_by_distance else None,
            loss=config.loss,
            exposures=Exposures(len(self.targets), device=device) if config.fits_exposure else None,
        )
        budget_s, num_views = config.time_budget_s, len(self.targets)
        self.schedule = Schedule(config.steps, num_views, budget_s=budget_s, min_gain=config.stop_gain)
        self._drop_floaters()

    def step(self) -> FitStep:
        """Do one step."""
        config, share, done = self.config, self.schedule.share, self.schedule.step
        targets = self.current_targets
        left = min(1.0, (1 - share) / config.cooldown_share) if config.cooldown_share else 1.0
        decays = (left * config.means_decay**share, left * config.other_decay**share)
        view = view_at(config.seed, done, len(targets))
        loss = self.optimizer.step(targets, view, decay=decays[0], other_decay=decays[1])
        self.schedule.advance(loss)
        if (done + 1) % config.cull_every == 0:
            self._drop_floaters()
        return FitStep(done + 1, config.steps, loss, self.optimizer.splats)

    @property
    def current_targets(self) -> Targets:
        """What the next step compares a render with: the training views at the size that is due."""
        share = self.schedule.share
        return next(targets for until, targets in self.pyramid if targets is not None and share < until)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, time is up, or the loss has levelled off."""
        return self.schedule.is_over

    def state(self) -> dict[str, Any]:
        """Everything that changes, for `torch.save`."""
        return {"optimizer": self.optimizer.state(), "schedule": self.schedule.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state(state["optimizer"])
        self.schedule.load_state(state["schedule"])

    def _drop_floaters(self) -> None:
        floats = is_floating(self.optimizer.splats, self.targets.cameras, self.surroundings, self.config.near_share)
        # All of them gone would leave nothing to fit.
        if floats.any() and not floats.all():
            self.optimizer.keep(~floats)


def _training_targets(capture: Capture, device: str) -> Targets:
    """The training views; what is copied on the way is gone on return, for large views take gigabytes."""
    train = capture.select(capture.train_indices).to(device)
    return Targets(train.cameras, train.images, train.masks)


def is_floating(splats: Splats, cameras: Cameras, surroundings: Surroundings, near_share: float) -> Tensor:
    """Which splats lie before a camera and nearer than a share of the scene's size, or can hardly be seen at all.

    Such splats explain one view alone and cover others.
    """
    floats = splats.opacity_logits < -6.0
    side = torch.tensor([cameras.width, cameras.height], device=floats.device)
    for view in range(len(cameras)):
        pixels, depths = project_points(splats.means, cameras[view])
        is_near = (depths > 0) & (depths < near_share * surroundings.size)
        floats |= is_near & (pixels >= -0.25 * side).all(1) & (pixels < 1.25 * side).all(1)
    return floats


def fit_splats(capture: Capture, config: FitConfig, initial: Splats | None = None) -> Iterator[FitStep]:
    """Fit splats to the training views of a capture; held-out views are never looked at."""
    fit = SplatFit(capture, config, initial=initial)
    while not fit.is_done:
        yield fit.step()


def refine_splats(
    splats: Splats,
    targets: Targets,
    *,
    config: RefineConfig,
    trainable: Float[Tensor, " n"] | None = None,
    optimizer: SplatOptimizer | None = None,
) -> Iterator[FitStep]:
    """Move given splats towards targets; their number and order stay.

    Args:
        splats: Where to start; not changed.
        targets: Images and pixel weights by view; read at every step, so `targets.replace` in between takes effect.
        config: Steps, learning rates (0 freezes a group), seed of the view order.
        trainable: Factor on each splat's step in [0, 1]; splats with 0 stay bit for bit the same.
        optimizer: Given to go on with the splats and moments of an earlier call; then `splats` and `trainable` are
            ignored and the view order goes on too.
    """
    if optimizer is None:
        size = surroundings_of(targets.cameras).size
        optimizer = SplatOptimizer(splats, config.rates, scene_size=size, loss=config.loss, trainable=trainable)
    for step in range(config.steps):
        # Each step follows one view; without a slow end the splats stay where the last few views pushed them.
        left = min(1.0, (config.steps - step) / max(1.0, config.cooldown_share * config.steps))
        view = view_at(config.seed, optimizer.num_updates, len(targets))
        loss = optimizer.step(targets, view, decay=left, other_decay=left)
        yield FitStep(step + 1, config.steps, loss, optimizer.splats)


@torch.no_grad()
@small_tensors()
def render_views(splats: Splats, cameras: Cameras) -> Float[Tensor, "n 3 h w"]:
    """Render every camera over black, clamped to [0, 1], on the device of the splats."""
    with timed("render"):
        images = [rasterize(splats.detach(), cameras[view]).color.clamp(0, 1) for view in range(len(cameras))]
    size, device = (cameras.height, cameras.width), splats.means.device
    return torch.stack(images) if images else torch.zeros(0, 3, *size, device=device)


def psnr(
    images: Float[Tensor, "n 3 h w"], truth: Float[Tensor, "n 3 h w"], weights: Float[Tensor, "n h w"] | None = None
) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image in dB, for values in [0, 1]; infinite for equal images.

    `weights` >= 0 say how much each pixel counts; an image without any weight gives NaN.
    """
    squares = (images.double() - truth.double()).square().mean(dim=1)
    if weights is None:
        return -10 * torch.log10(squares.mean(dim=(1, 2))).float()
    shares = weights.double() / weights.double().sum(dim=(1, 2), keepdim=True)
    return -10 * torch.log10((squares * shares).sum(dim=(1, 2))).float()
