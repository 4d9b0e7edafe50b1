"""Every way to edit a scene on one footing: scenes, editors, held-out views and measures are the same for all.

    python benchmarks/methods.py --out runs/methods [--world-seeds 11,12,13] [--methods restage,idu]
        [--kinds recolour,time] [--editors exact] [--capture FOLDER] [--size 128] [--time-cap 120]
        [--rows benchmarks/results/methods.csv] [--long-idu 900,2700,8100]

Unseen worlds x kinds of edit x methods with the edit model (one seed for all; three for restage, idu and the best of
the others), with the exact editor, and restage, idu and replace_once with `noisy(exact)` at three strengths; controlled
and replace_once with the text-to-image model, too. It is a study: only what is missing runs, and it may be killed at
any moment. `--capture` edits a capture of photographs with `grade` besides (see `methods_capture.py`). `--long-idu`
runs idu without a cap, for that many steps, on three edits of the first world. The last line is JSON; `--rows` names
the table that is kept (and one beside it for the long idu).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restage.compare.config import CompareConfig
from restage.edit.methods import METHODS
from restage.edit.methods.idu import Idu
from restage.records import Score
from restage.run.progress import show_progress
from restage.scores.rows import read_scores
from restage.scores.statistics import clustered_estimate
from restage.studies.scenes import WorldScene
from restage.studies.study import MenuEditor, Study, StudyMethod, StudyScene
from restage.studies.work import PerView, run_study
from restage.work.task import EngineConfig
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.description import SECOND_EDIT_KINDS
from restage.world.stage import edit_name, sample_scene

KINDS = ("recolour", "reshape", "ground", "time", "add", "remove", "move")
SEVERAL_SEEDS = (0, 1, 2)
ANCHORS = ("nothing", "per_view")
"""Rows to read the others by: no edit at all, and held-out views edited one by one, which makes no scene."""
STRENGTHS = ("0.15", "0.3", "0.6")
LONG_KINDS = ("recolour", "ground", "time")
"""Edits that idu is run to its end on."""
NOISY = ("replace_once", "idu", "restage")
BY_CAPTIONS = ("controlled", "replace_once")
"""Methods that are also run with the text-to-image model, under the control branch that lies beside it, or none."""
COLUMNS = {
    "progress": "progress",
    "spill": "spill",
    "mask_iou": "mask_iou",
    "clip_direction": "clip_dir",
    "depth_error": "depth_error",
    "seconds": "seconds",
    "peak_memory_mb": "peak_mb",
}


def world(seed: int, kinds: Sequence[str], capture: CaptureConfig) -> WorldScene:
    """A world of combinations that no model was trained on; which one it is does not depend on the kinds asked for.

    It is of the grammar's second edition, whose additions and moves say where.
    """
    config = WorldConfig(edit_kinds=KINDS, split="unseen", edition=2)
    description, edits = sample_scene(config, name=f"world-{seed}", seed=seed)
    chosen = tuple(edit for edit in edits if edit.kind in kinds)
    return WorldScene(name=f"world-{seed}", description=description, world_edits=chosen, seed=seed, capture=capture)


def make_study(arguments: argparse.Namespace) -> Study:
    capture = CaptureConfig(num_views=45, held_out_every=5, size=arguments.size)
    worlds = [world(seed, arguments.kinds, capture) for seed in arguments.world_seeds]
    names = tuple(edit_name(edit) for scene in worlds for edit in scene.world_edits)
    methods = {}
    for name in ("nothing", *arguments.methods):
        editors = [editor for editor in ("edit_model", "exact") if editor in arguments.editors]
        if name in BY_CAPTIONS and "text_to_image" in arguments.editors:
            editors.append("text_to_image")
        if name in NOISY and "noisy" in arguments.editors:
            editors += [f"noisy-{strength}-exact" for strength in STRENGTHS]
        seeds = SEVERAL_SEEDS if name in arguments.repeated else (0,)
        settings = METHODS[name]()
        methods[name] = StudyMethod(settings=settings, editors=tuple(editors), seeds=seeds[:1], edits=names)
        if (
            len(seeds) > 1 and "edit_model" in editors
        ):  # more seeds with the edit model only: what is exact knows no chance worth measuring
            methods[f"{name}-again"] = StudyMethod(
                settings=settings, editors=("edit_model",), seeds=seeds[1:], edits=names
            )
    editors = {name: MenuEditor(name=name) for name in ("edit_model", "exact", "text_to_image")}
    editors |= {f"noisy-{strength}-exact": MenuEditor(name=f"noisy-{strength}-exact") for strength in STRENGTHS}
    methods["nothing"] = StudyMethod(settings=METHODS["nothing"](), editors=(), edits=names)
    if "edit_model" in arguments.editors:
        methods["per_view"] = StudyMethod(settings=PerView(), editors=("edit_model",), edits=names)
    scenes: tuple[StudyScene, ...] = tuple(worlds)
    return Study(
        name="methods",
        scenes=scenes,
        methods=methods,
        editors=editors,
        time_cap_s=arguments.time_cap,
        compare=CompareConfig(orbit_frames=0),
    )


def make_long_study(arguments: argparse.Namespace) -> Study:
    """Idu for more and more steps, on a few edits of the first world, without a cap."""
    capture = CaptureConfig(num_views=45, held_out_every=5, size=arguments.size)
    scene = world(arguments.world_seeds[0], LONG_KINDS, capture)
    methods = {f"idu-{steps}": StudyMethod(settings=Idu(num_steps=steps)) for steps in arguments.long_idu}
    methods["nothing"] = StudyMethod(settings=METHODS["nothing"](), editors=())
    methods["restage"] = StudyMethod(settings=METHODS["restage"]())
    return Study(
        name="long idu",
        scenes=(scene,),
        methods=methods,
        editors={"edit_model": MenuEditor(name="edit_model")},
        compare=CompareConfig(orbit_frames=0),
    )


def run(study: Study, folder: Path, *, workers: int, rows: Path | None) -> list[Score]:
    """Run what is missing; return all scores, and write the table if it is asked for."""
    show_progress(run_study(study, folder, engine=EngineConfig(workers=workers)), file=sys.stderr)
    scores = read_scores(folder / "compare" / "scores.parquet")
    if rows is not None:
        write_rows(rows, scores)
    return scores


def summarize(scores: Sequence[Score]) -> dict[str, object]:
    """Return the figures of each method with each editor; standard errors are clustered by scene."""
    table: dict[str, dict[str, float | int | None]] = {}
    groups = sorted({(score.method.removesuffix("-again"), score.editor) for score in scores})
    for method, editor in groups:
        rows = [s for s in scores if s.method.removesuffix("-again") == method and s.editor == editor]
        row: dict[str, float | int | None] = {"results": len({(s.scene, s.edit, s.seed) for s in rows})}
        for metric, column in COLUMNS.items():
            found = [score for score in rows if score.metric == metric]
            estimate = clustered_estimate([s.value for s in found], [s.scene for s in found])
            row[column] = _rounded(estimate.mean)
            if metric == "progress":
                row["progress_se"] = _rounded(estimate.standard_error)
        row["capped"] = sum(score.value == 1 for score in rows if score.metric == "is_capped")
        row["failed"] = sum(math.isnan(s.value) for s in rows if s.metric == "progress")
        table[method if editor in ("edit_model", "none") else f"{method} ({editor})"] = row
    return {"methods": table, **ranks(table)}


def ranks(table: dict[str, dict[str, float | int | None]]) -> dict[str, float | None]:
    """Say where restage stands among the methods with the edit model, and its time over idu's."""
    contenders = {name: row for name, row in table.items() if name not in ANCHORS and "(" not in name}
    found: dict[str, float | None] = {}
    for column, sign in (("progress", -1), ("spill", 1)):
        known = {name: sign * row[column] for name, row in contenders.items() if row[column] is not None}  # pyright: ignore
        place = sorted(known, key=known.__getitem__).index("restage") + 1 if "restage" in known else None
        found[f"restage_rank_{column}"] = place
    ours, idu = (table.get(name, {}).get("seconds") for name in ("restage", "idu"))
    found["restage_time_over_idu"] = round(ours / idu, 3) if ours and idu else None
    return found


def times(table: Any) -> dict[str, float]:
    """Return restage's time over that of each length of idu."""
    ours = table["restage"]["seconds"]
    return {name: round(ours / row["seconds"], 3) for name, row in table.items() if name.startswith("idu-")}


def by_kind(scores: Sequence[Score], metric: str = "progress") -> dict[str, dict[str, float | None]]:
    """Mean of a metric for each method with each editor and each kind of edit."""
    table: dict[str, dict[str, list[float]]] = {}
    for score in scores:
        if score.metric == metric and not math.isnan(score.value):
            name = f"{score.method.removesuffix('-again')} ({score.editor})"
            table.setdefault(name, {}).setdefault(score.kind, []).append(score.value)
    return {name: {kind: _rounded(sum(v) / len(v)) for kind, v in row.items()} for name, row in sorted(table.items())}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def write_rows(path: Path, scores: Sequence[Score]) -> None:
    """Write a line for each result, with all that the table is made of."""
    lines: dict[tuple[str, ...], dict[str, object]] = {}
    for score in scores:
        key = (score.scene, score.edit, score.kind, score.method.removesuffix("-again"), score.editor, str(score.seed))
        row = lines.setdefault(key, dict(zip(("scene", "edit", "kind", "method", "editor", "seed"), key, strict=True)))
        if score.metric in (*COLUMNS, "is_capped", "no_op", "wrong_way"):
            row[score.metric] = "" if math.isnan(score.value) else f"{score.value:.5g}"
            row["reason"] = row.get("reason") or (score.reason if score.metric == "progress" else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in lines.values() for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(lines.items()))


def choose_names(menu: Sequence[str], text: str) -> tuple[str, ...]:
    names = tuple(part for part in text.split(",") if part)
    unknown = sorted(set(names) - set(menu))
    if unknown or not names:
        raise SystemExit(f"unknown: {', '.join(unknown) or 'nothing'}; choose from {', '.join(menu)}")
    return names


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    contenders = [name for name in METHODS if name != "nothing"]
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--world-seeds", default="11,12,13")
    parser.add_argument("--methods", default=",".join(contenders))
    parser.add_argument("--repeated", default="restage,idu,igs2gs", help="methods that run with three seeds")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--editors", default="edit_model,exact,noisy,text_to_image")
    parser.add_argument("--capture", type=Path, default=None)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--time-cap", type=float, default=120.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=None)
    parser.add_argument("--long-idu", default="", help="steps of each long run of idu, such as 900,2700,8100")
    arguments = parser.parse_args()
    arguments.world_seeds = [int(part) for part in arguments.world_seeds.split(",") if part]
    arguments.long_idu = [int(part) for part in arguments.long_idu.split(",") if part]
    arguments.methods = choose_names(contenders, arguments.methods)
    arguments.repeated = choose_names(contenders, arguments.repeated) if arguments.repeated else ()
    arguments.editors = choose_names(("edit_model", "exact", "noisy", "text_to_image"), arguments.editors)
    arguments.kinds = choose_names(SECOND_EDIT_KINDS, arguments.kinds)
    return arguments


def main() -> None:
    arguments = read_arguments()
    found: dict[str, object] = {}
    rows: Path | None = arguments.rows
    if arguments.world_seeds:
        scores = run(make_study(arguments), arguments.out, workers=arguments.workers, rows=rows)
        found = {**summarize(scores), "progress_by_kind": by_kind(scores)}
        found["spill_by_kind"] = by_kind(scores, "spill")
    if arguments.world_seeds and arguments.long_idu:
        out = arguments.out.with_name(f"{arguments.out.name}-long-idu")
        beside = None if rows is None else rows.with_stem(f"{rows.stem}_long_idu")
        scores = run(make_long_study(arguments), out, workers=arguments.workers, rows=beside)
        table = summarize(scores)["methods"]
        found["long_idu"] = {"methods": table, "progress_by_kind": by_kind(scores), "restage_time_over": times(table)}
    if arguments.capture:
        from methods_capture import edit_capture

        found["capture"] = edit_capture(arguments.capture, arguments.out.with_name(f"{arguments.out.name}-capture"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
