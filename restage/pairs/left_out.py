"""Pairs that readers leave out although their shard is whole: a list in versions beside the shards.

Shards never change. What `restage verify --repair` finds wrong with a single pair goes into the next version of the
list, `left-out-<version>.json`, which holds all of the one before; readers follow the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restage.pairs.seals import seal
from restage.records import InputError, read_json, write_json

__all__ = ["add_left_out", "mark_left_out", "read_left_out"]


def _versions(folder: Path) -> list[Path]:
    return sorted(folder.glob("left-out-*.json"))


def read_left_out(folder: Path) -> dict[str, str]:
    """The pairs to leave out, by id, with the reason; empty if there is no list.

    Raises:
        InputError: the list cannot be read.
    """
    versions = _versions(folder)
    if not versions:
        return {}
    pairs = read_json(versions[-1]).get("pairs")
    if not isinstance(pairs, dict):
        raise InputError(f"{versions[-1]} holds no pairs; delete it to follow the version before")
    return pairs


def add_left_out(folder: Path, pairs: Mapping[str, str]) -> Path:
    """Write the next version of the list: what it held, and these pairs with their reasons."""
    versions = _versions(folder)
    number = int(versions[-1].stem.removeprefix("left-out-")) + 1 if versions else 1
    path = folder / f"left-out-{number:04d}.json"
    write_json(path, seal({"version": number, "pairs": {**read_left_out(folder), **pairs}}))
    return path


def mark_left_out(row: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """A sidecar row as readers see it: one of the list counts as rejected, and says why."""
    reason = left_out.get(row["id"])
    return dict(row) if reason is None else {**row, "accepted": False, "reason": f"left out: {reason}"}
