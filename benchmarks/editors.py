"""Editors of today on scenes: families that are tested, what drift costs with and without alignment, and masks.

    python -m benchmarks.editors                        # three miniature worlds and the bear; some minutes
    python -m benchmarks.editors --parts masks

Prints JSON: `families_tested`; `drift_progress_lost` and `drift_progress_lost_without`: every view drifts by up to 4 %
of its width, and is put back, or stays as it came; the largest loss of progress with, the smallest without, over the
scenes (exact truth as editor on the miniature, `grade` on the bear); `mask_iou_without_output` and `mask_iou_before`:
mean mask IoU of views that the edit model edits, whose own masks are not looked at, now and with a fixed difference as
before. `null` was not measured; `benchmarks/endpoint.py` has the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from restage.compare.metrics import CHANGE_THRESHOLD, progress
from restage.edit.editors import Editor, EditorSource, open_editor
from restage.edit.editors.change import change_masks
from restage.edit.editors.drift import DriftingEditor
from restage.edit.editors.grade import GradeEditor, grade_views
from restage.edit.editors.interface import Edited, ViewBatch
from restage.edit.editors.settled import SettledEditor
from restage.edit.job import EditJob
from restage.edit.methods import Restage
from restage.records import EditRequest
from restage.regions.masks import join_masks
from restage.run.models import models_in
from restage.scenes.capture import Capture
from restage.scenes.config import PHOTOGRAPHS, FitConfig
from restage.scenes.fit import fit_splats, render_views
from restage.scenes.io import read_capture
from restage.scenes.splats import Splats
from restage.world import grammar
from restage.world.capture import make_capture, make_truth

BEAR = Path(__file__).parents[2] / "shared" / "data" / "captures" / "bear"
WORLDS = (101, 102, 103)
SIZE = 96
DRIFT_SHARE = 0.04
METHOD = Restage(num_key_views=12, color_steps=60, shape_steps=80)
GOLD = EditRequest(instruction="make it golden", source_caption="", target_caption="")
FIXED_LOW, FIXED_HIGH = 0.04, 0.16
"""Differences at which the mask was 0 and 1 before."""
NOT_HERE = ("served_equal", "endpoint_requests_repeated_after_kill")


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
class Case:
    """A fitted scene, an edit of it, and who makes it exactly."""

    name: str
    capture: Capture
    splats: Splats
    request: EditRequest
    editor: Editor
    truth: Float[Tensor, "n 3 h w"]
    source: Float[Tensor, "n 3 h w"]


def fit(capture: Capture, config: FitConfig) -> Splats:
    """Fit a scene."""
    splats = None
    for step in fit_splats(capture, config):
        splats = step.splats
    assert splats is not None
    return splats.detach()


def worlds(kinds: tuple[str, ...]) -> Iterator[tuple[str, Case]]:
    """Miniature scenes, each with one edit of each kind."""
    for seed in WORLDS:
        description = grammar.sample_description(seed, num_objects=2)
        capture = make_capture(description, name=f"world-{seed}", seed=seed, size=SIZE)
        splats = fit(capture, FitConfig(steps=600))
        for kind in kinds:
            edit = grammar.sample_edit(description, seed, kind=kind)
            truth = make_truth(edit, capture.cameras)
            editor = KnownViews(truth.images, truth.masks)
            request = grammar.request_of(edit, seed)
            yield kind, Case(f"world-{seed}", capture, splats, request, editor, truth.images, capture.images)


def bear(folder: Path) -> Case:
    """The bear, made golden: progress is between its unedited render and that render graded."""
    capture = read_capture(folder, SIZE)
    splats = fit(capture, PHOTOGRAPHS)
    unedited = render_views(splats, capture.cameras).clamp(0, 1)
    truth = grade_views(unedited, GOLD.instruction).images
    return Case("bear", capture, splats, GOLD, GradeEditor(), truth, unedited)


def measure_progress(case: Case, editor: Editor) -> float:
    """Edit with a method, and measure progress on held-out views."""
    *_, last = METHOD.run(EditJob.of(case.splats, case.capture, case.request, editor, 0))
    held_out = list(case.capture.held_out_indices)
    truth, source = case.truth[held_out], case.source[held_out]
    regions = ((truth - source).abs().mean(dim=1) > CHANGE_THRESHOLD).float()
    edited = render_views(last.splats, case.capture.cameras[held_out]).clamp(0, 1)
    return progress(edited, source, truth, regions).mean


def measure_drift(case: Case) -> dict[str, float]:
    """Progress without drift, with drift put back, and with drift as it comes."""
    drifting = DriftingEditor(case.editor, DRIFT_SHARE * case.capture.cameras.width)
    editors = {"undrifted": case.editor, "put_back": SettledEditor(drifting), "as_it_came": drifting}
    found = {name: round(measure_progress(case, editor), 4) for name, editor in editors.items()}
    print(f"{case.name}: {found}", flush=True)
    return found


def iou(masks: Tensor, case: Case, views: list[int]) -> float:
    """Mask IoU against the pixels that truth changes."""
    inside = (case.truth[views] - case.source[views]).abs().mean(dim=1) > CHANGE_THRESHOLD
    marked = masks > 0.5
    return float((marked & inside).sum() / (marked | inside).sum().clamp_min(1))


def measure_masks(case: Case) -> dict[str, float]:
    """Mask IoU of views edited by the edit model, its own masks ignored: by a fixed difference, and as now."""
    views = list(case.capture.train_indices)[::4]
    originals, cameras = case.capture.images[views], case.capture.cameras[views]
    editor = open_editor("edit_model", EditorSource(model=models_in().edit_model))
    keys = tuple(place % 4 for place in range(len(views)))
    how = {"view_indices": tuple(views), "noise_level": 1.0, "seed": 1, "noise_keys": keys}
    edited = editor.edit(ViewBatch(originals, originals, request=case.request, **how)).images
    difference = (edited - originals).abs().mean(dim=1)
    fixed = ((difference - FIXED_LOW) / (FIXED_HIGH - FIXED_LOW)).clamp(0, 1)
    alone = change_masks(edited, originals)
    masks = {"before": fixed, "alone": alone, "joined": join_masks(case.splats, cameras, alone)}
    found = {name: round(iou(mask, case, views), 4) for name, mask in masks.items()}
    print(f"{case.name} {case.request.instruction}: {found}", flush=True)
    return found


def count_families() -> int:
    """Families whose test runs on this machine."""
    from tests.edit.tiny_pipelines import BUILDERS

    return len(BUILDERS) - (importlib.util.find_spec("torchvision") is None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["drift", "masks"], choices=["drift", "masks"])
    parser.add_argument("--bear", type=Path, default=BEAR)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, float | None] = {"families_tested": count_families(), **dict.fromkeys(NOT_HERE)}
    drifts, masks = [], []
    for kind, case in worlds(("recolour", "ground")):
        if kind == "recolour" and "drift" in arguments.parts:
            drifts.append(measure_drift(case))
        if "masks" in arguments.parts:
            masks.append(measure_masks(case))
    if "drift" in arguments.parts and arguments.bear.exists():
        drifts.append(measure_drift(bear(arguments.bear)))
    lost = {name: [one["undrifted"] - one[name] for one in drifts] for name in ("put_back", "as_it_came")}
    result |= {
        "drift_progress_lost": max(lost["put_back"], default=math.nan),
        "drift_progress_lost_without": min(lost["as_it_came"], default=math.nan),
        "mask_iou_without_output": sum(one["joined"] for one in masks) / max(1, len(masks)) if masks else None,
        "mask_iou_before": sum(one["before"] for one in masks) / max(1, len(masks)) if masks else None,
    }
    print(json.dumps({name: None if value is None or value != value else value for name, value in result.items()}))


if __name__ == "__main__":
    main()
