"""Puts the metrics together: what a result shows and what it is judged by, into one `Measured` for every metric."""

from __future__ import annotations

from torch import Tensor

from restage.compare import features, metrics
from restage.compare.evidence import NO_TRUTH, Before, CaseViews, ResultViews
from restage.compare.judges import CompareConfig, Judges
from restage.compare.metrics import Measured, unscored
from restage.scores.definitions import COST_METRICS, METRICS

__all__ = ["MEASURED", "measure_result", "unmeasured"]

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
        return {name: unscored(NO_TRUTH) for name in names}
    start, goal = case.anchors or (case.source, truth)
    done = metrics.progress(edited, start, goal, regions)
    share = metrics.share_moved(edited, case.unedited, start, goal, regions=regions)
    return {
        "progress": done,
        "fit_error": metrics.fit_error(case.unedited, case.source, truth, regions),
        "spill": metrics.spill(edited, case.unedited, regions),
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
    found = {"clip_image": features.feature_similarity(edited, before.clip)}
    if before.texts is None:
        reason = "the edit has no captions of the scene before and after"
        found |= {"clip_text": unscored(reason), "clip_direction": unscored(reason)}
    else:
        source, target = before.texts
        found["clip_text"] = features.text_similarity(edited, target)
        found["clip_direction"] = features.clip_direction(edited, before.clip, target, source)
    return {**found, **_consistencies(result, case, before, judges)}


def _consistencies(result: ResultViews, case: CaseViews, before: Before, judges: Judges) -> dict[str, Measured]:
    if case.orbit is None or result.orbit is None or before.clip_orbit is None or judges.clip is None:
        reason = "orbit_frames is 0" if case.orbit is None else "the result's splats were not kept"
        names = ("frame_consistency", "step_consistency", "edit_consistency", "typeset_consistency")
        return {name: unscored(reason) for name in names}
    orbit = judges.clip.encode_images(result.orbit).cpu()
    return {
        "frame_consistency": features.frame_consistency(orbit),
        "step_consistency": features.step_consistency(orbit, before.clip_orbit),
        "edit_consistency": features.edit_consistency(orbit, before.clip_orbit),
        "typeset_consistency": features.typeset_consistency(orbit, before.clip_orbit),
    }


def _by_other_models(result: ResultViews, case: CaseViews, before: Before, judges: Judges) -> dict[str, Measured]:
    no_dino = unscored(judges.missing.get("dino", "no DINO at hand"))
    found = {"dino_before": no_dino, "dino_truth": no_dino}
    if judges.dino is not None and before.dino is not None:
        edited = judges.dino.encode_images(result.edited).cpu()
        found["dino_before"] = features.feature_similarity(edited, before.dino)
        truth = before.dino_truth
        found["dino_truth"] = unscored(NO_TRUTH) if truth is None else features.feature_similarity(edited, truth)
    if judges.lpips is None:
        found["lpips"] = unscored(judges.missing.get("lpips", "no LPIPS at hand"))
    elif case.truth is None:
        found["lpips"] = unscored(NO_TRUTH)
    else:
        found["lpips"] = metrics.summarise(judges.lpips.distance(result.edited, case.truth), "")
    return found
