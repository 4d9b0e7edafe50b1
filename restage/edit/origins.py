"""Which splat of the fitted scene each splat of a result comes from, so that regions hold for edits of edits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.edit.direct.operations import carry_weights
from restage.records import InputError, read_json
from restage.regions.region import Region, splats_sha256
from restage.run.layout import EDIT_RECORD, ORIGINS, SPLATS
from restage.run.reading import EditRecord
from restage.scenes.io.splat_files import read_splats
from restage.scenes.splats import Splats

__all__ = ["find_result", "origins_of", "weights_on"]


def find_result(run: Path, scene: str, record_id: str) -> Path:
    """The folder of the edit with this record id."""
    for path in sorted((run / "edit" / scene).glob(f"*/*/*/{EDIT_RECORD}")):
        if read_json(path, EditRecord).id == record_id:
            return path.parent
    raise InputError(f"{run / 'edit' / scene} holds no edit {record_id}, which this one starts from; it was removed")


def origins_of(run: Path, scene: str, record_id: str, num_fitted: int) -> Int[Tensor, " n"]:
    """Index in the fitted scene of each splat of a result, by the id of its record; -1 for splats that edits added."""
    folder = find_result(run, scene, record_id)
    start = read_json(folder / EDIT_RECORD, EditRecord).inputs.get("starts_from")
    before = torch.arange(num_fitted) if not start else origins_of(run, scene, start, num_fitted)
    if (folder / ORIGINS).is_file():
        own = torch.from_numpy(np.load(folder / ORIGINS).astype(np.int64))
        return torch.where(own >= 0, before[own.clamp_min(0)], -1)
    added = len(read_splats(folder / SPLATS)) - len(before)
    if added < 0:
        raise InputError(f"{folder} has fewer splats than what it starts from, and no {ORIGINS} says which are left")
    return torch.cat([before, before.new_full((added,), -1)])


def weights_on(
    region: Region, fitted: Splats, *, run: Path, scene: str, start: tuple[str, Splats] | None
) -> Float[Tensor, " n"]:
    """Weights of a region on an edited scene, given by the id of its record and its splats; None: on the fitted scene.

    The region belongs to the fitted scene or to the edited one; others are refused.
    """
    if start is not None and region.splats_sha256 == splats_sha256(start[1]):
        return region.weights.to(start[1].means.device)
    region.check_fits(fitted)
    weights = region.weights.to(fitted.means.device)
    if start is None:
        return weights
    return carry_weights(weights, origins_of(run, scene, start[0], len(fitted)).to(weights.device))
