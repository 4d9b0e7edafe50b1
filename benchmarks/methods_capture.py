"""Photographs edited with exact truth: the bear of the captures folder, made bronze inside a lifted mask.

Called by `methods.py --capture FOLDER`. Boxes around the bear were drawn on twelve training views; what lies in all of
them is lifted to the splats, and its largest piece, rendered, is where the photographs are graded, held-out ones too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from restage.compare.config import CompareConfig
from restage.compare.stage import run_compare
from restage.edit.editors.grade import write_grade_truth
from restage.edit.single import EditChoice, open_edit
from restage.records import EditRequest, Progress, read_json
from restage.regions.masks import keep_largest, lift_boxes, render_masks
from restage.run.folder import open_run, working
from restage.run.progress import show_progress
from restage.scenes.config import PHOTOGRAPHS
from restage.scenes.io import capture_name, read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.stage import fit_folder
from restage.scores.rows import read_scores

BOXES = Path(__file__).with_name("bear_boxes.json")
"""By file name: left, top, right, bottom, as shares of the view's width and height."""
REQUEST = EditRequest(instruction="make the bear bronze", source_caption="a stone bear", target_caption="a bronze bear")
METHODS = ("nothing", "restage", "replace_once")
SIZE = 160


def write_truth(scene: Path) -> dict[str, float]:
    """Lift the boxes and grade the photographs; return the bear's share of the splats and of the pixels."""
    capture, splats = read_capture(scene / "capture"), read_splats(scene / "splats.ply")
    names = [Path(name).name for name in capture.file_names]
    boxes = {names.index(name): box for name, box in read_json(BOXES).items()}
    width, height = capture.cameras.width, capture.cameras.height
    drawn = torch.tensor(list(boxes.values())) * torch.tensor([width, height, width, height])
    region = keep_largest(splats, lift_boxes(splats, capture.cameras[list(boxes)], drawn))
    regions = render_masks(splats, capture.cameras, region)
    if not (scene / "truth" / "bronze" / "edit.json").exists():
        write_grade_truth(scene / "truth" / "bronze", capture, REQUEST, regions)
    return {"splats_in_mask": round(float(region.mean()), 4), "pixels_in_mask": round(float(regions.mean()), 4)}


def edit_capture(capture: Path, out: Path, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Fit, write truth, edit with each method, compare; what is there stays."""
    show_progress(fit_folder(capture, out, PHOTOGRAPHS, size=SIZE))
    return edit_fitted(out / "scenes" / capture_name(capture), methods)


def edit_fitted(scene: Path, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Do what `edit_capture` does, with a scene that is fitted."""
    found: dict[str, Any] = write_truth(scene)
    with working(open_run(scene.parent.parent), "edit", "compare") as run:
        for method in methods:
            opened = open_edit(run, scene, request=REQUEST, choice=EditChoice(method=method, editor="grade"))
            show_progress(
                Progress(stage="edit", done=step.step, total=step.num_steps, note=f"{method}: {step.note}")
                for step in opened.steps
            )
        show_progress(run_compare(run, CompareConfig(orbit_frames=0)))
    for score in read_scores(run.path / "compare" / "scores.parquet"):
        if score.metric in ("progress", "fit_error", "spill", "mask_iou", "seconds", "peak_memory_mb"):
            found.setdefault(score.method, {})[score.metric] = round(score.value, 4)
    found["fit_psnr_db"] = round(read_json(scene / "fit.json")["held_out_psnr_db"], 2)
    return found
