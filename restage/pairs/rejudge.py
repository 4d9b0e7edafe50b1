"""Judge stored pairs by another rule, from their scores; nothing is generated for that.

A pair that the new rule accepts and the old one rejected has scores but no pictures. Exactly the shards that hold such
pairs lose their mark, so that the stage makes them again: a shard's pairs are made in fixed batches, so they come out
as they were, which the hashes kept of rejected pairs' pixels show.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from restage.pairs.files import Files
from restage.pairs.score import PairRule
from restage.pairs.store import PairReader, done_shards
from restage.pairs.verdicts import NOT_STORED, current_rule, rule_id, set_rule
from restage.records import InputError, read_json
from restage.run.layout import STAGE_MARK
from restage.run.reading import StageMark

__all__ = ["Rejudged", "changed_pixels", "rejudge"]


@dataclass(frozen=True, kw_only=True)
class Rejudged:
    """The changes that another rule makes."""

    num_pairs: int
    num_accepted: int
    """Pairs that are accepted and have pictures, before any shard is made again."""
    num_requeued: int
    """Pairs that are accepted now, whose pictures have to be made again."""
    shards: tuple[int, ...]
    """Shards that are made again for these."""
    pixels: Mapping[str, str]
    """Pixel hashes of all pairs of these shards, by id, as they were judged."""

    def __str__(self) -> str:
        again = f"; {len(self.shards)} shards are made again for {self.num_requeued} more" if self.shards else ""
        return f"{self.num_accepted} of {self.num_pairs} pairs accepted by the new rule{again}"


def rejudge(folder: Path, files: Files, rule: PairRule, config_id: str) -> Rejudged:
    """Let another rule hold for the pairs of a run, and queue what has to be made again; stopped, it can be repeated.

    The manifest of the rule that held before stays, as `manifest-<id of that rule>.parquet`.

    Raises:
        InputError: there are no pairs to judge, or a sidecar was changed.
    """
    before = current_rule(files)
    if before is None:
        raise InputError(f"{folder} holds no pairs to judge; run pairs without --rejudge first")
    manifest, stage = folder / "manifest.parquet", folder / STAGE_MARK
    kept = folder / f"manifest-{rule_id(before)}.parquet"
    if before != rule and manifest.exists() and not kept.exists():
        shutil.copyfile(manifest, kept)
    if stage.exists() and read_json(stage, StageMark).id != config_id:
        stage.unlink()  # the stage is not done any more; what was made stays
    set_rule(files, rule)
    return _requeue(files)


def _requeue(files: Files) -> Rejudged:
    """Unmark the shards that hold pairs which are accepted and not stored."""
    reader = PairReader.open(files)
    num_pairs = num_accepted = num_requeued = 0
    shards: list[int] = []
    pixels: dict[str, str] = {}
    for index, mark in done_shards(files).items():
        rows = reader.rows(index, mark, has_previews=False).to_pylist()
        num_pairs += len(rows)
        num_accepted += sum(row["accepted"] for row in rows)
        waiting = sum(row["reason"] == NOT_STORED for row in rows)
        if waiting:
            num_requeued += waiting
            shards.append(index)
            pixels.update((row["id"], row["pixel_sha256"]) for row in rows)
            files.remove(f"shard-{index:05d}.done")
    return Rejudged(
        num_pairs=num_pairs,
        num_accepted=num_accepted,
        num_requeued=num_requeued,
        shards=tuple(shards),
        pixels=pixels,
    )


def changed_pixels(files: Files, rejudged: Rejudged) -> list[str]:
    """Ids of pairs that were made again and came out differently, as they may on another kind of device."""
    marks, reader = done_shards(files), PairReader.open(files)
    tables = [reader.rows(index, marks[index], has_previews=False) for index in rejudged.shards if index in marks]
    rows = [row for table in tables for row in table.to_pylist()]
    return [row["id"] for row in rows if rejudged.pixels.get(row["id"]) not in ("", row["pixel_sha256"])]
