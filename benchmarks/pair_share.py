"""How many of the pairs should an edit model be trained on? The best 10, 30, 60 and 100 %, by the rule and by truth.

    python -m benchmarks.pair_share training/miniature [--shares 0.1 0.3 0.6 1] [--num-steps 2000] [--worlds 0 1]

The folder is one in which `restage miniature train edit-model` has made its pairs. *By the rule*: accepted pairs come
before rejected ones, and among both those whose step between the pictures fits that between the captions best. *By
truth*: in the order of the progress of the painted picture towards the exact one. Each arm trains for as many steps,
from the same weights and seed, on its share of the pairs, and then edits the held-out cases of `benchmarks.miniature`.

A kill loses two minutes at most; the same command goes on. FOLDER/state/pair_share/results.jsonl has a line an arm; the
last line printed is JSON: edit_progress_appearance, edit_progress_shape, edit_spill and edit_mask_iou by arm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.miniature.edits import edit_figures, run_edits
from benchmarks.miniature.held_out import edit_cases
from miniature.edit_model import RECIPE, SCORED_AT_ONCE
from miniature.rendered_pairs import render_pair
from restage.compare.metrics import progress
from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import Clip, load_clip
from restage.diffusion.edit_models import load_edit_model
from restage.pairs.clip_rule import rule_for
from restage.pairs.config import PairRule
from restage.pairs.score import judge, score_pairs
from restage.pairs.store import ImagePair, read_pairs
from restage.records import file_sha256, read_json, write_json
from restage.train.stage import train_edit_model

REPORTED = ("edit_progress_appearance", "edit_progress_shape", "edit_spill", "edit_mask_iou")


@dataclass(frozen=True)
class Worth:
    """What a pair is worth."""

    is_accepted: bool
    direction: float  # similarity of the steps between pictures and captions, -1 where it cannot be told
    progress: float  # of the painted picture towards the exact one


def numbers_by_picture(folder: Path) -> dict[str, int]:
    """Number of the rendered scene by the name under which its picture is stored, which is that of its content."""
    return {file_sha256(path)[:16]: int(path.stem) for path in folder.glob("*.png")}


def worth_of(pair: ImagePair, number: int, clip: Clip, rule: PairRule) -> Worth:
    """Score a pair by the rule, and by the renders of its scene before and after the edit."""
    scores = score_pairs(
        clip, [pair.prompt], sources=pair.source[None], edited=pair.edited[None], masks=pair.mask[None]
    )[0]
    exact = render_pair(number, RECIPE.made.seed)
    painted, truth, other = pair.edited, exact.edited, exact.source
    if pair.prompt.pictured == "target":
        painted, truth, other = pair.source, exact.source, exact.edited
    gained = progress(painted[None], other[None], truth[None], exact.mask[None].float()).mean
    return Worth(not judge(scores, rule), float(np.nan_to_num(scores.direction_similarity, nan=-1.0)), gained)


def find_worths(folder: Path, pairs: Path, pictures: Path, clip_folder: Path) -> list[Worth]:
    """Score all pairs, once; those that are scored already are kept."""
    numbers = numbers_by_picture(pictures)
    clip, rule = load_clip(clip_folder), rule_for(PairRule(), clip_folder)
    path = folder / "worths.json"
    worths = read_json(path, list[Worth]) if path.exists() else []
    for index, pair in enumerate(read_pairs(pairs)):
        if index < len(worths):
            continue
        worths.append(worth_of(pair, numbers[Path(pair.prompt.picture).stem], clip, rule))
        if len(worths) % (8 * SCORED_AT_ONCE) == 0:
            write_json(path, worths)
            print(f"scored {len(worths)} pairs", flush=True)
    write_json(path, worths)
    return worths


def best(worths: list[Worth], by: str, share: float) -> list[int]:
    """Indices of the best share of the pairs, in their own order."""
    if by == "truth":
        keys = [worth.progress for worth in worths]
    else:
        keys = [2.0 * worth.is_accepted + worth.direction for worth in worths]
    order = np.argsort(-np.nan_to_num(np.array(keys), nan=-np.inf), kind="stable")
    return sorted(order[: max(1, round(share * len(worths)))].tolist())


def chosen_pairs(pairs: Path, chosen: list[int]) -> Iterator[ImagePair]:
    wanted = set(chosen)
    return (pair for index, pair in enumerate(read_pairs(pairs)) if index in wanted)


def main(arguments: list[str] | None = None) -> None:
    """Score the pairs, then train and measure the arms that are not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.6, 1.0])
    parser.add_argument("--num-steps", type=int, default=2000)
    parser.add_argument("--worlds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cases", type=int, default=90)
    asked = parser.parse_args(arguments)
    if not all(0 < share <= 1 for share in asked.shares):
        raise SystemExit(f"expected shares in (0, 1], got {asked.shares}")
    text_to_image, state = asked.folder / "text_to_image", asked.folder / "state" / "pair_share"
    state.mkdir(parents=True, exist_ok=True)
    pairs = asked.folder / "state" / "edit_model_pairs" / "pairs"
    pictures = asked.folder / "state" / "edit_model_prompts" / "pictures"
    worths = find_worths(state, pairs, pictures, asked.folder / "clip")
    config = replace(RECIPE.train, training=replace(RECIPE.train.training, num_steps=asked.num_steps))
    cases = [case for world in asked.worlds for case in edit_cases(world, asked.cases)]
    results = state / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    # All pairs are the same pairs by either order.
    arms = [(by, share) for share in asked.shares for by in (("rule", "truth") if share < 1 else ("all",))]
    for by, share in arms:
        name = f"{by}_{share:g}_{asked.num_steps}"
        if any(line["arm"] == name for line in done):
            continue
        chosen, start_s = best(worths, by, share), time.process_time()
        start = load_backbone(text_to_image)
        for step in train_edit_model(
            chosen_pairs(pairs, chosen), start, state / name, config, text_to_image=text_to_image
        ):
            if step.done % 100 == 0:
                print(f"{name}: {step.stage} {step.done}/{step.total} {step.note}", flush=True)
        with torch.no_grad():
            figures = edit_figures(run_edits(load_edit_model(state / name), cases))
        mean_progress = float(np.nanmean([worths[index].progress for index in chosen]))
        line = {
            "arm": name, "by": by, "share": share, "num_pairs": len(chosen), "pairs_progress": mean_progress,
            "cpu_s": round(time.process_time() - start_s), **asdict(config.training), **figures,
        }  # fmt: skip
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done.append(line)
        print(json.dumps(line), flush=True)
    print(json.dumps({line["arm"]: {name: round(line[name], 4) for name in REPORTED} for line in done}))


if __name__ == "__main__":
    main()
