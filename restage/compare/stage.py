"""The compare stage: every result of the edit stage judged on the held-out views, into rows of Score and ViewScore."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from restage.compare.config import CompareConfig
from restage.compare.judges import Judges, open_judges
from restage.compare.measure import Before, CaseViews, embed_before, load_case, load_result, measure_result, unmeasured
from restage.compare.metrics import Measured
from restage.records import DIRECT, InputError, Progress, Score
from restage.run.folder import RunFolder
from restage.run.layout import CAPTURE, SCORES, STUDY_FILES, TRUTH, VIEW_SCORES, result_folder
from restage.run.reading import EditRecord, read_results
from restage.scenes.device import made_on
from restage.scores.definitions import COST_METRICS, METRICS
from restage.scores.rows import ViewScore, write_scores, write_view_scores

__all__ = ["CompareConfig", "Contender", "JUDGED_BY", "Result", "Scorer", "Scores", "find_results", "run_compare"]
__all__ += ["write_tables"]


@dataclass(frozen=True, order=True, kw_only=True)
class Contender:
    """What competes: a method with an editor and a seed."""

    method: str
    editor: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One contender's go at one edit of one scene."""

    scene: str
    edit: str
    kind: str
    contender: Contender
    folder: Path  # where the edit stage puts it; need not exist
    record: EditRecord | None
    """What its record says; None if the edit was never finished."""

    @property
    def problem(self) -> str:
        """Why it cannot be scored; empty if it can."""
        return self.record.problem if self.record else "no result: the edit was not run or not finished"


def find_results(run_path: Path) -> list[Result]:
    """All contenders that occur anywhere in the run's edit folder, crossed with all edits that occur there."""
    records = read_results(run_path)
    if not records:
        raise InputError(f"{run_path / 'edit'} holds no finished edits; run: restage edit")
    kinds = {(record.scene, record.edit): record.kind for record in records.values()}
    results = []
    for scene, edit in sorted(kinds):
        # A direct edit competes with nothing: no method was asked for it.
        is_direct = kinds[scene, edit] == DIRECT
        for contender in sorted({_contender(r) for r in records.values() if (r.kind == DIRECT) == is_direct}):
            name = f"{contender.method}-{contender.editor}"
            folder = result_folder(run_path, scene, edit, contender=name, seed=contender.seed)
            if is_direct and folder not in records:
                continue
            where = {"scene": scene, "edit": edit, "kind": kinds[scene, edit]}
            results.append(Result(**where, contender=contender, folder=folder, record=records.get(folder)))
    return results


def _contender(record: EditRecord) -> Contender:
    return Contender(method=record.method, editor=record.editor, seed=record.seed)


JUDGED_BY = (*STUDY_FILES, "scenes/*/description.json", f"scenes/*/{CAPTURE}/**/*", f"scenes/*/{TRUTH}/**/*")
"""What numbers rest on, whoever put it there: the stage's mark holds its hashes too, so that `verify` sees changes."""


class Scores(NamedTuple):
    """The rows of results."""

    scores: list[Score]
    views: list[ViewScore]


@dataclass
class Scorer:
    """Scores results one after another; what results of the same edit share is loaded once."""

    run_path: Path
    config: CompareConfig
    judges: Judges
    device: str = "cpu"
    """Where scenes are drawn."""
    _case: tuple[tuple[str, str], CaseViews, Before] | None = None

    def score(self, result: Result) -> Scores:
        """All rows of one result; NaN with the reason where it cannot be scored."""
        if result.problem:
            return _rows(result, unmeasured(result.problem), ())
        key = result.scene, result.edit
        if self._case is None or self._case[0] != key:
            case = load_case(self.run_path, *key, self.config, self.device)
            self._case = key, case, embed_before(case, self.judges) if case.names else Before()
        _, case, before = self._case
        if not case.names:
            return _rows(result, unmeasured("the scene has no held-out views to measure on"), ())
        shown = load_result(result.folder, case, self.device)
        measured = measure_result(shown, case, before=before, judges=self.judges, config=self.config)
        return _rows(result, measured, case.names)


def run_compare(run: RunFolder, config: CompareConfig, *, device: str = "cpu") -> Iterator[Progress]:
    """Score all results of the run's edit stage, if there are any; write both tables, `scores.parquet` last.

    Scenes are drawn and judging models compute on the device.
    """
    if run.is_done("compare", config):
        yield Progress(stage="compare", done=1, total=1, note="done before")
        return
    results = find_results(run.path)
    scorer = Scorer(run.path, config, open_judges(config, device), device)
    rows = Scores([], [])
    for done, result in enumerate(results):
        found = scorer.score(result)
        rows.scores.extend(found.scores)
        rows.views.extend(found.views)
        note = f"{result.scene} {result.edit} {result.contender.method}-{result.contender.editor}"
        yield Progress(stage="compare", done=done + 1, total=len(results), note=note)
    write_tables(run, rows)
    counts = {"num_results": len(results), "num_scores": len(rows.scores)}
    run.mark_done("compare", config, also=JUDGED_BY, **counts, **made_on(device))


def write_tables(run: RunFolder, rows: Scores) -> None:
    """Write both tables of a run, each atomically; `scores.parquet` last."""
    write_view_scores(run.path / VIEW_SCORES, rows.views)
    write_scores(run.path / SCORES, rows.scores)


def _rows(result: Result, measured: dict[str, Measured], names: tuple[str, ...]) -> Scores:
    who = {"scene": result.scene, "edit": result.edit, "kind": result.kind, **asdict(result.contender)}
    found = Scores([], [])
    for metric, value in measured.items():
        found.scores.append(Score(**who, metric=metric, value=float(value.mean), reason=value.reason))
        # Numbers belong to held-out views, or to pairs of neighboring frames of the orbit.
        count = len(value.per_view)
        places = names if count == len(names) else tuple(f"orbit-{index:03d}" for index in range(count))
        for place, one in zip(places, value.per_view, strict=True):
            reason = value.reason.rpartition(": ")[2] if math.isnan(one) else ""
            found.views.append(ViewScore(**who, metric=metric, view=place, value=float(one), reason=reason))
    cost = {"is_capped": 0.0, **(result.record.cost if result.record else {})}
    for metric in COST_METRICS:
        missing = (
            result.problem if result.record is None else "" if metric in cost else result.problem or "not recorded"
        )
        value = math.nan if missing else float(cost[metric])
        found.scores.append(Score(**who, metric=metric, value=value, reason=missing, is_cost=True))
    assert {score.metric for score in found.scores} == set(METRICS)
    return found
