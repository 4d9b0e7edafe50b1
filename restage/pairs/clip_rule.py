"""Which thresholds suit which CLIP: a small record in its folder, `pair_rule.json`, which every command follows.

CLIPs differ in what their numbers mean: the miniature's calls an exact edit 0.35 alike, where OpenAI's would say 0.8.
The thresholds are measured on pairs that are known to be right (`calibrate`), or published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from restage.pairs.config import CLIP_THRESHOLDS, PUBLISHED, PairRule
from restage.pairs.encoding import ImagePair
from restage.pairs.score import ImageTextModel, PairScores, judge, score_pairs
from restage.prompts.grammar import sample_grammar_edit
from restage.records import InputError, derive_seed, read_json, write_json
from restage.run.models import CLIP_RULE
from restage.world.capture import change_mask, sample_camera
from restage.world.grammar import EDIT_KINDS, prompt_pair_of
from restage.world.render import render_view

__all__ = ["Calibration", "calibrate", "calibrate_folder", "exact_pairs", "read_clip_rule", "rule_for"]

OPENAI_VOCABULARY = 49_408
"""Size of the vocabulary of OpenAI's CLIPs, and of those that were trained like them."""
KEPT_SHARE = 0.98
"""Share of right pairs that each threshold keeps."""
STEP = 0.05
"""Thresholds are multiples of this, rounded down."""
MIN_PAIRS = 30
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class _TextConfig:
    vocab_size: int = OPENAI_VOCABULARY


@dataclass(frozen=True, kw_only=True)
class _ClipConfig:
    """What a CLIP's `config.json` says of its texts."""

    text_config: _TextConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The thresholds that suit a CLIP, and how well they tell right pairs from wrong ones."""

    rule: PairRule
    num_pairs: int
    kept: float  # share of the right pairs that the rule accepts
    kept_of_wrong: float
    """Share of pairs that it accepts with the picture after the edit of another pair."""


def read_clip_rule(folder: Path) -> PairRule | None:
    """Return the rule that the folder of a CLIP names; without one the published rule for OpenAI's, None for others."""
    path = folder / CLIP_RULE
    if path.is_file():
        found = read_json(path, PairRule)
        thresholds = [getattr(found, name) for name in CLIP_THRESHOLDS]
        if not all(threshold is not None and -1 <= threshold <= 1 for threshold in thresholds):
            wanted = f"{', '.join(CLIP_THRESHOLDS)} in [-1, 1]"
            raise InputError(f"{path}: expected {wanted}, got {thresholds}; run: restage calibrate {folder}")
        return PairRule().filled(found)
    if not (folder / "config.json").is_file():
        return None
    text = read_json(folder / "config.json", _ClipConfig).text_config or _TextConfig()
    return PUBLISHED if text.vocab_size == OPENAI_VOCABULARY else None


def rule_for(rule: PairRule, clip: Path) -> PairRule:
    """Return a rule with the thresholds that suit a CLIP where it names none."""
    if rule.has_thresholds:
        return rule
    if not clip.is_dir():
        raise InputError(f"{clip} does not exist; name a folder of models with --models")
    found = read_clip_rule(clip)
    if found is None:
        raise InputError(
            f"{clip} says nothing of the thresholds that suit this CLIP; run: restage calibrate {clip}, or name them: "
            "--rule.min-image-similarity, --rule.min-direction-similarity, --rule.min-text-similarity"
        )
    return rule.filled(found)


def exact_pairs(count: int, *, seed: int) -> Iterator[ImagePair]:
    """Render pairs of the miniature world, kinds of edit in turn, which show exactly what their captions say."""
    for index in range(count):
        item = derive_seed("calibration", seed, index)
        edit = sample_grammar_edit(EDIT_KINDS[index % len(EDIT_KINDS)], item)
        camera = sample_camera(edit.before, item)
        before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
        mask = torch.from_numpy(change_mask(before, after))
        source, edited, prompt = torch.from_numpy(before), torch.from_numpy(after), prompt_pair_of(edit, item)
        yield ImagePair(id=prompt.id, source=source, edited=edited, mask=mask, prompt=prompt, facts={})


def _scores(clip: ImageTextModel, batch: Sequence[ImagePair]) -> tuple[list[PairScores], list[PairScores]]:
    """Score pairs as they are, and each with the edited picture of the next one."""
    prompts = [pair.prompt for pair in batch]
    parts = ([getattr(pair, name) for pair in batch] for name in ("source", "edited", "mask"))
    sources, edited, masks = map(torch.stack, parts)
    right = score_pairs(clip, prompts, sources=sources, edited=edited, masks=masks)
    return right, score_pairs(clip, prompts, sources=sources, edited=edited.roll(1, 0), masks=masks)


def calibrate(clip: ImageTextModel, pairs: Iterable[ImagePair]) -> Calibration:
    """Measure which thresholds keep nearly all of some pairs that are right."""
    right, wrong, rest = [], [], iter(pairs)
    while batch := list(islice(rest, BATCH_SIZE)):
        batch = [pair for pair in batch if pair.prompt.source and pair.prompt.target]
        if len({pair.source.shape for pair in batch}) > 1:
            raise InputError("the pairs have pictures of different sizes; calibrate on one size")
        if len(batch) > 1:
            of_batch = _scores(clip, batch)
            right += of_batch[0]
            wrong += of_batch[1]
    if len(right) < MIN_PAIRS:
        raise InputError(f"expected at least {MIN_PAIRS} pairs with captions to calibrate on, got {len(right)}")
    texts = [min(score.source_text, score.target_text) for score in right]
    columns = ([score.image_similarity for score in right], [score.direction_similarity for score in right], texts)
    low = (float(np.nanquantile(np.array(values), 1 - KEPT_SHARE)) for values in columns)
    image, direction, text = (round(math.floor(value / STEP) * STEP, 2) for value in low)
    rule = PairRule(min_image_similarity=image, min_direction_similarity=direction, min_text_similarity=text)
    kept, kept_of_wrong = (sum(not judge(score, rule) for score in scores) / len(scores) for scores in (right, wrong))
    return Calibration(rule=rule, num_pairs=len(right), kept=kept, kept_of_wrong=kept_of_wrong)


def calibrate_folder(folder: Path, clip: ImageTextModel, pairs: Iterable[ImagePair], *, made_from: str) -> Calibration:
    """Calibrate a CLIP and write the record into its folder."""
    found = calibrate(clip, pairs)
    record = {name: getattr(found.rule, name) for name in CLIP_THRESHOLDS}
    facts = {"pairs": found.num_pairs, "made_from": made_from, "kept": found.kept, "kept_of_wrong": found.kept_of_wrong}
    write_json(folder / CLIP_RULE, {**record, "calibrated": facts})
    return found
