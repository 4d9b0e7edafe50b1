"""Lens distortion: what a real lens does to a pinhole picture, and how it is taken out of pictures and masks.

The readers make a `Lens` of what their file says; `views.py` asks for its `Undistortion` and applies it. OpenCV's
functions do the work for its own two models; its pixel centers are integers, ours lie at halves. The other models are
COLMAP's (`src/colmap/sensor/models.h`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from restage.records import InputError

__all__ = ["Lens", "LensModel", "Undistortion", "undistortion_of"]

LensModel = Literal["brown", "fisheye", "fov", "thin_prism_fisheye"]
NUM_COEFFICIENTS: dict[LensModel, int] = {"brown": 8, "fisheye": 4, "fov": 1, "thin_prism_fisheye": 8}
BY_ANGLE = ("fisheye", "thin_prism_fisheye")
"""Models that bend a ray by its angle to the axis, not by where it meets the pinhole image."""
MAX_HALF_ANGLE_RAD = math.radians(60.0)
"""A fisheye picture is cut to this angle on each side: further out, pinhole pixels stretch without bound."""
MIN_VALID_SHARE = 0.05
MAX_ASPECT_CHANGE = 0.02
FOLD_SAMPLES = 4096
INTEGER_CENTERS = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


@dataclass(frozen=True, kw_only=True)
class Lens:
    """How one camera maps directions to pixels, for pictures of one size."""

    width: int  # width in pixels of the picture that the numbers are for
    height: int
    focal_x_px: float
    focal_y_px: float
    center_x_px: float  # principal point; the center of the top left pixel is at (0.5, 0.5)
    center_y_px: float
    coefficients: tuple[float, ...] = ()
    """brown: k1 k2 p1 p2 k3 k4 k5 k6 in OpenCV's order and meaning (k4 to k6 are the denominator); fisheye: k1 k2 k3 k4
    of the equidistant model; fov: omega; thin_prism_fisheye: k1 k2 p1 p2 k3 k4 sx1 sy1. Trailing zeros may be left
    out."""
    model: LensModel = "brown"
    crop_radius_px: float = math.inf
    """Only within this distance of the middle is there a picture (the circle of a fisheye lens)."""

    def __post_init__(self) -> None:
        numbers = (self.focal_x_px, self.focal_y_px, self.center_x_px, self.center_y_px, *self.coefficients)
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"expected finite intrinsics and distortion, got {numbers}")
        if not (self.focal_x_px > 0 and self.focal_y_px > 0):
            raise InputError(f"expected focal lengths above 0 px, got {self.focal_x_px:g} and {self.focal_y_px:g}")
        most = NUM_COEFFICIENTS[self.model]
        if len(self.coefficients) > most:
            raise InputError(f"expected at most {most} coefficients of a {self.model} lens, got {self.coefficients}")
        if not self.crop_radius_px > 0:
            raise InputError(f"expected a crop radius above 0 px, got {self.crop_radius_px:g}")

    @property
    def is_pinhole(self) -> bool:
        """Nothing has to be taken out of the picture."""
        return self.model not in BY_ANGLE and not any(self.coefficients) and math.isinf(self.crop_radius_px)

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """The 3x3 matrix in pixels, float64."""
        return np.array(
            [[self.focal_x_px, 0, self.center_x_px], [0, self.focal_y_px, self.center_y_px], [0, 0, 1]], np.float64
        )

    def to_size(self, width: int, height: int) -> Lens:
        """The same lens for pictures of another size."""
        scale_x, scale_y = width / self.width, height / self.height
        if abs(scale_x / scale_y - 1) > MAX_ASPECT_CHANGE:
            raise InputError(f"expected a picture of the shape {self.width}x{self.height}, got {width}x{height}")
        horizontal = {n: scale_x * getattr(self, n) for n in ("focal_x_px", "center_x_px", "crop_radius_px")}
        vertical = {n: scale_y * getattr(self, n) for n in ("focal_y_px", "center_y_px")}
        return replace(self, width=width, height=height, **horizontal, **vertical)


class Undistortion(NamedTuple):
    """Where each pixel of the straight picture is found in the distorted one."""

    map_x: Float[np.ndarray, "h w"]  # float32, OpenCV's integer pixel centers
    map_y: Float[np.ndarray, "h w"]
    valid: Float[np.ndarray, "h w"]
    """1 where the lens saw something, 0 outside of the picture and where its model folds back."""
    intrinsics: Float[np.ndarray, "3 3"]
    """Intrinsics of the straight picture, our pixel centers, float64."""

    def straighten(self, pixels: Float[np.ndarray, "h w *channels"]) -> Float[np.ndarray, "h w *channels"]:
        """Take the distortion out of a picture or a mask; 0 where nothing was seen."""
        straight = cv2.remap(pixels, self.map_x, self.map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return straight * (self.valid if straight.ndim == 2 else self.valid[..., None])


@functools.lru_cache(maxsize=2)
def undistortion_of(lens: Lens) -> Undistortion:
    """Find the straight picture of the same size: as much of the view as fits without a border where that is possible.

    Brown's model: OpenCV's optimal camera matrix without blank pixels. A fisheye: square pixels around the same
    principal point, at most 60 degrees to each side. What still lies outside is marked in `valid`.
    """
    size = (lens.width, lens.height)
    integer_centers = lens.intrinsics - INTEGER_CENTERS
    coefficients = np.zeros(NUM_COEFFICIENTS[lens.model])
    coefficients[: len(lens.coefficients)] = lens.coefficients
    for straight in _candidates(lens, integer_centers, coefficients):
        if lens.model in ("brown", "fisheye"):
            initialize = cv2.initUndistortRectifyMap if lens.model == "brown" else cv2.fisheye.initUndistortRectifyMap
            map_x, map_y = initialize(integer_centers, coefficients, np.eye(3), straight, size, cv2.CV_32FC1)
        else:
            map_x, map_y = _find_sources(lens, integer_centers, coefficients, straight)
        valid = _is_inside(lens, map_x, map_y) & _is_before_fold(lens, straight, coefficients)
        if valid.mean() >= 0.5:
            break
    if valid.mean() < MIN_VALID_SHARE:
        raise InputError(f"expected a distortion that leaves a picture, got {list(lens.coefficients)}; check the lens")
    return Undistortion(map_x, map_y, valid.astype(np.float32), straight + INTEGER_CENTERS)


def _candidates(lens: Lens, integer_centers: np.ndarray, coefficients: np.ndarray) -> list[np.ndarray]:
    """Camera matrices to try in turn; the lens's own is the last, with what it does not see left blank."""
    if lens.model != "brown":
        return [_fisheye_matrix(lens, integer_centers, coefficients)]
    size = (lens.width, lens.height)
    optimal, _ = cv2.getOptimalNewCameraMatrix(integer_centers, coefficients, size, 0)
    optimal = np.asarray(optimal, dtype=np.float64)
    # The inverse of a model that folds within the picture does not converge, and gives any matrix.
    ratios = np.diag(optimal)[:2] / np.diag(integer_centers)[:2]
    is_usable = np.isfinite(optimal).all() and (ratios > 0.2).all() and (ratios < 5).all()
    return [optimal, integer_centers] if is_usable else [integer_centers]


def _fisheye_matrix(lens: Lens, integer_centers: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Pinhole matrix that shows no more than the lens does above, below, left and right of its principal point.

    `cv2.fisheye.estimateNewCameraMatrixForUndistortRectify` gives a focal length of 0 for lenses of 180 degrees.
    """
    center_x, center_y = integer_centers[0, 2], integer_centers[1, 2]
    reach_px = np.array([center_x, lens.width - 1 - center_x, center_y, lens.height - 1 - center_y])
    reach_px = np.minimum(reach_px, lens.crop_radius_px)
    focal_px = np.repeat(np.diag(integer_centers)[:2], 2)
    angles = np.linspace(0, MAX_HALF_ANGLE_RAD, FOLD_SAMPLES)
    bent = _bent_radius(angles if lens.model in BY_ANGLE else np.tan(angles), coefficients, lens.model)
    rising = np.maximum.accumulate(bent)
    half_angles = np.interp(np.maximum(reach_px, 0.0) / focal_px, rising, angles)
    shown = reach_px > 0
    focal = float(np.max(reach_px[shown] / np.tan(np.maximum(half_angles[shown], 1e-6)), initial=0.0))
    if not focal > 0:
        raise InputError(f"expected the principal point near the picture, got ({center_x:g}, {center_y:g})")
    return np.array([[focal, 0, center_x], [0, focal, center_y], [0, 0, 1]])


def _bent_radius(straight: np.ndarray, coefficients: np.ndarray, model: LensModel) -> np.ndarray:
    """Distance from the principal point, in focal lengths, of a ray at an angle (`BY_ANGLE`) or at a pinhole radius."""
    s = straight**2
    if model == "fov":
        omega = coefficients[0]
        return np.arctan(2 * straight * np.tan(omega / 2)) / omega if omega else straight
    if model in BY_ANGLE:
        k1, k2, k3, k4 = coefficients if model == "fisheye" else coefficients[[0, 1, 4, 5]]
        return straight * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    k1, k2, _, _, k3, k4, k5, k6 = coefficients
    return straight * (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))


def _find_sources(
    lens: Lens, integer_centers: np.ndarray, coefficients: np.ndarray, straight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of a straight picture are in the distorted one, for the models that OpenCV does not have."""
    x = ((np.arange(lens.width) - straight[0, 2]) / straight[0, 0])[None, :]
    y = ((np.arange(lens.height) - straight[1, 2]) / straight[1, 1])[:, None]
    radius = np.maximum(np.hypot(x, y), 1e-12)
    ray = np.arctan(radius) if lens.model in BY_ANGLE else radius
    bent = _bent_radius(ray, coefficients, lens.model) / radius
    bent_x, bent_y = x * bent, y * bent
    if lens.model == "thin_prism_fisheye":  # the prism acts on the picture before its radial distortion
        _, _, p1, p2, _, _, sx1, sy1 = coefficients
        u, v, s = x * ray / radius, y * ray / radius, ray**2
        bent_x = bent_x + 2 * p1 * u * v + p2 * (s + 2 * u * u) + sx1 * s
        bent_y = bent_y + 2 * p2 * u * v + p1 * (s + 2 * v * v) + sy1 * s
    map_x = integer_centers[0, 0] * bent_x + integer_centers[0, 2]
    map_y = integer_centers[1, 1] * bent_y + integer_centers[1, 2]
    return map_x.astype(np.float32), map_y.astype(np.float32)


def _is_inside(lens: Lens, map_x: np.ndarray, map_y: np.ndarray) -> np.ndarray:
    """Pixels whose source lies in the distorted picture, and in its circle if it has one."""
    inside = (map_x >= -0.5) & (map_x <= lens.width - 0.5) & (map_y >= -0.5) & (map_y <= lens.height - 0.5)
    distance_px = np.hypot(map_x - (lens.width - 1) / 2, map_y - (lens.height - 1) / 2)
    return inside & (distance_px <= lens.crop_radius_px)


def _is_before_fold(lens: Lens, straight: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Pixels out to which the model keeps growing; further out it shows the same things a second time."""
    x = (np.arange(lens.width) - straight[0, 2]) / straight[0, 0]
    y = (np.arange(lens.height) - straight[1, 2]) / straight[1, 1]
    radius = np.hypot(x[None, :], y[:, None])
    radius = np.arctan(radius) if lens.model in BY_ANGLE else radius
    samples = np.linspace(0, float(radius.max()), FOLD_SAMPLES)
    with np.errstate(all="ignore"):
        growth = np.diff(_bent_radius(samples, coefficients, lens.model))
    folds = np.flatnonzero(~(growth > 0))
    return radius <= (samples[folds[0]] if len(folds) else math.inf)
