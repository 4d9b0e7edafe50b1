"""The pairs stage: from `<run>/prompts/prompts.jsonl` to shards of scored image pairs, resumable shard by shard.

A shard is made of fixed prompt pairs in fixed batches, so what it holds does not depend on kills and restarts, nor on
the engine that makes it. `campaign` makes the shards; here is what comes before and after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from restage.diffusion.backbone import Backbone
from restage.pairs.campaign import CampaignConfig, check_prompts, make_missing
from restage.pairs.files import Files, LocalFiles, open_files, point_to_store
from restage.pairs.makers import LoadedMaker, Maker
from restage.pairs.rejudge import changed_pixels, rejudge
from restage.pairs.score import ImageTextModel
from restage.pairs.sheet import MAX_CELLS, write_sheet
from restage.pairs.store import read_rows_at, write_manifest
from restage.pairs.tasks import PairsConfig, TaskPlan, read_plan_id
from restage.pairs.verdicts import current_rule, rule_id, set_rule
from restage.prompts.store import read_prompts
from restage.records import InputError, Progress, content_id
from restage.run.folder import RunFolder
from restage.work.engine import TasksSetAside

__all__ = ["PairsConfig", "make_plan", "rejudge_pairs", "run_campaign", "run_pairs", "write_views"]


def make_plan(run: RunFolder, config: PairsConfig, maker: Maker) -> TaskPlan:
    """Returns what the stage is to make of a run's prompts.

    Raises:
        InputError: there are no prompt pairs.
    """
    folder = run.path / "prompts"
    prompts = read_prompts(folder / "prompts.jsonl")
    return TaskPlan(prompts=prompts, config=config, run_seed=run.seed, maker_id=maker.id, folder=folder)


def run_pairs(run: RunFolder, config: PairsConfig, backbone: Backbone, clip: ImageTextModel) -> Iterator[Progress]:
    """Make the image pairs of a run with models that are in memory, in this process.

    Raises:
        InputError: as `run_campaign`.
    """
    maker = LoadedMaker(backbone, clip, config.generate)
    if not run.is_done("pairs", config):
        maker = replace(maker, generate=config.generate.for_run(make_plan(run, config, maker).num_pairs))
    yield from run_campaign(run, config, maker, CampaignConfig())


def run_campaign(
    run: RunFolder, config: PairsConfig, maker: Maker, engine: CampaignConfig, *, store: str = ""
) -> Iterator[Progress]:
    """Make the image pairs of a run on any engine, a shard at a time; finished shards are left as they are.

    Args:
        run: Its `prompts` stage is done.
        config: How they are made.
        maker: Makes and scores them.
        engine: Where they are made.
        store: URL where the shards lie, such as `s3://bucket/run`; empty for the run's own folder.

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
    if read_plan_id(open_files(folder, store=store)) is None:
        check_prompts(plan, maker.open("cpu"))
    if store:
        point_to_store(folder, store)
    run.folder("pairs")
    files = open_files(folder, store=store)
    _hold_to_rule(files, plan)
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

    Raises:
        InputError: there are no pairs, or they were made with another config or other models.
    """
    folder, plan = run.path / "pairs", make_plan(run, config, maker)
    files = open_files(folder, store=store)
    if read_plan_id(files) != plan.id:
        raise InputError(f"{folder} holds no pairs of this config; with --rejudge only the rule can be another one")
    judged = rejudge(folder, files, config.rule, content_id("pairs", config))
    yield Progress(stage="rejudge", done=1, total=1, note=str(judged))
    yield from run_campaign(run, config, maker, engine, store=store)
    changed = changed_pixels(files, judged)
    if changed:
        note = f"{len(changed)} pairs came out differently when made again, the first: {changed[0]}; scores are new"
        yield Progress(stage="rejudge", done=1, total=1, note=note)


def _hold_to_rule(files: Files, plan: TaskPlan) -> None:
    """Record the rule at the start, and refuse another one later.

    Raises:
        InputError: the pairs are judged by another rule.
    """
    plan.record(files)
    found, rule = current_rule(files), plan.config.rule
    if found is None:
        set_rule(files, rule)
    elif found != rule:
        raise InputError(
            f"{files.where()} holds pairs of another config: judged by {rule_id(found)}, not {rule_id(rule)}; "
            "judge them anew with --rejudge, or choose another --out"
        )


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
