"""Run one method on one scene and write its result folder; the edit stage and a user's own scenes both end here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restage.edit.editors.interface import Edited, Editor, ScoreModel, ViewBatch, can_share_attention, score_model_of
from restage.edit.job import EditJob, EditStep, Method
from restage.edit.pictures import write_image, write_mask, write_video
from restage.edit.preview import NO_OP_SHARE, Preview, changed_share
from restage.records import EditRequest, InputError, content_id, to_plain, write_json, write_record
from restage.run.environment import PeakMemory, process_peak_mb
from restage.run.layout import EDIT_RECORD, HELD_OUT, ORBIT, SPLATS
from restage.run.progress import is_stop_requested
from restage.scenes.cameras import Cameras, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.io.ply import write_splats
from restage.scenes.splats import Splats

__all__ = ["KeptEdits", "edit_scene", "orbit_cameras", "write_failure"]

NUM_KEPT_VIEWS = 6
NUM_ORBIT_FRAMES = 36


@dataclass(frozen=True)
class KeptEdits:
    """An editor that hands everything on to another one and keeps the last edit of each view, to be shown."""

    editor: Editor
    images: dict[int, Tensor] = field(default_factory=dict)
    """Edited views by their index."""
    masks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def shares_attention(self) -> bool:
        """Whether the other one lets views attend to each other."""
        return can_share_attention(self.editor)

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`."""
        edited = self.editor.edit(batch)
        for index, image, mask in zip(batch.view_indices, edited.images, edited.masks, strict=True):
            self.images[index], self.masks[index] = image, mask
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
) -> Iterator[EditStep]:
    """Edit a scene, with or without truth, and write the result folder of docs/conventions.md when it is done.

    Args:
        splats: The fitted scene; left as it is.
        capture: All of its views; the method gets the training views only, held-out cameras are rendered at the end.
        request: What to do.
        method: One of `METHODS`, with its settings.
        editor: The 2D editor.
        seed: Of the edit.
        folder: Where the result goes; `record.json` is written last.
        facts: What else the record is to say, such as the names of scene, edit, method and editor.

    Yields:
        The steps of the method, their notes with how far held-out views have changed; the last one holds the result.

    Raises:
        InputError: the capture has no training views.
        RuntimeError: the method ended without a result, or with splats that are not finite.
        KeyboardInterrupt: the user stopped it. What was there by then is written all the same, with `stopped.json` in
            place of the record, so that the scene can be used and the edit counts as not done.
    """
    kept = KeptEdits(editor)
    job = EditJob.of(splats, capture, request, kept, seed)
    preview = Preview(splats, capture, folder)
    peak = PeakMemory()
    started_s, last, is_stopped = time.perf_counter(), None, False
    try:
        for last in method.run(job):
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
        raise RuntimeError("the edited splats are not finite")
    _write_pictures(folder, last.splats, capture, kept)
    write_splats(last.splats, folder / SPLATS)
    preview.remove()
    is_no_op = changed_share(splats, last.splats, job.capture) <= NO_OP_SHARE
    record = {
        "id": content_id("edited", {"seed": seed, **(facts or {}), "settings": method, "request": request}),
        "seed": seed,
        **(facts or {}),
        "request": request,
        "settings": method,
        "num_steps": last.step,
        "loss": last.loss,
        "is_no_op": is_no_op,
        "status": "stopped" if is_stopped else "done",
        "reason": _reason(last, is_no_op),
        "cost": cost,
    }
    if is_stopped:
        write_json(folder / "stopped.json", record)
        raise KeyboardInterrupt
    (folder / "stopped.json").unlink(missing_ok=True)
    # Another worker that was taken for lost may still be at the same edit: its preview comes and goes.
    unsealed = (EDIT_RECORD, "preview.png")
    made = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "." and path.name not in unsealed]
    write_record(folder / EDIT_RECORD, record, files=made)


def _reason(last: EditStep, is_no_op: bool) -> str:
    """Returns what there is to say about a result beside its scores; empty if nothing."""
    notes = [] if last.step >= last.num_steps else [f"stopped after step {last.step} of {last.num_steps}"]
    return "; ".join([*notes, "the scene did not change"] if is_no_op else notes)


def write_failure(folder: Path, error: Exception, facts: Mapping[str, Any]) -> None:
    """Write the record of an edit that failed, so that it is a row with its reason and not a missing row."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    record = {**to_plain(facts), "status": "failed", "reason": reason, "cost": {"peak_memory_mb": process_peak_mb()}}
    write_record(folder / EDIT_RECORD, {"id": content_id("edited", facts), **record})


def orbit_cameras(capture: Capture, num_frames: int = NUM_ORBIT_FRAMES) -> Cameras:
    """Cameras on a circle around what the views of a capture look at, at their mean height and distance.

    Raises:
        InputError: the capture has no views.
    """
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
    held_out = list(capture.held_out_indices)
    if held_out:
        for index, image in zip(held_out, render_views(splats, capture.cameras[held_out]), strict=True):
            write_image(folder / HELD_OUT / _png_name(capture, index), image)
    edited = sorted(kept.images)
    for index in edited[:: max(1, len(edited) // NUM_KEPT_VIEWS)][:NUM_KEPT_VIEWS]:
        write_image(folder / "views" / _png_name(capture, index), kept.images[index])
        write_mask(folder / "masks" / _png_name(capture, index), kept.masks[index])
    write_video(folder / ORBIT, render_views(splats, orbit_cameras(capture)))


def _png_name(capture: Capture, index: int) -> str:
    return Path(capture.file_names[index]).with_suffix(".png").name
