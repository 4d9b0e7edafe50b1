"""Editors of today on scenes: families that are tested, drift with and without alignment, masks, and a killed endpoint.

    python -m benchmarks.editors                        # about 15 minutes of one core; goes on where it was stopped
    python -m benchmarks.editors --parts masks --out /tmp/masks

Three worlds of the miniature and the bear. Prints JSON:
- `families_tested`: pipelines of diffusers whose test runs here.
- `drift_progress_lost`, `drift_progress_lost_without`: every view drifts by up to 4 % of its width, and is put back, or
  stays as it came. With: the largest loss of progress of all edits of all scenes. Without: the edit of each scene that
  loses most, and of those the least (a thing of one color looks the same a little aside, so that other edits lose
  less). The truth is the editor in the worlds, `grade` on the bear. `undrifted_progress_lost`: what registering costs
  an editor that moves nothing, at most.
- `mask_iou_without_output`, `mask_iou_before`: mean mask IoU of edits by the edit model in the worlds, its own masks
  ignored, and of a bear that is graded inside boxes, drifts, and is kept as JPEG; now, and with a fixed difference.
- `served_equal`, `endpoint_requests_repeated_after_kill`: see `benchmarks/endpoint.py`.

Each measurement is kept in `--out`; delete the folder to measure anew. `null` was not measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks import endpoint
from restage.compare.metrics import CHANGE_THRESHOLD, progress
from restage.edit.editors import Editor, EditorSource, open_editor
from restage.edit.editors.change import change_masks
from restage.edit.editors.drift import DriftingEditor
from restage.edit.editors.grade import GradeEditor, grade_views
from restage.edit.editors.interface import Edited, ViewBatch
from restage.edit.editors.settled import SettledEditor
from restage.edit.job import EditJob
from restage.edit.methods import Restage
from restage.records import EditRequest, read_json, write_json
from restage.regions.given import read_regions
from restage.regions.masks import join_masks
from restage.run.models import models_in
from restage.scenes.capture import Capture
from restage.scenes.config import PHOTOGRAPHS, FitConfig
from restage.scenes.fit import fit_splats, render_views
from restage.scenes.io import read_capture
from restage.scenes.io.images import to_uint8
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats
from restage.world import grammar
from restage.world.capture import make_capture, make_truth

BEAR = Path(__file__).parents[2] / "shared" / "data" / "captures" / "bear"
BOXES = Path(__file__).parent / "bear_boxes.json"
WORLDS = (101, 102, 103)
DRIFT_KINDS = ("recolour", "reshape", "ground")
MASK_KINDS = ("recolour", "ground", "remove")
SIZE = 96
DRIFT_SHARE = 0.04
METHOD = Restage(num_key_views=12, color_steps=60, shape_steps=80)
GOLD = EditRequest(instruction="make it golden", source_caption="", target_caption="")
FIXED_LOW, FIXED_HIGH = 0.04, 0.16
"""Differences at which the mask was 0 and 1 before."""
JPEG_QUALITY = 80
NUM_SERVED_VIEWS, NUM_KILLS = 8, 20


@dataclass(frozen=True)
class KnownViews:
    """An editor that knows the edited views of a capture."""

    images: Float[Tensor, "n 3 h w"]
    masks: Float[Tensor, "n h w"]

    def edit(self, batch: ViewBatch) -> Edited:
        """Give them."""
        chosen = list(batch.view_indices)
        return Edited(self.images[chosen], self.masks[chosen])


@dataclass(frozen=True)
class Jpeg:
    """Another editor, whose views went through a file that is not exact."""

    editor: Editor

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit, write and read."""
        edited = self.editor.edit(batch)
        images = []
        for image in edited.images:
            file = io.BytesIO()
            Image.fromarray(to_uint8(image)).save(file, format="JPEG", quality=JPEG_QUALITY)
            images.append(torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32) / 255).permute(2, 0, 1))
        return edited._replace(images=torch.stack(images))


@dataclass(frozen=True)
class Case:
    """A fitted scene, an edit of it, and who makes it exactly."""

    capture: Capture
    splats: Splats
    request: EditRequest
    editor: Editor
    truth: Float[Tensor, "n 3 h w"]
    source: Float[Tensor, "n 3 h w"]


def fit(capture: Capture, config: FitConfig, file: Path) -> Splats:
    """Fit a scene, or read the fit that is kept."""
    if not file.exists():
        *_, last = fit_splats(capture, config)
        write_splats(last.splats.detach(), file)
    return read_splats(file)


@cache
def world_scene(seed: int, out: Path) -> tuple[grammar.Description, Capture, Splats]:
    """A world with two things, and its fit."""
    description = grammar.sample_description(seed, num_objects=2)
    capture = make_capture(description, name=f"world-{seed}", seed=seed, size=SIZE)
    return description, capture, fit(capture, FitConfig(steps=600), out / f"world-{seed}.ply")


def world_case(seed: int, kind: str, out: Path) -> Case:
    """An edit of a world."""
    description, capture, splats = world_scene(seed, out)
    edit = grammar.sample_edit(description, seed, kind=kind)
    truth = make_truth(edit, capture.cameras)
    editor = KnownViews(truth.images, truth.masks)
    return Case(capture, splats, grammar.request_of(edit, seed), editor, truth.images, capture.images)


@cache
def bear_case(folder: Path, out: Path) -> Case:
    """The bear, all of it made golden: progress is between its unedited render and that render graded."""
    capture = read_capture(folder, SIZE)
    splats = fit(capture, PHOTOGRAPHS, out / "bear.ply")
    unedited = render_views(splats, capture.cameras).clamp(0, 1)
    truth = grade_views(unedited, GOLD.instruction).images
    return Case(capture, splats, GOLD, GradeEditor(), truth, unedited)


def measure_progress(case: Case, editor: Editor) -> float:
    """Edit with a method, and measure progress on held-out views."""
    *_, last = METHOD.run(EditJob.of(case.splats, case.capture, case.request, editor, 0))
    held_out = list(case.capture.held_out_indices)
    truth, source = case.truth[held_out], case.source[held_out]
    regions = ((truth - source).abs().mean(dim=1) > CHANGE_THRESHOLD).float()
    edited = render_views(last.splats, case.capture.cameras[held_out]).clamp(0, 1)
    return progress(edited, source, truth, regions).mean


def measure_drift(case: Case) -> dict[str, float]:
    """Progress without drift, registered or not, with drift put back, and with drift as it comes."""
    drifting = DriftingEditor(case.editor, DRIFT_SHARE * case.capture.cameras.width)
    editors = {"undrifted": case.editor, "undrifted_registered": SettledEditor(case.editor)}
    editors |= {"put_back": SettledEditor(drifting), "as_it_came": drifting}
    return {name: round(measure_progress(case, editor), 4) for name, editor in editors.items()}


def score_masks(case: Case, views: list[int], edited: Tensor, inside: Tensor) -> dict[str, float]:
    """IoU of the masks of edited views: by a fixed difference, by hysteresis, and joined as now."""
    originals = case.capture.images[views]
    fixed = (((edited - originals).abs().mean(dim=1) - FIXED_LOW) / (FIXED_HIGH - FIXED_LOW)).clamp(0, 1)
    alone = change_masks(edited, originals)
    masks = {"before": fixed, "alone": alone, "joined": join_masks(case.splats, case.capture.cameras[views], alone)}
    found = {}
    for name, mask in masks.items():
        both, either = ((mask > 0.5) & inside).sum(), ((mask > 0.5) | inside).sum()
        found[name] = round(float(both / either.clamp_min(1)), 4)
    return found


def batch_of(case: Case, views: list[int]) -> ViewBatch:
    """Views to edit, with noise that they take in turn."""
    originals = case.capture.images[views]
    keys = tuple(place % 4 for place in range(len(views)))
    how = {"view_indices": tuple(views), "noise_level": 1.0, "seed": 1, "noise_keys": keys}
    return ViewBatch(originals, originals, request=case.request, **how)


def measure_masks(case: Case) -> dict[str, float]:
    """Mask IoU of views edited by the edit model, its own masks ignored, against the pixels that truth changes."""
    views = list(case.capture.train_indices)[::4]
    editor = open_editor("edit_model", EditorSource(model=models_in().edit_model))
    inside = (case.truth[views] - case.source[views]).abs().mean(dim=1) > CHANGE_THRESHOLD
    return score_masks(case, views, editor.edit(batch_of(case, views)).images, inside)


def measure_bear_masks(case: Case) -> dict[str, float]:
    """Mask IoU of the bear, graded inside its boxes, moved and put back, against the pixels that the grade changes."""
    views = list(case.capture.train_indices)[::4]
    # Boxes go by the names that views have in a run.
    names = tuple(Path(name).with_suffix(".png").name for name in case.capture.file_names)
    regions = read_regions(BOXES, replace(case.capture, file_names=names), case.splats)
    grade = GradeEditor(regions)
    drifting = DriftingEditor(grade, DRIFT_SHARE * case.capture.cameras.width)
    batch = batch_of(case, views)
    graded = grade.edit(batch).images
    inside = (graded - batch.originals).abs().mean(dim=1) > CHANGE_THRESHOLD
    return score_masks(case, views, SettledEditor(Jpeg(drifting)).edit(batch).images, inside)


def measure_endpoint() -> dict[str, float]:
    """What `benchmarks/endpoint.py` measures, of few views."""
    capture, request = endpoint.sample_scene(NUM_SERVED_VIEWS)
    with tempfile.TemporaryDirectory() as folder, endpoint.served("edit_model") as address:
        found = endpoint.compare(capture, request, address, Path(folder) / "compare")
        killed = endpoint.kill_often(capture, request, address, Path(folder) / "kills", NUM_KILLS)
    return {name: float(value) for name, value in (found | killed).items()}


def kept(file: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Measure, or read what was measured before."""
    if not file.exists():
        write_json(file, measure())
    found = read_json(file, dict[str, float])
    print(f"{file.stem}: {found}", flush=True)
    return found


def count_families() -> int:
    """Families whose test runs on this machine."""
    from tests.edit.tiny_pipelines import BUILDERS

    return len(BUILDERS) - (importlib.util.find_spec("torchvision") is None)


def mean(values: Sequence[float]) -> float | None:
    """The mean to four digits; None of nothing."""
    return round(sum(values) / len(values), 4) if values else None


def summarize(drifts: dict[str, list[dict[str, float]]], masks: list[dict[str, float]]) -> dict[str, float | None]:
    """What is printed of drifts, by scene, and of masks."""

    def lost(name: str) -> list[float]:
        """The largest loss of each scene."""
        return [round(max(one["undrifted"] - one[name] for one in found), 4) for found in drifts.values()]

    return {
        "drift_progress_lost": max(lost("put_back"), default=None),
        "drift_progress_lost_without": min(lost("as_it_came"), default=None),
        "undrifted_progress_lost": max(lost("undrifted_registered"), default=None),
        "mask_iou_without_output": mean([one["joined"] for one in masks]),
        "mask_iou_before": mean([one["before"] for one in masks]),
    }


def main() -> None:
    parts = ("drift", "masks", "endpoint")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--bear", type=Path, default=BEAR)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-editors"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    def measure_world(what: str, measure: Callable[[Case], dict[str, float]], seed: int, kind: str) -> dict[str, float]:
        return kept(out / f"{what}-world-{seed}-{kind}.json", lambda: measure(world_case(seed, kind, out)))

    drifts, masks = {}, []
    has_bear = arguments.bear.exists()
    if "drift" in arguments.parts:
        for seed in WORLDS:
            drifts[str(seed)] = [measure_world("drift", measure_drift, seed, kind) for kind in DRIFT_KINDS]
        if has_bear:
            drifts["bear"] = [kept(out / "drift-bear.json", lambda: measure_drift(bear_case(arguments.bear, out)))]
    if "masks" in arguments.parts:
        masks = [measure_world("masks", measure_masks, seed, kind) for seed in WORLDS for kind in MASK_KINDS]
        if has_bear:
            masks.append(kept(out / "masks-bear.json", lambda: measure_bear_masks(bear_case(arguments.bear, out))))
    served = kept(out / "endpoint.json", measure_endpoint) if "endpoint" in arguments.parts else {}
    result: dict[str, float | None] = {"families_tested": count_families(), **summarize(drifts, masks)}
    for name in ("served_equal", "endpoint_requests_repeated_after_kill"):
        result[name] = served.get(name)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
