"""Runs one method on one scene and writes its result folder; every edit ends here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from restage.edit.editors.interface import (
    Edited,
    Editor,
    ScoreModel,
    ViewBatch,
    can_share_attention,
    hold_outside,
    score_model_of,
)
from restage.edit.job import EditJob, EditStep, Method, asked_pictures
from restage.edit.pictures import write_image, write_mask, write_video
from restage.records import (
    EditRequest,
    InputError,
    content_id,
    read_json,
    to_plain,
    write_atomically,
    write_json,
    write_record,
)
from restage.regions.masks import lift_masks
from restage.regions.region import FAINT
from restage.run.environment import PeakMemory, process_peak_mb
from restage.run.layout import EDIT_RECORD, HELD_OUT, ORBIT, ORIGINS, REGION_MASKS, SPLATS
from restage.run.profile import timed
from restage.run.progress import is_stop_requested
from restage.scenes.cameras import Cameras, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.io.splat_files import write_splats
from restage.scenes.splats import Splats

__all__ = ["KeptEdits", "NO_OP_SHARE", "Preview", "changed_share", "describe_change", "edit_scene", "orbit_cameras"]
__all__ += ["write_failure"]

NUM_PREVIEW_VIEWS = 3
NUM_PEEKS = 10
"""How often in an edit views are rendered to be shown; nothing depends on it."""
NUM_CHECKED_VIEWS = 8
CHANGE = 0.05
"""A pixel counts as changed from a mean difference over channels above this, as in `compare.metrics`."""
NO_OP_SHARE = 0.001
"""An edit changed nothing where no view has more than this share of its pixels changed."""


class Preview:
    """Held-out views before the edit above, as they are now below, in `preview.png`; gone when the result is there."""

    def __init__(self, before: Splats, capture: Capture, folder: Path) -> None:
        """Choose views: held-out ones, or any where there are none."""
        shown = list(capture.held_out_indices or range(len(capture.cameras)))
        shown = shown[:: max(1, len(shown) // NUM_PREVIEW_VIEWS)][:NUM_PREVIEW_VIEWS]
        self.cameras = capture.cameras[shown]
        self.name = "held-out views" if capture.held_out_indices else "views"
        self.before = render_views(before, self.cameras)
        self.path, self.num_shown, self.text = folder / "preview.png", 0, ""

    def show(self, step: EditStep) -> EditStep:
        """Add to a step's note how far the views have changed; about ten times an edit they are rendered anew."""
        # By the step's share and not by time, so that the notes of a run are the same on any machine.
        if step.step * NUM_PEEKS >= self.num_shown * max(1, step.num_steps) and step.step > 0:
            self.num_shown = step.step * NUM_PEEKS // max(1, step.num_steps) + 1
            now = render_views(step.splats, self.cameras)
            self.text = f"; {self.name} changed by {float((now - self.before).abs().mean()):.3f}"
            write_image(self.path, torch.cat([torch.cat(list(views), dim=2) for views in (self.before, now)], dim=1))
        return step._replace(note=step.note + self.text)


def hold_splats(before: Splats, after: Splats, held: Bool[Tensor, " n"]) -> Splats:
    """The edited splats with those that are held as they were; all as they are if the edit took some away."""
    if len(after) < len(before) or after.sh.shape[1] != before.sh.shape[1]:
        return after
    kept = after.clone()
    for name, tensor in kept.parameters().items():
        tensor[: len(before)][held] = getattr(before, name)[held]
    return kept


def changed_share(before: Splats, after: Splats, capture: Capture) -> float:
    """Share of its pixels that changed in the view that changed most, of some views all around."""
    count = len(capture.cameras)
    cameras = capture.cameras[list(range(0, count, max(1, count // NUM_CHECKED_VIEWS)))]
    difference = (render_views(after, cameras) - render_views(before, cameras)).abs().mean(dim=1)
    return float((difference > CHANGE).float().mean(dim=(1, 2)).max())


NUM_KEPT_VIEWS = 6
NUM_ORBIT_FRAMES = 36


@dataclass(frozen=True)
class KeptEdits:
    """An editor that hands everything on to another one and keeps the last edit of each view, to be shown."""

    editor: Editor
    images: dict[int, Tensor] = field(default_factory=dict)  # edited views by their index
    masks: dict[int, Tensor] = field(default_factory=dict)
    drifts: dict[int, float] = field(default_factory=dict)  # see `Edited.drifts`
    left_out: dict[int, str] = field(default_factory=dict)  # reasons why views were not edited

    @property
    def shares_attention(self) -> bool:
        """Whether the other one lets views attend to each other."""
        return can_share_attention(self.editor)

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`."""
        with timed("editor"):
            edited = hold_outside(batch, self.editor.edit(batch))
        for place in edited.answered:
            index = batch.view_indices[place]
            self.images[index], self.masks[index] = edited.images[place], edited.masks[place]
        self.drifts.update({batch.view_indices[place]: drift for place, drift in edited.drifts.items()})
        self.left_out.update({batch.view_indices[place]: reason for place, reason in edited.left_out.items()})
        return edited

    def scores(self) -> ScoreModel:
        """The score model of the other one; of what it predicts nothing is kept."""
        return score_model_of(self.editor)


def edit_scene(
    splats: Splats,
    capture: Capture,
    *,
    request: EditRequest,
    method: Method,
    editor: Editor,
    seed: int,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
    regions: Float[Tensor, "n h w"] | None = None,
    weights: Float[Tensor, " k"] | None = None,
) -> Iterator[EditStep]:
    """Edit a scene, with or without truth, and write the result folder of docs/conventions.md when it is done.

    The fitted scene is left as it is. Of the capture the method gets the training views only; held-out cameras are
    rendered at the end. The record, written last, says the `facts` as well, such as the names of scene and method.
    Outside of the `regions`, one for each view of the capture, edited views stay as they were, and so do splats that
    show nothing inside of them. `weights` say how far
    each splat belongs to the region that is meant.

    Yields:
        The steps of the method, their notes with how far held-out views have changed; the last one holds the result.

    Raises:
        InputError: the capture has no training views.
        RuntimeError: the method ended without a result, or with splats that are not finite.
        KeyboardInterrupt: the user stopped it. What was there by then is written all the same, with `stopped.json` in
            place of the record, so that the scene can be used and the edit counts as not done.
    """
    kept = KeptEdits(editor)
    job = EditJob.of(splats, capture, request, kept, seed, regions, weights)
    prepare = getattr(editor, "prepare", None)
    if prepare is not None:
        prepare(asked_pictures(method, len(job.view_indices)))
    outside = None if regions is None else lift_masks(splats, capture.cameras, regions) < FAINT
    preview = Preview(splats, capture, folder)
    peak = PeakMemory()
    started_s, last, is_stopped = time.perf_counter(), None, False
    try:
        for last in method.run(job):
            if outside is not None:
                last = last._replace(splats=hold_splats(splats, last.splats, outside))
            yield preview.show(last)
    except BaseException as error:
        is_stopped = isinstance(error, KeyboardInterrupt) or is_stop_requested()
        if not is_stopped or last is None or last.step == 0:
            raise
    cost: dict[str, Any] = {"seconds": time.perf_counter() - started_s, "peak_memory_mb": peak.read_mb()}
    if not peak.is_own:
        cost["peak_memory_of"] = "process"
    if last is None:
        raise RuntimeError("the method ended without a result")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in last.splats.parameters().values()):
        raise InputError("the edited splats are not finite; check the editor's model, or try another --seed")
    with timed("save"):
        _write_pictures(folder, last.splats, capture, kept)
        if regions is not None:
            for index in capture.held_out_indices:
                write_mask((folder / REGION_MASKS / capture.file_names[index]).with_suffix(".png"), regions[index])
        write_splats(last.splats, folder / SPLATS)
        if last.origins is not None:
            with write_atomically(folder / ORIGINS) as temporary, temporary.open("wb") as file:
                np.save(file, last.origins.cpu().numpy().astype(np.int32))
    preview.path.unlink(missing_ok=True)
    changed = changed_share(splats, last.splats, job.capture)
    is_no_op = changed <= NO_OP_SHARE
    notes = [] if last.step >= last.num_steps else [f"stopped after step {last.step} of {last.num_steps}"]
    notes += getattr(editor, "remarks", [])
    record = {
        "id": content_id("edited", {"seed": seed, **(facts or {}), "settings": method, "request": request}),
        "seed": seed,
        **(facts or {}),
        "request": request,
        "settings": method,
        "num_steps": last.step,
        "loss": last.loss,
        "is_no_op": is_no_op,
        "changed_share": changed,
        "status": "stopped" if is_stopped else "done",
        "reason": "; ".join([*notes, "the scene did not change"] if is_no_op else notes),
        "cost": cost,
    }
    # Only where there is something to say: most editors keep every pixel in its place.
    if kept.drifts:
        record["drifts"] = {str(index): round(kept.drifts[index], 6) for index in sorted(kept.drifts)}
    if kept.left_out:
        record["left_out"] = {str(index): kept.left_out[index] for index in sorted(kept.left_out)}
    if is_stopped:
        write_json(folder / "stopped.json", record)
        raise KeyboardInterrupt
    (folder / "stopped.json").unlink(missing_ok=True)
    # Another worker that was taken for lost may still be at the same edit: its preview comes and goes.
    unsealed = (EDIT_RECORD, "preview.png")
    made = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "." and path.name not in unsealed]
    write_record(folder / EDIT_RECORD, record, files=made)


def describe_change(folder: Path) -> str:
    """Say how much an edit changed, from its record; loudly if that is nothing."""
    record = read_json(folder / EDIT_RECORD, dict[str, Any])
    if record.get("is_no_op"):
        return "NOTHING CHANGED: try other words, another --editor or another --seed"
    share = record.get("changed_share")
    return f"changed {share:.0%} of the view that changed most" if isinstance(share, float) else "changed the scene"


def write_failure(folder: Path, error: Exception, facts: Mapping[str, Any]) -> None:
    """Write the record of an edit that failed, so that it is a row with its reason and not a missing row."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    record = {**to_plain(facts), "status": "failed", "reason": reason, "cost": {"peak_memory_mb": process_peak_mb()}}
    write_record(folder / EDIT_RECORD, {"id": content_id("edited", facts), **record})


def orbit_cameras(capture: Capture, num_frames: int = NUM_ORBIT_FRAMES) -> Cameras:
    """Cameras on a circle around what the views of a capture look at, at their mean height and distance."""
    if not len(capture.cameras):
        raise InputError(f"{capture.name} has no views to take an orbit from")
    positions, forward = capture.cameras.positions.double(), capture.cameras.camera_to_world[:, :3, 2].double()
    # The point nearest to all optical axes, by least squares; the small ridge serves parallel axes.
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    system = across.sum(dim=0) + 1e-6 * torch.eye(3, dtype=torch.float64)
    target = torch.linalg.solve(system, (across @ positions[:, :, None]).sum(dim=0))[:, 0]
    offsets = positions - target
    radius = float(offsets[:, :2].norm(dim=1).mean().clamp_min(1e-3))
    start_rad = float(torch.atan2(offsets[0, 1], offsets[0, 0]))
    height = float(positions[:, 2].mean())
    camera_to_world = orbit(num_frames, radius, height=height, target=target.float(), start_rad=start_rad)
    intrinsics = capture.cameras.intrinsics[:1].expand(num_frames, 3, 3).contiguous()
    return Cameras(camera_to_world, intrinsics, capture.cameras.width, capture.cameras.height)


def _write_pictures(folder: Path, splats: Splats, capture: Capture, kept: KeptEdits) -> None:
    names = [Path(name).with_suffix(".png").name for name in capture.file_names]
    if held_out := list(capture.held_out_indices):
        for index, image in zip(held_out, render_views(splats, capture.cameras[held_out]), strict=True):
            write_image(folder / HELD_OUT / names[index], image)
    edited = sorted(kept.images)
    for index in edited[:: max(1, len(edited) // NUM_KEPT_VIEWS)][:NUM_KEPT_VIEWS]:
        write_image(folder / "views" / names[index], kept.images[index])
        write_mask(folder / "masks" / names[index], kept.masks[index])
    write_video(folder / ORBIT, render_views(splats, orbit_cameras(capture)))
