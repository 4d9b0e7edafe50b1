"""The pairs stage: from `<run>/prompts/prompts.jsonl` to shards of scored image pairs, resumable shard by shard.

A shard is made of fixed prompt pairs in fixed batches, so what it holds does not depend on kills and restarts, nor on
the engine that makes it. `campaign` makes the shards; here is what comes before and after, and judging by another rule.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from restage.pairs.campaign import check_prompts, make_missing
from restage.pairs.config import CampaignConfig, PairRule, PairsConfig
from restage.pairs.encoding import MAX_CELLS, write_sheet
from restage.pairs.files import Files, LocalFiles, open_files, point_to_store
from restage.pairs.score import NOT_STORED, current_rule, rule_id, set_rule
from restage.pairs.store import PairReader, done_shards, read_rows_at, shard_name, write_manifest
from restage.pairs.tasks import Maker, TaskPlan, read_plan
from restage.prompts.store import read_prompts
from restage.records import InputError, Progress, content_id, read_json
from restage.run.folder import RunFolder
from restage.run.layout import STAGE_MARK
from restage.run.reading import StageMark
from restage.work.engine import TasksSetAside

__all__ = ["PairsConfig", "make_plan", "rejudge_pairs", "run_campaign", "write_views"]


@dataclass
class Rejudged:
    """The changes that another rule makes."""

    num_pairs: int = 0
    num_accepted: int = 0
    """Pairs that are accepted and have pictures, before any shard is made again."""
    num_requeued: int = 0  # pairs that are accepted now, whose pictures have to be made again
    shards: list[int] = field(default_factory=list)  # shards that are made again for these
    pixels: dict[str, str] = field(default_factory=dict)
    """Pixel hashes of all pairs of these shards, by id, as they were judged."""

    def __str__(self) -> str:
        again = f"; {len(self.shards)} shards are made again for {self.num_requeued} more" if self.shards else ""
        return f"{self.num_accepted} of {self.num_pairs} pairs accepted by the new rule{again}"


def rejudge(folder: Path, files: Files, rule: PairRule, config_id: str) -> Rejudged:
    """Let another rule hold for the pairs of a run, and queue what has to be made again; stopped, it can be repeated.

    The manifest of the rule that held before stays, as `manifest-<id of that rule>.parquet`. Shards that hold pairs
    which are accepted and not stored lose their mark.
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
    reader, judged = PairReader.open(files), Rejudged()
    for index, mark in done_shards(files).items():
        rows = reader.rows(index, mark, has_previews=False).to_pylist()
        judged.num_pairs += len(rows)
        judged.num_accepted += sum(row["accepted"] for row in rows)
        waiting = sum(row["reason"] == NOT_STORED for row in rows)
        if waiting:
            judged.num_requeued += waiting
            judged.shards.append(index)
            judged.pixels.update((row["id"], row["pixel_sha256"]) for row in rows)
            files.remove(shard_name(index, "done"))
    return judged


def make_plan(run: RunFolder, config: PairsConfig, maker: Maker) -> TaskPlan:
    """Return what the stage is to make of a run's prompts."""
    folder = run.path / "prompts"
    prompts = read_prompts(folder / "prompts.jsonl")
    return TaskPlan(prompts=prompts, config=config, run_seed=run.seed, maker_id=maker.id, folder=folder)


def run_campaign(
    run: RunFolder, config: PairsConfig, maker: Maker, engine: CampaignConfig, *, store: str = ""
) -> Iterator[Progress]:
    """Make the image pairs of a run on any engine, a shard at a time; finished shards are left as they are.

    `store` is the URL where the shards lie, such as `s3://bucket/run`; empty for the run's own folder.

    Raises:
        InputError: there are no prompt pairs, one does not fit the model, the stage or a shard was made with another
            config, or no pair was accepted.
        WorkStopped: not all could be made.
    """
    if run.is_done("pairs", config):
        yield Progress(stage="pairs", done=1, total=1, note="already done")
        return
    plan = make_plan(run, config, maker)
    folder = run.path / "pairs"
    if read_plan(open_files(folder, store=store)) is None:
        check_prompts(plan, maker.open("cpu"))
    if store:
        point_to_store(folder, store)
    run.folder("pairs")
    files = open_files(folder, store=store)
    plan.record(files)
    found, rule = current_rule(files), plan.config.rule
    if found is None:
        set_rule(files, rule)
    elif found != rule:
        raise InputError(
            f"{files.where()} holds pairs of another config: judged by {rule_id(found)}, not {rule_id(rule)}; "
            "judge them anew with --rejudge, or choose another --out"
        )
    try:
        yield from make_missing(folder, files, plan, maker, engine)
    except TasksSetAside:
        write_views(folder, files)
        raise
    if engine.estimate_only:
        return
    num_accepted = write_views(folder, files)
    if not num_accepted:
        raise InputError(f"none of {plan.num_pairs} pairs was accepted; see {folder / 'contact_sheet.png'} for why")
    run.mark_done(
        "pairs",
        config,
        num_pairs=plan.num_pairs,
        num_accepted=num_accepted,
        rule_version=config.rule.version,
        rule=rule_id(config.rule),
    )
    note = f"{num_accepted} of {plan.num_pairs} pairs accepted"
    yield Progress(stage="pairs", done=plan.num_pairs, total=plan.num_pairs, note=note)


def rejudge_pairs(
    run: RunFolder, config: PairsConfig, maker: Maker, engine: CampaignConfig, *, store: str = ""
) -> Iterator[Progress]:
    """Judge the run's pairs by the rule of this config, and make again what that needs; see `rejudge`.

    The arguments are those of `run_campaign`.
    """
    folder, plan = run.path / "pairs", make_plan(run, config, maker)
    files = open_files(folder, store=store)
    found = read_plan(files)
    if found is None or found.id != plan.id:
        raise InputError(f"{folder} holds no pairs of this config; with --rejudge only the rule can be another one")
    judged = rejudge(folder, files, config.rule, content_id("pairs", config))
    yield Progress(stage="rejudge", done=1, total=1, note=str(judged))
    yield from run_campaign(run, config, maker, engine, store=store)
    # Made again on another kind of device, pairs may come out differently.
    marks, reader = done_shards(files), PairReader.open(files)
    tables = [reader.rows(index, marks[index], has_previews=False) for index in judged.shards if index in marks]
    rows = [row for table in tables for row in table.to_pylist()]
    changed = [row["id"] for row in rows if judged.pixels.get(row["id"]) not in ("", row["pixel_sha256"])]
    if changed:
        note = f"{len(changed)} pairs came out differently when made again, the first: {changed[0]}; scores are new"
        yield Progress(stage="rejudge", done=1, total=1, note=note)


def write_views(folder: Path, files: Files) -> int:
    """Write manifest and contact sheet into a run's pairs folder; returns the number of accepted pairs."""
    manifest = folder / "manifest.parquet"
    write_manifest(files, manifest)
    if not isinstance(files, LocalFiles):
        files.write(manifest.name, manifest.read_bytes())
    verdicts = np.array(pq.ParquetFile(manifest).read(columns=["accepted"])["accepted"])
    groups = []
    for title, places in (("accepted", np.flatnonzero(verdicts)), ("rejected", np.flatnonzero(~verdicts))):
        picks = np.linspace(0, max(len(places) - 1, 0), min(MAX_CELLS, len(places))).round().astype(int)
        groups.append((f"{len(places)} {title}", read_rows_at(files, places[picks].tolist())))
    write_sheet(folder / "contact_sheet.png", groups)
    return int(verdicts.sum())
