"""What a generator of scenes gets and what it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from restage.diffusion.backbone import Backbone
from restage.generate.rig import Rig
from restage.scenes.splats import Splats

__all__ = ["GenerateJob", "GenerateStep", "Generator"]


@dataclass(frozen=True)
class GenerateJob:
    """One caption that is to become a scene."""

    caption: str
    backbone: Backbone  # on the device where the scene is made, too
    seed: int
    views: Path | None = None
    """Folder of the add-on that lets the backbone make several views at once; None for none."""
    rig: Rig = field(default_factory=Rig)

    @property
    def size(self) -> int:
        """Width and height in pixels of the pictures that the backbone makes."""
        return self.backbone.picture_size[1]


class GenerateStep(NamedTuple):
    """A step of a generator; its splats can be used at any moment."""

    step: int  # steps done so far
    num_steps: int
    loss: float
    splats: Splats  # the tensors of the loop, which later steps change: clone what you keep
    note: str
    state: Callable[[], dict[str, Any]]
    """Everything that a later start needs to go on from here, for `torch.save`."""
    views: tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]] | None = None
    """Views that were sampled and the scene was fitted to, and what it shows there; with the last step at most."""


@runtime_checkable
class Generator(Protocol):
    """A generator is a frozen dataclass of its settings."""

    def run(self, job: GenerateJob, state: Mapping[str, Any] | None = None) -> Iterator[GenerateStep]:
        """Make a scene, from nothing or from where a step's state was saved; yields at least one step."""
        ...
