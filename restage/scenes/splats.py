"""Gaussian splats: the parameters of a scene that rasterizers draw and fitting moves."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError

__all__ = ["SH_C0", "Splats", "evaluate_sh", "rotation_matrices"]

SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199
SH_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
SH_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


@dataclass
class Splats:
    """n Gaussian splats; tensors may require gradients."""

    means: Float[Tensor, "n 3"]  # centers in world units
    log_scales: Float[Tensor, "n 3"]
    """Natural logarithm of the standard deviations along the splat's own axes, in world units."""
    rotations: Float[Tensor, "n 4"]
    """Quaternions wxyz from splat axes to world axes; normalized when used."""
    opacity_logits: Float[Tensor, " n"]  # opacity is the sigmoid of it
    sh: Float[Tensor, "n k 3"]
    """Spherical harmonics of the color, k = (degree + 1)^2 with degree 0 to 3; rgb = 0.5 + C0 sh0 + ..."""

    def __post_init__(self) -> None:
        if self.sh.shape[1] not in (1, 4, 9, 16):
            raise InputError(f"expected 1, 4, 9 or 16 spherical harmonics a splat, got {self.sh.shape[1]}")
        counts = {tensor.shape[0] for tensor in self.parameters().values()}
        if len(counts) > 1:
            raise InputError(f"expected the same number of splats in every tensor, got {sorted(counts)}")

    def __len__(self) -> int:
        return self.means.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Splats:
        """Pick splats by a boolean mask, indices or a slice."""
        return Splats(**{name: tensor[index] for name, tensor in self.parameters().items()})

    def parameters(self) -> dict[str, Tensor]:
        """The tensors by name, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def detach(self) -> Splats:
        """The same memory without gradients."""
        return Splats(**{name: tensor.detach() for name, tensor in self.parameters().items()})

    def clone(self) -> Splats:
        """A copy in memory of its own, without gradients."""
        return Splats(**{name: tensor.detach().clone() for name, tensor in self.parameters().items()})

    def to(self, device: str | torch.device) -> Splats:
        """The splats on a device; the same tensors if they lie there."""
        return Splats(**{name: tensor.to(device) for name, tensor in self.parameters().items()})

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[1]]


def rotation_matrices(rotations: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices of quaternions wxyz, which need not have length 1."""
    w, x, y, z = torch.nn.functional.normalize(rotations, dim=1).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def evaluate_sh(sh: Float[Tensor, "n k 3"], directions: Float[Tensor, "n 3"] | None = None) -> Float[Tensor, "n 3"]:
    """Color of each splat seen along a direction, at least 0; the sign convention of the 3DGS files.

    `directions` are unit vectors from the camera to the splats, in world axes; degree 0 needs none.
    """
    color = 0.5 + SH_C0 * sh[:, 0]
    if sh.shape[1] >= 4:
        assert directions is not None
        x, y, z = directions[:, :1], directions[:, 1:2], directions[:, 2:]
        color = color + SH_C1 * (-y * sh[:, 1] + z * sh[:, 2] - x * sh[:, 3])
        if sh.shape[1] >= 9:
            cross, zonal, sectoral = SH_C2
            color = color + cross * (x * y * sh[:, 4] - y * z * sh[:, 5] - x * z * sh[:, 7])
            color = color + zonal * (2 * z * z - x * x - y * y) * sh[:, 6] + sectoral * (x * x - y * y) * sh[:, 8]
            if sh.shape[1] >= 16:
                color = color + _third_degree(sh[:, 9:], x, y, z)
    return color.clamp_min(0.0)


def _third_degree(sh: Float[Tensor, "n 7 3"], x: Tensor, y: Tensor, z: Tensor) -> Float[Tensor, "n 3"]:
    xx, yy, zz = x * x, y * y, z * z
    c0, c1, c2, c3, c4 = SH_C3
    return (
        -c0 * y * (3 * xx - yy) * sh[:, 0]
        + c1 * x * y * z * sh[:, 1]
        - c2 * y * (4 * zz - xx - yy) * sh[:, 2]
        + c3 * z * (2 * zz - 3 * xx - 3 * yy) * sh[:, 3]
        - c2 * x * (4 * zz - xx - yy) * sh[:, 4]
        + c4 * z * (xx - yy) * sh[:, 5]
        - c0 * x * (xx - 3 * yy) * sh[:, 6]
    )
