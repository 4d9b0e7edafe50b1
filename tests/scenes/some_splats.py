"""Random splats, written in any format, and how near what comes back has to be."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from scipy.spatial import KDTree

from restage.scenes.io import SPLAT_FORMATS, write_splats
from restage.scenes.splats import Splats, rotation_matrices

READ = [name for name, form in SPLAT_FORMATS.items() if form.read]
PACKED = [name for name in READ if name != "ply"]


def some_splats(k: int = 16, count: int = 400) -> Splats:
    generator = torch.Generator().manual_seed(k)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    sh = torch.cat([draw(1, 3), 0.2 * draw(k - 1, 3)], dim=1)
    return Splats(draw(3) * torch.tensor([1.0, 0.6, 0.3]), 0.6 * draw(3) - 3, draw(4), 2 * draw(), sh)


def write(splats: Splats, form: str, folder: Path, name: str = "splats") -> Path:
    path = folder / f"{name}{SPLAT_FORMATS[form].suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that `.splat` loses harmonics
        write_splats(splats, path)
    return path


def in_order_of(found: Splats, expected: Splats) -> Splats:
    """Formats may sort: each splat that is nearest to an expected one."""
    return found[torch.from_numpy(KDTree(found.means.numpy()).query(expected.means.numpy())[1])]


def assert_like(found: Splats, expected: Splats, form: str, *, tolerance: float = 1.0) -> None:
    """Compare with what each format's bits allow."""
    assert len(found) == len(expected)
    found = in_order_of(found, expected)
    size = float((expected.means.max(dim=0).values - expected.means.min(dim=0).values).max())
    assert float((found.means - expected.means).abs().max()) <= 1e-3 * size + 1e-6
    assert float((found.log_scales - expected.log_scales).abs().max()) <= 0.04 * tolerance
    turns = rotation_matrices(found.rotations) - rotation_matrices(expected.rotations)
    assert float(turns.abs().max()) <= 0.03 * tolerance
    opacities = torch.sigmoid(found.opacity_logits) - torch.sigmoid(expected.opacity_logits)
    assert float(opacities.abs().max()) <= 0.0025 * tolerance
    # `.splat` holds colors from 0 to 1, SPZ from about -.4 to 1.4; the others keep what is beyond.
    color, own_color = found.sh[:, 0], expected.sh[:, 0]
    if form in ("splat", "spz"):
        own_color = own_color.clamp(*((-1.7725, 1.7725) if form == "splat" else (-3.3333, 3.3333)))
    assert float((color - own_color).abs().max()) <= 0.04 * tolerance
    rest = expected.sh[:, 1:]
    if form == "splat":
        assert found.degree == 0
        return
    assert found.degree == expected.degree
    # SPZ has harmonics from -1 to 1 in 5 bits, then 4.
    rest, step = (rest.clamp(-1, 1), 0.07) if form == "spz" else (rest, 0.02)
    assert not rest.numel() or float((found.sh[:, 1:] - rest).abs().max()) <= step * tolerance


def covariances(splats: Splats) -> torch.Tensor:
    axes = rotation_matrices(splats.rotations) * splats.log_scales.exp()[:, None]
    return axes @ axes.transpose(1, 2)
