"""Draws contact sheets of what was found: one picture for each reason that is about single pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from restage.pairs.files import Files
from restage.pairs.score import PairScores
from restage.pairs.sheet import MAX_CELLS, make_preview, write_sheet
from restage.pairs.store import PREVIEW
from restage.pairs.verify.findings import REASONS, Finding
from restage.pairs.verify.pictures import NotDecodable, look_at
from restage.pairs.verify.shards import BadFile, StoredPair, read_shard

__all__ = ["write_sheets"]


def _preview(pair: StoredPair) -> bytes:
    """Draw what the tar holds, which need not be what the sidecar's preview shows."""
    try:
        look = look_at(pair.parts)
    except NotDecodable:
        grey = torch.full((3, 8, 8), 0.5)
        return make_preview(grey, grey, grey[0])
    source, edited = (torch.from_numpy(array.copy()).permute(2, 0, 1) / 255 for array in (look.source, look.edited))
    return make_preview(source, edited, torch.from_numpy(look.mask.copy()) / 255)


def _rows(files: Files, findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the pairs that findings are about, for a sheet."""
    by_shard = groupby(sorted(findings, key=lambda finding: finding.shard or 0), key=lambda finding: finding.shard)
    for index, group in by_shard:
        try:
            pairs = {pair.id: pair for pair in read_shard(files, index or 0).pairs}
        except BadFile:
            continue
        for finding in group:
            if pair := pairs.get(finding.pair):
                yield {**pair.row, **_scores(pair.row), "reason": finding.detail, PREVIEW: _preview(pair)}


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if row.get(name) is None else row[name] for name in PairScores._fields}


def write_sheets(files: Files, findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Write `<folder>/<reason>.png` for each reason, with at most `MAX_CELLS` pairs evenly chosen; returns the paths.

    Sheets of an earlier check in that folder are deleted.
    """
    for name in REASONS:
        _path(folder, name).unlink(missing_ok=True)
    written = []
    for name, reason in REASONS.items():
        group = [finding for finding in findings if finding.reason == name and finding.pair]
        if group:
            step = max(len(group) / MAX_CELLS, 1.0)
            picked = [group[int(number * step)] for number in range(min(len(group), MAX_CELLS))]
            folder.mkdir(parents=True, exist_ok=True)
            title = f"{len(group)} {name}: {reason.meaning}"
            write_sheet(_path(folder, name), [(title, list(_rows(files, picked)))])
            written.append(_path(folder, name))
    return written


def _path(folder: Path, reason: str) -> Path:
    return folder / f"{reason.replace(' ', '_')}.png"
