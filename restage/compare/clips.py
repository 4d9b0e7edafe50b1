"""How good the edit of a clip is: by exact truth where the clip is of the world, and by the metrics of papers.

Long clips are measured in stretches, so that memory does not grow with them. Called after an edit and by benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from restage.clips.files import ClipRecord, StoredClip, open_clip
from restage.clips.flow import ClipFlow, Traced, estimate_flow, look_up
from restage.compare.judges import Judges
from restage.compare.metrics import frame_consistency, progress, spill, text_similarity
from restage.edit.clips.job import spans
from restage.edit.editors.grade import grade_views, read_grade
from restage.edit.pictures import write_image
from restage.records import EditRequest, InputError, read_json, write_json
from restage.run.layout import CLIP_FRAMES, CLIP_TRUTH, EDIT_RECORD, IMAGES, MASKS, TRUTH
from restage.run.reading import EditRecord
from restage.scenes.io.images import list_images, read_head

__all__ = ["CLIP_METRICS", "ClipMetric", "ClipScores", "describe_scores", "judge_clip", "motion_fidelity"]
__all__ += ["point_spread", "read_clip_scores", "score_clip", "scores_path", "track_error", "warp_error"]

Frames = Float[Tensor, "n 3 h w"]

STRETCH, STRETCH_PIXELS = 24, 24 * 512 * 512
"""Frames and pixels that are measured at once, at most; two stretches share one frame."""
SEEN_TWICE = 2
FIRST_OBJECT = 2
"""Object id from which on a pixel shows an object of the world; below it are sky and ground."""
GRID, MAX_TRACKS = 8, 1024
"""Distance in pixels between tracks that motion fidelity compares, and about how many there are at most, as each is
compared with all of the other clip. Small frames have them closer together."""


class ClipMetric(NamedTuple):
    """A metric of clips, as tables show it."""

    label: str
    is_high_good: bool
    needs_truth: bool
    definition: str


CLIP_METRICS: dict[str, ClipMetric] = {
    "progress": ClipMetric("progress", True, True, "how far from source to truth, inside of what truth changes"),
    "spill": ClipMetric("spill", False, True, "mean change outside of what truth changes"),
    "spread": ClipMetric(
        "spread", False, False, "RMS over frames of the color of a point inside of the edit, less that of the true clip"
    ),
    "warp_error": ClipMetric("warp error", False, False, "mean difference of a point from one frame to the next"),
    "track_error_px": ClipMetric("track error (px)", False, True, "how far tracks on objects are from the true ones"),
    "text_alignment": ClipMetric("text alignment", True, False, "CLIP: frames and the caption after the edit"),
    "frame_consistency": ClipMetric("frame consistency", True, False, "CLIP: neighboring frames"),
    "motion_fidelity": ClipMetric("motion fidelity", True, False, "tracks of the edited clip against the source's"),
    "q_edit": ClipMetric("Q_edit", True, False, "text alignment over warp error by estimated flow (FLATTEN)"),
}


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """What was measured of the edit of a clip."""

    values: Mapping[str, float | None]
    """By the names of `CLIP_METRICS`; None where it could not be measured."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why something is None."""
    progress: tuple[float | None, ...] = ()
    """By frame; empty without truth."""
    spill: tuple[float | None, ...] = ()
    has_exact_flow: bool = False
    """Whether points were followed by exact flow, depth and ids, and not by estimated flow."""


class Stretch(NamedTuple):
    """Some frames of a clip with all that is known of them."""

    source: Frames
    edited: Frames
    truth: Frames | None
    regions: Float[Tensor, "n h w"] | None
    """1 where truth changes a pixel."""
    tracks: list[Traced]
    """Where each frame shows the points of the first one."""
    steps: list[Traced]
    """Where the next frame shows the points of a frame."""
    object_ids: Int[Tensor, "n h w"] | None


# --- metrics --------------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """How much the color of points differs between frames."""

    value: float  # RMS over points and frames; NaN where no point is seen twice
    picture: Float[Tensor, "h w"]
    """By pixel of the first frame; NaN where a point does not count."""


def point_spread(frames: Frames, tracks: Sequence[Traced], where: Bool[Tensor, "h w"]) -> Spread:
    """RMS deviation of a point's color from its mean over the frames that see it, for points of the first frame.

    A matte point has one true color, so what differs is what frames do not agree on.
    """
    colors = torch.stack([look_up(frame, track.flow) for frame, track in zip(frames, tracks, strict=True)])
    seen = torch.stack([track.is_seen for track in tracks])[:, None].float()
    counts = seen.sum(dim=0)
    mean = (colors * seen).sum(dim=0) / counts.clamp_min(1)
    squares = ((colors - mean).square() * seen).sum(dim=0).mean(dim=0) / counts[0].clamp_min(1)
    counted = where & (counts[0] >= SEEN_TWICE)
    picture = torch.where(counted, squares.sqrt(), torch.nan)
    return Spread(float(squares[counted].mean().sqrt()) if bool(counted.any()) else math.nan, picture)


def warp_error(frames: Frames, steps: Sequence[Traced]) -> float:
    """Mean |E_i+1 at where a point went - E_i| over points that both frames see; NaN for a single frame."""
    total, count = 0.0, 0
    for frame, after, step in zip(frames[:-1], frames[1:], steps, strict=True):
        errors = (look_up(after, step.flow) - frame).abs().mean(dim=0)[step.is_seen]
        total, count = total + float(errors.sum()), count + len(errors)
    return total / count if count else math.nan


def track_error(edited: ClipFlow, tracks: Sequence[Traced], where: Bool[Tensor, "h w"]) -> float:
    """Mean distance in pixels of tracks found in the edited clip from the true ones, while these are seen."""
    found = torch.zeros_like(tracks[0].flow)
    total, count = 0.0, 0
    for index, track in enumerate(tracks[1:]):
        found = found + look_up(edited.forward[index], found)
        chosen = where & track.is_seen
        total += float((found - track.flow).norm(dim=0)[chosen].sum())
        count += int(chosen.sum())
    return total / count if count else math.nan


MOVES_PX = 0.1
"""Below this a point stands still from one frame to the next."""


def motion_fidelity(source: ClipFlow, edited: ClipFlow) -> float:
    """How well each track of one clip is found in the other, both ways (Yatim et al. 2023, arXiv 2311.17009).

    The mean over tracks of the best correlation with a track of the other clip, `corr = 1/F sum_k cos(v_k, v'_k)`, of
    steps v from frame to frame. Published for tracks of a tracker on what moves; here tracks follow estimated flow, and
    two points that both stand still count as going the same way.
    """
    steps, moving = zip(*(_track_steps(flow) for flow in (source, edited)), strict=True)
    cosines = torch.einsum("ftc,fsc->fts", *(functional.normalize(part, dim=2) for part in steps))
    both_still = ~moving[0][:, :, None] & ~moving[1][:, None]
    both_move = moving[0][:, :, None] & moving[1][:, None]
    correlation = torch.where(both_still, 1.0, torch.where(both_move, cosines, 0.0)).mean(dim=0)
    return float((correlation.amax(dim=0).mean() + correlation.amax(dim=1).mean()) / 2)


def _track_steps(flow: ClipFlow) -> tuple[Float[Tensor, "f t 2"], Bool[Tensor, "f t"]]:
    """Steps of tracks from a grid of points of the first frame."""
    height, width = flow.forward.shape[2:]
    stride = max(1, min(GRID, min(height, width) // 8), math.ceil(math.sqrt(height * width / MAX_TRACKS)))
    total, steps = torch.zeros_like(flow.forward[0]), []
    for step in flow.forward:
        moved = look_up(step, total)
        total = total + moved
        steps.append(moved[:, stride // 2 :: stride, stride // 2 :: stride].flatten(1).T)
    found = torch.stack(steps)
    return found, found.norm(dim=2) > MOVES_PX


# --- a whole clip ---------------------------------------------------------------------------------------------------


def score_clip(
    stretches: Iterator[Stretch], request: EditRequest, judges: Judges, *, has_exact_flow: bool
) -> tuple[ClipScores, Float[Tensor, "h w"] | None]:
    """Measure the edit of a clip; also returns a picture of the spread, from the first stretch."""
    parts: dict[str, list[tuple[float, int]]] = {name: [] for name in CLIP_METRICS}
    curves: dict[str, list[float]] = {"progress": [], "spill": []}
    picture, is_first = None, True
    for part in stretches:
        fresh = slice(0 if is_first else 1, None)  # the first frame was the last one of the stretch before
        weight = len(part.edited)
        flows = [estimate_flow(frames) for frames in (part.source, part.edited)]
        estimated = warp_error(part.edited, [flows[0].trace(i, i + 1) for i in range(weight - 1)])
        found = {
            "warp_error": warp_error(part.edited, part.steps),
            "motion_fidelity": motion_fidelity(*flows) if weight > 1 else math.nan,
        }
        where = torch.ones_like(part.edited[0, 0], dtype=torch.bool)
        if part.truth is not None and part.regions is not None:
            for name, measured in (
                ("progress", progress(part.edited, part.source, part.truth, part.regions)),
                ("spill", spill(part.edited, part.source, part.regions)),
            ):
                curves[name] += measured.per_view[fresh]
            where = part.regions[0] > 0.5
        spread = point_spread(part.edited, part.tracks, where)
        reference = part.source if part.truth is None else part.truth
        found["spread"] = spread.value - point_spread(reference, part.tracks, where).value
        if part.object_ids is not None:
            found["track_error_px"] = track_error(flows[1], part.tracks, part.object_ids[0] >= FIRST_OBJECT)
        if judges.clip is not None:
            embedded = judges.clip.encode_images(part.edited)
            found["frame_consistency"] = frame_consistency(embedded).mean if weight > 1 else math.nan
            if request.target_caption:
                text = judges.clip.encode_text([request.target_caption])[0]
                found["text_alignment"] = text_similarity(embedded, text).mean
                found["q_edit"] = found["text_alignment"] / estimated if estimated > 0 else math.nan
        for name, value in found.items():
            if not math.isnan(value):
                parts[name].append((value, weight))
        picture, is_first = spread.picture if is_first else picture, False
    values: dict[str, float | None] = {}
    for name, rows in parts.items():
        total = sum(weight for _, weight in rows)
        values[name] = sum(value * weight for value, weight in rows) / total if total else None
    for name, curve in curves.items():
        scored = [value for value in curve if not math.isnan(value)]
        values[name] = math.fsum(scored) / len(scored) if scored else None
    reasons = {name: _reason(name, request, judges) for name, value in values.items() if value is None}
    by_frame = {name: tuple(None if math.isnan(v) else v for v in curve) for name, curve in curves.items()}
    return ClipScores(values=values, reasons=reasons, has_exact_flow=has_exact_flow, **by_frame), picture


def _reason(name: str, request: EditRequest, judges: Judges) -> str:
    if name in ("text_alignment", "q_edit") and not request.target_caption:
        return "the request has no caption of what the clip shows after it; give --target-caption"
    if name in ("text_alignment", "q_edit", "frame_consistency") and judges.clip is None:
        return judges.missing.get("clip", "no CLIP at hand")
    if CLIP_METRICS[name].needs_truth:
        return "no exact truth of this clip is known, or truth changes all or nothing of it"
    return "no point is seen in two frames"


def scores_path(run: Path, record_id: str) -> Path:
    """Where the scores of a result lie, beside a picture of its spread with the ending .png."""
    return run / "compare" / "clips" / f"{record_id}.json"


def read_clip_scores(run: Path, record_id: str) -> ClipScores | None:
    """The scores of a result; None where it was not measured."""
    path = scores_path(run, record_id)
    return read_json(path, ClipScores) if path.is_file() else None


def judge_clip(run: Path, result: Path, judges: Judges) -> ClipScores:
    """Measure a finished result of a run and write its scores, unless that was done before."""
    record = read_json(result / EDIT_RECORD, EditRecord)
    if record.problem or record.request is None:
        raise InputError(f"{result} holds no finished edit of a clip: {record.reason or 'not done'}")
    if (known := read_clip_scores(run, record.id)) is not None:
        return known
    clip = open_clip(run / "scenes" / record.scene)
    edited = StoredClip(result, tuple(list_images(result / CLIP_FRAMES)), ClipRecord())
    truth = _true_frames(clip, record)
    exact = _exact_flow(clip.folder if truth is None else truth)
    stretches = _stretches(clip, edited, truth, exact, record.request)
    scores, picture = score_clip(stretches, record.request, judges, has_exact_flow=exact is not None)
    if picture is not None:
        write_image(scores_path(run, record.id).with_suffix(".png"), draw_spread(picture))
    write_json(scores_path(run, record.id), scores)
    return scores


def describe_scores(result: Path) -> Iterator[str]:
    """What was measured of a result, a line for each metric that has a value."""
    record = read_json(result / EDIT_RECORD, EditRecord)
    scores = read_clip_scores(result.parents[4], record.id)
    for name, value in ({} if scores is None else scores.values).items():
        if value is not None:
            yield f"  {CLIP_METRICS[name].label} {value:.4g}: {CLIP_METRICS[name].definition}"


SPREAD_RANGE = 0.15
"""Spread at which its picture is brightest."""


def draw_spread(picture: Float[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """From dark blue for a point of one color over red to yellow; gray where no point counts."""
    share = (picture / SPREAD_RANGE).clamp(0, 1)
    colors = torch.stack([(2 * share).clamp(0, 1), (2 * share - 1).clamp(0, 1), 0.35 * (1 - share)])
    return torch.where(picture.isnan(), torch.full_like(colors, 0.85), colors.nan_to_num(0.0))


class _Exact(NamedTuple):
    flows: Float[np.ndarray, "m 2 h w"]
    is_seen: Bool[np.ndarray, "m h w"]
    object_ids: Int[np.ndarray, "n h w"]


def _exact_flow(folder: Path) -> _Exact | None:
    """Exact flow of a clip, or of what an edit should make of it, where shapes may be others."""
    path = folder / CLIP_TRUTH
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as saved:
        return _Exact(*(saved[name] for name in _Exact._fields))


def _true_frames(clip: StoredClip, record: EditRecord) -> Path | None:
    """The folder of the true frames and masks; None where there is none."""
    folder = clip.folder / TRUTH / str(record.inputs.get("truth") or record.edit)
    return folder if (folder / IMAGES).is_dir() else None


def _stretches(
    clip: StoredClip, edited: StoredClip, truth: Path | None, exact: _Exact | None, request: EditRequest
) -> Iterator[Stretch]:
    if len(edited) != len(clip):
        raise InputError(f"{edited.folder}: expected {len(clip)} frames, got {len(edited)}")
    known = None
    if truth is not None:
        known = [StoredClip(truth, tuple(list_images(truth / part)), ClipRecord()) for part in (IMAGES, MASKS)]
    width, height = read_head(clip.frame_paths[0])[:2]
    for span in spans(len(clip), max(2, min(STRETCH, STRETCH_PIXELS // (width * height))), 1):
        source = clip.read(span)
        true_frames = regions = None
        if known is not None:
            true_frames, regions = known[0].read(span), known[1].read(span)[:, 0]
        elif (graded := _graded(source, request)) is not None:
            true_frames, regions = graded, ((graded - source).abs().amax(dim=1) > 3 / 255).float()
        tracks, steps = _follow(source, exact, span)
        ids = None if exact is None else torch.from_numpy(exact.object_ids[span.start : span.stop])
        yield Stretch(source, edited.read(span), true_frames, regions, tracks, steps, ids)


def _graded(source: Frames, request: EditRequest) -> Frames | None:
    """The exact truth of a grade of whole frames; None for other instructions."""
    try:
        asked = read_grade(request.instruction)
    except InputError:
        return None
    return None if asked.subject else grade_views(source, request.instruction).images


def _follow(source: Frames, exact: _Exact | None, span: range) -> tuple[list[Traced], list[Traced]]:
    """Where the points of the first frame are in each, and those of each frame in the next."""
    count = len(source)
    if exact is None:
        flow = estimate_flow(source)
        return [flow.trace(0, i) for i in range(count)], [flow.trace(i, i + 1) for i in range(count - 1)]
    steps = [Traced(torch.from_numpy(exact.flows[i]), torch.from_numpy(exact.is_seen[i])) for i in span[: count - 1]]
    ids = torch.from_numpy(exact.object_ids[span.start : span.stop])
    total, seen = torch.zeros(2, *source.shape[2:]), torch.ones(source.shape[2:], dtype=torch.bool)
    tracks = [Traced(total, seen)]
    for index, step in enumerate(steps, start=1):
        seen = seen & (look_up(step.is_seen[None].float(), total)[0] > 0.999)
        total = total + look_up(step.flow, total)
        for own in ids[0].unique():  # at edges a color would be a mixture of two things
            is_own = look_up((ids[index] == own)[None].float(), total)[0] > 0.999
            seen = seen & (is_own | (ids[0] != own))
        tracks.append(Traced(total, seen))
    return tracks, steps
