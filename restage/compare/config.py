"""The settings of the stage `compare`, apart from what they steer, which loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restage.records import InputError

__all__ = ["CompareConfig"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How results are judged."""

    no_op_share: float = 0.1
    """An edit whose mean change inside the region is below this share of what truth changes there is a no-op."""
    orbit_frames: int = 36
    """Frames of the orbit that consistency is measured on, before and after the edit; 0 to leave it out."""
    clip: Path | None = None
    """Folder of a CLIP in the form of transformers, such as a copy of openai/clip-vit-large-patch14; None for the
    miniature's own, which knows the miniature world and nothing else."""
    dino: Path | None = None
    """Folder of a DINO or DINOv2 in the form of transformers, such as a copy of facebook/dinov2-base."""
    lpips: Path | None = None
    """Folder with `alexnet.pth` (torchvision's weights) and `lpips_alex.pth` (the linear layers, version 0.1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.no_op_share < 1:
            raise InputError(f"expected no_op_share in [0, 1), got {self.no_op_share}")
        if self.orbit_frames == 1 or self.orbit_frames < 0:
            raise InputError(f"expected 0 or at least 2 orbit frames, got {self.orbit_frames}")
