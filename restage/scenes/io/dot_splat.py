"""The `.splat` files of antimatter15's viewer: 32 bytes a splat, without view-dependent color.

The format: https://github.com/antimatter15/splat/blob/main/convert.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from restage.scenes.io.packing import alphas_of, logits_of, splats_of, unit_rotations
from restage.scenes.splats import SH_C0, Splats

__all__ = ["read_dot_splat", "write_dot_splat"]

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("rotations", "u1", 4)])


def read_dot_splat(path: Path) -> Splats:
    """Read a `.splat`; it has no header, so only its length can be checked.

    Raises:
        ValueError: what is wrong with the file.
    """
    content = path.read_bytes()
    if len(content) % ROW.itemsize:
        raise ValueError(f"expected {ROW.itemsize} bytes a splat, got {len(content)} in all; the file is cut off")
    rows = np.frombuffer(content, ROW)
    with np.errstate(divide="ignore", invalid="ignore"):  # sizes below 0 become NaN, and are left out by the caller
        log_scales = np.log(rows["scales"])
    return splats_of(
        rows["means"],
        # A size of 0 is drawn as nothing; the smallest normal number is as good, and has a logarithm.
        np.where(rows["scales"] == 0, np.log(np.finfo(np.float32).tiny), log_scales),
        (rows["rotations"].astype(np.float32) - 128) / 128,
        logits_of(rows["rgba"][:, 3] / 255.0),
        ((rows["rgba"][:, :3] / 255.0 - 0.5) / SH_C0)[:, None],
    )


def write_dot_splat(splats: Splats, path: Path) -> None:
    """Write a `.splat`, the largest and most opaque splats first, since viewers show it while it is loaded."""
    alphas = alphas_of(splats)
    order = np.argsort(-alphas * np.exp(splats.log_scales.sum(dim=1).numpy()), kind="stable")
    rows = np.empty(len(splats), ROW)
    rows["means"] = splats.means.numpy()[order]
    rows["scales"] = splats.log_scales.exp().numpy()[order]
    colors = np.concatenate([0.5 + SH_C0 * splats.sh[:, 0].numpy(), alphas[:, None]], axis=1)[order]
    rows["rgba"] = np.rint(colors * 255).clip(0, 255)
    rows["rotations"] = np.rint(unit_rotations(splats)[order] * 128 + 128).clip(0, 255)
    path.write_bytes(rows.tobytes())
