"""What a run holds, in lines for a terminal: `restage ls` and `restage show`.

Reads the records of a run and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restage.records import InputError, read_json
from restage.run.layout import STAGES, is_stage_done

__all__ = ["describe_run", "find_runs", "list_runs"]

MAX_EDIT_LINES = 24
"""Edits that are listed one by one."""


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder` and one level below, by name."""
    candidates = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
    return [path for path in candidates if (path / "run.json").is_file()]


def _seconds(record: dict[str, Any]) -> float:
    return sum(session.get("wall_s", 0.0) for session in record.get("sessions", ()))


def list_runs(folder: Path) -> list[str]:
    """One line for each run: where, status, stages done, time.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; say where runs are, such as: restage ls runs")
    lines = []
    for path in find_runs(folder):
        record = read_json(path / "run.json")
        done = [stage for stage in STAGES if is_stage_done(path, stage)]
        lines.append(
            f"{path}  {record.get('status', '?')}  {_seconds(record):.0f} s  {' '.join(done) or 'no stage yet'}"
        )
    return lines


def _scene_lines(path: Path) -> Iterator[str]:
    for fit_path in sorted((path / "scenes").glob("*/fit.json")):
        fit = read_json(fit_path)
        psnr = (
            f"{fit['held_out_psnr_db']:.1f} dB on held-out views" if "held_out_psnr_db" in fit else "nothing held out"
        )
        yield f"  scene {fit_path.parent.name}: {fit['num_splats']} splats, {psnr}, fitted in {fit['seconds']:.0f} s"


def _edit_lines(path: Path) -> Iterator[str]:
    found = sorted((path / "edit").rglob("record.json"))
    if len(found) <= MAX_EDIT_LINES:
        for record_path in found:
            where = record_path.parent.relative_to(path / "edit")
            yield f"  edit {where.as_posix()}: {read_json(record_path).get('status', '?')}"
        return
    counts = Counter((path.parent.parent.name, read_json(path).get("status", "?")) for path in found)
    for (method, status), count in sorted(counts.items()):
        yield f"  {count} edits by {method}: {status}"


def _score_lines(path: Path) -> Iterator[str]:
    """The table of methods, and how to get from one of its numbers to where it comes from."""
    scores_path = path / "compare" / "scores.parquet"
    if scores_path.exists():
        from restage.scores.rows import read_scores
        from restage.scores.tables import markdown_table, method_table

        yield from markdown_table(method_table(read_scores(scores_path))).splitlines()
        yield f"where a number comes from: restage show {path} --row N, the row of compare/scores.parquet"


def _campaign_lines(path: Path) -> Iterator[str]:
    status_path = path / "pairs" / "campaign.json"
    if status_path.exists():
        status = read_json(status_path)
        pairs, hours = status["pairs"], status["hours_left"]
        left = f", {hours:.1f} h left" if hours and status["status"] == "running" else ""
        yield (
            f"  campaign {status['status']}: {pairs['done']} of {pairs['all']} pairs, {status['acceptance']:.0%} "
            f"accepted, {status['pairs_per_s']:.3g} pairs/s of {status['workers']} workers{left}"
        )
        for name, pace in status["pairs_per_s_by_device"].items():
            yield f"    {name}: {pace:.3g} pairs/s"
        for reason, count in status["failures"].items():
            yield f"    failed {count} times: {reason}"


def describe_run(path: Path) -> list[str]:
    """What a run holds: its id, each stage with its facts, its edits, its table of methods, and where to look next.

    Raises:
        InputError: the folder holds no run.
    """
    if not (path / "run.json").is_file():
        raise InputError(f"{path} holds no run.json; `restage ls {path.parent}` lists runs")
    record = read_json(path / "run.json")
    num_sessions = len(record.get("sessions", ()))
    lines = [
        f"{path}: {record.get('id')}, {record.get('status')}, seed {record.get('seed')}",
        f"made by: {' '.join(record.get('command', ()))}  ({_seconds(record):.0f} s, {num_sessions} sessions)",
    ]
    for stage in STAGES:
        mark = path / stage / "stage.json"
        if mark.exists():
            facts = read_json(mark).get("facts", {})
            lines.append(f"{stage:<8} done  " + "  ".join(f"{name}={_short(value)}" for name, value in facts.items()))
        elif (path / stage).exists():
            lines.append(f"{stage:<8} begun")
    lines += [*_campaign_lines(path), *_scene_lines(path), *_edit_lines(path), *_score_lines(path)]
    page = path / "report" / "index.html"
    if page.exists():
        lines.append(f"page: {page}")
    return lines


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
