"""What a run holds, in lines for a terminal: `restage ls` and `restage show`. Reads the run's records, nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.records import InputError, read_json
from restage.run.layout import PAGE, RUN_RECORD, SCORES, STAGES, is_stage_done
from restage.run.reading import RunRecord, read_fits, read_marks, read_results, read_run_record
from restage.scores.rows import read_scores
from restage.scores.tables import markdown_table, method_table

__all__ = ["describe_run", "find_runs", "list_runs"]

MAX_EDIT_LINES = 24
"""Edits that are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class CampaignStatus:
    """What `restage show` says of a `campaign.json`."""

    status: str
    pairs: Mapping[str, int]
    acceptance: float
    workers: int
    pairs_per_s: float
    pairs_per_s_by_device: Mapping[str, float]
    hours_left: float | None = None
    failures: Mapping[str, int] = field(default_factory=dict)


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder` and up to two levels below, by name."""
    candidates = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
    return [path for path in candidates if (path / RUN_RECORD).is_file()]


def list_runs(folder: Path) -> list[str]:
    """One line for each run: where, status, stages done, time."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; say where runs are, such as: restage ls runs")
    lines = []
    for path in find_runs(folder):
        done = " ".join(stage for stage in STAGES if is_stage_done(path, stage)) or "no stage yet"
        try:
            record = read_json(path / RUN_RECORD, RunRecord)
            lines.append(f"{path}  {record.status}  {record.wall_s:.0f} s  {done}")
        except InputError as error:  # one broken record must not hide the other runs
            lines.append(f"{path}  unreadable  {error}")
    return lines


def _scene_lines(run: Path) -> Iterator[str]:
    for name, fit in read_fits(run).items():
        psnr_db = fit.held_out_psnr_db
        psnr = "nothing held out" if psnr_db is None else f"{psnr_db:.1f} dB on held-out views"
        yield f"  scene {name}: {fit.num_splats} splats, {psnr}, fitted in {fit.seconds:.0f} s"
        yield from (f"    note: {text}" for text in fit.notes)


def _edit_lines(run: Path) -> Iterator[str]:
    found = read_results(run)
    if len(found) <= MAX_EDIT_LINES:
        for folder, record in found.items():
            yield f"  edit {folder.relative_to(run / 'edit').as_posix()}: {record.status}"
        return
    counts = Counter((folder.parent.name, record.status) for folder, record in found.items())
    for (contender, status), count in sorted(counts.items()):
        yield f"  {count} edits by {contender}: {status}"


def _score_lines(run: Path) -> Iterator[str]:
    """The table of methods, and how to get from one of its numbers to where it comes from."""
    if (run / SCORES).exists():
        yield from markdown_table(method_table(read_scores(run / SCORES))).splitlines()
        yield f"where a number comes from: restage show {run} --row N, the row of {SCORES}"


def _campaign_lines(run: Path) -> Iterator[str]:
    path = run / "pairs" / "campaign.json"
    if not path.exists():
        return
    found = read_json(path, CampaignStatus)
    left = f", {found.hours_left:.1f} h left" if found.hours_left and found.status == "running" else ""
    yield (
        f"  campaign {found.status}: {found.pairs.get('done', 0)} of {found.pairs.get('all', 0)} pairs, "
        f"{found.acceptance:.0%} accepted, {found.pairs_per_s:.3g} pairs/s of {found.workers} workers{left}"
    )
    yield from (f"    {name}: {pace:.3g} pairs/s" for name, pace in found.pairs_per_s_by_device.items())
    yield from (f"    failed {count} times: {reason}" for reason, count in found.failures.items())


def describe_run(run: Path) -> list[str]:
    """What a run holds: its id, each stage with its facts, its edits, its table of methods, and where to look next."""
    record, marks = read_run_record(run), read_marks(run)
    lines = [
        f"{run}: {record.id}, {record.status}, seed {record.seed}",
        f"made by: {' '.join(record.command)}  ({record.wall_s:.0f} s, {len(record.sessions)} sessions)",
    ]
    for stage in STAGES:
        if stage in marks:
            facts = "  ".join(f"{name}={_short(value)}" for name, value in marks[stage].facts.items())
            lines.append(f"{stage:<8} done  {facts}")
        elif (run / stage).exists():
            lines.append(f"{stage:<8} begun")
    lines += [*_campaign_lines(run), *_scene_lines(run), *_edit_lines(run), *_score_lines(run)]
    if (run / PAGE).exists():
        lines.append(f"page: {run / PAGE}")
    return lines


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
