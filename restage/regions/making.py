"""Makes regions of one fitted scene, for the command line, the viewer and Python; keeps what takes long to prepare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.backbone import Backbone, load_backbone
from restage.records import InputError, did_you_mean
from restage.regions.files import is_region_name, load_region, region_path, save_region
from restage.regions.growing import (
    SplatGraph,
    grow_from,
    load_graph,
    prepare_graph,
    save_graph,
    seeds_at,
    seeds_near,
    spread_views,
)
from restage.regions.masks import INSIDE, lift_masks
from restage.regions.region import Region, render_region
from restage.regions.segmenters import Segmenter, open_segmenter
from restage.regions.words import region_by_backbone, region_by_segmenter, unet_features
from restage.run.layout import CAPTURE, REGIONS, SPLATS
from restage.run.models import is_miniature, models_in
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture
from restage.scenes.io.images import write_png
from restage.scenes.io.splat_files import read_splats
from restage.scenes.splats import Splats

__all__ = ["Click", "RegionMaker", "write_preview"]

TINT = (1.0, 0.1, 0.8)
NUM_PREVIEW_VIEWS = 6


class Click(NamedTuple):
    """A place in a view."""

    view: str  # file name of the view, or its number
    x: float  # share of the view's width, from the left
    y: float  # share of its height, from the top


class RegionMaker:
    """The ways to make a region of a scene."""

    def __init__(self, scene_folder: Path, *, splats: Splats | None = None, capture: Capture | None = None) -> None:
        """Read the fitted scene of a folder, `<run>/scenes/<scene>`, where it is not given."""
        self.folder = scene_folder
        self.splats = read_splats(scene_folder / SPLATS) if splats is None else splats
        self.capture = read_capture(scene_folder / CAPTURE) if capture is None else capture
        self.is_miniature = is_miniature(scene_folder)

    @cached_property
    def backbone(self) -> Backbone:
        """The text-to-image model of the package, which knows the miniature world."""
        return load_backbone(models_in().text_to_image)

    @cached_property
    def graph(self) -> SplatGraph:
        """What regions are grown on: read from the scene's folder, or prepared (seconds) and kept there."""
        path = self.folder / REGIONS / f".graph-{'unet' if self.is_miniature else 'colors'}.npz"
        graph = load_graph(path, self.splats)
        if graph is None:
            features = unet_features(self.splats, self.capture, self.backbone) if self.is_miniature else None
            graph = prepare_graph(self.splats, self.capture, features)
            save_graph(path, graph)
        return graph

    def by_words(self, words: str, *, caption: str = "", segmenter: Segmenter | None = None) -> Region:
        """See `region_by_backbone` (scenes of the miniature world) and `region_by_segmenter` (all others)."""
        if self.is_miniature and segmenter is None:
            return region_by_backbone(
                self.splats, self.capture, words, backbone=self.backbone, graph=self.graph, caption=caption
            )
        return region_by_segmenter(self.splats, self.capture, words, segmenter or open_segmenter())

    def by_clicks(
        self,
        clicks: Sequence[Click] = (),
        *,
        points: Sequence[Sequence[float]] = (),
        not_clicks: Sequence[Click] = (),
        not_points: Sequence[Sequence[float]] = (),
    ) -> Region:
        """Grow the thing that is clicked in views, or at points of the world; what is clicked as not stays out."""
        positive, negative = self._seeds(clicks, points), self._seeds(not_clicks, not_points)
        if positive is None:
            raise InputError("expected at least one click or point that lies on what is meant")
        made = {"clicks": [list(click) for click in clicks], "points": [list(point) for point in points]}
        made |= {"not_clicks": [list(click) for click in not_clicks], "not_points": [list(p) for p in not_points]}
        weights = grow_from(self.graph, positive, negative)
        return Region.of(self.splats, weights, by="clicks", **{name: value for name, value in made.items() if value})

    def by_outline(self, view: str, outline: Sequence[tuple[float, float]], *, to_object: bool = False) -> Region:
        """Take the splats that a view shows within an outline, whose corners are shares of its width and height.

        Args:
            view: File name or number of the view.
            outline: At least three corners.
            to_object: Grow what is least like background inside to the thing, which what is outside stays out of.
        """
        index = self._view(view)
        camera = self.capture.cameras[index]
        mask = outline_mask(outline, camera.width, camera.height).to(self.splats.means.device)
        inside = lift_masks(self.splats, camera, mask[None]).cpu()
        corners = [list(corner) for corner in outline]
        made = {"by": "outline", "view": self.capture.file_names[index], "outline": corners}
        chosen = inside >= INSIDE
        if not bool(chosen.any()):
            raise InputError(f"the view {view} shows no splat within the outline")
        if not to_object:
            return Region.of(self.splats, chosen.float(), **made)
        outside = lift_masks(self.splats, camera, 1 - mask[None]).cpu() >= INSIDE
        likeness = torch.from_numpy(self.graph.background)[chosen]
        seeds = chosen.nonzero()[:, 0][likeness <= likeness.quantile(0.25).clamp_min(0.1)]
        weights = grow_from(self.graph, seeds, outside.nonzero()[:, 0])
        return Region.of(self.splats, weights, **made, to_object=True)

    def _view(self, view: str) -> int:
        names = [Path(name).name for name in self.capture.file_names]
        named = [i for i, name in enumerate(names) if view in (name, Path(name).stem)]
        found = named or [i for i in range(len(names)) if view == str(i)]
        if not found:
            raise InputError(f"{self.folder.name} has no view {view!r}; its views are named like {names[0]}")
        return found[0]

    def _seeds(self, clicks: Sequence[Click], points: Sequence[Sequence[float]]) -> Tensor | None:
        cameras = self.capture.cameras
        found = [seeds_at(self.splats, cameras[self._view(click.view)], click.x, click.y) for click in clicks]
        found += [seeds_near(self.splats, point) for point in points]
        return torch.cat(found).unique() if found else None

    def load(self, name: str) -> Region:
        """Read one of the scene's regions by its name, or any by its file."""
        return load_region(self.find(name), self.splats)

    def find(self, name: str) -> Path:
        """The file of the scene's region of a name, or else the file that is named."""
        path = region_path(self.folder, name) if is_region_name(name) else Path(name)
        if not path.is_file():
            path = Path(name)
        if not path.is_file():
            known = sorted(found.stem for found in (self.folder / REGIONS).glob("[!.]*.npz"))
            hint, listed = did_you_mean(name, known), ", ".join(known) or "none"
            raise InputError(f"{self.folder.name} has no region {name!r}; {hint}there are: {listed}")
        return path

    def save(self, name: str, region: Region) -> Path:
        """Keep a region in the scene under a name, with a picture of it beside it; returns its file."""
        path = region_path(self.folder, name)
        save_region(path, region)
        write_preview(path.with_suffix(".png"), region, self.splats, self.capture)
        return path


def outline_mask(outline: Sequence[tuple[float, float]], width: int, height: int) -> Float[Tensor, "h w"]:
    """Return 1 for pixels within a polygon, whose corners are shares of width and height."""
    if len(outline) < 3 or not all(0 <= value <= 1 for corner in outline for value in corner):
        raise InputError(f"expected at least three corners as shares in [0, 1], got {list(outline)}")
    # Corners in 1/256 of a pixel, by centers of pixels, which is how OpenCV counts.
    corners = np.round((np.array(outline) * [width, height] - 0.5) * 256).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [corners], 1, shift=8)
    return torch.from_numpy(mask).float()


def write_preview(path: Path, region: Region, splats: Splats, capture: Capture) -> None:
    """Write a picture of some views, and below them the same with the region tinted."""
    views = spread_views(capture, NUM_PREVIEW_VIEWS)
    images = capture.images[views].cpu()
    masks = render_region(region, splats, capture.cameras[views]).cpu()[:, None]
    tint = torch.tensor(TINT)[:, None, None].expand_as(images)
    tinted = torch.lerp(images * (0.6 + 0.4 * masks), tint, 0.5 * masks)
    rows = [torch.cat(list(row), dim=2) for row in (images, tinted)]
    write_png(path, torch.cat(rows, dim=1).permute(1, 2, 0))
