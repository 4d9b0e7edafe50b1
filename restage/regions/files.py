"""Regions by name in a run: `<run>/scenes/<scene>/regions/<name>.npz`, one file with weights and record.

One file, so that neither can be there without the other, or belong to another one.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restage.records import InputError, canonical_json, parse_json, write_atomically
from restage.regions.region import Region
from restage.run.layout import REGIONS
from restage.scenes.splats import Splats

__all__ = ["RegionRecord", "delete_region", "is_region_name", "list_regions", "load_region", "read_record"]
__all__ += ["read_region"]
__all__ += ["region_path", "save_region", "write_region"]


@dataclass(frozen=True, kw_only=True)
class RegionRecord:
    """What a region's file says of it beside the weights."""

    id: str
    made: dict[str, Any]  # how it came about; see `Region.made`
    splats_sha256: str
    num_splats: int
    share: float  # of the splats that belong to it


def is_region_name(name: str) -> bool:
    """Whether a region may have this name, which is also that of its file."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name) is not None


def region_path(scene_folder: Path, name: str) -> Path:
    """Where the region of a name lies in a scene's folder; refuses names that are no file names."""
    if not is_region_name(name):
        raise InputError(f"expected a region's name of letters, digits, '.', '_' and '-', got {name!r}")
    return scene_folder / REGIONS / f"{name}.npz"


def write_region(run: Path, scene: str, name: str, region: Region) -> Path:
    """Write a region into a run, atomically, in place of one of the same name; returns its file."""
    path = region_path(run / "scenes" / scene, name)
    save_region(path, region)
    return path


def read_region(run: Path, scene: str, name: str, splats: Splats | None = None) -> Region:
    """Read a region of a run; with splats, refuses one that was made for others."""
    return load_region(_existing(run, scene, name), splats)


def _existing(run: Path, scene: str, name: str) -> Path:
    path = region_path(run / "scenes" / scene, name)
    if not path.is_file():
        known = ", ".join(list_regions(run, scene)) or "none"
        raise InputError(f"{scene} has no region {name!r}; there are: {known}; make one with restage region")
    return path


def list_regions(run: Path, scene: str) -> dict[str, RegionRecord]:
    """The records of a scene's regions by name, in the order of names."""
    paths = sorted((run / "scenes" / scene / REGIONS).glob("[!.]*.npz"))
    return {path.stem: read_record(path) for path in paths}


def delete_region(run: Path, scene: str, name: str) -> None:
    """Remove a region from a run, and the picture of it, even if it cannot be read; edits made with it stay."""
    path = _existing(run, scene, name)
    path.unlink()
    path.with_suffix(".png").unlink(missing_ok=True)


def save_region(path: Path, region: Region) -> None:
    """Write a region to a file, atomically."""
    record = RegionRecord(
        id=region.id,
        made=dict(region.made),
        splats_sha256=region.splats_sha256,
        num_splats=len(region.weights),
        share=region.share,
    )
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, weights=region.weights.numpy(), record=np.array(canonical_json(record)))


def read_record(path: Path) -> RegionRecord:
    """Read what a region's file says of it."""
    return parse_json(str(_read(path, "record")), RegionRecord, where=path)


def load_region(path: Path, splats: Splats | None = None) -> Region:
    """Read a region from a file; with splats, refuses one that was made for others, or was changed since."""
    record, weights = read_record(path), _read(path, "weights")
    if weights.ndim != 1 or weights.dtype != np.float32:
        raise InputError(f"{path}: expected float32 weights in a row, got {weights.dtype} {weights.shape}")
    region = Region(torch.from_numpy(weights), record.made, record.splats_sha256)
    if region.id != record.id:
        raise InputError(f"{path} was changed after it was written: its id is {record.id}, its content {region.id}")
    if splats is not None:
        region.check_fits(splats, str(path))
    return region


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable as a region: {str(error)[:200]}") from None
