"""The clips of a run for its page: each edit as films that play together, with spread, curves and what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from restage.clips.files import ClipRecord, StoredClip, open_clip
from restage.clips.films import write_film
from restage.compare.clips import CLIP_METRICS, ClipMetric, ClipScores, read_clip_scores, scores_path
from restage.report.pictures import AssetFolder
from restage.report.words import format_number
from restage.run.layout import CLIP_RECORD, CLIPS, FILM, IMAGES, TRUTH
from restage.run.reading import EditRecord, read_results
from restage.scenes.io.images import list_images

__all__ = ["ClipSection", "clip_sections", "frame_curve"]


class ClipColumn(NamedTuple):
    """One result of an edit of a clip."""

    name: str  # method and editor
    film: str  # path relative to the page
    spread: str | None
    """Picture of how much the color of points differs between frames."""
    curve: Markup  # progress and spill by frame; empty without truth
    values: Mapping[str, str]
    reasons: Mapping[str, str]


class ClipSection(NamedTuple):
    """One edit of one clip."""

    clip: str
    instruction: str  # empty for a clip without an edit
    before: str
    truth: str | None
    num_frames: int
    columns: Sequence[ClipColumn]
    metrics: Mapping[str, ClipMetric]
    """Those that some result has a value of."""


def clip_sections(run: Path, assets: AssetFolder) -> list[ClipSection]:
    """Read and store what the page shows of the clips of a run; nothing for a run without any."""
    groups: dict[tuple[str, str], list[tuple[Path, EditRecord]]] = {}
    for folder, record in read_results(run).items():
        if (
            (run / "scenes" / record.scene / CLIP_RECORD).is_file()
            and not record.problem
            and record.request is not None
        ):
            groups.setdefault((record.scene, record.request.instruction), []).append((folder, record))
    edited = {clip for clip, _ in groups}
    groups |= {(path.parent.name, ""): [] for path in sorted(run.glob(CLIPS)) if path.parent.name not in edited}
    return [_section(run, clip, instruction, results, assets) for (clip, instruction), results in groups.items()]


def _section(
    run: Path, name: str, instruction: str, results: Sequence[tuple[Path, EditRecord]], assets: AssetFolder
) -> ClipSection:
    clip = open_clip(run / "scenes" / name)
    known = next((record.inputs["truth"] for _, record in results if record.inputs.get("truth")), None)
    truth_folder = clip.folder / TRUTH / str(known) / IMAGES
    truth = None
    if known and truth_folder.is_dir():
        frames = StoredClip(truth_folder, tuple(list_images(truth_folder)), ClipRecord())
        truth = _film(frames, clip.record.frames_per_s, assets, f"{name}-truth")
    columns, shown = [], set[str]()
    for folder, record in results:
        scores = read_clip_scores(run, record.id)
        values = {} if scores is None else {key: value for key, value in scores.values.items() if value is not None}
        shown |= set(values)
        spread = scores_path(run, record.id).with_suffix(".png")
        columns.append(
            ClipColumn(
                name=f"{record.method}, {record.editor}",
                film=assets.add_file(folder / FILM, f"{name}-{record.method}"),
                spread=assets.add_file(spread, f"{name}-{record.method}-spread") if spread.is_file() else None,
                curve=Markup("") if scores is None else frame_curve(scores),
                values={key: format_number(value, 3) for key, value in values.items()},
                reasons={} if scores is None else scores.reasons,
            )
        )
    return ClipSection(
        clip=name,
        instruction=instruction,
        before=_film(clip, clip.record.frames_per_s, assets, f"{name}-before"),
        truth=truth,
        num_frames=len(clip),
        columns=columns,
        metrics={key: metric for key, metric in CLIP_METRICS.items() if key in shown},
    )


def _film(clip: StoredClip, frames_per_s: float, assets: AssetFolder, label: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_film(path, (clip.read([index])[0] for index in range(len(clip))), frames_per_s=frames_per_s)
        return assets.add_file(path, label)


CURVE_WIDTH, CURVE_HEIGHT = 220, 60


def frame_curve(scores: ClipScores) -> Markup:
    """Progress by frame as a line from 0 (bottom) to 1 (top), and spill, ten times enlarged, as a broken one."""
    lines = []
    for name, factor in (("progress", 1.0), ("spill", 10.0)):
        curve = getattr(scores, name)
        step = CURVE_WIDTH / max(1, len(curve) - 1)
        points = [
            f"{index * step:.1f},{CURVE_HEIGHT * (1 - min(1.0, max(0.0, factor * value))):.1f}"
            for index, value in enumerate(curve)
            if value is not None
        ]
        if len(points) > 1:
            lines.append(f'<polyline class="{name}" points="{" ".join(points)}"/>')
    if not lines:
        return Markup("")
    size = f'viewBox="0 -2 {CURVE_WIDTH} {CURVE_HEIGHT + 4}" width="{CURVE_WIDTH}" height="{CURVE_HEIGHT}"'
    label = "progress by frame, from 0 to 1, and spill, ten times enlarged"
    return Markup(f'<svg class="clip-curve" {size} role="img" aria-label="{label}">{"".join(lines)}</svg>')
