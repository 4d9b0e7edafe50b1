"""What each metric means: label, unit, direction, definition, source. Pages and tables print it; nothing is computed.

Notation of docs/conventions.md: S true source view, T true edited view, B render of the unedited splats, E render of
the edited splats, R region that truth changes; C(x) is the unit-norm CLIP embedding of a picture or a text.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

__all__ = ["COST_METRICS", "FLAG_METRICS", "METRICS", "Metric", "Need", "Place", "metrics_shown_in"]

Need = Literal["truth", "depth", "captions", "clip", "dino", "lpips"]
Place = Literal["show", "diff", "page", "paper"]
"""Where a metric has a column: `restage show` and studies, `restage diff`, the page's first table, LaTeX and slides."""


@dataclass(frozen=True)
class Metric:
    """A metric as a reader has to know it."""

    label: str
    unit: str  # `share` (a ratio; 1 is all), `cosine`, `dB`, `0 or 1`, `[0, 1]`, `s`, `MiB`
    better: Literal["higher", "lower", "neither"]
    """`neither`: it describes, such as what an editor preserved, and ranks nothing."""
    definition: str
    _: KW_ONLY
    source: str = ""  # where it comes from; empty if from here
    needs: tuple[Need, ...] = ()
    """Without any of these it is NaN, and the row says which is missing."""
    digits: int = 3
    """Digits after the point in tables; the page, which has less room, drops one where there are several."""
    shown_in: tuple[Place, ...] = ()
    """Tables that have a column for it; the page lists every other metric that was measured in a second table."""

    @property
    def page_digits(self) -> int:
        """Digits after the point in the page's first table."""
        return self.digits - 1 if self.digits > 1 else self.digits


NERF2NERF = "Instruct-NeRF2NeRF (Haque et al. 2023, arXiv 2303.12789)"

TRUTH: tuple[Need, ...] = ("truth",)
ALL_PLACES: tuple[Place, ...] = ("show", "diff", "page", "paper")

METRICS: dict[str, Metric] = {
    "progress": Metric(
        "progress",
        "share",
        "higher",
        (
            "1 - mean|E - T| / mean|S - T| inside R; 0 nothing done, 1 perfect, below 0 the wrong way. Of graded "
            "photographs B and B graded stand for S and T, so that the error of the fit is not in it."
        ),
        needs=TRUTH,
        shown_in=ALL_PLACES,
    ),
    "fit_error": Metric(
        "fit error",
        "share",
        "neither",
        "Mean |B - S| / mean |S - T| inside R: what the unedited scene is off, by what truth changes.",
        needs=TRUTH,
        shown_in=("show", "page"),
    ),
    "spill": Metric(
        "spill",
        "[0, 1]",
        "lower",
        "Mean |E - B| outside R, or outside of the region that an edit was given.",
        needs=TRUTH,
        digits=4,
        shown_in=ALL_PLACES,
    ),
    "mask_iou": Metric(
        "mask IoU",
        "[0, 1]",
        "higher",
        "Intersection over union of {|E - B| > 0.05} and {|T - S| > 0.05}, means over channels.",
        needs=TRUTH,
        shown_in=ALL_PLACES,
    ),
    "depth_error": Metric(
        "depth error",
        "share",
        "lower",
        "Mean |z(E) - z(T)| / z(T) inside R; a pixel that E leaves more than half empty counts as 1.",
        source="absolute relative error, Eigen et al. 2014, arXiv 1406.2283",
        needs=("truth", "depth"),
        shown_in=("show",),
    ),
    "psnr_db": Metric(
        "PSNR", "dB", "higher", "Of E against T, whole view.", needs=TRUTH, digits=1, shown_in=ALL_PLACES
    ),
    "psnr_inside_db": Metric("PSNR inside", "dB", "higher", "Of E against T inside R.", needs=TRUTH, digits=1),
    "psnr_outside_db": Metric(
        "PSNR outside",
        "dB",
        "higher",
        "Of E against T outside R, where truth leaves everything as it was.",
        needs=TRUTH,
        digits=1,
    ),
    "ssim": Metric(
        "SSIM",
        "[-1, 1]",
        "higher",
        "Structural similarity of E and T, whole view (11x11 Gaussian window).",
        source="Wang et al. 2004",
        needs=TRUTH,
    ),
    "ssim_inside": Metric(
        "SSIM inside", "[-1, 1]", "higher", "Mean of the SSIM map of E and T over the pixels of R.", needs=TRUTH
    ),
    "ssim_outside": Metric(
        "SSIM outside", "[-1, 1]", "higher", "Mean of the SSIM map of E and T over the pixels outside R.", needs=TRUTH
    ),
    "clip_text": Metric(
        "CLIP text",
        "cosine",
        "higher",
        "cos(C(E), C(target caption)).",
        source="CLIPScore without its factor 2.5, Hessel et al. 2021, arXiv 2104.08718",
        needs=("captions", "clip"),
    ),
    "clip_direction": Metric(
        "CLIP dir",
        "cosine",
        "higher",
        "cos(C(E) - C(B), C(target caption) - C(source caption)); its sign is kept.",
        source="StyleGAN-NADA (Gal et al. 2021, arXiv 2108.00946); for scenes " + NERF2NERF,
        needs=("captions", "clip"),
        shown_in=("show", "paper"),
    ),
    "clip_image": Metric(
        "CLIP image",
        "cosine",
        "neither",
        "cos(C(E), C(B)): how much looks as before. Doing nothing scores 1.",
        source="InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800)",
        needs=("clip",),
    ),
    "frame_consistency": Metric(
        "frame consistency",
        "cosine",
        "higher",
        "Mean cos(C(e_i), C(e_i+1)) over neighbouring frames e of an orbit; the source is not asked.",
        source="Gen-1 (Esser et al. 2023, arXiv 2302.03011)",
        needs=("clip",),
    ),
    "step_consistency": Metric(
        "step consistency",
        "cosine",
        "higher",
        "Mean cos(C(o_i+1) - C(o_i), C(e_i+1) - C(e_i)) over neighbouring frames of an orbit, o unedited.",
        source=NERF2NERF + ", appendix C as issue 28 of its repository reads it",
        needs=("clip",),
    ),
    "edit_consistency": Metric(
        "edit consistency",
        "cosine",
        "higher",
        "Mean cos(C(e_i) - C(o_i), C(e_i+1) - C(o_i+1)) over neighbouring frames of an orbit, o unedited.",
        source=NERF2NERF + ", appendix C as issue 91 of its repository reads it, beside the other",
        needs=("clip",),
        shown_in=("show",),
    ),
    "typeset_consistency": Metric(
        "typeset consistency",
        "dot product",
        "higher",
        "Mean (C(e_i) - C(o_i)) . (C(e_i+1) - C(e_i)) over neighbouring frames of an orbit, o unedited.",
        source=NERF2NERF + ", appendix C as it is printed, which issue 28 of its repository calls a writing error",
        needs=("clip",),
        digits=4,
    ),
    "dino_before": Metric(
        "DINO before",
        "cosine",
        "neither",
        "Cosine of the DINO features of E and B: how much looks as before. Doing nothing scores 1.",
        source="DINOv2 (Oquab et al. 2023, arXiv 2304.07193)",
        needs=("dino",),
    ),
    "dino_truth": Metric(
        "DINO truth",
        "cosine",
        "higher",
        "Cosine of the DINO features of E and T.",
        source="DINOv2 (Oquab et al. 2023, arXiv 2304.07193)",
        needs=("truth", "dino"),
    ),
    "lpips": Metric(
        "LPIPS",
        "distance",
        "lower",
        "Learned perceptual distance of E and T (AlexNet, version 0.1).",
        source="Zhang et al. 2018, arXiv 1801.03924",
        needs=("truth", "lpips"),
    ),
    "no_op": Metric(
        "no-ops",
        "0 or 1",
        "lower",
        "1 if mean |E - B| inside R is below a tenth of mean |S - T| there (`CompareConfig.no_op_share`).",
        needs=TRUTH,
        digits=0,
        shown_in=("show",),
    ),
    "wrong_way": Metric(
        "wrong way",
        "0 or 1",
        "lower",
        "1 if it is no no-op and progress is below 0.",
        needs=TRUTH,
        digits=0,
        shown_in=("show",),
    ),
    "is_capped": Metric(
        "capped",
        "0 or 1",
        "neither",
        "1 if the method was stopped by the study's time cap; the scene as it then was is what is scored.",
        digits=0,
    ),
    "seconds": Metric(
        "seconds", "s", "lower", "Of the method, editor included, without scoring.", digits=1, shown_in=ALL_PLACES
    ),
    "peak_memory_mb": Metric(
        "memory",
        "MiB",
        "lower",
        (
            "Most that the process held during the edit, libraries and models included; since the process began "
            "where the system's mark cannot be set back (`cost.peak_memory_of` says so)."
        ),
        digits=0,
        shown_in=("page",),
    ),
}
"""By the name in rows, in the order of tables. The device of a result is in its record (`cost.device`)."""

COST_METRICS = ("seconds", "peak_memory_mb", "is_capped")
"""Metrics that differ from run to run; their rows have `is_cost`."""

FLAG_METRICS = tuple(name for name, metric in METRICS.items() if metric.unit == "0 or 1")
"""Metrics that are counted, not averaged; tables show them last, the page as flags of a row."""


def metrics_shown_in(place: Place) -> tuple[str, ...]:
    """Names of the metrics that a table has columns for, in the order of columns."""
    names = [name for name, metric in METRICS.items() if place in metric.shown_in]
    return tuple(sorted(names, key=lambda name: name in FLAG_METRICS))
