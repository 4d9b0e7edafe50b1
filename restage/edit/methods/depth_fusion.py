"""Depth fusion: edits that agree are carried into the other views by depth, blended, and edited once more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.editors.interface import AskedPictures, Edited
from restage.edit.job import EditJob, EditStep
from restage.edit.sharing import DepthMaps, render_depths, warp
from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras
from restage.scenes.config import RefineConfig
from restage.scenes.fit import Targets, refine_splats

__all__ = ["DepthFusion", "agreement", "blend_views", "nearest_views"]


@dataclass(frozen=True, kw_only=True)
class DepthFusion:
    """Edit all views, keep the edits that others agree with, blend them into every view, edit the blends, fit.

    After the multi-view fusion of EditSplat (Lee et al. 2025, arXiv 2412.11520, section 3.2) and ViCA-NeRF (Dong and
    Wang 2023, arXiv 2402.00864): good edits are warped into the other views by rendered depth where both see the same
    point, blended, and the blend is what the second edit starts from, at low noise. EditSplat picks good edits with
    ImageReward (85 % are kept); here those are kept that differ least from their neighbours' edits. EditSplat shows
    the blend to the model as one more condition; here, where editors have one condition, it is what is noised.

    Memory: that of a fit step, of a batch of views in the editor, and of all training views and their depths three
    times.
    """

    num_steps: int = 400
    """Fit steps after the edits."""
    num_sources: int = 5
    """Nearest good views that are blended into a view; the default of EditSplat."""
    kept_share: float = 0.85
    """Share of the edits that are good enough to be carried into others."""
    noise_level: float = 1.0
    """Share of the schedule that the first edit starts at."""
    refine_noise: float = 0.4
    """Share of the schedule that the edit of the blends starts at."""
    tolerance: float = 0.03
    """Share by which depths may differ for two views to see the same point."""

    def __post_init__(self) -> None:
        if not (0 < self.kept_share <= 1 and self.num_sources >= 1 and self.num_steps >= 1):
            raise InputError(f"expected kept_share in (0, 1], num_sources and num_steps of at least 1, got {self}")

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(2 * num_views, min(self.noise_level, self.refine_noise) < 1)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit, fuse, edit, fit."""
        originals, total = job.capture.images, self.num_steps
        yield EditStep(0, total, 0.0, job.splats.clone(), "editing every view")
        first = self._edit(job, originals, self.noise_level, "first")
        yield EditStep(0, total, 0.0, job.splats.clone(), "carrying edits into other views by depth")
        maps = render_depths(job.splats, job.capture.cameras)
        neighbours = nearest_views(job.capture.cameras, self.num_sources + 1)
        errors = agreement(first.images, maps, neighbours, tolerance=self.tolerance)
        count = max(1, round(self.kept_share * len(errors)))
        # A view that agrees with its neighbors is right more often than one that does not.
        good = set(sorted(range(len(errors)), key=errors.__getitem__)[:count])
        sources = nearest_views(job.capture.cameras, self.num_sources, among=sorted(good))
        blends = torch.stack(
            [
                blend_views(first.images, maps, view, sources[view], tolerance=self.tolerance)
                for view in range(len(originals))
            ]
        )
        note = f"editing the blends of {count} of {len(errors)} edits"
        yield EditStep(0, total, 0.0, job.splats.clone(), note)
        second = self._edit(job, blends, self.refine_noise, "second")
        config = RefineConfig(steps=total, seed=job.seed)
        for step in refine_splats(job.splats, Targets(job.capture.cameras, second.images), config=config):
            yield EditStep(step.step, total, step.loss, step.splats.clone(), "fitting to the fused views")

    def _edit(self, job: EditJob, views: Tensor, noise_level: float, name: str) -> Edited:
        seed = derive_seed(job.seed, "depth fusion", name)
        return job.editor.edit(job.batch(range(len(views)), views, noise_level=noise_level, seed=seed))


def nearest_views(cameras: Cameras, count: int, *, among: Sequence[int] | None = None) -> list[list[int]]:
    """The views nearest to each view by position, nearest first; a view is nearest to itself.

    There are `count` of them, or fewer, chosen from `among` (default: all).
    """
    chosen = torch.tensor(list(range(len(cameras)) if among is None else among))
    distances = (cameras.positions[:, None] - cameras.positions[chosen]).norm(dim=2)
    order = distances.argsort(dim=1, stable=True)[:, :count]
    return [[int(chosen[index]) for index in row] for row in order]


def agreement(
    images: Float[Tensor, "n 3 h w"], maps: DepthMaps, neighbours: Sequence[Sequence[int]], *, tolerance: float
) -> list[float]:
    """How far each view is from its neighbours, carried into it: mean absolute difference where both see, in [0, 1].

    A view that shares no pixel with any other gets infinity.
    """
    errors = []
    for view, others in enumerate(neighbours):
        total, count = 0.0, 0.0
        for other in others:
            if other != view:
                carried = warp(images[other], maps, source=other, target=view, tolerance=tolerance)
                difference = (carried.image - images[view]).abs().mean(dim=0) * carried.visible
                total, count = total + float(difference.sum()), count + float(carried.visible.sum())
        errors.append(total / count if count else float("inf"))
    return errors


def blend_views(
    images: Float[Tensor, "n 3 h w"], maps: DepthMaps, view: int, sources: Sequence[int], *, tolerance: float
) -> Float[Tensor, "3 h w"]:
    """Mean of the sources carried into a view, each where it sees the point; elsewhere the view's own picture."""
    total, count = torch.zeros_like(images[view]), torch.zeros_like(images[view, 0])
    for source in sources:
        carried = warp(images[source], maps, source=source, target=view, tolerance=tolerance)
        total, count = total + carried.image * carried.visible, count + carried.visible
    return torch.where(count > 0, total / count.clamp_min(1), images[view])
