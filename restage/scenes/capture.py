"""A capture: posed photographs of one scene, sparse points, and which views are held out.

`scenes/io` reads it from what people have and writes it; the miniature world makes it; fitting and editing take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras

__all__ = ["Capture"]


@dataclass(frozen=True)
class Capture:
    """Posed views of one scene."""

    name: str
    cameras: Cameras
    images: Float[Tensor, "n 3 h w"]
    """RGB in [0, 1]."""
    file_names: tuple[str, ...]
    """File name of each view's image, without a folder; unique."""
    points: Float[Tensor, "m 3"]
    """Sparse points of the scene in world units; m may be 0."""
    point_colors: Float[Tensor, "m 3"]
    """RGB in [0, 1]."""
    train_indices: tuple[int, ...]
    """Views that fitting and editing may see."""
    held_out_indices: tuple[int, ...]
    """Views kept for measuring; shares no view with `train_indices`."""
    masks: Float[Tensor, "n h w"] | None = None
    """Weight of each pixel in [0, 1]: 0 where a photograph shows nothing of the scene, such as outside of an
    undistorted picture or what a mask file leaves out; None where all pixels count."""

    def __post_init__(self) -> None:
        num_views = len(self.cameras)
        expected = (num_views, 3, self.cameras.height, self.cameras.width)
        if tuple(self.images.shape) != expected:
            raise InputError(f"{self.name}: expected images of shape {expected}, got {tuple(self.images.shape)}")
        if self.masks is not None and tuple(self.masks.shape) != (expected[0], *expected[2:]):
            raise InputError(
                f"{self.name}: expected masks of shape {(expected[0], *expected[2:])}, got {tuple(self.masks.shape)}"
            )
        if len(self.file_names) != num_views or len(set(self.file_names)) != num_views:
            raise InputError(f"{self.name}: expected {num_views} different file names, got {len(set(self.file_names))}")
        if self.points.shape[0] != self.point_colors.shape[0]:
            raise InputError(
                f"{self.name}: expected a color for each point, got {self.point_colors.shape[0]} "
                f"for {self.points.shape[0]}"
            )
        used = [*self.train_indices, *self.held_out_indices]
        if len(set(used)) != len(used) or any(not 0 <= index < num_views for index in used):
            raise InputError(
                f"{self.name}: expected disjoint training and held-out views out of 0..{num_views - 1}, "
                f"got {self.train_indices} and {self.held_out_indices}"
            )

    def select(self, indices: Sequence[int]) -> Capture:
        """Only these views, in this order, all of them training views; the points stay."""
        chosen = list(indices)
        return Capture(
            name=self.name,
            cameras=self.cameras[chosen],
            images=self.images[chosen],
            file_names=tuple(self.file_names[index] for index in chosen),
            points=self.points,
            point_colors=self.point_colors,
            train_indices=tuple(range(len(chosen))),
            held_out_indices=(),
            masks=None if self.masks is None else self.masks[chosen],
        )
