"""The settings of the stage `train`, apart from what they steer, which loads torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from restage.diffusion.config import Injection, Placement, TrainingConfig
from restage.records import InputError, added_later

__all__ = ["Arm", "BranchConfig", "ExampleMix", "LossWeights", "TrainConfig", "default_training"]


@dataclass(frozen=True, kw_only=True)
class ExampleMix:
    """The forms in which examples are shown."""

    drop_text: float = 0.05
    """Share of examples without instruction (InstructPix2Pix: 0.05)."""
    drop_image: float = 0.05
    """Share of examples without original (InstructPix2Pix: 0.05)."""
    drop_both: float = 0.05
    """Share of examples with neither (InstructPix2Pix: 0.05)."""
    mirror_share: float = 0.5
    """Share shown mirrored, among pairs whose texts name no side; at 0 no mirror images are encoded."""
    backwards_share: float = 0.5
    """Share shown in reverse, from the edited picture back, among pairs that say how to undo the edit."""
    identity_share: float = 0.05
    """Share in which nothing is to change: the edit is asked for again, or 'change nothing'; the mask is empty."""

    def __post_init__(self) -> None:
        dropped = (self.drop_text, self.drop_image, self.drop_both)
        shares = (*dropped, self.mirror_share, self.backwards_share, self.identity_share)
        if not all(0 <= share <= 1 for share in shares) or sum(dropped) > 1:
            raise InputError(f"shares of examples must lie in [0, 1] and those dropped add up to at most 1; got {self}")


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weights of the parts of the loss."""

    mask: float = 0.1
    """Weight of the mask's binary cross-entropy (in nats, mean over pixels); the noise loss has weight 1."""
    changed: float = 0.0
    """Extra weight of the noise loss on changed pixels: a pixel weighs 1 + changed * mask, divided by the batch's
    mean."""

    def __post_init__(self) -> None:
        if self.mask < 0 or self.changed < 0:
            raise InputError(f"weights of the loss must not be negative, got {self}")


def default_training() -> TrainingConfig:
    """Return how the edit model is trained unless a run says otherwise."""
    return TrainingConfig(num_steps=600, batch_size=32, learning_rate=2e-4)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train an edit model."""

    training: TrainingConfig = field(default_factory=default_training)
    """Length, learning rates and precision."""
    mix: ExampleMix = field(default_factory=ExampleMix)
    """The forms in which examples are shown."""
    weights: LossWeights = field(default_factory=LossWeights)
    """The weights of the parts of the loss."""
    noise_shift: float = 1.0
    """Shift s of the noise levels in training, which are higher above 1: t = s u / (1 + (s - 1) u) for uniform u (Esser
    et al. 2024, arXiv 2403.03206, equation 23). 1 is InstructPix2Pix's uniform draw."""
    train_text_encoder: bool = False
    """Whether the text encoder is trained, too, and saved with the model. InstructPix2Pix keeps it as it is, since CLIP
    has read all of English; an encoder that has only read captions does not know the words of instructions."""

    references: Literal["words", "beside", "tokens"] = added_later("words")
    """How the model looks at the pairs' reference pictures: not at all, beside the view, or as tokens in cross
    attention."""

    def __post_init__(self) -> None:
        if not self.noise_shift > 0:
            raise InputError(f"the shift of noise levels must be above 0, got {self.noise_shift}")


Arm = Literal["branch", "branch-only", "controlnet"]
"""What is trained beside the UNet: a branch and small changes of the UNet's output projections, as in ControlNeXt; a
branch alone; or a copy of the UNet's encoder, as in ControlNet."""


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """What a control branch is, and in which forms it is shown its examples."""

    arm: Arm = "branch"
    """`branch`: a small branch, and small changes of the UNet's output projections (ControlNeXt); `branch-only`: the
    branch alone; `controlnet`: a copy of the UNet's encoder (ControlNet)."""
    injection: Injection = "cross_norm"
    """How a branch (not a copied encoder) gets into the UNet: normalized to what is there, or through a convolution
    that starts at zero."""
    placement: Placement = "conv_in"
    """After which part: the first convolution, the first down block, or the middle block."""
    width: int = 48
    """Channels of the branch, a multiple of 16."""
    drop_text: float = 0.1
    """Share of examples without a caption, for classifier-free guidance."""
    drop_control: float = 0.1
    """Share of examples without conditions."""
    alone_share: float = 0.1
    """Share of examples with the first condition alone, and as many with each other, where there are several."""

    def __post_init__(self) -> None:
        shares = (self.drop_text, self.drop_control, self.alone_share)
        if not all(0 <= share <= 0.3 for share in shares) or self.width < 16 or self.width % 16:
            raise InputError(f"expected shares in [0, 0.3] and a width that is a multiple of 16, got {self}")
        shape = {name: getattr(self, name) for name in ("injection", "placement", "width")}
        if self.arm == "controlnet" and any(value != getattr(BranchConfig, name) for name, value in shape.items()):
            raise InputError(f"a copied encoder has its own shape and places; {', '.join(shape)} are for other arms")

    @property
    def name(self) -> str:
        """Name of the folder that a branch with these settings goes to."""
        if self.arm == "controlnet":
            return "control_net"
        other = [part for part in (self.injection, self.placement) if part not in ("cross_norm", "conv_in")]
        return "_".join(["control", *other, *(["only"] if self.arm == "branch-only" else [])])
