"""What a result is judged by: held-out views before, after and as they should be, and an orbit; measures nothing.

A case (scene x edit) is loaded once for all of its results; `stage.py` and studies call this, `measure.py` judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.compare.judges import CompareConfig, Judges
from restage.edit.pictures import quantize, read_image, read_mask
from restage.edit.results import orbit_cameras
from restage.edit.truth import Anchors, anchors_of
from restage.records import EditCase, InputError, read_json
from restage.run.layout import CAPTURE, DEPTH, EDIT_CASE, HELD_OUT, IMAGES, MASKS, SPLATS, TRUTH
from restage.scenes.cameras import Cameras
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture
from restage.scenes.io.ply import read_splats
from restage.scenes.rasterize import rasterize_numba
from restage.scenes.splats import Splats

__all__ = ["Before", "CaseViews", "ResultViews", "embed_before", "load_case", "load_result"]

NO_TRUTH = "no truth to measure against"


@dataclass(frozen=True)
class CaseViews:
    """The held-out views of one edit of one scene; all as 8-bit files hold them."""

    names: tuple[str, ...]
    """File name of each view's picture in result and truth folders."""
    source: Float[Tensor, "n 3 h w"]
    """S, views before the edit."""
    unedited: Float[Tensor, "n 3 h w"]
    """B, renders of the unedited splats."""
    truth: Float[Tensor, "n 3 h w"] | None = None
    """T, true views after it; None where nobody knows."""
    regions: Float[Tensor, "n h w"] | None = None
    """R, 1 where truth changes."""
    truth_depth: Float[Tensor, "n h w"] | None = None
    """True z after the edit, camera frame; None where it was not kept."""
    anchors: Anchors | None = None
    """What progress is measured between; None for S and T."""
    captions: tuple[str, str] = ("", "")
    """Captions of the scene before and after."""
    cameras: Cameras | None = None
    """Of the held-out views."""
    orbit: Cameras | None = None
    """Cameras around the scene; None to leave consistency out."""
    orbit_unedited: Float[Tensor, "k 3 h w"] | None = None
    """Renders of the unedited splats from there."""


@dataclass(frozen=True)
class Before:
    """What models say of a case before any edit; the same for all of its results."""

    clip: Float[Tensor, "n d"] | None = None
    """C(B)."""
    clip_orbit: Float[Tensor, "k d"] | None = None
    """C(o)."""
    texts: Float[Tensor, "2 d"] | None = None
    """Of the two captions."""
    dino: Float[Tensor, "n e"] | None = None
    dino_truth: Float[Tensor, "n e"] | None = None


@dataclass(frozen=True)
class ResultViews:
    """What a result shows."""

    edited: Float[Tensor, "n 3 h w"]
    """E, renders of the edited splats in the held-out views."""
    depth: Float[Tensor, "n h w"] | None = None
    """z of the edited splats there; None where the splats were not kept."""
    alpha: Float[Tensor, "n h w"] | None = None
    """Their opacity."""
    orbit: Float[Tensor, "k 3 h w"] | None = None
    """Renders of the edited splats from the orbit."""


def load_case(run_path: Path, scene: str, edit: str, config: CompareConfig) -> CaseViews:
    """Read and render what the results of an edit are measured against."""
    folder = run_path / "scenes" / scene
    capture = read_capture(folder / CAPTURE)
    held_out = list(capture.held_out_indices)
    if not held_out:
        raise InputError(f"{folder / CAPTURE} has no held-out views to measure on")
    names = tuple(Path(capture.file_names[index]).with_suffix(".png").name for index in held_out)
    splats = read_splats(folder / SPLATS)
    truth = folder / TRUTH / edit
    case = read_json(truth / EDIT_CASE, EditCase) if (truth / EDIT_CASE).exists() else None
    has_truth = case is not None and case.has_truth
    orbit = orbit_cameras(capture, config.orbit_frames) if config.orbit_frames else None
    source = quantize(capture.images[held_out])
    unedited = quantize(render_views(splats, capture.cameras[held_out]))
    edited = torch.stack([read_image(truth / IMAGES / name) for name in names]) if has_truth else None
    anchors = None
    if case is not None and edited is not None:
        anchors = anchors_of(case, truth, names, source=source, truth=edited, unedited=unedited)
    return CaseViews(
        names=names,
        source=source,
        unedited=unedited,
        truth=edited,
        anchors=anchors,
        regions=torch.stack([read_mask(truth / MASKS / name) for name in names]) if has_truth else None,
        truth_depth=_read_depth(truth / DEPTH, names) if has_truth else None,
        captions=(case.request.source_caption, case.request.target_caption) if case else ("", ""),
        cameras=capture.cameras[held_out],
        orbit=orbit,
        orbit_unedited=None if orbit is None else quantize(render_views(splats, orbit)),
    )


def _read_depth(path: Path, names: tuple[str, ...]) -> Tensor | None:
    if not path.exists():
        return None
    with np.load(path) as maps:
        missing = [name for name in names if name not in maps]
        if missing:
            raise InputError(f"{path} lacks the depth of {', '.join(missing)}; delete it and make the scene again")
        return torch.from_numpy(np.stack([maps[name].astype(np.float32) for name in names]))


def load_result(folder: Path, case: CaseViews) -> ResultViews:
    """Read a result's renders of the held-out views, and render its orbit and depth where it kept its splats."""
    edited = torch.stack([read_image(folder / HELD_OUT / name) for name in case.names])
    if edited.shape != case.source.shape:
        expected, got = tuple(case.source.shape), tuple(edited.shape)
        raise InputError(f"{folder}: expected held-out renders of shape {expected}, got {got}")
    if not (folder / SPLATS).exists():
        return ResultViews(edited)
    splats = read_splats(folder / SPLATS)
    depth, alpha = (None, None) if case.truth_depth is None or case.cameras is None else _depth(splats, case.cameras)
    orbit = None if case.orbit is None else quantize(render_views(splats, case.orbit))
    return ResultViews(edited, depth, alpha, orbit)


@torch.no_grad()
def _depth(splats: Splats, cameras: Cameras) -> tuple[Tensor, Tensor]:
    renderings = [rasterize_numba(splats.detach(), cameras[view]) for view in range(len(cameras))]
    return torch.stack([view.depth for view in renderings]), torch.stack([view.alpha for view in renderings])


def embed_before(case: CaseViews, judges: Judges) -> Before:
    """Ask the models at hand what a case shows before any edit."""
    clip, dino = judges.clip, judges.dino
    has_captions = all(text.strip() for text in case.captions)
    return Before(
        clip=None if clip is None else clip.encode_images(case.unedited).cpu(),
        clip_orbit=None
        if clip is None or case.orbit_unedited is None
        else clip.encode_images(case.orbit_unedited).cpu(),
        texts=None if clip is None or not has_captions else clip.encode_text(list(case.captions)).cpu(),
        dino=None if dino is None else dino.encode_images(case.unedited).cpu(),
        dino_truth=None if dino is None or case.truth is None else dino.encode_images(case.truth).cpu(),
    )
