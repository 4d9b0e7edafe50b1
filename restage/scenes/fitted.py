"""A fit as files: run it, go on after a stop from the last checkpoint, write splats, pictures and `fit.json`.

`restage fit` and the scenes stage call `fit_capture`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import (
    InputError,
    Progress,
    canonical_json,
    content_id,
    read_json,
    to_plain,
    write_atomically,
    write_record,
)
from restage.run.layout import FIT_RECORD, FIT_STATE, HELD_OUT, SPLATS
from restage.run.reading import FitRecord
from restage.scenes.capture import Capture
from restage.scenes.fit import FitConfig, FitStep, SplatFit, psnr, render_views
from restage.scenes.io.images import write_png
from restage.scenes.io.ply import read_splats, write_splats
from restage.scenes.losses import MARGIN, WINDOW, ssim_map
from restage.scenes.splats import Splats

__all__ = ["capture_sha256", "fit_capture"]

SAVE_EVERY_S = 10.0
"""Seconds of work that a stop may cost."""
PEEKS = 5
"""How often in a fit held-out views are measured, to be shown; nothing depends on it."""
PEEK_VIEWS = 4
MAX_STRIP_VIEWS = 8
STATE_VERSION = 2


class _Spent(NamedTuple):
    """What a fit has cost and come to, over all sessions."""

    seconds: float
    loss: float


def capture_sha256(capture: Capture) -> str:
    """Hash of all that a fit and its measures depend on: pixels, masks, cameras, points, names, split; as hex."""
    found = hashlib.sha256()
    cameras = capture.cameras
    tensors = [capture.images, cameras.camera_to_world, cameras.intrinsics, capture.points, capture.point_colors]
    for tensor in [*tensors, *([] if capture.masks is None else [capture.masks])]:
        found.update(canonical_json([list(tensor.shape), str(tensor.dtype)]).encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    names = [capture.file_names, capture.train_indices, capture.held_out_indices, cameras.width, cameras.height]
    found.update(canonical_json(names).encode())
    return found.hexdigest()


def fit_capture(capture: Capture, folder: Path, config: FitConfig) -> Iterator[Progress]:
    """Fit splats to a capture's training views, unless that is done.

    Writes `splats.ply`, `held_out/<file name>.png`, `held_out.png` (renders above, truth below), and `fit.json` last.
    A checkpoint, `fit_state.pt`, is written every ten seconds; after a stop or a kill, work goes on from there. Without
    a time budget the splats are then the same bit for bit as without the stop.

    Raises:
        InputError: the folder holds a finished fit with another config or of another capture, or a broken checkpoint.
    """
    identity = {"id": content_id("fit", config), "capture_sha256": capture_sha256(capture)}
    if (folder / FIT_RECORD).exists():
        found, way = read_json(folder / FIT_RECORD, FitRecord), "fit it anew with --again, or elsewhere with --out"
        if found.id != identity["id"]:
            raise InputError(f"{folder} was fitted with another config ({found.id}); {way}")
        if found.capture_sha256 != identity["capture_sha256"]:
            raise InputError(f"{folder} was fitted to other views, points or cameras than it holds now; {way}")
        yield Progress(stage="scenes", done=config.steps, total=config.steps, note="fitted before")
        return
    fit = SplatFit(capture, config)
    state_path = folder / FIT_STATE
    spent = _load_state(state_path, fit, identity)
    started_s = saved_s = time.perf_counter()
    peek = ""
    while not fit.is_done:
        step = fit.step()
        now_s = time.perf_counter()
        if now_s - saved_s > SAVE_EVERY_S or fit.is_done:
            now = _Spent(spent.seconds + now_s - started_s, step.loss)
            with write_atomically(state_path) as temporary:
                torch.save({"version": STATE_VERSION, **identity, **now._asdict(), "fit": fit.state()}, temporary)
            saved_s = now_s
        peek = _peek(capture, step) or peek
        yield Progress(stage="scenes", done=step.step, total=step.num_steps, note=f"fit, loss {step.loss:.4f}{peek}")
        spent = spent._replace(loss=step.loss)
    spent = spent._replace(seconds=spent.seconds + time.perf_counter() - started_s)
    write_splats(fit.optimizer.splats, folder / SPLATS)
    # Measured on what was written, so that the numbers are those of the file.
    record = _measure(capture, folder, read_splats(folder / SPLATS))
    schedule = {"steps": fit.schedule.step, "levelled_off": fit.schedule.has_levelled_off}
    record = {**identity, "config": to_plain(config), **schedule, **spent._asdict(), **record}
    files = [folder / SPLATS, *folder.glob("held_out*.png"), *folder.glob("held_out/*.png")]
    write_record(folder / FIT_RECORD, record, files=files)
    # Last: a kill in between costs nothing, since fit.json says that the fit is done.
    state_path.unlink(missing_ok=True)


def _peek(capture: Capture, step: FitStep) -> str:
    """Held-out PSNR of a few views now and then, for whoever watches; otherwise nothing."""
    views = list(capture.held_out_indices[:PEEK_VIEWS])
    if not views or step.step % max(1, step.num_steps // PEEKS):
        return ""
    value = float(_psnr_of(capture, views, render_views(step.splats, capture.cameras[views])).mean())
    return f", held-out views {value:.1f} dB"


def _psnr_of(capture: Capture, views: list[int], renders: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    return psnr(renders, capture.images[views], None if capture.masks is None else capture.masks[views])


def _ssim_of(capture: Capture, views: list[int], renders: Float[Tensor, "n 3 h w"]) -> float | None:
    """Mean structural similarity of renders of some views, over pixels that count; None for views below its window."""
    if min(renders.shape[2:]) < WINDOW:
        return None
    inside = slice(MARGIN, -MARGIN)
    values = []
    for view, render in zip(views, renders, strict=True):
        weights = None if capture.masks is None else capture.masks[view]
        # What lies beyond the pixels that count is made equal, since windows reach across their border.
        truth = capture.images[view] if weights is None else torch.where(weights > 0, capture.images[view], render)
        similarity = ssim_map(render, truth).mean(dim=0)
        shares = torch.ones_like(similarity) if weights is None else weights[inside, inside]
        if shares.sum() > 0:
            values.append(float((similarity * shares).sum() / shares.sum()))
    return sum(values) / len(values) if values else None


def _load_state(path: Path, fit: SplatFit, identity: dict[str, str]) -> _Spent:
    """Bring a fit to where a stop left it; returns what it has cost so far.

    The state of a fit with another config or capture is not of use and gets overwritten; it was never finished.
    """
    if not path.exists():
        return _Spent(0.0, 0.0)
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["version"] != STATE_VERSION or any(state[name] != value for name, value in identity.items()):
            return _Spent(0.0, 0.0)
        fit.load_state(state["fit"])
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
        raise InputError(f"{path} is not readable as the state of a fit; delete it: {error}") from None
    return _Spent(float(state["seconds"]), float(state["loss"]))


def _measure(capture: Capture, folder: Path, splats: Splats) -> dict[str, Any]:
    """Render and score the splats that were written; NaN does not occur: without held-out views the keys are None."""
    train, held_out = list(capture.train_indices), list(capture.held_out_indices)
    train_renders = render_views(splats, capture.cameras[train])
    record: dict[str, Any] = {
        "num_views": len(capture.cameras),
        "num_held_out": len(held_out),
        "width": capture.cameras.width,
        "height": capture.cameras.height,
        "own_to_world": None if capture.own_to_world is None else capture.own_to_world.tolist(),
        **({"notes": list(capture.notes)} if capture.notes else {}),
        "num_splats": len(splats),
        "train_psnr_db": float(_psnr_of(capture, train, train_renders).mean()),
        "held_out_psnr_db": None,
        "held_out_ssim": None,
        "held_out_psnr_db_by_view": {},
    }
    if held_out:
        renders, truth = render_views(splats, capture.cameras[held_out]), capture.images[held_out]
        values = _psnr_of(capture, held_out, renders).clamp_max(100.0).tolist()
        names = [Path(capture.file_names[index]).with_suffix(".png").name for index in held_out]
        for name, image in zip(names, renders, strict=True):
            write_png(folder / HELD_OUT / name, image.permute(1, 2, 0))
        shown = slice(0, MAX_STRIP_VIEWS)
        strip = torch.cat([torch.cat(list(rows[shown]), dim=2) for rows in (renders, truth)], dim=1)
        write_png(folder / "held_out.png", strip.permute(1, 2, 0))
        record["held_out_psnr_db"] = sum(values) / len(values)
        record["held_out_ssim"] = _ssim_of(capture, held_out, renders)
        record["held_out_psnr_db_by_view"] = dict(zip(names, values, strict=True))
    return record
