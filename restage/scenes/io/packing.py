"""Numbers of splats in few bits: what the packed formats share, and the bounds that keep a hostile file small."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.scenes.splats import Splats

__all__ = ["alphas_of", "check_count", "flip_axes", "fit_range", "logits_of", "morton_order", "smallest_three"]
__all__ += ["splats_of", "unit_rotations", "whole_rotations"]

SURE = 1e-6
"""Opacities are at least this far from 0 and 1 when they become logits, as in PlayCanvas' readers."""
FEW = 4096
HARMONIC_AXES = ("y", "z", "x", "xy", "yz", "", "xz", "", "y", "xyz", "y", "z", "x", "z", "x")
"""The axes whose flip changes the sign of a spherical harmonic, from degree 1 on, in the order of 3DGS files."""


def check_count(count: int, num_bytes: int) -> None:
    """Refuse a count that a file of this length cannot hold, before anything of that size is allocated.

    Splats take 8 to 40 bytes each in packed formats; what claims less than one unpacks to hundreds of times its size.
    """
    if not 0 < count <= max(FEW, num_bytes):
        raise ValueError(f"its header says {count} splats, which a file of {num_bytes} bytes does not hold")


def splats_of(
    means: np.ndarray, log_scales: np.ndarray, rotations: np.ndarray, logits: np.ndarray, sh: np.ndarray
) -> Splats:
    """Return splats of arrays of any number type."""
    arrays = (means, log_scales, rotations, logits, sh)
    return Splats(*(torch.from_numpy(np.array(array, np.float32, order="C")) for array in arrays))


def alphas_of(splats: Splats) -> Float[np.ndarray, " n"]:
    """Return opacities from 0 to 1."""
    return torch.sigmoid(splats.opacity_logits).numpy()


def logits_of(alphas: np.ndarray) -> np.ndarray:
    """Return logits of opacities from 0 to 1."""
    alphas = np.clip(alphas.astype(np.float64), SURE, 1 - SURE)
    return np.log(alphas / (1 - alphas))


def unit_rotations(splats: Splats) -> Float[np.ndarray, "n 4"]:
    """Return quaternions wxyz of length 1; one of length 0 is no rotation, as it is drawn."""
    rotations = splats.rotations.double().numpy().copy()
    rotations[(rotations == 0).all(axis=1), 0] = 1.0
    return rotations / np.linalg.norm(rotations, axis=1, keepdims=True)


def smallest_three(
    quaternions: Float[np.ndarray, "n 4"],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """Return the index of the largest component, and the three others in order, for the sign that makes it positive."""
    largest = np.abs(quaternions).argmax(axis=1)
    signs = np.where(np.take_along_axis(quaternions, largest[:, None], axis=1) < 0, -1.0, 1.0)
    is_other = np.arange(4) != largest[:, None]
    return largest, (quaternions * signs)[is_other].reshape(-1, 3)


def whole_rotations(largest: Int[np.ndarray, " n"], others: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4"]:
    """Return the unit quaternions that `smallest_three` took apart."""
    quaternions = np.empty((len(others), 4))
    quaternions[np.arange(4) != largest[:, None]] = others.reshape(-1)
    quaternions[np.arange(len(others)), largest] = np.sqrt(np.clip(1 - (others**2).sum(axis=1), 0, 1))
    return quaternions


def flip_axes(splats: Splats, *, x: int = 1, y: int = 1, z: int = 1) -> Splats:
    """Return the splats in a world of which two axes point the other way (factors -1), bit for bit but for signs.

    A quaternion q becomes f q f^-1 for the half turn f; the axes of a splat have no direction, so f q draws the same.
    """
    assert x * y * z == 1
    factors = {"x": x, "y": y, "z": z}
    harmonics = [math.prod(factors[axis] for axis in axes) for axes in ("", *HARMONIC_AXES)]
    axes = torch.tensor([x, y, z], dtype=torch.float32)
    return Splats(
        means=splats.means * axes.to(splats.means),
        log_scales=splats.log_scales,
        rotations=splats.rotations * torch.cat([torch.ones(1), axes]),
        opacity_logits=splats.opacity_logits,
        sh=splats.sh * torch.tensor(harmonics[: splats.sh.shape[1]], dtype=torch.float32)[:, None],
    )


def morton_order(means: Float[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """Return indices that sort points along a space-filling curve, so that neighbors in a file are neighbors."""
    least = means.min(dim=0).values
    cells = fit_range((means - least).numpy(), (means.max(dim=0).values - least).numpy()) * (2**21 - 1)
    codes = np.zeros(len(means), np.uint64)
    for axis in range(3):
        bits = cells[:, axis].astype(np.uint64)
        # Spreads 21 bits so that two bits of the other axes fit between any two of them.
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
        codes |= bits << np.uint64(axis)
    return torch.from_numpy(np.argsort(codes, kind="stable"))


def fit_range(values: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """Return values over extents, from 0 to 1; 0 where an extent is 0."""
    shares = values.astype(np.float64) / np.where(extents > 0, extents, 1)
    return np.clip(shares, 0, 1)
