"""Can rejects be recognized halfway? What early rejection would save, and which good pairs it would cost.

    python -m benchmarks.early_rejection                  # 20 held-out prompt pairs of each kind of edit

Every pair is sampled to its end, and also scored from its predicted clean pictures after half of the steps. A pair is
*given up* if the miniature's rule, its limits on CLIP lowered by a margin, rejects it halfway. For each margin: which
share of the final rejects and of the accepted pairs is given up, and how many accepted pairs per second that leaves,
against no early rejection: a pair costs its steps, or half of them, and the look halfway. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.pairs import ASSETS, prompts_of
from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.pairs.generate import GeneratedPairs, PairJob, generate_pairs, make_jobs
from restage.pairs.score import PairRule, PairScores, judge, score_pairs
from restage.recipes import PAIRS, RULE
from restage.world.grammar import EDIT_KINDS

MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2)
TIMED_BATCHES = 3


def lowered(rule: PairRule, margin: float) -> PairRule:
    """The rule with its limits on CLIP lowered, and none on change and mask."""
    return dataclasses.replace(
        rule,
        min_image_similarity=rule.min_image_similarity - margin,
        min_direction_similarity=rule.min_direction_similarity - margin,
        min_text_similarity=rule.min_text_similarity - margin,
        min_change=0.0,
        min_mask_share=0.0,
    )


def row_of(
    margin: float, scores: Sequence[tuple[PairScores, PairScores]], *, look_s: float, half_s: float
) -> dict[str, Any]:
    """What early rejection with this margin does.

    Args:
        margin: How far below the rule's limits.
        scores: Scores of each pair, halfway and at the end.
        look_s: Seconds to decode and score a pair halfway.
        half_s: Seconds of half of a pair's steps.
    """
    given_up = [bool(judge(early, lowered(RULE, margin))) for early, _ in scores]
    accepted = [not judge(late, RULE) for _, late in scores]
    rejects = [gone for gone, good in zip(given_up, accepted, strict=True) if not good]
    goods = [gone for gone, good in zip(given_up, accepted, strict=True) if good]
    share = sum(given_up) / len(given_up)
    time_share = (2 * half_s + look_s - share * half_s) / (2 * half_s)
    lost = sum(goods) / max(len(goods), 1)
    return {
        "margin": margin,
        "rejects_told": sum(rejects) / max(len(rejects), 1),
        "accepted_lost": lost,
        "time": time_share,
        "accepted_per_s": (1 - lost) / time_share,
    }


def main() -> None:
    """Make the pairs, and print a row for each margin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, help="prompt pairs of each kind")
    arguments = parser.parse_args()
    backbone, clip, config = load_backbone(ASSETS / "text_to_image"), load_clip(ASSETS / "clip"), PAIRS.generate
    jobs = make_jobs(prompts_of(arguments.prompts * len(EDIT_KINDS)), config, samples_per_prompt=1, run_seed=1234)
    early: list[PairScores] = []
    late: list[PairScores] = []

    def scores_of(batch: Sequence[PairJob], made: GeneratedPairs) -> list[PairScores]:
        prompts = [job.prompt for job in batch]
        return score_pairs(clip, prompts, sources=made.sources, edited=made.edited, masks=made.masks)

    def look(batch: Sequence[PairJob], made: GeneratedPairs) -> list[bool]:
        early.extend(scores_of(batch, made))
        return [False] * len(batch)

    looking, plain = [], []
    for start in range(0, len(jobs), config.batch_size):
        batch = jobs[start : start + config.batch_size]
        began = time.process_time()
        made = generate_pairs(backbone, batch, config, is_hopeless=look)
        if 0 < start <= TIMED_BATCHES * config.batch_size:
            between = time.process_time()
            generate_pairs(backbone, batch, config)
            looking.append(between - began)
            plain.append(time.process_time() - between)
        late.extend(scores_of(batch, made))
        print(f"{len(late)} of {len(jobs)} pairs", flush=True)
    half_s = sum(plain) / len(plain) / config.batch_size / 2
    look_s = sum(looking) / len(looking) / config.batch_size - 2 * half_s
    rows = [row_of(margin, list(zip(early, late, strict=True)), look_s=look_s, half_s=half_s) for margin in MARGINS]
    accepted = sum(not judge(score, RULE) for score in late) / len(late)
    print(f"{accepted:.2f} of {len(late)} pairs accepted; a pair {2 * half_s:.3f} s, a look {look_s:.3f} s of CPU")
    print("| margin | rejects told | accepted lost | time | accepted a second |\n" + "| --- " * 5 + "|")
    for row in rows:
        print("| " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")
    print(json.dumps({"pairs": len(late), "accepted": accepted, "pair_s": 2 * half_s, "look_s": look_s, "rows": rows}))


if __name__ == "__main__":
    main()
