"""Checks a run's pictures: captures are those that were fitted, and each number of the table is what they give."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path

from restage.audit.records import RecordsResult
from restage.records import InputError, Progress, Score, from_plain, read_json
from restage.run.findings import FileFinding
from restage.run.layout import CAPTURE, FITS, SCORES, STAGE_MARK
from restage.run.reading import FitRecord, StageMark

__all__ = ["TOLERANCE", "check_pictures"]

TOLERANCE = 2e-3
"""Difference of a number that another machine's rounding of rendered 8-bit views may bring about, relative above 1."""


def check_pictures(run: Path, result: RecordsResult) -> Generator[Progress, None, None]:
    """Hash every capture anew and score every result anew; what does not agree is added to the findings."""
    fits = sorted(run.glob(FITS))
    for done, path in enumerate(fits, start=1):
        _check_capture(run, path, result)
        yield Progress(stage="captures", done=done, total=len(fits), note=path.parent.name)
    if (run / SCORES).exists():
        yield from _check_scores(run, result)


def _check_capture(run: Path, fit_path: Path, result: RecordsResult) -> None:
    from restage.scenes.fitted import capture_sha256
    from restage.scenes.io import read_capture

    folder = fit_path.parent / CAPTURE
    name = folder.relative_to(run).as_posix()
    try:
        expected = read_json(fit_path, FitRecord).capture_sha256
        if not expected or not folder.is_dir():
            result.notes.append(f"{name}: nothing says which views were fitted")
            return
        found = capture_sha256(read_capture(folder))
    except InputError as error:
        result.findings.append(FileFinding(reason="unreadable", file=name, detail=str(error)))
        return
    if found != expected:
        detail = (
            f"views, cameras or points are not those that were fitted: {found[:16]}, fit.json holds {expected[:16]}"
        )
        result.findings.append(FileFinding(reason="changed", file=name, detail=detail))


def _check_scores(run: Path, result: RecordsResult) -> Generator[Progress, None, None]:
    """Measure again, from stored pictures, what needs neither judging models nor renders of the edited splats."""
    from restage.compare.judges import CompareConfig, Judges
    from restage.compare.stage import Scorer, find_results
    from restage.scores.definitions import COST_METRICS, METRICS
    from restage.scores.rows import read_scores

    again = {name for name, metric in METRICS.items() if metric.needs == ("truth",)} | set(COST_METRICS)
    try:
        told = {_key(score): score for score in read_scores(run / SCORES)}
        results = find_results(run)
        mark = run / "compare" / STAGE_MARK
        judged_by = read_json(mark, StageMark).config if mark.exists() else {}
        no_op_share = from_plain(judged_by.get("no_op_share", CompareConfig().no_op_share), float, where=mark)
    except InputError as error:
        result.findings.append(FileFinding(reason="unreadable", file=SCORES, detail=str(error)))
        return
    # Without judging models and orbits, whose numbers depend on weights and on the machine.
    scorer = Scorer(run, CompareConfig(no_op_share=no_op_share, orbit_frames=0), Judges())
    others = {finding.file for finding in result.findings}
    scenes = {entry.scene for entry in results if f"scenes/{entry.scene}/{CAPTURE}" in others}
    result.notes += [f"numbers of {scene}: its capture is not the one that was fitted" for scene in sorted(scenes)]
    results = [entry for entry in results if entry.scene not in scenes]
    for done, entry in enumerate(results, start=1):
        try:
            found = scorer.score(entry).scores
        except InputError as error:
            result.notes.append(f"numbers of {entry.folder.relative_to(run).as_posix()}: {error}")
            found = []
        for score in found:
            row = told.get(_key(score))
            if score.metric in again and row is not None and not math.isnan(row.value):
                result.num_scores += 1
                if math.isnan(score.value) or abs(row.value - score.value) > TOLERANCE * max(1.0, abs(score.value)):
                    who = f"{row.scene} {row.edit} {row.method}-{row.editor} seed {row.seed}"
                    what = "its record says" if row.is_cost else "the pictures give"
                    detail = f"{row.metric} of {who} is {row.value:.6g}, {what} {score.value:.6g}"
                    result.findings.append(FileFinding(reason="wrong score", file=SCORES, detail=detail))
        yield Progress(stage="scores", done=done, total=len(results), note=f"{entry.scene} {entry.edit}")


def _key(score: Score) -> tuple[str, str, str, str, int, str]:
    return score.scene, score.edit, score.method, score.editor, score.seed, score.metric
