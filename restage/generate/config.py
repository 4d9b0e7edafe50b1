"""The settings of what is made from text, apart from what loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restage.records import InputError

__all__ = ["PicturesConfig", "ScenesOptions"]


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """How pictures are sampled."""

    num: int = 1
    """Pictures, or scenes, of each caption."""
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


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """How scenes are made; pictures and clips take none of it."""

    generator: str = "auto"
    """How scenes grow: `sds` and `ism` distill the model; `views` paints several views at once, by an add-on, and fits
    splats to them; `refined` paints views of a first scene again, together. `auto`: refined with an add-on, else ism.
    """
    preset: str = ""
    """Settings for another model than the miniature: `sd15` for sds and ism with Stable Diffusion, on a GPU."""
    scene_steps: int | None = None
    """Steps that a scene is distilled or fitted for; default: the generator's."""
    views: Path | None = None
    """Folder of the add-on that makes several views at once; default: the one beside the model, if there is one."""
