"""The pairs stage: from `<run>/prompts/prompts.jsonl` to shards of scored image pairs, resumable shard by shard.

A shard is made of fixed prompt pairs in fixed batches, so what it holds does not depend on kills and restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.diffusion.backbone import Backbone
from restage.pairs.generate import GenerateConfig, GeneratedPairs, PairJob, generate_pairs, make_control, make_jobs
from restage.pairs.score import ImageTextModel, PairRule, PairScores, judge, score_pairs
from restage.pairs.sheet import make_preview, write_contact_sheet
from restage.pairs.store import PREVIEW, ImagePair, done_shards, read_rows, rebuild_manifest, write_shard
from restage.prompts.store import read_prompts
from restage.records import InputError, Progress, RunFolder, content_id

__all__ = ["PairsConfig", "run_pairs"]


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """How a run makes its image pairs."""

    generate: GenerateConfig = GenerateConfig()
    """How they are sampled."""
    rule: PairRule = PairRule()
    """Which are accepted."""
    samples_per_prompt: int = 1
    """Pairs of each prompt pair, each from its own noise."""
    pairs_per_shard: int = 16
    """Pairs in a shard, accepted or not: what a kill costs at most."""

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 1 or self.pairs_per_shard < 1:
            raise InputError(
                f"samples_per_prompt and pairs_per_shard must be at least 1, got {self.samples_per_prompt}, "
                f"{self.pairs_per_shard}"
            )


def _row(pair: ImagePair, scores: PairScores, reason: str, job: PairJob) -> dict[str, Any]:
    return {
        "id": pair.id,
        "prompt_id": job.prompt.id,
        "kind": job.prompt.kind,
        "instruction": job.prompt.instruction,
        "source_caption": job.prompt.source,
        "target_caption": job.prompt.target,
        "form": job.prompt.form,
        **{name: pair.facts[name] for name in ("sample", "seed", "self_share", "control", "rule_version")},
        **scores._asdict(),
        "accepted": not reason,
        "reason": reason,
        PREVIEW: make_preview(pair.source, pair.edited, pair.mask),
    }


def _scored(
    jobs: Sequence[PairJob], made: GeneratedPairs, scores: Sequence[PairScores], rule: PairRule
) -> Iterator[tuple[ImagePair, dict[str, Any]]]:
    for index, (job, score) in enumerate(zip(jobs, scores, strict=True)):
        facts = {
            "sample": job.sample,
            "seed": job.seed,
            "self_share": job.self_share,
            "control": made.controls[index],
            "rule_version": rule.version,
            # JSON has no NaN: what could not be scored is null there, with the reason beside it.
            "scores": {name: value if value == value else None for name, value in score._asdict().items()},
        }
        pair = ImagePair(
            id=job.id,
            source=made.sources[index],
            edited=made.edited[index],
            mask=made.masks[index],
            prompt=job.prompt,
            facts=facts,
        )
        yield pair, _row(pair, score, judge(score, rule), job)


def _make_shard(
    folder: Path, index: int, jobs: Sequence[PairJob], *, config: PairsConfig, backbone: Backbone, clip: ImageTextModel
) -> Iterator[int]:
    """Make and write one shard; yields the number of its pairs that are made, batch by batch."""
    pairs: list[ImagePair] = []
    rows: list[dict[str, Any]] = []
    for start in range(0, len(jobs), config.generate.batch_size):
        batch = jobs[start : start + config.generate.batch_size]
        made = generate_pairs(backbone, batch, config.generate)
        scores = score_pairs(
            clip, [job.prompt for job in batch], sources=made.sources, edited=made.edited, masks=made.masks
        )
        for pair, row in _scored(batch, made, scores, config.rule):
            rows.append(row)
            if row["accepted"]:
                pairs.append(pair)
        if len(rows) < len(jobs):
            yield len(rows)
    write_shard(folder, index, pairs=pairs, rows=rows, facts={"content": _content(jobs, config)})
    yield len(rows)


def _content(jobs: Sequence[PairJob], config: PairsConfig) -> str:
    """Id of what a shard is made from."""
    return content_id("shard", {"pairs": [job.id for job in jobs], "config": config})


def _shards(run: RunFolder, config: PairsConfig) -> list[list[PairJob]]:
    prompts = read_prompts(run.path / "prompts" / "prompts.jsonl")
    jobs = make_jobs(prompts, config.generate, samples_per_prompt=config.samples_per_prompt, run_seed=run.seed)
    size = config.pairs_per_shard
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def run_pairs(run: RunFolder, config: PairsConfig, backbone: Backbone, clip: ImageTextModel) -> Iterator[Progress]:
    """Make the image pairs of a run, a shard at a time; finished shards are left as they are.

    Args:
        run: its `prompts` stage is done.
        config: how.
        backbone: the text-to-image model.
        clip: scores the pairs.

    Raises:
        InputError: there are no prompt pairs, one does not fit the model, the stage or a shard was made with another
            config, or no pair was accepted.
    """
    if run.is_done("pairs", config):
        yield Progress(stage="pairs", done=1, total=1, note="already done")
        return
    shards = _shards(run, config)
    for shard in shards:
        for job in shard:
            make_control(backbone, job, config.generate)  # every prompt pair is checked before the first is made
    folder = run.folder("pairs")
    done, total = 0, sum(len(shard) for shard in shards)
    finished = done_shards(folder)
    for index, shard in enumerate(shards):
        if index in finished:
            if finished[index].get("content") != _content(shard, config):
                raise InputError(f"{folder} holds shards of other prompts or another config; choose another --out")
        else:
            for made in _make_shard(folder, index, shard, config=config, backbone=backbone, clip=clip):
                yield Progress(stage="pairs", done=done + made, total=total, note=shard[made - 1].prompt.instruction)
        done += len(shard)
    rows = read_rows(folder)
    rebuild_manifest(folder)
    write_contact_sheet(folder / "contact_sheet.png", rows)
    num_accepted = sum(row["accepted"] for row in rows)
    if not num_accepted:
        raise InputError(f"none of {total} pairs was accepted; see {folder / 'contact_sheet.png'} for why")
    run.mark_done("pairs", config, num_pairs=total, num_accepted=num_accepted, rule_version=config.rule.version)
    yield Progress(stage="pairs", done=total, total=total, note=f"{num_accepted} of {total} pairs accepted")
