"""How an edited view was moved against its original, and the picture as if it had not been.

Editors of today shift and zoom what they edit. In 3D every view moves differently, which blurs the scene or bends its
shape. `settled` registers edited views by what is here; `DriftingEditor` moves them on purpose, to prove it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample

from restage.edit.editors.interface import Edited, Editor, ViewBatch
from restage.records import InputError, derive_seed

__all__ = ["Drift", "DriftingEditor", "agreement", "find_drift", "move", "undo_drift"]

Picture = Float[Tensor, "3 h w"]


@dataclass(frozen=True)
class Drift:
    """A similarity about the view's center: what was at p is at `scale * R(angle) p + shift` afterwards."""

    shift_x_px: float = 0.0
    shift_y_px: float = 0.0
    scale: float = 1.0
    angle_rad: float = 0.0

    def matrix(self, height: int, width: int) -> np.ndarray:
        """The map of pixels, original to moved, "2 3", as OpenCV takes it (pixel centers at whole numbers)."""
        cosine, sine = self.scale * math.cos(self.angle_rad), self.scale * math.sin(self.angle_rad)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        center = np.array([(width - 1) / 2, (height - 1) / 2])
        shift = center - linear @ center + (self.shift_x_px, self.shift_y_px)
        return np.column_stack([linear, shift])

    @classmethod
    def of(cls, matrix: np.ndarray, height: int, width: int) -> Drift:
        """The similarity nearest to an affine map."""
        linear = matrix[:, :2]
        cosine, sine = (linear[0, 0] + linear[1, 1]) / 2, (linear[1, 0] - linear[0, 1]) / 2
        center = np.array([(width - 1) / 2, (height - 1) / 2])
        shift = linear @ center + matrix[:, 2] - center
        return cls(float(shift[0]), float(shift[1]), math.hypot(cosine, sine), math.atan2(sine, cosine))

    def share(self, height: int, width: int) -> float:
        """How far pixels move, root mean square over the view, as a share of its width."""
        # About the center, shift and the rest are independent: their squares add up.
        turned = self.scale**2 + 1 - 2 * self.scale * math.cos(self.angle_rad)
        spread = (width**2 + height**2) / 12
        return math.sqrt(self.shift_x_px**2 + self.shift_y_px**2 + turned * spread) / width


def move(image: Float[Tensor, "c h w"], drift: Drift) -> Float[Tensor, "c h w"]:
    """Move a picture; what comes in at its borders repeats the last pixels."""
    return _warp(image, drift.matrix(*image.shape[1:]), is_inverse=False)


def _warp(image: Tensor, matrix: np.ndarray, *, is_inverse: bool) -> Tensor:
    if not is_inverse:
        linear = np.linalg.inv(matrix[:, :2])
        matrix = np.column_stack([linear, -linear @ matrix[:, 2]])
    return _look_up(image, _pixels(*image.shape[1:]), matrix, mode="bicubic").clamp(0, 1)


def _pixels(height: int, width: int) -> np.ndarray:
    """The places of all pixels, "h w 2", x first."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)


def _look_up(
    planes: Float[Tensor, "c h w"],
    points: np.ndarray,
    matrix: np.ndarray,
    *,
    mode: str = "bilinear",
    beyond: str = "border",
) -> Float[Tensor, "c rows columns"]:
    """Read planes where a matrix takes points, "rows columns 2"; beyond the borders the last pixels go on, or zeros.

    OpenCV 4 rounds such places to 1/32 of a pixel, which small steps of a search are lost in.
    """
    height, width = planes.shape[1:]
    places = points @ matrix[:, :2].T + matrix[:, 2]
    places = 2 * places / np.maximum(1, (width - 1, height - 1)) - 1
    grid = torch.from_numpy(places.astype(np.float32))[None]
    return grid_sample(planes[None].float(), grid, mode=mode, padding_mode=beyond, align_corners=True)[0]


def _back(plane: np.ndarray, drift: Drift) -> np.ndarray:
    """Return a plane as if it had not drifted; what came from beyond is zero, so that it agrees with nothing."""
    height, width = plane.shape
    whole, matrix = torch.from_numpy(plane.astype(np.float32))[None], drift.matrix(height, width)
    return _look_up(whole, _pixels(height, width), matrix, beyond="zeros")[0].numpy()


def undo_drift(edited: Picture, original: Picture, drift: Drift) -> Picture:
    """Return the edited view where its original was.

    Where the moved view showed nothing, at a border, the original is changed as the nearest pixel that is known was.
    """
    height, width = edited.shape[1:]
    matrix = drift.matrix(height, width)
    still = _warp(edited, matrix, is_inverse=True)
    # Which pixels of the still view lie inside the moved one.
    grid = _pixels(height, width) @ matrix[:, :2].T + matrix[:, 2]
    is_known = ((grid >= 0) & (grid <= (width - 1, height - 1))).all(axis=-1)
    if is_known.all() or not is_known.any():
        return still
    nearest: Any = ndimage.distance_transform_edt(~is_known, return_distances=False, return_indices=True)
    rows, columns = nearest
    change = (still - original)[:, torch.from_numpy(rows), torch.from_numpy(columns)]
    return torch.where(torch.from_numpy(is_known), still, (original + change).clamp(0, 1))


LEVELS = (4, 2, 1)
"""How many times smaller the views are that are registered, one after another."""
ROUNDS, SETTLED_PX = 8, 0.02
"""Rounds at each level, at most, each of which leaves out more certainly what the edit changed; one that moves the
level's pixels by less is the last."""
UNCHANGED_SHARE = 0.6
"""Share of the pixels, those that agree best, that count as outside of the change."""
SMALLEST_PX = 0.25
"""Less than this is left as it is: resampling would blur more than the drift does."""
MAX_STEPS, MAX_SHARE = 30, 0.3
"""Steps of a search, and how far from no drift it may go, as a share of the width."""
MIN_AGREEMENT = 0.5
"""Edges that agree less are those of another picture, which has no drift."""
MIN_GAIN = 0.02
"""A drift is believed where edges agree by so much better, in correlation, than without it, or half as badly."""


def find_drift(edited: Picture, original: Picture) -> Drift:
    """Register an edited view to its original, on what is outside of the change; no drift where none is certain.

    Edges are compared, since an edit changes colors more than places: first by phase correlation for the shift, then by
    steps up their correlation for all four numbers, from small to large and with ever better weights.
    """
    height, width = edited.shape[1:]
    moved, still = _luminance(edited), _luminance(original)
    starts = [Drift()]
    shift, _ = cv2.phaseCorrelate(_edges(still), _edges(moved), cv2.createHanningWindow((width, height), cv2.CV_64F))
    if math.hypot(*shift) < 0.3 * width:
        starts.append(Drift(*shift))
    found = [_refine(moved, still, start) for start in starts]
    # Pixels that agree best are found for any two pictures; where the rest agrees less than before, it is by chance.
    scores = [(_agreement(moved, still, drift), _agreement(moved, still, drift, 1.0)) for drift in (Drift(), *found)]
    best = max(range(len(scores)), key=lambda one: sum(scores[one]))
    (agreed, whole), (before, whole_before) = scores[best], scores[0]
    needed = max(MIN_AGREEMENT, before + min(MIN_GAIN, (1 - before) / 2))
    is_certain = best > 0 and agreed >= needed and whole > whole_before
    drift = found[best - 1] if is_certain else Drift()
    return drift if drift.share(height, width) * width >= SMALLEST_PX else Drift()


def agreement(edited: Picture, original: Picture, drift: Drift = Drift()) -> float:
    """Correlation of the edges of two whole pictures once the drift of the first is undone."""
    return _agreement(_luminance(edited), _luminance(original), drift, 1.0)


def _luminance(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.mean(dim=0).numpy(), dtype=np.float32)


def _edges(plane: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(plane, (0, 0), 1.0)
    x, y = cv2.Sobel(smooth, cv2.CV_64F, 1, 0), cv2.Sobel(smooth, cv2.CV_64F, 0, 1)
    edges = np.hypot(x, y)
    # Strong edges are not to outvote all others: an edit may well have made or taken one.
    return np.sqrt(edges)


def _refine(moved: np.ndarray, still: np.ndarray, drift: Drift) -> Drift:
    height, width = still.shape
    for level in LEVELS:
        size = (max(16, width // level), max(16, height // level))
        scale = size[0] / width
        small, whole = (
            _edges(cv2.resize(plane, size, interpolation=cv2.INTER_AREA)).astype(np.float32) for plane in (moved, still)
        )
        for _ in range(ROUNDS):
            at_level = replace(drift, shift_x_px=drift.shift_x_px * scale, shift_y_px=drift.shift_y_px * scale)
            before, chosen = at_level, _differences(small, whole, at_level) <= UNCHANGED_SHARE
            at_level = _climb(small, whole, chosen, before)
            drift = replace(at_level, shift_x_px=at_level.shift_x_px / scale, shift_y_px=at_level.shift_y_px / scale)
            shift = math.hypot(at_level.shift_x_px - before.shift_x_px, at_level.shift_y_px - before.shift_y_px)
            turned = math.hypot(at_level.scale - before.scale, at_level.angle_rad - before.angle_rad)
            if shift + turned * max(size) / 2 < SETTLED_PX:
                break
    return drift


def _climb(moved: np.ndarray, still: np.ndarray, chosen: np.ndarray, drift: Drift) -> Drift:
    """Go up the correlation of chosen pixels by steps of Levenberg and Marquardt.

    As ECC does (Evangelidis and Psarakis 2008), but for the four numbers alone and never downward: where few edges are,
    its affine steps left the picture.
    """
    height, width = still.shape
    center, spread = np.array([width - 1, height - 1]) / 2, math.sqrt((width**2 + height**2) / 12)
    slopes = [cv2.Sobel(moved, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1))]
    points = np.argwhere(chosen)[:, ::-1]
    wanted = _unit(still[chosen])

    planes = torch.from_numpy(np.stack([moved, *slopes]))

    def look_up(matrix: np.ndarray, which: slice) -> np.ndarray:
        return _look_up(planes[which], points[None], matrix)[:, 0].numpy()

    values, damping = look_up(drift.matrix(height, width), slice(1))[0], 0.01
    for _ in range(MAX_STEPS):
        matrix = drift.matrix(height, width)
        # How the picture changes with each number, all four in pixels: shifts, and zoom and turn about the center.
        across, down = look_up(matrix, slice(1, 3))
        x, y = (points @ matrix[:, :2].T + matrix[:, 2] - center - (drift.shift_x_px, drift.shift_y_px)).T / spread
        changes = np.stack([across, down, across * x + down * y, down * x - across * y])
        unit = _unit(values)
        changes = (changes - changes.mean(axis=1, keepdims=True)) / max(1e-9, np.linalg.norm(values - values.mean()))
        changes -= np.outer(changes @ unit, unit)
        square, slope = changes @ changes.T, changes @ wanted
        while damping < 1e4:
            step = np.linalg.solve(square + damping * (np.diag(np.diag(square)) + 1e-9 * np.eye(4)), slope)
            tried = Drift(
                drift.shift_x_px + step[0],
                drift.shift_y_px + step[1],
                drift.scale * (1 + step[2] / spread),
                drift.angle_rad + step[3] / spread,
            )
            if tried.scale > 0 and tried.share(height, width) < MAX_SHARE:
                seen = look_up(tried.matrix(height, width), slice(1))[0]
                if _unit(seen) @ wanted > unit @ wanted:
                    drift, values, damping = tried, seen, damping / 4
                    break
            damping *= 4
        else:
            return drift
        if np.abs(step).max() < 0.01:
            return drift
    return drift


def _unit(values: np.ndarray) -> np.ndarray:
    """Values without their mean, at length 1."""
    around = values.astype(np.float64) - values.mean()
    return around / max(1e-9, np.linalg.norm(around))


def _differences(moved: np.ndarray, still: np.ndarray, drift: Drift) -> np.ndarray:
    """Rank of each pixel by how much its surroundings differ, 0 for the least and 1 for the most."""
    difference = cv2.GaussianBlur(np.abs(_back(moved, drift) - still), (0, 0), max(1.0, still.shape[1] / 32))
    ranks = difference.ravel().argsort().argsort()
    return (ranks / max(1, ranks.size - 1)).reshape(still.shape)


def _agreement(moved: np.ndarray, still: np.ndarray, drift: Drift, share: float = UNCHANGED_SHARE) -> float:
    """Correlation of edges in the share of the pixels that agrees best, away from borders."""
    height, width = still.shape
    edges, whole = _edges(moved), _edges(still)
    back = _back(edges, drift)
    chosen = _differences(edges, whole, drift) <= share
    margin = max(1, width // 16)
    chosen[:margin], chosen[-margin:], chosen[:, :margin], chosen[:, -margin:] = False, False, False, False
    return float(_unit(back[chosen]) @ _unit(whole[chosen]))


@dataclass(frozen=True)
class DriftingEditor:
    """Moves every view that another editor made, each by its own amount: up to so many pixels, root mean square."""

    editor: Editor
    max_drift_px: float

    def __post_init__(self) -> None:
        if not 0 <= self.max_drift_px < 1000:
            raise InputError(f"expected a drift of 0 to 1000 pixels, got {self.max_drift_px}")

    @property
    def takes_references(self) -> bool:
        """Whether the other one looks at pictures beside the view."""
        return getattr(self.editor, "takes_references", False)

    def drift_of(self, batch: ViewBatch, index: int) -> Drift:
        """The drift of a view: mostly a shift, partly a zoom and a small turn."""
        height, width = batch.originals.shape[2:]
        generator = np.random.default_rng(derive_seed(batch.seed, "drift", index))
        direction, size = generator.uniform(0, 2 * math.pi), self.max_drift_px * generator.uniform(0.5, 1)
        shift, zoom, turn = np.array([0.8, 0.55, 0.24]) * size  # squares add up to 1
        spread = math.sqrt((width**2 + height**2) / 12)
        zoom, turn = generator.choice([-1, 1], 2) * (zoom, turn) / spread
        return Drift(shift * math.cos(direction), shift * math.sin(direction), 1 + zoom, turn)

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit and move; see `Editor.edit`."""
        edited = self.editor.edit(batch)
        images, masks = edited.images.clone(), edited.masks.clone()
        for place in edited.answered:
            drift = self.drift_of(batch, batch.view_indices[place])
            images[place] = move(edited.images[place], drift)
            masks[place] = move(edited.masks[place][None], drift)[0]
        return edited._replace(images=images, masks=masks)
