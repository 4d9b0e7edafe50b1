"""Finds out why run B does worse than run A: differences on paper, stages, swaps of one part at a time, an answer.

`restage diagnose A B` calls `run_diagnose`, which writes `diagnosis.json`, tables and figures into B's folder.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from restage.diagnose.attribution import (
    Attribution,
    Share,
    StageRow,
    Swap,
    attribute,
    interval,
    ladder,
    measured_rows,
    pair_rows,
    share_of,
)
from restage.diagnose.cases import Case, Difference, describe_part, find_cases, list_differences
from restage.diagnose.parts import RunParts, differing_parts, differing_training
from restage.diagnose.trials import Attempt, DiagnosisWork, Kind, Trial, Trials
from restage.diagnose.workbench import SCENE_PARTS, Mix, Workbench
from restage.records import InputError, Progress
from restage.run.models import Models
from restage.work.engine import settings_for, work_through
from restage.work.task import EngineConfig, Task, TaskQueue

__all__ = ["MEASURES", "DiagnoseConfig", "Diagnosis", "PartResult", "diagnose", "is_to_blame", "smallest_effect"]

NONE = frozenset[str]()
AS_IT_IS: tuple[Kind, ...] = ("whole", "exact masks", "exact", "single views", "scene")
MIN_CASES = 3
MEASURES = {"progress": "progress", "psnr_db": "PSNR of the result, dB"}
"""What is explained: the first of these for which a part is to blame. Progress says how far the edit got; where it
blames nothing, the PSNR of whole views tells whether the pictures are worse, such as by a scene that is not sharp."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """How two runs are compared."""

    method: str = "restage"
    """The method whose edits are explained; a name on the menu `METHODS`."""
    max_cases: int = 6
    """Edits to try both runs on, with exact truth; scenes and kinds of edit in turn."""
    time_budget_s: float = 900.0
    """Seconds after which no further swap is begun; the same command goes on from there."""
    min_effect: float = 0.03
    """Progress below which a difference is of no interest, however sure."""
    min_effect_db: float = 0.5
    """The same for PSNR."""
    seed: int = 0
    """Seed of the edits' noise, the same for both runs."""
    editor_steps: int = 10
    """Sampling steps of the edit model, the same for both runs."""

    def __post_init__(self) -> None:
        if self.max_cases < 1 or self.time_budget_s <= 0 or self.min_effect < 0:
            raise InputError(f"expected at least one case, a time budget and min_effect >= 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """One part that differs, and what it has to do with the difference."""

    share: Share
    within: str  # the part that it is part of; empty for none
    detail: str  # the way in which it differs, with numbers


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything found; `words` and `figure` show it."""

    runs: dict[str, Path]
    cases: list[Case]
    config: DiagnoseConfig
    measure: str  # the measure that is explained, one of `MEASURES`
    means: dict[str, float]  # mean of the measure in `A` and `B`
    attribution: Attribution
    parts: list[PartResult]  # parts and, after each that was looked into, what it is made of
    ladder: dict[str, Any]
    stages: list[StageRow]
    differences: list[Difference]
    limits: list[str]
    seconds: float  # CPU time of all trials, trainings and fits that it stands on


@dataclass
class _Search:
    """A diagnosis under way: an engine makes the trials that it asks for, group by group."""

    work: DiagnosisWork
    config: DiagnoseConfig
    engine: EngineConfig
    cases: list[Case]
    started_s: float = field(default_factory=time.monotonic)
    limits: list[str] = field(default_factory=list)

    @property
    def scenes(self) -> dict[str, str]:
        return {case.name: case.scene for case in self.cases}

    def is_late(self, share: float = 1.0) -> bool:
        return time.monotonic() - self.started_s > share * self.config.time_budget_s

    def try_groups(
        self, stage: str, groups: Mapping[str, Sequence[Attempt]], *, share: float = 1.0, num_sure: int = 0
    ) -> Generator[Progress, None, list[str]]:
        """Make all trials of some groups, whose trials are of use only together; returns the groups that are made.

        Of the groups after the first `num_sure`, none is begun once this share of the time is used up.
        """
        tasks, needs, members = list[Task[Any]](), dict[int, list[int]](), dict[str, set[int]]()
        known: dict[Path, int] = {}

        def add(item: Mix | Attempt, kind: str, path: Path | None) -> int:
            """Number of a task; equal ones, known by where their result lies, are one."""
            if path is None or path not in known:
                tasks.append(Task(index=len(tasks), kind=kind, item=item))
            return len(tasks) - 1 if path is None else known.setdefault(path, len(tasks) - 1)

        bench = self.work.bench
        for name, attempts in groups.items():
            members[name] = set()
            for attempt in attempts:
                mixes = bench.mixes(attempt.case, attempt.from_b)
                needed = [add(mix, mix.kind, bench.folder_of(mix)) for mix in mixes]
                index = add(attempt, stage, self.work.path(attempt))
                needs[index] = needed
                members[name] |= {index, *needed}
        missing = [task.index for task in tasks if self.work.found(task) is None]
        queue = TaskQueue(tasks, missing, max_attempts=self.engine.max_attempts, needs=needs)
        unsure = list(groups)[num_sure:]

        def leave() -> None:
            """Take groups that are not begun out of the queue; what a group that is begun needs stays."""
            if self.is_late(share):
                untouched = {*queue.waiting, *queue.blocked}
                kept = [members[name] for name in groups if name not in unsure or not todo[name] <= untouched]
                queue.drop(untouched - set().union(*kept))

        todo = {name: found & set(missing) for name, found in members.items()}
        leave()
        settings = settings_for(self.work, self.engine, device=self.work.trials.device)
        for step in work_through(queue, settings, self.engine):
            yield step
            leave()
        return [name for name, found in todo.items() if not found & queue.dropped]

    def results(self, attempts: Sequence[Attempt]) -> dict[str, Trial]:
        return {attempt.case.name: self.work.trial(attempt) for attempt in attempts}

    def whole(self, from_b: frozenset[str]) -> list[Attempt]:
        """Every case edited with these parts from B."""
        return [Attempt(case=case, kind="whole", from_b=from_b) for case in self.cases]


def diagnose(
    a: RunParts,
    b: RunParts,
    *,
    folder: Path,
    models: Models,
    config: DiagnoseConfig,
    cache: Path | None = None,
    engine: EngineConfig | None = None,
    device: str = "cpu",
) -> Generator[Progress, None, Diagnosis]:
    """Compare two runs, scenes being fitted and edited on a device; the generator returns the diagnosis."""
    cases = find_cases(a.path.resolve(), b.path.resolve(), config.max_cases)
    bench, top = _prepare(a, b, cases, folder, models.edit_model)
    work = DiagnosisWork(bench, Trials(cache or folder / "trials", config.seed, config.editor_steps, device))
    search = _Search(work, config, engine or EngineConfig(), cases)
    search.limits += [f"not looked at: {run.unread}" for run in (a, b) if run.unread]
    trials = yield from _try_as_they_are(search, frozenset(top))
    whole = trials["whole"]
    everything = frozenset(top)
    exchanges = yield from _swap(search, {part: (frozenset({part}), everything - {part}) for part in top})
    attributions = {
        measure: attribute(
            _values(whole["A"], measure),
            _values(whole["B"], measure),
            [_swap_in(measure, part, exchanges, search) for part in exchanges],
            search.scenes,
        )
        for measure in MEASURES
    }
    measure = _choose_measure(attributions, config)
    attribution, values = attributions[measure], {side: _values(whole[side], measure) for side in "AB"}
    parts = yield from _look_into(search, attribution, measure, values, everything)
    return Diagnosis(
        runs={"A": a.path, "B": b.path},
        cases=search.cases,
        config=config,
        measure=measure,
        means={side: interval(found, search.scenes).mean for side, found in values.items()},
        attribution=attribution,
        parts=parts,
        ladder=ladder(trials, search.scenes),
        stages=[*pair_rows(bench.runs, models.clip), *measured_rows(trials, search.scenes)],
        differences=list_differences(a, b, search.cases),
        limits=search.limits,
        seconds=sum(work.trials.used_s.values(), bench.seconds()),
    )


def _prepare(
    a: RunParts, b: RunParts, cases: list[Case], folder: Path, start: Path
) -> tuple[Workbench, tuple[str, ...]]:
    """The workbench, and the parts that differ at the top."""
    bench = Workbench({"A": a, "B": b}, (), folder, start)
    scene_parts = {
        part
        for case in cases
        for part in bench.scene_parts(case.folders["A"]).differences(bench.scene_parts(case.folders["B"]))
    }
    top = (*differing_parts(a, b), *(("scenes",) if scene_parts else ()))
    training = differing_training(a, b) if "edit_model" in top else ()
    bench.differing = (*top, *training, *(part for part in SCENE_PARTS if part in scene_parts))
    return bench, top


def _try_as_they_are(
    search: _Search, everything: frozenset[str]
) -> Generator[Progress, None, dict[str, dict[str, dict[str, Trial]]]]:
    """Trials of both runs, case by case; as many cases as a third of the time allows, but at least three."""
    sides, cases = {"A": NONE, "B": everything}, search.cases
    groups = {
        case.name: [Attempt(case=case, kind=kind, from_b=from_b) for kind in AS_IT_IS for from_b in sides.values()]
        for case in cases
    }
    made = yield from search.try_groups("stages", groups, share=1 / 3, num_sure=MIN_CASES)
    search.cases = [case for case in cases if case.name in made]
    if len(made) < len(cases):
        search.limits.append(f"time allowed for {len(made)} of {len(cases)} cases; raise --time-budget for more")
    return {
        kind: {
            side: search.results([Attempt(case=case, kind=kind, from_b=from_b) for case in search.cases])
            for side, from_b in sides.items()
        }
        for kind in AS_IT_IS
    }


def _values(trials: dict[str, Trial], measure: str) -> dict[str, float]:
    return {case: trial.numbers[measure] for case, trial in trials.items()}


_Exchanges = dict[str, tuple[list[Attempt], list[Attempt]]]
"""By the part that is exchanged, the trials of A with B's part and of B with A's part."""


def _swap(
    search: _Search, parts: Mapping[str, tuple[frozenset[str], frozenset[str]]]
) -> Generator[Progress, None, _Exchanges]:
    """Exchange each part by itself, in both directions, as far as time allows."""
    found = {part: (search.whole(a_with_b), search.whole(b_with_a)) for part, (a_with_b, b_with_a) in parts.items()}
    made = yield from search.try_groups("swaps", {part: [*one, *other] for part, (one, other) in found.items()})
    for part in [part for part in found if part not in made]:
        search.limits.append(f"no time was left to swap {part}; run the same command again to go on")
    return {part: exchange for part, exchange in found.items() if part in made}


def _swap_in(measure: str, part: str, exchanges: _Exchanges, search: _Search) -> Swap:
    """What the trials of an exchange say in one measure."""
    forward, reverse = (_values(search.results(found), measure) for found in exchanges[part])
    return Swap(component=part, a_with_b=forward, b_with_a=reverse)


def smallest_effect(measure: str, config: DiagnoseConfig) -> float:
    """Returns the difference of a measure below which it is of no interest."""
    return config.min_effect if measure == "progress" else config.min_effect_db


def is_to_blame(share: Share, measure: str, config: DiagnoseConfig, *, num_parts: int) -> bool:
    """Whether a part makes a difference, either way: beyond its noise, and more than is of no interest.

    With several parts the interval is widened as Bonferroni asks, so that one in twenty diagnoses of equal runs
    blames something, however many parts there are; twice as much for PSNR, which is looked at second.
    """
    num_tests = num_parts * (1 if measure == "progress" else 2)
    return share.share.is_clear_of(num_tests) and abs(share.share.mean) >= smallest_effect(measure, config)


def _choose_measure(attributions: Mapping[str, Attribution], config: DiagnoseConfig) -> str:
    """The first measure for which a part is to blame, else the first in which the runs differ at all."""
    for measure, found in attributions.items():
        if any(is_to_blame(share, measure, config, num_parts=len(found.shares)) for share in found.shares):
            return measure
    for measure, found in attributions.items():
        is_clear = found.total.is_clear_of(1 if measure == "progress" else 2)
        if is_clear and abs(found.total.mean) >= smallest_effect(measure, config):
            return measure
    return "progress"


def _look_into(
    search: _Search,
    attribution: Attribution,
    measure: str,
    values: dict[str, dict[str, float]],
    everything: frozenset[str],
) -> Generator[Progress, None, list[PartResult]]:
    """Look into what the parts that make a difference are made of."""
    bench, num_parts = search.work.bench, len(attribution.shares)
    guilty = [
        share.component
        for share in attribution.shares
        if share.component in ("edit_model", "scenes")
        and is_to_blame(share, measure, search.config, num_parts=num_parts)
    ]
    inner_parts = {part: list(_inner_parts(bench, part)) for part in guilty}
    exchanges = yield from _swap(
        search,
        {
            inner: (
                frozenset({inner}),
                everything | {"masks of A"}
                if inner == "masks"
                else (everything - {part}) | ({name for name, _ in found} - {inner, "masks"}),
            )
            for part, found in inner_parts.items()
            for inner, is_only in found
            if not is_only
        },
    )
    results = []
    for share in attribution.shares:
        part = share.component
        results.append(PartResult(share=share, within="", detail=_detail(search, part)))
        for inner, is_only in inner_parts.get(part, ()):
            if is_only:
                found = replace(share, component=inner)
            elif inner in exchanges:
                swap = _swap_in(measure, inner, exchanges, search)
                found = share_of(swap, values["A"], values["B"], search.scenes)
            else:
                continue
            results.append(PartResult(share=found, within=part, detail=_detail(search, inner)))
    return results


def _detail(search: _Search, part: str) -> str:
    runs = search.work.bench.runs
    return describe_part(part, runs["A"], runs["B"], search.cases)


def _inner_parts(bench: Workbench, part: str) -> Iterator[tuple[str, bool]]:
    """Parts of a part that differ, and whether it is the only one, so that no swap is needed."""
    kinds = SCENE_PARTS if part == "scenes" else ("captions", "selection", "pictures", "training")
    found = [inner for inner in kinds if inner in bench.differing]
    if part == "edit_model":
        yield "masks", False
    for inner in found:
        yield inner, len(found) == 1
