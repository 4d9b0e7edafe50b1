"""Pairs that readers skip although their shard is whole: a list in versions beside the shards.

Shards never change. A pair that `restage verify --repair` finds wrong is added to the next version of the list,
`left-out-<version>.json`, which also holds what the one before held; readers follow the last version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restage.pairs.files import Files
from restage.records import InputError, parse_json, seal

__all__ = ["add_left_out", "is_left_out_list", "mark_left_out", "read_left_out"]

PREFIX, SUFFIX = "left-out-", ".json"


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """What a version of the list says."""

    pairs: Mapping[str, str]
    """Reasons by id."""


def is_left_out_list(name: str) -> bool:
    """Whether a file of this name is a version of the list."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX) and name[len(PREFIX) : -len(SUFFIX)].isdigit()


def _versions(files: Files) -> list[str]:
    return [name for name in files.names() if is_left_out_list(name)]


def read_left_out(files: Files) -> dict[str, str]:
    """Return the reasons of the pairs to leave out, by id; empty if there is no list.

    Raises:
        InputError: the list cannot be read.
    """
    versions = _versions(files)
    if not versions:
        return {}
    try:
        record = parse_json(files.read(versions[-1]), _LeftOut, where=files.where(versions[-1]))
    except InputError as error:
        raise InputError(f"{error}; run: restage verify RUN --repair") from None
    return dict(record.pairs)


def add_left_out(files: Files, pairs: Mapping[str, str]) -> str:
    """Write the next version of the list with these pairs and their reasons added; returns its name."""
    versions = _versions(files)
    number = int(versions[-1].removeprefix(PREFIX).removesuffix(SUFFIX)) + 1 if versions else 1
    # A new version, never an overwritten one: object stores have no rename, and a reader may be at work.
    name = f"{PREFIX}{number:04d}{SUFFIX}"
    record = seal({"version": number, "pairs": {**read_left_out(files), **pairs}})
    files.write(name, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return name


def mark_left_out(row: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return a sidecar row as readers see it: a pair of the list counts as rejected, and says why."""
    reason = left_out.get(row["id"])
    return dict(row) if reason is None else {**row, "accepted": False, "reason": f"left out: {reason}"}
