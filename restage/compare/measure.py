"""What a result is judged by, loaded once for each case (scene x edit), and all metrics of what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.compare import metrics
from restage.compare.config import CompareConfig
from restage.compare.judges import Judges
from restage.compare.metrics import Measured, unscored
from restage.edit.editors.grade import Anchors, anchors_of
from restage.edit.pictures import quantize, read_image, read_mask
from restage.edit.results import orbit_cameras
from restage.records import EditCase, InputError, read_json
from restage.run.layout import CAPTURE, DEPTH, EDIT_CASE, HELD_OUT, IMAGES, MASKS, REGION_MASKS, SPLATS, TRUTH
from restage.scenes.cameras import Cameras
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.rasterize import rasterize
from restage.scores.definitions import COST_METRICS, METRICS

__all__ = ["Before", "CaseViews", "MEASURED", "ResultViews", "embed_before", "load_case", "load_result"]
__all__ += ["measure_result", "unmeasured"]

NO_TRUTH = "no truth to measure against"


@dataclass(frozen=True)
class CaseViews:
    """The held-out views of one edit of one scene; all as 8-bit files hold them."""

    names: tuple[str, ...]  # file name of each view's picture in result and truth folders
    source: Float[Tensor, "n 3 h w"]  # S, views before the edit
    unedited: Float[Tensor, "n 3 h w"]  # B, renders of the unedited splats
    truth: Float[Tensor, "n 3 h w"] | None = None
    """T, true views after it; None where nobody knows."""
    regions: Float[Tensor, "n h w"] | None = None  # R, 1 where truth changes
    truth_depth: Float[Tensor, "n h w"] | None = None
    """True z after the edit, camera frame; None where it was not kept."""
    anchors: Anchors | None = None
    """What progress is measured between; None for S and T."""
    captions: tuple[str, str] = ("", "")
    cameras: Cameras | None = None
    orbit: Cameras | None = None
    """Cameras around the scene; None to leave consistency out."""
    orbit_unedited: Float[Tensor, "k 3 h w"] | None = None


@dataclass(frozen=True)
class Before:
    """What models say of a case before any edit; the same for all of its results."""

    clip: Float[Tensor, "n d"] | None = None  # C(B)
    clip_orbit: Float[Tensor, "k d"] | None = None  # C(o)
    texts: Float[Tensor, "2 d"] | None = None
    dino: Float[Tensor, "n e"] | None = None
    dino_truth: Float[Tensor, "n e"] | None = None


@dataclass(frozen=True)
class ResultViews:
    """What a result shows."""

    edited: Float[Tensor, "n 3 h w"]  # E, renders of the edited splats in the held-out views
    depth: Float[Tensor, "n h w"] | None = None
    """z of the edited splats there; None where the splats were not kept."""
    alpha: Float[Tensor, "n h w"] | None = None
    orbit: Float[Tensor, "k 3 h w"] | None = None  # renders of the edited splats from the orbit
    regions: Float[Tensor, "n h w"] | None = None  # 1 where the edit was told it may change; None for everywhere


def load_case(run_path: Path, scene: str, edit: str, config: CompareConfig, device: str = "cpu") -> CaseViews:
    """Read and render what the results of an edit are measured against; nothing without held-out views.

    It is drawn on the device and, like all that is measured, comes to the CPU.
    """
    folder = run_path / "scenes" / scene
    capture = read_capture(folder / CAPTURE)
    held_out = list(capture.held_out_indices)
    if not held_out:
        nothing = torch.zeros(0, 3, capture.cameras.height, capture.cameras.width)
        return CaseViews((), nothing, nothing)
    names = tuple(Path(capture.file_names[index]).with_suffix(".png").name for index in held_out)
    splats = read_splats(folder / SPLATS).to(device)
    truth = folder / TRUTH / edit
    case = read_json(truth / EDIT_CASE, EditCase) if (truth / EDIT_CASE).exists() else None
    has_truth = case is not None and case.has_truth
    orbit = orbit_cameras(capture, config.orbit_frames) if config.orbit_frames else None
    source = quantize(capture.images[held_out])
    unedited = quantize(render_views(splats, capture.cameras[held_out]).cpu())
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
        orbit_unedited=None if orbit is None else quantize(render_views(splats, orbit).cpu()),
    )


def _read_depth(path: Path, names: tuple[str, ...]) -> Tensor | None:
    if not path.exists():
        return None
    with np.load(path) as maps:
        missing = [name for name in names if name not in maps]
        if missing:
            raise InputError(f"{path} lacks the depth of {', '.join(missing)}; delete it and make the scene again")
        return torch.from_numpy(np.stack([maps[name].astype(np.float32) for name in names]))


def load_result(folder: Path, case: CaseViews, device: str = "cpu") -> ResultViews:
    """Read a result's renders of the held-out views, and render its orbit and depth where it kept its splats."""
    edited = torch.stack([read_image(folder / HELD_OUT / name) for name in case.names])
    if edited.shape != case.source.shape:
        expected, got = tuple(case.source.shape), tuple(edited.shape)
        raise InputError(f"{folder}: expected held-out renders of shape {expected}, got {got}")
    regions = None
    if (folder / REGION_MASKS).is_dir():
        # The border is soft: all that belongs to the region a little could be changed, too.
        regions = torch.stack([(read_mask(folder / REGION_MASKS / name) > 0).float() for name in case.names])
    if not (folder / SPLATS).exists():
        return ResultViews(edited, regions=regions)
    splats, cameras = read_splats(folder / SPLATS).detach().to(device), case.cameras
    depth = alpha = None
    if case.truth_depth is not None and cameras is not None:
        with torch.no_grad():
            views = [rasterize(splats, cameras[view]) for view in range(len(cameras))]
        depth, alpha = (torch.stack([getattr(view, name).cpu() for view in views]) for name in ("depth", "alpha"))
    orbit = None if case.orbit is None else quantize(render_views(splats, case.orbit).cpu())
    return ResultViews(edited, depth, alpha, orbit, regions)


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


MEASURED = tuple(name for name in METRICS if name not in COST_METRICS)
"""Names of all metrics that are measured on pictures; the rest is in a result's record."""


def unmeasured(reason: str) -> dict[str, Measured]:
    """Every metric of a result that cannot be measured at all."""
    return {name: unscored(reason) for name in MEASURED}


def measure_result(
    result: ResultViews, case: CaseViews, *, before: Before, judges: Judges, config: CompareConfig
) -> dict[str, Measured]:
    """All metrics of a result but its costs, in the order of `METRICS`; NaN with the reason if something is missing."""
    found = {
        **_against_truth(result, case, config),
        **_by_clip(result, case, before, judges),
        **_by_other_models(result, case, before, judges),
    }
    return {name: found[name] for name in MEASURED}


def _against_truth(result: ResultViews, case: CaseViews, config: CompareConfig) -> dict[str, Measured]:
    truth, regions, edited = case.truth, case.regions, result.edited
    names = [name for name in MEASURED if "truth" in METRICS[name].needs]
    if truth is None or regions is None:
        found = {name: unscored(NO_TRUTH) for name in names}
        if result.regions is not None:
            found["spill"] = metrics.spill(edited, case.unedited, result.regions)
        return found
    start, goal = case.anchors or (case.source, truth)
    done = metrics.progress(edited, start, goal, regions)
    share = metrics.share_moved(edited, case.unedited, start, goal, regions=regions)
    return {
        "progress": done,
        "fit_error": metrics.fit_error(case.unedited, case.source, truth, regions),
        "spill": metrics.spill(edited, case.unedited, regions if result.regions is None else result.regions),
        "mask_iou": metrics.mask_iou(edited, case.unedited, case.source, truth),
        "depth_error": _depth_error(result, case, regions),
        "psnr_db": metrics.psnr_db(edited, truth),
        "psnr_inside_db": metrics.psnr_db(edited, truth, regions),
        "psnr_outside_db": metrics.psnr_db(edited, truth, 1 - regions),
        "ssim": metrics.ssim(edited, truth),
        "ssim_inside": metrics.ssim(edited, truth, regions),
        "ssim_outside": metrics.ssim(edited, truth, 1 - regions),
        "no_op": metrics.no_op(share, config.no_op_share),
        "wrong_way": metrics.wrong_way(share, done.mean, config.no_op_share),
    }


def _depth_error(result: ResultViews, case: CaseViews, regions: Tensor) -> Measured:
    if case.truth_depth is None:
        return unscored("the true depth was not kept")
    if result.depth is None or result.alpha is None:
        return unscored("the result's splats were not kept")
    return metrics.depth_error(result.depth, result.alpha, case.truth_depth, regions)


def _by_clip(result: ResultViews, case: CaseViews, before: Before, judges: Judges) -> dict[str, Measured]:
    names = [name for name in MEASURED if "clip" in METRICS[name].needs]
    if judges.clip is None or before.clip is None:
        return {name: unscored(judges.missing.get("clip", "no CLIP at hand")) for name in names}
    edited = judges.clip.encode_images(result.edited).cpu()
    found = {"clip_image": metrics.feature_similarity(edited, before.clip)}
    if before.texts is None:
        reason = "the edit has no captions of the scene before and after"
        found |= {"clip_text": unscored(reason), "clip_direction": unscored(reason)}
    else:
        source, target = before.texts
        found["clip_text"] = metrics.text_similarity(edited, target)
        found["clip_direction"] = metrics.clip_direction(edited, before.clip, target, source)
    return {**found, **_consistencies(result, case, before, judges)}


def _consistencies(result: ResultViews, case: CaseViews, before: Before, judges: Judges) -> dict[str, Measured]:
    if case.orbit is None or result.orbit is None or before.clip_orbit is None or judges.clip is None:
        reason = "orbit_frames is 0" if case.orbit is None else "the result's splats were not kept"
        names = ("frame_consistency", "step_consistency", "edit_consistency", "typeset_consistency")
        return {name: unscored(reason) for name in names}
    orbit = judges.clip.encode_images(result.orbit).cpu()
    return {
        "frame_consistency": metrics.frame_consistency(orbit),
        "step_consistency": metrics.step_consistency(orbit, before.clip_orbit),
        "edit_consistency": metrics.edit_consistency(orbit, before.clip_orbit),
        "typeset_consistency": metrics.typeset_consistency(orbit, before.clip_orbit),
    }


def _by_other_models(result: ResultViews, case: CaseViews, before: Before, judges: Judges) -> dict[str, Measured]:
    no_dino = unscored(judges.missing.get("dino", "no DINO at hand"))
    found = {"dino_before": no_dino, "dino_truth": no_dino}
    if judges.dino is not None and before.dino is not None:
        edited = judges.dino.encode_images(result.edited).cpu()
        found["dino_before"] = metrics.feature_similarity(edited, before.dino)
        truth = before.dino_truth
        found["dino_truth"] = unscored(NO_TRUTH) if truth is None else metrics.feature_similarity(edited, truth)
    if judges.lpips is None:
        found["lpips"] = unscored(judges.missing.get("lpips", "no LPIPS at hand"))
    elif case.truth is None:
        found["lpips"] = unscored(NO_TRUTH)
    else:
        found["lpips"] = metrics.summarise(judges.lpips.distance(result.edited, case.truth), "")
    return found
