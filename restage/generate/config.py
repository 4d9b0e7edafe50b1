"""The settings of what is made from text, apart from what loads torch."""

from __future__ import annotations

from dataclasses import dataclass

from restage.records import InputError

__all__ = ["PicturesConfig"]


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """How pictures are sampled."""

    num: int = 1
    """Pictures of each caption."""
    steps: int = 15
    """UNet calls for a picture."""
    guidance: float = 5.0
    """Strength of classifier-free guidance; 1 = none."""
    batch_size: int = 4
    """Pictures that are sampled at the same time."""

    def __post_init__(self) -> None:
        if min(self.num, self.steps, self.batch_size) < 1:
            counts = f"{self.num}, {self.steps} and {self.batch_size}"
            raise InputError(f"num, steps and batch_size must be at least 1, got {counts}")
