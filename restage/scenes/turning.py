"""Splats in another frame: every center, size, rotation and direction-dependent color goes with the world.

`restage export` brings the splats of a capture that was moved, scaled or turned upright back to the capture's own
frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from restage.records import InputError, read_json
from restage.run.layout import FIT_RECORD, SPLATS
from restage.scenes.io.posed import read_similarity
from restage.scenes.io.splat_files import read_splats, splat_format_of, write_splats
from restage.scenes.splats import Splats, evaluate_sh

__all__ = ["Frame", "export_splats", "move_splats"]

Frame = Literal["own", "upright"]
"""The frame that a capture came in, or the one with z up that Restage works in."""

SMALL = 0.1
"""Size of the coefficients that colors are compared with, so that none falls below 0, where it would be cut off."""


@dataclass(frozen=True)
class _Turn:
    """What `fit.json` says of the capture's frame."""

    own_to_world: tuple[tuple[float, ...], ...] | None = ()


def export_splats(folder: Path, out: Path, *, frame: Frame) -> int:
    """Write the splats of a fitted or an edited scene, or of a file, in the format of `out`'s name; returns how many.

    Splats of a file stay in its frame. Far from the origin positions are doubles, which only PLY keeps.
    """
    splat_format_of(out)
    if not folder.is_file() and not (folder / SPLATS).is_file():
        raise InputError(f"{folder}: expected a folder with splats.ply, of a scene or an edit; fit a capture first")
    splats = read_splats(folder if folder.is_file() else folder / SPLATS)
    change = _own_to_world(folder) if frame == "own" and folder.is_dir() else None
    write_splats(splats if change is None else move_splats(splats, torch.linalg.inv(change)), out)
    return len(splats)


def _own_to_world(folder: Path) -> Tensor | None:
    """How the scene's world was changed, by its `fit.json`: in the folder, or for an edit in that of its scene."""
    places = [folder, *(above.parent.parent / "scenes" / above.name for above in folder.resolve().parents)]
    found = next((place / FIT_RECORD for place in places if (place / FIT_RECORD).is_file()), None)
    if found is None:
        raise InputError(f"{folder}: no fit.json tells how its capture was turned; export with --frame upright")
    record = read_json(found, _Turn)
    if record.own_to_world == ():
        raise InputError(f"{found} is of a version that stored no turn; fit the capture again, or --frame upright")
    return read_similarity(record.own_to_world, f"{found}: own_to_world")


def move_splats(splats: Splats, change: Float[Tensor, "4 4"]) -> Splats:
    """Return the same splats in a changed world: a point x is at `change` x then, and pictures stay as they are.

    `change` is a similarity, float64: one scale, a rotation, a shift; others are refused. Centers become float64 where
    float32 would lose more than 1e-5 of their spread.
    """
    scale = float(change[0, :3].norm())
    turn = change[:3, :3] / max(scale, 1e-300)
    identity = torch.eye(3, dtype=torch.float64)
    if not (torch.allclose(turn @ turn.T, identity, atol=1e-5) and float(torch.det(turn)) > 0):
        raise InputError(f"expected a rotation, got {turn.tolist()}")
    there = splats.means.device
    means = splats.means.double() @ change[:3, :3].T.to(there) + change[:3, 3].to(there)
    spread = float((means - means.median(dim=0).values).norm(dim=1).median()) if len(means) else 0.0
    is_far = float(change[:3, 3].norm()) * torch.finfo(torch.float32).eps > 1e-5 * spread
    # One of length 0 is drawn as no rotation; turned, it is the turn.
    rotations = splats.rotations.double().clone()
    rotations[(rotations == 0).all(dim=1), 0] = 1.0
    w, x, y, z = Rotation.from_matrix(turn.numpy()).as_quat(scalar_first=True).tolist()
    product = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return Splats(
        means=means if is_far else means.to(splats.means),
        log_scales=splats.log_scales + math.log(scale),
        rotations=(rotations @ rotations.new_tensor(product).T).to(splats.rotations),
        opacity_logits=splats.opacity_logits.clone(),
        sh=_turn_harmonics(splats.sh, turn),
    )


def _turn_harmonics(sh: Float[Tensor, "n k 3"], turn: Float[Tensor, "3 3"]) -> Float[Tensor, "n k 3"]:
    """Coefficients that give at turn d the color that was at d: they span the same functions, so this is exact."""
    count = sh.shape[1]
    if count == 1 or torch.equal(turn, torch.eye(3, dtype=turn.dtype)):
        return sh.clone()
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(8 * count, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(random, dim=1)
    before, after = _basis(directions, count), _basis(directions @ turn.T, count)
    # Fitted on many directions instead of Wigner's formulas: exact but for rounding, for any degree.
    change = torch.linalg.lstsq(after, before).solution
    turned = torch.einsum("jk,nkc->njc", change.to(sh.device), sh.double()).to(sh)
    turned[:, 0] = sh[:, 0]
    return turned


def _basis(directions: Float[Tensor, "d 3"], count: int) -> Float[Tensor, "d k"]:
    coefficients = SMALL * torch.eye(count, dtype=torch.float64)[:, :, None].expand(-1, -1, 3)
    columns = [evaluate_sh(one.expand(len(directions), -1, -1), directions)[:, 0] for one in coefficients]
    return (torch.stack(columns, dim=1) - 0.5) / SMALL
