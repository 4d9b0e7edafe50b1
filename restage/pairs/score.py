"""Scores of image pairs, the rule that accepts or rejects them with the reason, and what readers see of stored ones.

Scores of rejected pairs are kept: filtering by CLIP hides what CLIP does not see, so one must be able to look. A rule
can be changed without making a picture: `restage pairs RUN --rejudge`. Shards never change: a pair that `restage verify
--repair` finds wrong is added to the next version of a list beside them, `left-out-<version>.json`, which also holds
what the one before held; readers follow the last version.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from restage.pairs.config import CLIP_THRESHOLDS, PairRule
from restage.pairs.files import Files
from restage.records import InputError, PromptPair, canonical_json, content_id, parse_json, seal, to_plain

__all__ = ["ImageTextModel", "PairScores", "judge", "score_pairs"]


@runtime_checkable
class ImageTextModel(Protocol):
    """What scoring needs of a CLIP: unit-norm embeddings in one space, as `diffusion.clip.Clip` gives."""

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embed pictures in [0, 1]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embed texts."""
        ...


class PairScores(NamedTuple):
    """Scores of one pair; the first four are cosines in [-1, 1]."""

    image_similarity: float  # similarity of the two pictures
    direction_similarity: float
    """Similarity of the step between the pictures and the step between the captions; NaN if either step is zero,
    negative if the edit went the wrong way."""
    source_text: float  # similarity of the source picture and its caption
    target_text: float  # similarity of the edited picture and its caption
    change: float  # mean absolute difference of the pictures, in [0, 1]
    mask_share: float  # share of the picture that was allowed to change, in [0, 1]


def _direction_similarity(image_step: Tensor, text_step: Tensor) -> Tensor:
    """Cosine of the two steps, row by row; NaN where one is zero (up to rounding of unit vectors)."""
    lengths = image_step.norm(dim=1) * text_step.norm(dim=1)
    is_zero = (image_step.norm(dim=1) < 1e-6) | (text_step.norm(dim=1) < 1e-6)
    cosine = (image_step * text_step).sum(1) / lengths.clamp(min=1e-12)
    return torch.where(is_zero, torch.nan, cosine)


def score_pairs(
    clip: ImageTextModel,
    prompts: Sequence[PromptPair],
    *,
    sources: Float[Tensor, "pairs 3 height width"],
    edited: Float[Tensor, "pairs 3 height width"],
    masks: Float[Tensor, "pairs height width"],
) -> list[PairScores]:
    """Score a batch of pairs (CLIP direction: StyleGAN-NADA, Gal et al. 2021, arXiv 2108.00946)."""
    before, after = clip.encode_images(torch.cat([sources, edited])).cpu().double().chunk(2)
    texts = [prompt.source for prompt in prompts] + [prompt.target for prompt in prompts]
    text_before, text_after = clip.encode_text(texts).cpu().double().chunk(2)
    columns = (
        (before * after).sum(1),
        _direction_similarity(after - before, text_after - text_before),
        (before * text_before).sum(1),
        (after * text_after).sum(1),
        (sources - edited).abs().mean(dim=(1, 2, 3)),
        masks.mean(dim=(1, 2)),
    )
    return [PairScores(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def judge(scores: PairScores, rule: PairRule) -> str:
    """Return why a pair is rejected, in a few words without numbers; empty if it is accepted."""
    image, direction, text = (getattr(rule, name) for name in CLIP_THRESHOLDS)
    if None in (image, direction, text):
        raise InputError("the rule names no thresholds; take those of the CLIP, as clip_rule.rule_for does")
    # The cheapest and surest reasons come first, since a pair is counted under the first one that applies.
    if scores.change < rule.min_change:
        return "nothing changed"
    if scores.mask_share < rule.min_mask_share:
        return "mask is empty"
    if math.isnan(scores.direction_similarity):
        return "direction cannot be scored"
    if scores.source_text < text:
        return "source does not show its caption"
    if scores.target_text < text:
        return "edited picture does not show its caption"
    if scores.image_similarity < image:
        return "pictures are too different"
    if scores.direction_similarity < direction:
        return "change is not the one asked for"
    return ""


RULE_FILE = "rule.json"

NOT_STORED = "accepted by the rule, but its pictures were not stored"
"""Reason of a pair that waits until `rejudge` has its shard made again."""


@dataclass(frozen=True, kw_only=True)
class RuleRecord:
    """What a `rule.json` says."""

    id: str
    rule: PairRule


def rule_id(rule: PairRule) -> str:
    """Content id of a rule's thresholds and version."""
    return content_id("rule", rule)


def current_rule(files: Files) -> PairRule | None:
    """Return the rule that holds for these pairs; None if none is recorded, so that verdicts stand as stored."""
    if not files.exists(RULE_FILE):
        return None
    return parse_json(files.read(RULE_FILE), RuleRecord, where=files.where(RULE_FILE)).rule


def set_rule(files: Files, rule: PairRule) -> None:
    """Record the rule that holds from now on."""
    record = {"id": rule_id(rule), "rule": to_plain(rule)}
    files.write(RULE_FILE, (canonical_json(record) + "\n").encode())


def verdict_of(row: Mapping[str, Any], rule: PairRule) -> dict[str, Any]:
    """Return a sidecar row with the verdict of a rule on its scores in place of the stored verdict."""
    scores = PairScores(**{name: float("nan") if row[name] is None else row[name] for name in PairScores._fields})
    reason = judge(scores, rule)
    if not reason and not row["accepted"]:
        reason = NOT_STORED
    return {**row, "accepted": not reason, "reason": reason, "rule_version": rule.version}


LEFT_OUT = re.compile(r"left-out-([0-9]+)\.json")


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """What a version of the list says: reasons by id."""

    pairs: Mapping[str, str]


def is_left_out_list(name: str) -> bool:
    """Whether a file of this name is a version of the list."""
    return LEFT_OUT.fullmatch(name) is not None


def read_left_out(files: Files) -> dict[str, str]:
    """Return the reasons of the pairs to leave out, by id; empty if there is no list."""
    versions = [name for name in files.names() if is_left_out_list(name)]
    if not versions:
        return {}
    try:
        record = parse_json(files.read(versions[-1]), _LeftOut, where=files.where(versions[-1]))
    except InputError as error:
        raise InputError(f"{error}; run: restage verify RUN --repair") from None
    return dict(record.pairs)


def add_left_out(files: Files, pairs: Mapping[str, str]) -> str:
    """Write the next version of the list with these pairs and their reasons added; returns its name."""
    found = [LEFT_OUT.fullmatch(name) for name in files.names()]
    number = max((int(match[1]) for match in found if match), default=0) + 1
    # A new version, never an overwritten one: object stores have no rename, and a reader may be at work.
    name = f"left-out-{number:04d}.json"
    record = seal({"version": number, "pairs": {**read_left_out(files), **pairs}})
    files.write(name, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return name


def mark_left_out(row: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return a sidecar row as readers see it: a pair of the list counts as rejected, and says why."""
    reason = left_out.get(row["id"])
    return dict(row) if reason is None else {**row, "accepted": False, "reason": f"left out: {reason}"}
