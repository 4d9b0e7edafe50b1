"""What each ingredient of `restage` is worth, on truth: the method as it is, and with one thing left out or replaced.

    python benchmarks/ablation.py --out runs/ablation [--world-seeds 11,12] [--kinds recolour,add]
        [--editors exact,noisy-0.3-exact] [--variants full,without_births] [--size 64] [--views 20]
        [--rows benchmarks/results/ablation.csv]

Unseen worlds x kinds of edit x variants x editors. Small by default: two worlds of 20 views at 64 pixels. What concerns
the 2D half alone (which noise, whether views attend to each other) differs with `edit_model` only, which is made for
128 pixels: `--editors edit_model --size 128 --views 45`. It is a study: only what is missing runs, and it may be killed
at any moment. The last line is JSON; `--rows` names the table that is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from methods import KINDS, by_kind, choose_names, world, write_rows

from restage.compare.config import CompareConfig
from restage.edit.methods import Nothing, Restage
from restage.records import Score
from restage.run.progress import show_progress
from restage.scenes.config import FitConfig
from restage.scores.rows import read_scores
from restage.scores.statistics import clustered_estimate
from restage.studies.study import MenuEditor, Study, StudyMethod
from restage.studies.work import run_study
from restage.work.task import EngineConfig
from restage.world.config import CaptureConfig
from restage.world.stage import edit_name

EDITORS = ("exact", "noisy-0.3-exact", "edit_model")
FULL = Restage()
VARIANTS: Mapping[str, Restage] = {
    "full": FULL,
    "as_it_was": replace(FULL, births=None, deaths=None),
    "without_births": replace(FULL, births=None),
    "without_deaths": replace(FULL, deaths=None),
    "views_attend_to_each_other": replace(FULL, group_size=4),
    "anchored_noise": replace(FULL, noise="anchored"),
    "own_noise": replace(FULL, noise="own"),
    "one_noise": replace(FULL, num_noises=1),
    "without_cooldown": replace(FULL, cooldown_share=0.0),
    "without_robust_loss": replace(FULL, robust_scale=1e6),
    "one_refresh": replace(FULL, noise_levels=(1.0, 0.6), color_steps=60, shape_steps=190),
    "two_refreshes": replace(FULL, noise_levels=(1.0, 0.6, 0.3), color_steps=40, shape_steps=127),
    "colours_and_shapes_at_once": replace(FULL, color_steps=0, shape_steps=500),
    "masks_not_joined": replace(FULL, is_mask_joined=False),
    "all_touched_splats_move": replace(FULL, lift_threshold=0.0),
    "half_the_key_views": replace(FULL, num_key_views=12),
}
"""Variants with fewer or more rounds take as many fit steps as the method as it is."""
OF_THE_EDIT_MODEL = ("views_attend_to_each_other", "anchored_noise", "own_noise", "one_noise")
"""Variants that are all one with editors that know neither noise nor attention."""


def make_study(arguments: argparse.Namespace) -> Study:
    capture = CaptureConfig(num_views=arguments.views, held_out_every=5 if arguments.views > 30 else 4)
    capture = replace(capture, size=arguments.size, num_points=6000 if arguments.size >= 128 else 2000)
    fit = FitConfig() if arguments.size >= 128 else FitConfig(steps=600, num_splats=2500)
    worlds = tuple(replace(world(seed, arguments.kinds, capture), fit=fit) for seed in arguments.world_seeds)
    names = tuple(edit_name(edit) for scene in worlds for edit in scene.world_edits)
    methods = {"nothing": StudyMethod(settings=Nothing(), editors=(), edits=names)}
    for name in arguments.variants:
        editors = tuple(one for one in arguments.editors if one == "edit_model" or name not in OF_THE_EDIT_MODEL)
        if editors:
            methods[name] = StudyMethod(settings=VARIANTS[name], editors=editors, edits=names)
    return Study(
        name="ablation",
        scenes=worlds,
        methods=methods,
        editors={name: MenuEditor(name=name) for name in arguments.editors},
        compare=CompareConfig(orbit_frames=0),
    )


def summarize(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    """Progress, spill and seconds of each variant with each editor, and how far its progress is from `full`.

    The difference is taken case by case; its standard error is clustered by scene.
    """
    table: dict[str, dict[str, float | None]] = {}
    values = {(s.method, s.editor, s.metric, s.scene, s.edit, s.seed): s.value for s in scores}
    for method, editor in sorted({(s.method, s.editor) for s in scores if s.method != "nothing"}):
        row: dict[str, float | None] = {}
        for metric in ("progress", "spill", "seconds", "peak_memory_mb"):
            cases = [s for s in scores if (s.method, s.editor, s.metric) == (method, editor, metric)]
            row[metric] = _rounded(clustered_estimate([s.value for s in cases], [s.scene for s in cases]).mean)
            if metric != "progress" or method == "full":
                continue
            full = [values.get(("full", editor, metric, s.scene, s.edit, s.seed), float("nan")) for s in cases]
            gains = [s.value - other for s, other in zip(cases, full, strict=True)]
            estimate = clustered_estimate(gains, [s.scene for s in cases])
            row["gain"], row["gain_se"] = _rounded(estimate.mean), _rounded(estimate.standard_error)
        table[f"{method} ({editor})"] = row
    return table


def _rounded(value: float) -> float | None:
    return None if value != value else round(value, 4)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--world-seeds", default="11,12")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--editors", default="exact,noisy-0.3-exact")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=None)
    arguments = parser.parse_args()
    arguments.world_seeds = [int(part) for part in arguments.world_seeds.split(",") if part]
    arguments.kinds = choose_names(KINDS, arguments.kinds)
    arguments.editors = choose_names(EDITORS, arguments.editors)
    arguments.variants = choose_names(tuple(VARIANTS), arguments.variants)
    return arguments


def main() -> None:
    arguments = read_arguments()
    engine = EngineConfig(workers=arguments.workers)
    show_progress(run_study(make_study(arguments), arguments.out, engine=engine), file=sys.stderr)
    scores = read_scores(arguments.out / "compare" / "scores.parquet")
    if arguments.rows:
        write_rows(arguments.rows, scores)
    print(json.dumps({"variants": summarize(scores), "progress_by_kind": by_kind(scores)}))


if __name__ == "__main__":
    main()
