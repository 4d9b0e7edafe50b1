"""The settings of what is made from text, apart from what loads torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from restage.records import InputError

__all__ = ["LayoutConfig", "PicturesConfig", "ScenesOptions"]


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """What holds the layout of pictures."""

    control: tuple[str, ...] = ()
    """Conditions, each as NAME=FILE: depth=, of inverse depth (near is white) or z depth (.npy); ids=, a number for
    each pixel, 0 sky, 1 ground; canny=, a picture whose edges are found. With a folder in place of a file, frames are
    made, one for each of its files."""
    like: str = ""
    """RUN:VIEW, for the layout of a view of a fitted scene; RUN for frames like all its views; or the folder of a clip
    of the miniature world, for frames like its own."""
    branch: tuple[str, ...] = ()
    """Control branches, each as FOLDER, or NAME=FOLDER for a ControlNet of diffusers, such as depth=path/to/controlnet;
    ",weight=0.5,start=0,end=0.6" may follow. Default: the one that comes with the package."""

    @property
    def is_given(self) -> bool:
        """Whether anything holds the layout."""
        return bool(self.control or self.like or self.branch)


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """How pictures are sampled."""

    num: int = 1
    """Pictures, clips or scenes of each caption."""
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
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance must be a number, got {self.guidance}")


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """How scenes are made; pictures and clips take none of it."""

    generator: tuple[str, ...] = ("auto",)
    """How scenes grow: `sds` and `ism` distill the model; `views` paints several views at once, by an add-on, and fits
    splats to them; `refined` paints views of a first scene again, together. `auto`: refined, or sds with a preset.
    Several make a run each, in folders of --out that have their names.
    """
    preset: str = ""
    """Settings for another model than the miniature, which --backbone names: `sd15` for sds and ism with Stable
    Diffusion, on a GPU."""
    scene_steps: int | None = None
    """Steps that a scene is distilled or fitted for; default: the generator's."""
    views: Path | None = None
    """Folder of the add-on that makes several views at once, for views and refined; default: the one beside the model,
    if there is one."""
