"""Numbers of the stages before the edit model: prompts, and the image pairs that it is trained on, of two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from restage.diagnose.attribution import Interval
from restage.diagnose.parts import RunParts
from restage.diagnose.pools import PairPool
from restage.diagnose.stages import StageRow
from restage.diffusion.clip import load_clip
from restage.pairs.score import ImageTextModel, PairScores, score_pairs
from restage.prompts.store import read_prompts
from restage.records import InputError
from restage.run.layout import PROMPTS

__all__ = ["pair_rows"]

NUM_LOOKED_AT = 32
"""Stored pairs that are scored anew, evenly chosen."""
SCORES = ("direction_similarity", "source_text", "target_text")


def pair_rows(runs: Mapping[str, RunParts], clip: Path) -> list[StageRow]:
    """Rows of prompts and pairs; without pairs in both runs, of prompts only.

    Args:
        runs: `A` and `B`.
        clip: Folder of the CLIP that stored pairs are scored with again, since captions may have changed after they
            were scored.
    """
    pools = {side: run.pairs for side, run in runs.items() if run.pairs is not None}
    rows = [_prompt_row(runs)]
    if len(pools) < 2:
        return rows
    verdicts = {side: [float(pool.is_accepted(key)) for key in pool.rows] for side, pool in pools.items()}
    rows.append(_unpaired("pairs", "share accepted", verdicts))
    model = load_clip(clip)
    now = {side: _score_again(pool, model) for side, pool in pools.items()}
    for metric in SCORES:
        kept = {side: _numbers(pool, metric) for side, pool in pools.items()}
        rows.append(_unpaired("pairs", f"{metric} of accepted pairs, as recorded", kept))
        found = {side: [getattr(scores, metric) for scores in now[side]] for side in now}
        rows.append(_unpaired("pairs", f"{metric} of accepted pairs, measured now", found))
    return rows


def _numbers(pool: PairPool, metric: str) -> list[float]:
    values = [row[metric] for key, row in pool.rows.items() if pool.is_accepted(key)]
    return [math.nan if value is None else float(value) for value in values]


def _score_again(pool: PairPool, clip: ImageTextModel) -> list[PairScores]:
    pairs = list(pool.stored.values())
    picks = np.linspace(0, len(pairs) - 1, min(NUM_LOOKED_AT, len(pairs))).round().astype(int)
    chosen = [pairs[pick] for pick in picks]
    if not chosen:
        return []
    return score_pairs(
        clip,
        [pair.prompt for pair in chosen],
        sources=torch.stack([pair.source for pair in chosen]),
        edited=torch.stack([pair.edited for pair in chosen]),
        masks=torch.stack([pair.mask for pair in chosen]),
    )


def _prompt_row(runs: Mapping[str, RunParts]) -> StageRow:
    counts = {side: _count_prompts(run) for side, run in runs.items()}
    mean = counts["B"] - counts["A"]
    return StageRow(
        stage="prompts",
        metric="pairs of prompts",
        a=counts["A"],
        b=counts["B"],
        difference=Interval(mean=mean, standard_error=0.0, low=mean, high=mean, num_cases=1),
        is_parted=abs(mean) > 0,
    )


def _count_prompts(run: RunParts) -> float:
    try:
        return float(len(read_prompts(run.path / PROMPTS)))
    except InputError:
        return math.nan


def _unpaired(stage: str, metric: str, samples: Mapping[str, Sequence[float]]) -> StageRow:
    """Difference of means of two samples that are not matched, with the normal interval."""
    clean = {side: np.array([value for value in sample if not math.isnan(value)]) for side, sample in samples.items()}
    means = {side: float(values.mean()) if len(values) else math.nan for side, values in clean.items()}
    variances = [float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan for values in clean.values()]
    error, mean = math.sqrt(sum(variances)), means["B"] - means["A"]
    count = min(len(values) for values in clean.values())
    reach = 1.96 * error
    between = Interval(mean=mean, standard_error=error, low=mean - reach, high=mean + reach, num_cases=count)
    is_parted = between.is_clear and error > 0
    return StageRow(stage=stage, metric=metric, a=means["A"], b=means["B"], difference=between, is_parted=is_parted)
