"""Checks a run against its own records and pictures; called by `verify`.

Records: what each stage sealed when it ended, ids that follow from configs, inputs. Pictures: captures are those that
were fitted, and each number of the table is what they give.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from restage.records import (
    EditCase,
    InputError,
    Progress,
    Score,
    content_id,
    file_sha256,
    from_plain,
    has_right_seal,
    read_json,
)
from restage.run.findings import FileFinding, describe_findings
from restage.run.folder import SEALED_APART
from restage.run.layout import (
    ANSWERS,
    CAPTURE,
    CHANGES,
    EDIT_CASES,
    EDIT_RECORD,
    EDIT_RECORDS,
    FIT_RECORD,
    FIT_STATE,
    FITS,
    HELD_OUT,
    JUDGED,
    REFERENCES,
    REGIONS,
    RUN_RECORD,
    SCORES,
    SOURCE,
    SPLATS,
    STAGE_MARK,
    STAGE_MARKS,
    STAGES,
    STUDY_FILES,
    check_is_run,
)
from restage.run.reading import EditRecord, FitRecord, RunRecord, StageMark

__all__ = ["RECORDS", "RecordsResult", "TOLERANCE", "check_pictures", "check_records", "describe_records"]

RECORDS = (RUN_RECORD, STAGE_MARKS, FITS, EDIT_RECORDS)
"""Patterns of the records of a run, its own first."""
KINDS = {RUN_RECORD: RunRecord, STAGE_MARK: StageMark, FIT_RECORD: FitRecord, EDIT_RECORD: EditRecord}
UNITS = {"scenes": 2, "edit": 5}
"""Stages whose scenes and results are sealed one by one, and how deep in the run the folders of these lie."""
STATES = ("train/cache/*", "train/state.pt")
"""Files that a finished stage does not need any more: they may be missing, but not be others."""
PAIR_RECORDS = ("pairs/plan.json", "pairs/rule.json")
"""What finished pairs were made from and are judged by, if they were made here."""
OPEN = (
    *("pairs/*", "rounds/*", "diagnose/*", "verify/*", f"{ANSWERS}/*", f"{JUDGED}/*", RUN_RECORD),
    *(f"scenes/*/{FIT_STATE}", "scenes/*/description.json", f"scenes/*/{SOURCE}", "edit/*/preview.png", *STUDY_FILES),
    *(f"edit/*/{CHANGES}", f"scenes/*/{REGIONS}/*", f"scenes/*/{REFERENCES}/*"),
)
"""Files that need no record to name them: checked elsewhere, or states, or not named in earlier versions."""

REASONS: Mapping[str, str] = {
    "missing": "a file that a record names is not there",
    "added": "a file is there that no record names",
    "changed": "a file is not the one that was there when its stage or its result was finished",
    "edited record": "a record is not the one that was written: its seal is not that of what it says",
    "wrong id": "an id is not that of the config beside it",
    "mismatch": "two records say different things of the same",
    "unreadable": "a record cannot be read",
    "wrong score": "a number is not the one that the pictures give",
}
"""Ways of being wrong by name."""


@dataclass(kw_only=True)
class RecordsResult:
    """What was looked at, and what was found."""

    findings: list[FileFinding] = field(default_factory=list)
    num_records: int = 0
    num_files: int = 0
    num_scores: int = 0  # numbers of the table that were measured again
    unsealed: list[str] = field(default_factory=list)
    """Finished records of a version that had no seals: of their files only what ids and inputs say is checked."""
    left_out: list[str] = field(default_factory=list)
    """Files that a bundle names and does not hold."""
    notes: list[str] = field(default_factory=list)  # what was not checked, and why


def check_records(run: Path, *, left_out: Mapping[str, str] | None = None) -> Generator[Progress, None, RecordsResult]:
    """Check every record of a run and every file that they name; those in `left_out` may be missing."""
    check = _Check(run, left_out or {})
    records = [path for pattern in RECORDS for path in sorted(run.glob(pattern))]
    if not records:
        check_is_run(run)
    for done, path in enumerate(records, start=1):
        check.record(path)
        yield Progress(stage="verify", done=done, total=len(records), note=path.relative_to(run).as_posix())
    check.seals()
    check.missing()
    check.inputs()
    check.references()
    check.added()
    check.result.num_files = len(check.hashes)
    return check.result


class _Check:
    """Collects findings while records are read; hashes each file once."""

    def __init__(self, run: Path, left_out: Mapping[str, str]) -> None:
        self.run, self.left_out = run, left_out
        self.result = RecordsResult(left_out=sorted(left_out))
        self.records: dict[str, dict[str, Any]] = {}
        self.hashes: dict[str, str | None] = {}

    def find(self, reason: str, file: str, detail: str) -> None:
        self.result.findings.append(FileFinding(reason=reason, file=file, detail=detail))

    def record(self, path: Path) -> None:
        name = path.relative_to(self.run).as_posix()
        try:
            record = read_json(path, dict[str, Any])
            typed = from_plain(record, KINDS[path.name], where=name)
            files = {} if isinstance(typed, RunRecord) else typed.files
        except InputError as error:
            self.find("unreadable", name, str(error))
            return
        self.records[name] = record
        self.result.num_records += 1
        if "seal" not in record:
            self.result.unsealed.append(name)
        elif not has_right_seal(record, is_required=True):
            self.find("edited record", name, "what it says is not what it said when it was sealed")
        self._check_id(path, name, record)
        base = "" if path.name == STAGE_MARK else f"{Path(name).parent.as_posix()}/"
        for file, expected in files.items():
            found = self._hash_of(f"{base}{file}")
            if found is None and not any(fnmatch(file, pattern) for pattern in STATES):
                self.find("missing", f"{base}{file}", f"named by {name}")
            elif found is not None and expected not in (SEALED_APART, found):
                self.find("changed", f"{base}{file}", f"SHA-256 is {found[:16]}, {name} holds {expected[:16]}")

    def _check_id(self, path: Path, name: str, record: Mapping[str, Any]) -> None:
        kind = {RUN_RECORD: "run", STAGE_MARK: path.parent.name, FIT_RECORD: "fit"}.get(path.name)
        if kind is None or "config" not in record:
            return
        config = record["config"]
        try:
            expected = content_id(kind, {"config": config, "seed": record.get("seed")} if kind == "run" else config)
        except ValueError:
            expected = "none, for it holds NaN"
        if record.get("id") != expected:
            self.find("wrong id", name, f"its config gives {expected}, it says {record.get('id')}")

    def _hash_of(self, file: str) -> str | None:
        """Hash of a file in the run; None if it is not there, or lies outside."""
        if file not in self.hashes:
            path = self.run / file
            # `Path.resolve` raises for a link to itself.
            is_inside = Path(os.path.realpath(path)).is_relative_to(self.run.resolve())
            is_there = is_inside and path.is_file()
            self.hashes[file] = file_sha256(path) if is_there else self.left_out.get(file)
        return self.hashes[file]

    def seals(self) -> None:
        """Tell a run of a version without seals from one in which some record has lost its own."""
        result = self.result
        # Seals and hashes came with the same version.
        if any("seal" in record or "files" in record for record in self.records.values()):
            for name in result.unsealed:
                self.find("edited record", name, "it has no seal, as other records of the run have")
            result.unsealed = []
        elif self.records.get(RUN_RECORD, {}).get("status") == "running":
            result.unsealed.remove(RUN_RECORD)

    def missing(self) -> None:
        """Check that no record was deleted: of the run, of a stage that it calls finished, or of its pairs."""
        if RUN_RECORD not in self.records and not (self.run / RUN_RECORD).is_file():
            self.find("missing", RUN_RECORD, "other records of the run are there")
        finished = self.records.get(RUN_RECORD, {}).get("finished", ())
        for stage in STAGES:
            mark = f"{stage}/{STAGE_MARK}"
            if mark in self.records or (self.run / mark).is_file():
                continue
            if stage in finished:
                self.find("missing", mark, f"{RUN_RECORD} says that the stage was finished")
            elif stage not in UNITS and any(path.is_file() for path in (self.run / stage).glob("*")):
                self.result.notes.append(f"{stage}: it was not finished, or its {STAGE_MARK} was deleted")
        self._missing_of_units()
        pairs = self.records.get(f"pairs/{STAGE_MARK}", {})
        is_made_here = bool(pairs) and "imported_from" not in (pairs.get("facts") or {})
        if is_made_here and not (self.run / "pairs" / "store.json").exists():
            for name in PAIR_RECORDS:
                if not (self.run / name).is_file() and name not in self.left_out:
                    self.find("missing", name, "shards were made with it; run pairs again to write it")

    def _missing_of_units(self) -> None:
        """Find fits and results without the record that is written last, which no stage need name."""
        if self.records.get(RUN_RECORD, {}).get("status") == "running":
            return  # somebody may be at it, or was killed in between
        ends = (("scenes/*", FIT_RECORD, FIT_STATE), ("edit/*/*/*/*", EDIT_RECORD, "stopped.json"))
        for units, record, is_unfinished in ends:
            for unit in sorted(path.parent for path in self.run.glob(f"{units}/{SPLATS}")):
                is_made_here = record == EDIT_RECORD or (unit / SOURCE).is_file() or any(unit.glob(f"{HELD_OUT}*"))
                name = (unit / record).relative_to(self.run).as_posix()
                is_there = (unit / record).is_file() or (unit / is_unfinished).is_file() or name in self.hashes
                if is_made_here and not is_there:
                    self.find("missing", name, f"{SPLATS} is there, after which it is written")

    def added(self) -> None:
        """Find files that no record names, in stages that are finished and in finished scenes and results."""
        marked = {name.partition("/")[0] for name, record in self.records.items() if "files" in record}
        if not marked:  # a version that kept no hashes
            return
        units = {Path(name).parent for name in self.records}
        # A capture that was brought is known by what its fit was made from; only the world's are named file by file.
        captures = {name.partition(f"/{CAPTURE}/")[0] for name in self.hashes if f"/{CAPTURE}/" in name}
        # Versions that did not keep the hashes of states name none of them.
        has_states = any(fnmatch(name, state) for name in self.hashes for state in STATES)
        known = (*OPEN, *(() if has_states else STATES))
        for path in sorted(self.run.rglob("*")):
            inside = path.relative_to(self.run)
            name, stage = inside.as_posix(), inside.parts[0]
            is_known = name in self.hashes or name in self.records or any(fnmatch(name, pattern) for pattern in known)
            if is_known or path.is_dir() or any(part.startswith(".") for part in inside.parts):
                continue
            depth = UNITS.get(stage, len(inside.parts))
            if len(inside.parts) > depth:
                unit, part = Path(*inside.parts[:depth]), inside.parts[depth]
                is_brought = part == CAPTURE and unit.as_posix() not in captures
                is_open = unit not in units or is_brought or (path.match(EDIT_CASES) and _is_free_case(path))
            else:
                is_open = stage in STAGES and stage not in marked
            if not is_open:
                self.find("added", name, "no record names it")

    def inputs(self) -> None:
        """Check what records say of each other: configs of stages, splats that results were made from."""
        configs = self.records.get(RUN_RECORD, {}).get("config")
        for name, record in self.records.items():
            path = Path(name)
            if path.name == STAGE_MARK and isinstance(configs, dict):
                planned = configs.get(path.parent.name)
                if planned is not None and "config" in record and not _agree(planned, record["config"]):
                    self.find("mismatch", name, f"its config is not the one in {RUN_RECORD}")
            splats = (record.get("inputs") or {}).get("splats_sha256") if path.name == EDIT_RECORD else None
            if splats:
                scene = f"scenes/{record.get('scene')}/{SPLATS}"
                found = self._hash_of(scene)
                if found is not None and found != splats:
                    others = f"({str(splats)[:16]}) than {scene} ({found[:16]})"
                    self.find("mismatch", name, f"was made from other splats {others}")

    def references(self) -> None:
        """Check that pictures which requests refer to are there, each with the content that its name says."""
        for path in sorted(self.run.glob(EDIT_CASES)):
            name = path.relative_to(self.run).as_posix()
            try:
                references = read_json(path, EditCase).request.references
            except InputError:
                continue  # a case that is not what it was is found by its hash
            for reference in references:
                for file in filter(None, (reference.picture, reference.mask)):
                    place = (path.parents[2] / REFERENCES / file).relative_to(self.run).as_posix()
                    found = self._hash_of(place)
                    if found is None:
                        self.find("missing", place, f"named by {name}")
                    elif found != Path(file).stem:
                        self.find("changed", place, f"SHA-256 is {found[:16]}, its name and {name} say {file[:16]}")


def _is_free_case(path: Path) -> bool:
    """Whether an edit was asked for in words since, without truth: nothing is measured against it."""
    try:
        return not read_json(path, EditCase).has_truth
    except InputError:
        return False


def _agree(planned: Any, recorded: Any) -> bool:
    """Whether two configs say the same where both say something: a stage may record less than was planned."""
    if isinstance(planned, dict) and isinstance(recorded, dict):
        return all(_agree(planned[name], value) for name, value in recorded.items() if name in planned)
    return planned == recorded


def describe_records(result: RecordsResult) -> Iterator[str]:
    """The findings by reason, then what was looked at."""
    yield from describe_findings(result.findings, REASONS)
    scores = f", {result.num_scores} numbers measured again" if result.num_scores else ""
    counts = f"{result.num_records} records and {result.num_files} files that they name{scores}"
    yield f"{len(result.findings) or 'nothing'} found in {counts}"
    if result.unsealed:
        yield f"not sealed: {len(result.unsealed)} records of an earlier version, such as {result.unsealed[0]}"
    if result.left_out:
        yield f"not in the bundle: {len(result.left_out)} files, such as {result.left_out[0]}"
    yield from (f"not checked: {note}" for note in result.notes)


TOLERANCE = 2e-3
"""Difference of a number that another machine's rounding of rendered 8-bit views may bring about, relative above 1."""


RENDERED = ("fit_error", "spill", "mask_iou", "no_op", "wrong_way", "progress")
"""Numbers that may rest on renders of the unedited scene, which are not the same on a GPU."""


def check_pictures(run: Path, result: RecordsResult, *, device: str = "cpu") -> Generator[Progress, None, None]:
    """Hash every capture anew and score every result anew; what does not agree is added to the findings.

    Unedited scenes are drawn on the device. Where the table was made on another one, a number that rests on renders and
    differs is a note and no finding.
    """
    fits = sorted(run.glob(FITS))
    for done, path in enumerate(fits, start=1):
        _check_capture(run, path, result)
        yield Progress(stage="captures", done=done, total=len(fits), note=path.parent.name)
    if (run / SCORES).exists():
        yield from _check_scores(run, result, device)


def _check_capture(run: Path, fit_path: Path, result: RecordsResult) -> None:
    from restage.scenes.io import read_capture
    from restage.scenes.stage import capture_sha256

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


def _check_scores(run: Path, result: RecordsResult, device: str) -> Generator[Progress, None, None]:
    """Measure again, from stored pictures, what needs neither judging models nor renders of the edited splats."""
    from restage.compare.config import CompareConfig
    from restage.compare.judges import Judges
    from restage.compare.stage import Scorer, find_results
    from restage.scenes.device import describe_device
    from restage.scores.definitions import COST_METRICS, METRICS
    from restage.scores.rows import read_scores

    again = {name for name, metric in METRICS.items() if metric.needs == ("truth",)} | set(COST_METRICS)
    try:
        told = {_key(score): score for score in read_scores(run / SCORES)}
        results = find_results(run)
        mark = run / "compare" / STAGE_MARK
        compared = read_json(mark, StageMark) if mark.exists() else StageMark(id="")
        default = CompareConfig().no_op_share
        no_op_share = from_plain(compared.config.get("no_op_share", default), float, where=mark)
    except InputError as error:
        result.findings.append(FileFinding(reason="unreadable", file=SCORES, detail=str(error)))
        return
    # Without judging models and orbits, whose numbers depend on weights and on the machine.
    scorer = Scorer(run, CompareConfig(no_op_share=no_op_share, orbit_frames=0), Judges(), device)
    there, here = str(compared.facts.get("device", "cpu")), describe_device(device)
    elsewhere = list[str]()
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
                    if there != here and score.metric in RENDERED and not math.isnan(score.value):
                        elsewhere.append(detail)
                    else:
                        result.findings.append(FileFinding(reason="wrong score", file=SCORES, detail=detail))
        yield Progress(stage="scores", done=done, total=len(results), note=f"{entry.scene} {entry.edit}")
    if elsewhere:
        result.notes.append(
            f"{len(elsewhere)} numbers that were measured on {there}, and here on {here}, which draws the unedited "
            f"scene a little differently (--device {there.partition(',')[0]} checks them); such as {elsewhere[0]}"
        )


def _key(score: Score) -> tuple[str, str, str, str, int, str]:
    return score.scene, score.edit, score.method, score.editor, score.seed, score.metric
