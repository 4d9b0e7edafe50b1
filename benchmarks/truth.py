"""Whether CLIP metrics and "consistency" rank edits as exact truth does; docs/truth.md says what came out.

    restage study benchmarks/truth_study.py --out runs/truth --workers 2
    python benchmarks/truth.py runs/truth [folder for tables] [folder for pictures]

Writes agreement.csv (rank correlations with intervals by scene), truth_itself.csv (what the metrics say of the true
edited views, the best that an edit can look like), results.parquet (the rows of Score behind both, costs left out),
truth_examples.png (pairs of results that a metric ranks the wrong way round) and truth_scatter.png. The last line is
JSON. Any study with truth will do.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.agreement import Judged, judged_results, pair_agreement, rank_agreement
from restage.compare.judges import open_judges
from restage.compare.measure import ResultViews, embed_before, load_case, measure_result
from restage.edit.pictures import read_image
from restage.records import Score
from restage.scores.definitions import METRICS
from restage.scores.rows import read_scores, write_scores
from restage.studies.study import load_study

JUDGED = (
    *("clip_text", "clip_direction", "clip_image"),
    *("frame_consistency", "step_consistency", "edit_consistency", "typeset_consistency"),
    "dino_before",
)
"""Metrics that know no truth. Image similarities rank nothing by themselves, but published tables rank by them."""

CLEAR_GAP = 0.1
"""Of progress: two results that differ by less are not told apart."""


class Misled(NamedTuple):
    """Two results of one case that a metric ranks the wrong way round."""

    metric: str
    liked: Judged
    better: Judged

    @property
    def size(self) -> float:
        return (self.liked.metric - self.better.metric) * (self.better.truth - self.liked.truth)


def agreement_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    rows = []
    for metric in JUDGED:
        if not any(row.metric == metric and not math.isnan(row.value) for row in scores):
            continue
        for truth in ("progress", "spill"):
            for within in ("all", "scene", "case"):
                found = asdict(rank_agreement(scores, metric, truth=truth, within=within))
                pairs = pair_agreement(scores, metric, gap=CLEAR_GAP) if truth == "progress" else math.nan
                rows.append({**found, "pairs_right": pairs if within == "case" else math.nan})
    return rows


def judge_truth(run_path: Path) -> list[Score]:
    """What the metrics say of the true edited views, instead of renders, against the true views before the edit."""
    study = load_study(run_path)
    judges = open_judges(study.compare)
    rows = []
    for scene in study.scenes:
        for edit in scene.edits:
            case = load_case(run_path, scene.name, edit, study.compare)
            if case.truth is None:
                continue
            exact = type(case)(**{**vars(case), "unedited": case.source})
            before = embed_before(exact, judges)
            found = measure_result(ResultViews(case.truth), exact, before=before, judges=judges, config=study.compare)
            who = {"scene": scene.name, "edit": edit, "kind": edit.rpartition("-")[0], "method": "truth", "seed": 0}
            rows += [
                Score(**who, editor="none", metric=name, value=float(value.mean), reason=value.reason)
                for name, value in found.items()
            ]
    return rows


def worst_pairs(scores: Sequence[Score]) -> list[Misled]:
    """For each metric the pair that it gets most wrong, of results that truth tells apart clearly; cases differ."""
    found: list[Misled] = []
    for metric in JUDGED:
        cases: dict[tuple[str, str], list[Judged]] = defaultdict(list)
        for one in judged_results(scores, metric)[0]:
            cases[one.scene, one.edit].append(one)
        pairs = [
            Misled(metric, liked, better)
            for group in cases.values()
            for liked in group
            for better in group
            if liked.metric > better.metric and better.truth - liked.truth > 3 * CLEAR_GAP
        ]
        taken = {(one.liked.scene, one.liked.edit) for one in found}
        fresh = [pair for pair in pairs if (pair.liked.scene, pair.liked.edit) not in taken]
        if fresh:
            found.append(max(fresh, key=lambda pair: pair.size))
    return found


def _view(run_path: Path, one: Judged) -> np.ndarray:
    folder = run_path / "edit" / one.scene / one.edit / f"{one.method}-{one.editor}" / str(one.seed) / "held_out"
    return read_image(sorted(folder.glob("*.png"))[0]).permute(1, 2, 0).numpy()


def draw_examples(run_path: Path, pairs: Sequence[Misled], path: Path) -> None:
    figure, axes = plt.subplots(len(pairs), 4, figsize=(9, 2.6 * len(pairs)), squeeze=False, dpi=110)
    study = load_study(run_path)
    for row, pair in zip(axes, pairs, strict=True):
        case = load_case(run_path, pair.liked.scene, pair.liked.edit, study.compare)
        assert case.truth is not None
        label = METRICS[pair.metric].label
        sign = -1 if METRICS[pair.metric].better == "lower" else 1
        shown = [(case.source[0].permute(1, 2, 0).numpy(), "before"), (case.truth[0].permute(1, 2, 0).numpy(), "truth")]
        for one, who in ((pair.liked, f"{label} prefers"), (pair.better, "truth prefers")):
            numbers = f"{label} {sign * one.metric:.3f}, progress {one.truth:.2f}"
            text = f"{who}\n{one.method}, {one.editor}\n{numbers}"
            shown.append((_view(run_path, one), text))
        for axis, (image, text) in zip(row, shown, strict=True):
            axis.imshow(image)
            axis.set_title(text, fontsize=6.5)
            axis.axis("off")
        for axis, name, caption in zip(row[:2], ("before", "truth"), case.captions, strict=True):
            axis.set_title(textwrap.fill(f"{name}: {caption}", 38), fontsize=6.5)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_scatter(scores: Sequence[Score], path: Path) -> None:
    names = ("clip_text", "clip_direction", "edit_consistency")
    figure, axes = plt.subplots(1, len(names), figsize=(11, 3.6), dpi=110)
    colors = {name: f"C{i}" for i, name in enumerate(sorted({f"{row.method}, {row.editor}" for row in scores}))}
    for axis, metric in zip(axes, names, strict=True):
        groups: dict[str, list[Judged]] = defaultdict(list)
        for one in judged_results(scores, metric)[0]:
            groups[f"{one.method}, {one.editor}"].append(one)
        for name, group in sorted(groups.items()):
            axis.scatter([one.truth for one in group], [one.metric for one in group], s=9, color=colors[name])
        axis.set_xlabel("progress (exact)")
        axis.set_ylabel(METRICS[metric].label)
        axis.axvline(0, color="grey", linewidth=0.5)
    marks = [plt.Line2D([], [], marker="o", linestyle="", color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=marks, fontsize=6, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    figure.savefig(path)
    plt.close(figure)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})


def by_kind(rows: Sequence[Score]) -> list[dict[str, Any]]:
    """Means of what the metrics say of truth itself, by kind of edit, and in how many cases the direction is wrong."""
    found = []
    for kind in sorted({row.kind for row in rows}):
        mine = [row for row in rows if row.kind == kind]
        line: dict[str, Any] = {"kind": kind}
        for metric in ("clip_text", "clip_direction", "clip_image"):
            values = [row.value for row in mine if row.metric == metric and not math.isnan(row.value)]
            line[metric] = float(np.mean(values)) if values else math.nan
            line["num_cases"] = len(values)
        values = [row.value for row in mine if row.metric == "clip_direction"]
        line["num_wrong_direction"] = sum(value < 0 for value in values)
        found.append(line)
    return found


def main() -> None:
    run_path = Path(sys.argv[1])
    tables = Path(sys.argv[2]) if len(sys.argv) > 2 else run_path / "compare"
    pictures = Path(sys.argv[3]) if len(sys.argv) > 3 else tables
    for folder in (tables, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    scores = [row for row in read_scores(run_path / "compare" / "scores.parquet") if not row.is_cost]
    rows = agreement_rows(scores)
    write_csv(tables / "agreement.csv", rows)
    itself = by_kind(judge_truth(run_path))
    write_csv(tables / "truth_itself.csv", itself)
    write_scores(tables / "results.parquet", scores)
    draw_examples(run_path, worst_pairs(scores), pictures / "truth_examples.png")
    draw_scatter(scores, pictures / "truth_scatter.png")
    for row in rows:
        if row["within"] == "case":
            interval = f"[{row['spearman_low']:+.2f}, {row['spearman_high']:+.2f}]"
            right = f"  pairs right {row['pairs_right']:.0%}" if row["truth"] == "progress" else ""
            print(f"{row['metric']:<20} {row['truth']:<9} spearman {row['spearman']:+.2f} {interval}{right}")
    for line in itself:
        print(line)
    keys = ("spearman", "spearman_low", "spearman_high", "kendall", "num_results", "num_missing", "pairs_right")
    table = {
        f"{row['metric']}/{row['truth']}/{row['within']}": {key: row[key] for key in keys if row[key] == row[key]}
        for row in rows
    }
    num_edits = len({(row.scene, row.edit, row.method, row.editor, row.seed) for row in scores})
    print(json.dumps({"num_edits": num_edits, "agreement": table, "truth_itself": itself}))


if __name__ == "__main__":
    main()
