"""The settings of the stage `world`, apart from what they steer, which loads torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from restage.records import InputError, added_later
from restage.world.description import KINDS_OF_EDITION

__all__ = ["CaptureConfig", "WorldConfig"]


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """How a scene is photographed."""

    num_views: int = 40
    """All views, held-out ones included."""
    held_out_every: int = 5
    """Every n-th view is held out for measuring."""
    size: int = 128
    """Width and height in pixels."""
    num_points: int = 6000
    """Sparse points, as structure from motion would have found them."""

    def __post_init__(self) -> None:
        if not 2 <= self.held_out_every <= self.num_views:
            raise InputError(
                f"expected held_out_every from 2 to num_views = {self.num_views}, got {self.held_out_every}"
            )
        if self.size < 8 or self.num_points < 0:
            raise InputError(f"expected size >= 8 and num_points >= 0, got {self.size} and {self.num_points}")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Which scenes and edits to make."""

    num_scenes: int = 1
    edit_kinds: tuple[str, ...] = ("recolour", "ground")
    """Each scene gets one edit of each of these kinds."""
    num_objects: int | None = None
    """1 to 3; sampled where None."""
    split: str = "train"
    """`train`, or `unseen` for combinations of kind and color that no model was trained on."""
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    edition: int = added_later(1)
    """Edition of the grammar: 2 says where things are added and moved, and has patterns and colors without a name."""

    def __post_init__(self) -> None:
        if self.edition not in KINDS_OF_EDITION:
            raise InputError(f"expected an edition of the grammar out of 1 and 2, got {self.edition}")
        kinds = KINDS_OF_EDITION[self.edition]
        unknown = sorted(set(self.edit_kinds) - set(kinds))
        if unknown or len(set(self.edit_kinds)) != len(self.edit_kinds):
            raise InputError(f"expected different kinds out of {', '.join(kinds)}, got {self.edit_kinds}")
        if self.num_scenes < 1 or self.num_objects not in (None, 1, 2, 3):
            raise InputError(f"expected scenes >= 1 and 1 to 3 objects, got {self.num_scenes} and {self.num_objects}")
        if self.split not in ("train", "unseen"):
            raise InputError(f"expected split 'train' or 'unseen', got '{self.split}'")
