"""Finds out why run B does worse than run A: differences on paper, stages, swaps of one part at a time, an answer.

`restage diagnose A B` calls `run_diagnose`, which writes `diagnosis.json`, tables and figures into B's folder.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from restage.diagnose.attribution import Attribution, Share, Swap, attribute, interval, share_of
from restage.diagnose.cases import Case, find_cases
from restage.diagnose.differences import Difference, describe_part, list_differences
from restage.diagnose.pair_stages import pair_rows
from restage.diagnose.parts import RunParts, differing_parts, differing_training
from restage.diagnose.stages import StageRow, ladder, measured_rows
from restage.diagnose.trials import Kind, Trial, Trials
from restage.diagnose.workbench import SCENE_PARTS, Workbench
from restage.records import InputError, Progress
from restage.run.models import Models

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
    """After so many seconds no further swap is begun; the same command goes on from there."""
    min_effect: float = 0.03
    """Progress below which a difference is of no interest, however sure."""
    min_effect_db: float = 0.5
    """The same for PSNR."""
    seed: int = 0
    """Of the edits' noise, the same for both runs."""
    editor_steps: int = 10
    """Sampling steps of the edit model, the same for both runs."""

    def __post_init__(self) -> None:
        if self.max_cases < 1 or self.time_budget_s <= 0 or self.min_effect < 0:
            raise InputError(f"expected at least one case, a time budget and min_effect >= 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """One part that differs, and what it has to do with the difference."""

    share: Share
    within: str
    """The part that it is part of; empty for none."""
    detail: str
    """How it differs, with numbers."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything found; `words` and `figure` show it."""

    runs: dict[str, Path]
    cases: list[Case]
    config: DiagnoseConfig
    measure: str
    """What is explained, of `MEASURES`."""
    means: dict[str, float]
    """Mean of the measure in `A` and `B`."""
    attribution: Attribution
    parts: list[PartResult]
    """Parts and, after each that was looked into, what it is made of."""
    ladder: dict[str, Any]
    stages: list[StageRow]
    differences: list[Difference]
    limits: list[str]
    seconds: float
    """CPU time of all trials, trainings and fits that it stands on."""


@dataclass
class _Work:
    """What is under way."""

    bench: Workbench
    trials: Trials
    config: DiagnoseConfig
    cases: list[Case]
    started_s: float = field(default_factory=time.monotonic)
    limits: list[str] = field(default_factory=list)

    @property
    def scenes(self) -> dict[str, str]:
        return {case.name: case.scene for case in self.cases}

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self.started_s > self.config.time_budget_s

    def try_case(self, case: Case, kind: Kind, from_b: frozenset[str]) -> Generator[Progress, None, Trial]:
        setup = yield from self.bench.setup(case, from_b)
        return self.trials.run(setup, kind, 0)

    def try_all(self, from_b: frozenset[str], note: str) -> Generator[Progress, None, dict[str, Trial]]:
        """Edit every case with these parts from B."""
        found = {}
        for number, case in enumerate(self.cases):
            found[case.name] = yield from self.try_case(case, "whole", from_b)
            yield Progress(stage="swaps", done=number + 1, total=len(self.cases), note=f"{note}, {case.name}")
        return found


def diagnose(
    a: RunParts, b: RunParts, *, folder: Path, models: Models, config: DiagnoseConfig, cache: Path | None = None
) -> Generator[Progress, None, Diagnosis]:
    """Compare two runs; the generator returns the diagnosis.

    Args:
        a: The run that is taken for good.
        b: The run to explain.
        folder: Where what is tried, trained and fitted here is kept.
        models: The edit model that both runs' training went on from, and the CLIP that pairs are looked at with.
        config: How to compare.
        cache: Folder of trials, to share them between diagnoses; default: in `folder`.

    Raises:
        InputError: there is nothing to try both runs on.
    """
    cases = find_cases(a.path, b.path, config.max_cases)
    bench, top = _prepare(a, b, cases, folder, models.edit_model)
    work = _Work(bench, Trials(cache or folder / "trials", config.seed, config.editor_steps), config, cases)
    trials = yield from _try_as_they_are(work, frozenset(top))
    whole = trials["whole"]
    exchanges = yield from _swap_all(work, top)
    attributions = {
        measure: attribute(
            _values(whole["A"], measure),
            _values(whole["B"], measure),
            [exchange.of(measure) for exchange in exchanges],
            work.scenes,
        )
        for measure in MEASURES
    }
    measure = _choose_measure(attributions, config)
    attribution, values = attributions[measure], {side: _values(whole[side], measure) for side in "AB"}
    parts = yield from _look_into(work, attribution, measure, values, frozenset(top))
    return Diagnosis(
        runs={"A": a.path, "B": b.path},
        cases=work.cases,
        config=config,
        measure=measure,
        means={side: interval(found, work.scenes).mean for side, found in values.items()},
        attribution=attribution,
        parts=parts,
        ladder=ladder(trials, work.scenes),
        stages=[*pair_rows(bench.runs, models.clip), *measured_rows(trials, work.scenes)],
        differences=list_differences(a, b, work.cases),
        limits=work.limits,
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
    work: _Work, everything: frozenset[str]
) -> Generator[Progress, None, dict[str, dict[str, dict[str, Trial]]]]:
    """Trials of both runs, case by case; as many cases as a third of the time allows, but at least three."""
    trials: dict[str, dict[str, dict[str, Trial]]] = {kind: {"A": {}, "B": {}} for kind in AS_IT_IS}
    done = []
    for number, case in enumerate(work.cases):
        is_slow = time.monotonic() - work.started_s > work.config.time_budget_s / 3
        if is_slow and number >= MIN_CASES:
            work.limits.append(f"time allowed for {number} of {len(work.cases)} cases; raise --time-budget for more")
            break
        for kind in AS_IT_IS:
            for side, from_b in (("A", NONE), ("B", everything)):
                trials[kind][side][case.name] = yield from work.try_case(case, kind, from_b)
        done.append(case)
        note = f"both runs as they are, {case.name}"
        yield Progress(stage="stages", done=number + 1, total=len(work.cases), note=note)
    work.cases = done
    return trials


class _Exchange(NamedTuple):
    """The trials of one part exchanged."""

    component: str
    a_with_b: dict[str, Trial]
    b_with_a: dict[str, Trial]

    def of(self, measure: str) -> Swap:
        """What they say in one measure."""
        first, second = _values(self.a_with_b, measure), _values(self.b_with_a, measure)
        return Swap(component=self.component, a_with_b=first, b_with_a=second)


def _values(trials: dict[str, Trial], measure: str) -> dict[str, float]:
    return {case: trial.numbers[measure] for case, trial in trials.items()}


def _swap_all(work: _Work, top: tuple[str, ...]) -> Generator[Progress, None, list[_Exchange]]:
    """Exchange each part by itself, in both directions."""
    swaps, everything = [], frozenset(top)
    for part in top:
        if work.is_late:
            work.limits.append(f"no time was left to swap {part}; run the same command again to go on")
            continue
        forward = yield from work.try_all(frozenset({part}), f"A with {part} of B")
        reverse = yield from work.try_all(everything - {part}, f"B with {part} of A")
        swaps.append(_Exchange(part, forward, reverse))
    return swaps


def smallest_effect(measure: str, config: DiagnoseConfig) -> float:
    """Below which a difference of a measure is of no interest."""
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
    for is_said in (_blames_a_part, _differs):
        for measure, attribution in attributions.items():
            if is_said(attribution, measure, config):
                return measure
    return "progress"


def _blames_a_part(attribution: Attribution, measure: str, config: DiagnoseConfig) -> bool:
    num_parts = len(attribution.shares)
    return any(is_to_blame(share, measure, config, num_parts=num_parts) for share in attribution.shares)


def _differs(attribution: Attribution, measure: str, config: DiagnoseConfig) -> bool:
    total = attribution.total
    is_clear = total.is_clear_of(1 if measure == "progress" else 2)
    return is_clear and abs(total.mean) >= smallest_effect(measure, config)


def _look_into(
    work: _Work, attribution: Attribution, measure: str, values: dict[str, dict[str, float]], everything: frozenset[str]
) -> Generator[Progress, None, list[PartResult]]:
    """What the parts that make a difference are made of."""
    results = []
    runs, num_parts = work.bench.runs, len(attribution.shares)
    for share in attribution.shares:
        part = share.component
        detail = describe_part(part, runs["A"], runs["B"], work.cases)
        results.append(PartResult(share=share, within="", detail=detail))
        if part not in ("edit_model", "scenes") or not is_to_blame(share, measure, work.config, num_parts=num_parts):
            continue
        for inner, is_only in _inner_parts(work.bench, part):
            detail = describe_part(inner, runs["A"], runs["B"], work.cases)
            if is_only:
                results.append(PartResult(share=share.renamed(inner), within=part, detail=detail))
                continue
            if work.is_late:
                work.limits.append(f"no time was left to swap {inner}; run the same command again to go on")
                continue
            found = yield from _swap_inner(work, inner, part, everything)
            inner_share = share_of(found.of(measure), values["A"], values["B"], work.scenes)
            results.append(PartResult(share=inner_share, within=part, detail=detail))
    return results


def _inner_parts(bench: Workbench, part: str) -> Iterator[tuple[str, bool]]:
    """Parts of a part that differ, and whether it is the only one, so that no swap is needed."""
    kinds = SCENE_PARTS if part == "scenes" else ("captions", "selection", "pictures", "training")
    found = [inner for inner in kinds if inner in bench.differing]
    if part == "edit_model":
        yield "masks", False
    for inner in found:
        yield inner, len(found) == 1


def _swap_inner(work: _Work, inner: str, part: str, everything: frozenset[str]) -> Generator[Progress, None, _Exchange]:
    """Exchange what is within a part."""
    if inner == "masks":
        into_b = everything | {"masks of A"}
    else:
        kinds = [name for name, _ in _inner_parts(work.bench, part) if name not in (inner, "masks")]
        into_b = (everything - {part}) | set(kinds)
    forward = yield from work.try_all(frozenset({inner}), f"A with {inner} of B")
    reverse = yield from work.try_all(frozenset(into_b), f"B with {inner} of A")
    return _Exchange(inner, forward, reverse)
