"""A small set of faultless image pairs that takes no time to make, and ways to spoil it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from restage.pairs.config import VerifyConfig
from restage.pairs.encoding import ImagePair, make_preview
from restage.pairs.score import PairScores, score_pairs
from restage.pairs.store import write_manifest, write_shard
from restage.pairs.verify.check import check_pairs
from restage.pairs.verify.shards import Finding
from restage.records import PromptPair, derive_seed
from restage.run.folder import RunFolder

GRID = 6
SIZE = 24
NUM_SHARDS, PAIRS_PER_SHARD = 3, 8
"""Of a shard's pairs, the last is rejected."""


def pattern_of(caption: str) -> Tensor:
    """Return the brightness of this caption's picture, on a coarse grid."""
    generator = torch.Generator().manual_seed(derive_seed("pattern", caption))
    return torch.rand(GRID, GRID, generator=generator)


def picture_of(caption: str, noise_seed: int) -> Tensor:
    """Draw a picture that shows a caption: its pattern, tinted, with some noise."""
    generator = torch.Generator().manual_seed(noise_seed)
    grey = pattern_of(caption).repeat_interleave(SIZE // GRID, 0).repeat_interleave(SIZE // GRID, 1)
    tint = torch.linspace(0.7, 1.0, 3).view(3, 1, 1)
    picture = grey * tint + 0.02 * torch.randn(3, SIZE, SIZE, generator=generator)
    return (picture.clamp(0, 1) * 255).round() / 255


class PatternClip:
    """A CLIP that reads the captions of such pictures."""

    def encode_images(self, images: Tensor) -> Tensor:
        grey = F.adaptive_avg_pool2d(images.mean(1, keepdim=True), GRID).flatten(1)
        return F.normalize(grey - grey.mean(1, keepdim=True), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        patterns = torch.stack([pattern_of(text).flatten() for text in texts])
        return F.normalize(patterns - patterns.mean(1, keepdim=True), dim=-1)


def make_pair(number: int) -> ImagePair:
    source, target = f"scene {number}", f"scene {number} with a hat"
    prompt = PromptPair(source=source, target=target, instruction=f"give {number} a hat", kind="add")
    mask = torch.zeros(SIZE, SIZE)
    mask[4:12, 4:12] = 1
    return ImagePair(
        id=f"pair-{derive_seed('pair', number) % 2**64:016x}",
        source=picture_of(source, 2 * number),
        edited=picture_of(target, 2 * number + 1),
        mask=mask,
        prompt=prompt,
        facts={"seed": number, "sample": 0},
    )


def row_of(pair: ImagePair, scores: PairScores, reason: str = "") -> dict:
    return {
        "id": pair.id,
        "prompt_id": pair.prompt.id,
        "kind": pair.prompt.kind,
        "instruction": pair.prompt.instruction,
        "source_caption": pair.prompt.source,
        "target_caption": pair.prompt.target,
        "form": pair.prompt.form,
        **{"sample": 0, "seed": pair.facts["seed"], "self_share": 0.5, "control": "refine", "rule_version": 1},
        **scores._asdict(),
        "accepted": not reason,
        "reason": reason,
        "preview": make_preview(pair.source, pair.edited, pair.mask),
    }


def scores_of(pair: ImagePair) -> PairScores:
    pictures = {"sources": pair.source[None], "edited": pair.edited[None], "masks": pair.mask[None]}
    return score_pairs(PatternClip(), [pair.prompt], **pictures)[0]


Spoil = Callable[[ImagePair], ImagePair]


def write_faulty(folder: Path, index: int, spoil: Mapping[int, Spoil] = {}, *, scored_before: bool = False) -> None:
    """Write one shard; `spoil` changes pairs by their number, before or after they are scored."""
    pairs, rows = [], []
    for number in range(index * PAIRS_PER_SHARD, (index + 1) * PAIRS_PER_SHARD):
        made = make_pair(number)
        spoilt = spoil.get(number, lambda pair: pair)(made)
        is_rejected = number % PAIRS_PER_SHARD == PAIRS_PER_SHARD - 1
        scores = scores_of(made if scored_before else spoilt)
        rows.append(row_of(spoilt, scores, "nothing changed" if is_rejected else ""))
        if not is_rejected:
            pairs.append(spoilt)
    write_shard(folder, index, pairs=pairs, rows=rows, facts={"content": f"shard-{index}"})


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    made_by: str = "tests"


def write_set(path: Path, spoil: Mapping[int, Spoil] = {}, **options: bool) -> Path:
    """Write a finished run of faulty pairs; return its pairs folder."""
    run = RunFolder.open(path, {}, seed=0)
    folder = run.folder("pairs")
    for index in range(NUM_SHARDS):
        write_faulty(folder, index, spoil, **options)
    write_manifest(folder, folder / "manifest.parquet")
    num_pairs = NUM_SHARDS * PAIRS_PER_SHARD
    num_accepted = num_pairs - NUM_SHARDS
    run.mark_done("pairs", FakeConfig(), num_pairs=num_pairs, num_accepted=num_accepted, imported_from="tests")
    return folder


def verify_pairs(folder: Path | str, *, fast: bool = False, clip=None, num_threads: int = 2, **store: str):
    """Check image pairs, and return what is wrong."""
    steps = check_pairs(folder, VerifyConfig(fast=fast, num_threads=num_threads), clip=clip, **store)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            findings: tuple[Finding, ...] = end.value.findings
            return findings
