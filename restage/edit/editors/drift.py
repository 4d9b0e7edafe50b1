"""How an edited view was moved against its original, and the picture as if it had not been.

Editors of today shift and zoom what they edit. In 3D every view moves differently, which blurs the scene or bends its
shape. `settled` registers edited views by what is here; `DriftingEditor` moves them on purpose, to prove it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from restage.edit.editors.interface import Edited, Editor, ViewBatch
from restage.records import InputError, derive_seed

__all__ = ["Drift", "DriftingEditor", "find_drift", "move", "undo_drift"]

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
    height, width = image.shape[1:]
    flags = cv2.INTER_CUBIC | (cv2.WARP_INVERSE_MAP if is_inverse else 0)
    planes = [
        cv2.warpAffine(plane.numpy(), matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for plane in image.contiguous()
    ]
    return torch.from_numpy(np.stack(planes)).clamp(0, 1)


def undo_drift(edited: Picture, original: Picture, drift: Drift) -> Picture:
    """Return the edited view where its original was.

    Where the moved view showed nothing, at a border, the original is changed as the nearest pixel that is known was.
    """
    height, width = edited.shape[1:]
    matrix = drift.matrix(height, width)
    still = _warp(edited, matrix, is_inverse=True)
    # Which pixels of the still view lie inside the moved one.
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) @ matrix[:, :2].T + matrix[:, 2]
    is_known = ((grid >= 0) & (grid <= (width - 1, height - 1))).all(axis=-1)
    if is_known.all() or not is_known.any():
        return still
    nearest: Any = ndimage.distance_transform_edt(~is_known, return_distances=False, return_indices=True)
    rows, columns = nearest
    change = (still - original)[:, torch.from_numpy(rows), torch.from_numpy(columns)]
    return torch.where(torch.from_numpy(is_known), still, (original + change).clamp(0, 1))


LEVELS = (4, 2, 1)
"""How many times smaller the views are that are registered, one after another."""
ROUNDS = 3
"""Rounds at each level; each leaves out more certainly what the edit changed."""
UNCHANGED_SHARE = 0.6
"""Share of the pixels, those that agree best, that count as outside of the change."""
SMALLEST_PX = 0.25
"""Less than this is left as it is: resampling would blur more than the drift does."""
MIN_AGREEMENT = 0.5
"""Edges that agree less are those of another picture, which has no drift."""
MIN_GAIN = 0.02
"""A drift is believed where edges agree by so much better, in correlation, than without it."""


def find_drift(edited: Picture, original: Picture) -> Drift:
    """Register an edited view to its original, on what is outside of the change; no drift where none is certain.

    Edges are compared, since an edit changes colors more than places: first by phase correlation for the shift, then by
    ECC (Evangelidis and Psarakis 2008) for all four numbers, from small to large and with ever better weights.
    """
    height, width = edited.shape[1:]
    moved, still = _luminance(edited), _luminance(original)
    starts = [np.eye(2, 3)]
    shift, _ = cv2.phaseCorrelate(_edges(still), _edges(moved), cv2.createHanningWindow((width, height), cv2.CV_64F))
    if math.hypot(*shift) < 0.3 * width:
        starts.append(np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]]))
    found = [_refine(moved, still, start) for start in starts]
    scores = [_agreement(moved, still, matrix) for matrix in (np.eye(2, 3), *found)]
    best = int(np.argmax(scores))
    drift = Drift.of(found[best - 1], height, width)
    is_certain = best > 0 and scores[best] >= max(MIN_AGREEMENT, scores[0] + MIN_GAIN)
    return drift if is_certain and drift.share(height, width) * width >= SMALLEST_PX else Drift()


def _luminance(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.mean(dim=0).numpy(), dtype=np.float32)


def _edges(plane: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(plane, (0, 0), 1.0)
    x, y = cv2.Sobel(smooth, cv2.CV_64F, 1, 0), cv2.Sobel(smooth, cv2.CV_64F, 0, 1)
    edges = np.hypot(x, y)
    # Strong edges are not to outvote all others: an edit may well have made or taken one.
    return np.sqrt(edges)


def _refine(moved: np.ndarray, still: np.ndarray, start: np.ndarray) -> np.ndarray:
    height, width = still.shape
    matrix = start.astype(np.float32)
    for level in LEVELS:
        size = (max(16, width // level), max(16, height // level))
        scale = np.array([size[0] / width, size[1] / height])
        small, whole = (
            _edges(cv2.resize(plane, size, interpolation=cv2.INTER_AREA)).astype(np.float32) for plane in (moved, still)
        )
        for _ in range(ROUNDS):
            at_level = matrix.copy()
            at_level[:, 2] = matrix[:, 2] * scale
            weights = (_differences(small, whole, at_level) <= UNCHANGED_SHARE).astype(np.uint8)
            stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)
            try:
                # ECC's mask lies in the moved picture; a small drift moves it by less than what it leaves out.
                _, at_level = cv2.findTransformECC(whole, small, at_level, cv2.MOTION_AFFINE, stop, weights, 3)
            except cv2.error:  # it did not converge: what the level before found stays
                break
            at_level[:, 2] /= scale
            matrix = Drift.of(at_level, height, width).matrix(height, width).astype(np.float32)
    return matrix.astype(np.float64)


def _differences(moved: np.ndarray, still: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rank of each pixel by how much its surroundings differ, 0 for the least and 1 for the most."""
    size = still.shape[::-1]
    back = cv2.warpAffine(moved, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    difference = cv2.GaussianBlur(np.abs(back - still), (0, 0), max(1.0, size[0] / 32))
    ranks = difference.ravel().argsort().argsort()
    return (ranks / max(1, ranks.size - 1)).reshape(still.shape)


def _agreement(moved: np.ndarray, still: np.ndarray, matrix: np.ndarray) -> float:
    """Correlation of edges where they agree best, away from borders."""
    height, width = still.shape
    edges, whole = _edges(moved), _edges(still)
    back = cv2.warpAffine(edges, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    chosen = _differences(edges, whole, matrix) <= UNCHANGED_SHARE
    margin = max(1, width // 16)
    chosen[:margin], chosen[-margin:], chosen[:, :margin], chosen[:, -margin:] = False, False, False, False
    first, second = back[chosen] - back[chosen].mean(), whole[chosen] - whole[chosen].mean()
    return float((first * second).sum() / max(1e-12, math.sqrt((first**2).sum() * (second**2).sum())))


@dataclass(frozen=True)
class DriftingEditor:
    """Moves every view that another editor made, each by its own amount: up to so many pixels, root mean square."""

    editor: Editor
    max_drift_px: float

    def __post_init__(self) -> None:
        if not 0 <= self.max_drift_px < 1000:
            raise InputError(f"expected a drift of 0 to 1000 pixels, got {self.max_drift_px}")

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
