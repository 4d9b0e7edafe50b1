"""A fit as files: run it, go on after a stop from the last checkpoint, write splats, pictures and `fit.json`.

`restage fit` and the scenes stage call `fit_capture`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.records import InputError, Progress, content_id, read_json, to_plain, write_atomically, write_json
from restage.scenes.capture import Capture
from restage.scenes.fit import FitConfig, SplatFit, psnr, render_views
from restage.scenes.io.ply import read_splats, write_splats
from restage.scenes.splats import Splats

__all__ = ["fit_capture"]

SAVE_EVERY_S = 10.0
"""Seconds of work that a stop may cost."""
MAX_STRIP_VIEWS = 8
"""Held-out views in the picture strip."""
STATE_VERSION = 1


def fit_capture(capture: Capture, folder: Path, config: FitConfig) -> Iterator[Progress]:
    """Fit splats to a capture's training views, unless that is done.

    Writes `splats.ply`, `held_out/<file name>.png`, `held_out.png` (renders above, truth below), and `fit.json` last.
    After a stop, work goes on from `fit_state.pt`, and the splats are the same as without the stop.

    Args:
        capture: The scene's views; held-out ones are only measured.
        folder: The scene's folder.
        config: How to fit.

    Raises:
        InputError: the folder holds a fit with another config.
    """
    fit_id = content_id("fit", config)
    if (folder / "fit.json").exists():
        found = read_json(folder / "fit.json").get("id")
        if found != fit_id:
            raise InputError(f"{folder} was fitted with another config ({found}); choose another folder with --out")
        yield Progress(stage="scenes", done=config.steps, total=config.steps, note="fitted before")
        return
    fit = SplatFit(capture, config)
    state_path = folder / "fit_state.pt"
    seconds, loss = _load_state(state_path, fit, fit_id)
    started_s = saved_s = time.perf_counter()
    while not fit.is_done:
        step = fit.step()
        loss = step.loss
        now_s = time.perf_counter()
        if now_s - saved_s > SAVE_EVERY_S or fit.is_done:
            _save_state(state_path, fit, fit_id, seconds=seconds + now_s - started_s, loss=loss)
            saved_s = now_s
        yield Progress(stage="scenes", done=step.step, total=step.num_steps, note=f"fit, loss {loss:.4f}")
    seconds += time.perf_counter() - started_s
    write_splats(fit.optimizer.splats, folder / "splats.ply")
    record = _measure(capture, folder, read_splats(folder / "splats.ply"))
    write_json(
        folder / "fit.json",
        {"id": fit_id, "config": to_plain(config), "loss": loss, "seconds": seconds, **record},
    )
    state_path.unlink(missing_ok=True)


def _save_state(path: Path, fit: SplatFit, fit_id: str, *, seconds: float, loss: float) -> None:
    state = {"version": STATE_VERSION, "id": fit_id, "seconds": seconds, "loss": loss, "fit": fit.optimizer.state()}
    with write_atomically(path) as temporary:
        torch.save(state, temporary)


def _load_state(path: Path, fit: SplatFit, fit_id: str) -> tuple[float, float]:
    """Bring a fit to where a stop left it; returns seconds spent so far and the last loss.

    The state of a fit with another config is not of use and gets overwritten; it was never finished.
    """
    if not path.exists():
        return 0.0, 0.0
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["version"] != STATE_VERSION or state["id"] != fit_id:
            return 0.0, 0.0
        fit.optimizer.load_state(state["fit"])
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
        raise InputError(f"{path} is not readable as the state of a fit; delete it: {error}") from None
    return float(state["seconds"]), float(state["loss"])


def _measure(capture: Capture, folder: Path, splats: Splats) -> dict[str, Any]:
    """Render and score the splats that were written; NaN does not occur: without held-out views the keys are None."""
    train, held_out = list(capture.train_indices), list(capture.held_out_indices)
    train_renders = render_views(splats, capture.cameras[train])
    record: dict[str, Any] = {
        "num_views": len(capture.cameras),
        "num_held_out": len(held_out),
        "width": capture.cameras.width,
        "height": capture.cameras.height,
        "num_splats": len(splats),
        "train_psnr_db": float(psnr(train_renders, capture.images[train]).mean()),
        "held_out_psnr_db": None,
        "held_out_psnr_db_by_view": {},
    }
    if held_out:
        renders, truth = render_views(splats, capture.cameras[held_out]), capture.images[held_out]
        values = psnr(renders, truth).clamp_max(100.0).tolist()
        names = [Path(capture.file_names[index]).with_suffix(".png").name for index in held_out]
        for name, image in zip(names, renders, strict=True):
            _write_png(folder / "held_out" / name, image)
        shown = slice(0, MAX_STRIP_VIEWS)
        strip = torch.cat([torch.cat(list(rows[shown]), dim=2) for rows in (renders, truth)], dim=1)
        _write_png(folder / "held_out.png", strip)
        record["held_out_psnr_db"] = sum(values) / len(values)
        record["held_out_psnr_db_by_view"] = dict(zip(names, values, strict=True))
    return record


def _write_png(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    with write_atomically(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary)
