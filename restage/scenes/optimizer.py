"""The step that fitting and editing share: render one view, compare, move the splats by Adam.

A `SplatOptimizer` holds splats and Adam's moments as plain tensors, so that it can be saved, resumed, and told which
splats and which parameters may move. `Targets` is what views are compared with; the caller may replace them anytime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.run.profile import timed
from restage.run.threads import small_tensors
from restage.scenes.cameras import Cameras
from restage.scenes.config import LearningRates, PhotometricLoss
from restage.scenes.rasterize import Rasterizer, rasterize
from restage.scenes.splats import Splats

__all__ = ["Exposures", "SplatOptimizer", "Targets"]

BETAS = (0.9, 0.999)
EPSILON = 1e-15
"""As in 3D Gaussian splatting, whose gradients are tiny: any step is set by the learning rate alone."""
REACH = (0.1, 10.0)
"""Least and greatest factor on the learning rate of the means for the distance from the center."""


def _adam_step(moments: tuple[Tensor, Tensor], gradient: Tensor, rate: float, count: int) -> Tensor:
    """Take a gradient into its moments; returns the change of the parameters, as their update number `count`."""
    first, second = moments
    # In place, as torch's Adam does: new tensors of this size for each step cost more than the arithmetic.
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = (second / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON)
    return (first / denominator).mul_(-rate / (1 - BETAS[0] ** count))


@dataclass
class Exposures:
    """Transforms E of colors, "3 4" a view: a rendered pixel c becomes E (c, 1), as in the 3D Gaussian splatting code.

    Their mean over the views is held at the identity, which splats could otherwise undo. Held-out views are rendered
    without a transform: with the mean exposure of the training views.
    """

    num_views: int
    rate: float = 3e-2
    """Adam's step at the start of the fit; 0.01 in the 3D Gaussian splatting code, which sees a view more often."""
    pull: float = 1e-2  # weight of the squared distance from the identity in the loss
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.identity = torch.eye(3, 4, device=self.device)
        self.transforms = self.identity.repeat(self.num_views, 1, 1)
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
        return self.pull * (transform - self.identity).square().sum()

    @torch.no_grad()
    def update(self, view: int, gradient: Float[Tensor, "3 4"], *, decay: float = 1.0) -> None:
        """Move one view's transform by a step of Adam, then all of them so that their mean is the identity."""
        self.num_updates[view] += 1
        moments = (self.moments[0][view], self.moments[1][view])
        self.transforms[view] += _adam_step(moments, gradient, self.rate * decay, int(self.num_updates[view]))
        # Otherwise all views could darken together while the splats brighten.
        self.transforms -= self.transforms.mean(0) - self.identity

    def state(self) -> dict[str, Any]:
        """Everything that changes, for `torch.save`."""
        return {name: getattr(self, name) for name in ("transforms", "moments", "num_updates")}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, which may come from another device."""
        first, second = state["moments"]
        self.moments = (first.to(self.device), second.to(self.device))
        self.transforms, self.num_updates = state["transforms"].to(self.device), state["num_updates"].to(self.device)


class Targets:
    """What each view should look like, and how much each of its pixels counts; may change while a loop runs.

    Images and weights lie on the device of the splats that follow them.
    """

    def __init__(
        self, cameras: Cameras, images: Float[Tensor, "n 3 h w"], weights: Float[Tensor, "n h w"] | None = None
    ) -> None:
        """Hold images in [0, 1] and weights >= 0 (default: 1 everywhere) for the cameras; tensors are copied."""
        shape = (len(cameras), cameras.height, cameras.width)
        if not len(cameras) or tuple(images.shape) != (shape[0], 3, *shape[1:]):
            raise InputError(f"expected targets of shape {(shape[0], 3, *shape[1:])}, got {tuple(images.shape)}")
        if weights is not None and tuple(weights.shape) != shape:
            raise InputError(f"expected weights of shape {shape}, got {tuple(weights.shape)}")
        self.cameras = cameras
        self.images = images.detach().clone()
        self.weights = None if weights is None else weights.detach().clone()

    def __len__(self) -> int:
        return len(self.cameras)

    def halved(self) -> Targets:
        """The same views at half the size, at least 1 pixel; each pixel is the mean of those it covers."""
        size = (max(1, self.cameras.height // 2), max(1, self.cameras.width // 2))
        images = torch.nn.functional.interpolate(self.images, size=size, mode="area")
        weights = self.weights
        if weights is not None:
            weights = torch.nn.functional.interpolate(weights[:, None], size=size, mode="area")[:, 0]
        return Targets(self.cameras.to_size(width=size[1], height=size[0]), images, weights)

    def replace(
        self, index: int, image: Float[Tensor, "3 h w"], *, weights: Float[Tensor, "h w"] | None = None
    ) -> None:
        """Put another image in place of one view's target; its weights stay unless given."""
        self.images[index] = image
        if weights is not None:
            if self.weights is None:
                self.weights = torch.ones_like(self.images[:, 0])
            self.weights[index] = weights


@dataclass
class SplatOptimizer:
    """Splats on their way, with Adam's moments."""

    splats: Splats
    rates: LearningRates
    scene_size: float = 1.0  # world units that the learning rate of the means is given in
    center: Float[Tensor, " 3"] | None = None
    """Where given, a splat's center moves the faster the farther it is from here, in proportion within REACH scene
    sizes: on the images, near and far splats then move alike. None: all at one rate, as in 3D Gaussian splatting."""
    loss: PhotometricLoss = field(default_factory=PhotometricLoss)
    trainable: Float[Tensor, " n"] | None = None
    """Factor on each splat's step in [0, 1]; where it is 0 a splat stays bit for bit the same."""
    rasterizer: Rasterizer = rasterize
    exposures: Exposures | None = None
    """Color transforms of the targets' views, moved along with the splats; None leaves renders as they are."""
    num_updates: int = 0
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trainable is not None and tuple(self.trainable.shape) != (len(self.splats),):
            raise InputError(f"expected {len(self.splats)} values in trainable, got {tuple(self.trainable.shape)}")
        self.splats = self.splats.clone()
        if self.center is not None:
            self.center = self.center.to(self.splats.means.device)
        if not self.moments:
            parameters = self.splats.parameters().items()
            self.moments = {name: (torch.zeros_like(tensor), torch.zeros_like(tensor)) for name, tensor in parameters}

    @small_tensors()
    def step(self, targets: Targets, view: int, *, decay: float = 1.0, other_decay: float = 1.0) -> float:
        """Render a view, compare it with its target, move the splats once; returns how far the view was off.

        `decay` is a factor on the learning rate of the means, `other_decay` on all others.
        """
        splats = self._leaves()
        inputs = list(splats.parameters().values())
        with torch.enable_grad():
            with timed("render"):
                color = self.rasterizer(splats, targets.cameras[view]).color
            transform = None
            if self.exposures is not None:
                transform = self.exposures.transform_of(view)
                color = self.exposures.apply(transform, color)
                inputs.append(transform)
            weights = None if targets.weights is None else targets.weights[view]
            with timed("loss"):
                loss = total = self.loss(color, targets.images[view], weights)
                if self.exposures is not None and transform is not None:
                    total = total + self.exposures.penalty(transform)
            with timed("backward"):
                gradients = torch.autograd.grad(total, inputs, allow_unused=True)
        if self.exposures is not None:
            self.exposures.update(view, gradients[-1], decay=other_decay)
        with timed("optimizer"):
            self._update(dict(zip(splats.parameters(), gradients, strict=False)), decay, other_decay)
        return float(loss.detach())

    def descend(self, cameras: Cameras, objective: Callable[[Tensor], Tensor]) -> float:
        """Move the splats once down the gradient of an objective of a camera's picture; returns it before the move."""
        splats = self._leaves()
        with torch.enable_grad():
            value = objective(self.rasterizer(splats, cameras).color)
            gradients = torch.autograd.grad(value, list(splats.parameters().values()), allow_unused=True)
        self._update(dict(zip(splats.parameters(), gradients, strict=True)), 1.0, 1.0)
        return float(value.detach())

    def _leaves(self) -> Splats:
        """The splats as leaves of their own, so that the stored tensors never carry a graph."""
        return Splats(**{n: p.detach().requires_grad_() for n, p in self.splats.parameters().items()})

    @torch.no_grad()
    def _update(self, gradients: Mapping[str, Tensor | None], decay: float, other_decay: float) -> None:
        self.num_updates += 1
        for name, tensor in self.splats.parameters().items():
            rate, gradient = getattr(self.rates, name), gradients[name]
            # A frozen group keeps its bits, and gathers no moments that would carry it on once it is freed.
            if not rate or gradient is None:
                continue
            rate *= self.scene_size * decay if name == "means" else other_decay
            change = _adam_step(self.moments[name], gradient, rate, self.num_updates)
            # What is twice as far must move twice as much to move alike on the pictures.
            if name == "means" and self.center is not None:
                distances = (tensor - self.center).norm(dim=1, keepdim=True)
                change *= (distances / self.scene_size).clamp(*REACH)
            if name == "sh" and tensor.shape[1] > 1:
                # Higher degrees see each direction seldom; at the full rate they explain single views.
                change[:, 1:] *= 0.05
            if self.trainable is not None:
                factor = self.trainable.reshape(-1, *[1] * (tensor.ndim - 1))
                # Not a product alone: 0 times a moment that overflowed would be NaN.
                change = torch.where(factor > 0, change * factor, 0.0)
            tensor.add_(change)

    def keep(self, kept: Tensor) -> None:
        """Drop all splats but those that `kept` (a boolean mask or indices) picks."""
        self.splats = self.splats[kept]
        self.moments = {name: (first[kept], second[kept]) for name, (first, second) in self.moments.items()}
        self.trainable = None if self.trainable is None else self.trainable[kept]

    def state(self) -> dict[str, Any]:
        """Everything that changes, for `torch.save`."""
        return {
            "splats": self.splats.parameters(),
            "moments": self.moments,
            "trainable": self.trainable,
            "num_updates": self.num_updates,
            "exposures": None if self.exposures is None else self.exposures.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, which may come from another device."""
        device = self.splats.means.device
        self.splats = Splats(**state["splats"]).to(device)
        moments = state["moments"].items()
        self.moments = {name: (first.to(device), second.to(device)) for name, (first, second) in moments}
        self.trainable = None if state["trainable"] is None else state["trainable"].to(device)
        self.num_updates = state["num_updates"]
        if self.exposures is not None:
            self.exposures.load_state(state["exposures"])
