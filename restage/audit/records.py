"""Checks a run against its own records: what each stage sealed when it ended, ids that follow from configs, inputs.

`restage verify` calls `check_records` for a run and for what a bundle holds; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from restage.records import InputError, Progress, content_id, file_sha256, from_plain, has_right_seal, read_json
from restage.run.folder import SEALED_APART
from restage.run.layout import (
    EDIT_RECORD,
    EDIT_RECORDS,
    FIT_RECORD,
    FITS,
    RUN_RECORD,
    SPLATS,
    STAGE_MARK,
    STAGE_MARKS,
    STAGES,
    check_is_run,
)
from restage.run.reading import EditRecord, FitRecord, RunRecord, StageMark

__all__ = ["REASONS", "RecordFinding", "RecordsResult", "check_records", "describe_records", "records_to_plain"]

RECORDS = (STAGE_MARKS, FITS, EDIT_RECORDS)
KINDS = {RUN_RECORD: RunRecord, STAGE_MARK: StageMark, FIT_RECORD: FitRecord, EDIT_RECORD: EditRecord}
STAGES_OF_RECORDS = ("scenes", "edit")
"""Stages whose scenes and results are sealed one by one, and which need no mark of their own."""
MAX_LINES = 5
"""Findings of one reason that are named one by one."""

REASONS: Mapping[str, str] = {
    "missing": "a file that a record names is not there",
    "changed": "a file is not the one that was there when its stage or its result was finished",
    "edited record": "a record is not the one that was written: its seal is not that of what it says",
    "wrong id": "an id is not that of the config beside it",
    "mismatch": "two records say different things of the same",
    "unreadable": "a record cannot be read",
    "wrong score": "a number is not the one that the pictures give",
}
"""Ways of being wrong by name."""


@dataclass(frozen=True, kw_only=True)
class RecordFinding:
    """One thing that is wrong."""

    reason: str
    """A name of `REASONS`."""
    file: str
    """Path within the run."""
    detail: str
    """What was expected and what was found."""


@dataclass(kw_only=True)
class RecordsResult:
    """What was looked at, and what was found."""

    findings: list[RecordFinding] = field(default_factory=list)
    num_records: int = 0
    num_files: int = 0
    num_scores: int = 0
    """Numbers of the table that were measured again."""
    unsealed: list[str] = field(default_factory=list)
    """Finished records of a version that had no seals: of their files only what ids and inputs say is checked."""
    left_out: list[str] = field(default_factory=list)
    """Files that a bundle names and does not hold."""
    notes: list[str] = field(default_factory=list)
    """What was not checked, and why."""


def check_records(run: Path, *, left_out: Mapping[str, str] | None = None) -> Generator[Progress, None, RecordsResult]:
    """Check every record of a run, and every file that a record holds the hash of.

    Args:
        run: its folder.
        left_out: hashes of files, by path in the run, that need not be there; a record must hold the same hash.

    Raises:
        InputError: the folder holds no run.
    """
    check_is_run(run)
    check = _Check(run, left_out or {})
    records = [run / RUN_RECORD, *(path for pattern in RECORDS for path in sorted(run.glob(pattern)))]
    for done, path in enumerate(records, start=1):
        check.record(path)
        yield Progress(stage="verify", done=done, total=len(records), note=path.relative_to(run).as_posix())
    check.inputs()
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
        self.result.findings.append(RecordFinding(reason=reason, file=file, detail=detail))

    def record(self, path: Path) -> None:
        """Check one record, and the files that it holds hashes of."""
        name = path.relative_to(self.run).as_posix()
        try:
            record = read_json(path, dict[str, Any])
            typed = from_plain(record, KINDS[path.name], where=name)
            files = {} if isinstance(typed, RunRecord) else typed.files
            is_sealed = "seal" in record
        except InputError as error:
            self.find("unreadable", name, str(error))
            return
        self.records[name] = record
        self.result.num_records += 1
        if is_sealed and not has_right_seal(record, is_required=True):
            self.find("edited record", name, "what it says is not what it said when it was sealed")
        elif not is_sealed and files:  # seals and hashes came with the same version
            self.find("edited record", name, "it holds hashes and has lost its seal")
        elif not is_sealed and record.get("status") != "running":
            self.result.unsealed.append(name)
        self._check_id(path, name, record)
        base = "" if path.name == STAGE_MARK else f"{Path(name).parent.as_posix()}/"
        for file, expected in files.items():
            self._check_file(f"{base}{file}", expected, name)

    def _check_id(self, path: Path, name: str, record: Mapping[str, Any]) -> None:
        kind = {RUN_RECORD: "run", STAGE_MARK: path.parent.name, FIT_RECORD: "fit"}.get(path.name)
        if kind is None or "config" not in record:
            return
        config = record["config"]
        expected = content_id(kind, {"config": config, "seed": record.get("seed")} if kind == "run" else config)
        if record.get("id") != expected:
            self.find("wrong id", name, f"its config gives {expected}, it says {record.get('id')}")

    def _check_file(self, file: str, expected: str, record: str) -> None:
        found = self._hash_of(file)
        if found is None:
            self.find("missing", file, f"named by {record}")
        elif expected != SEALED_APART and found != expected:
            self.find("changed", file, f"SHA-256 is {found[:16]}, {record} holds {expected[:16]}")

    def _hash_of(self, file: str) -> str | None:
        """Hash of a file in the run; None if it is not there, or lies outside."""
        if file not in self.hashes:
            path = self.run / file
            is_inside = path.resolve().is_relative_to(self.run.resolve())
            is_there = is_inside and path.is_file()
            self.hashes[file] = file_sha256(path) if is_there else self.left_out.get(file)
        return self.hashes[file]

    def inputs(self) -> None:
        """Check what records say of each other: seals, configs of stages, splats that results were made from."""
        # The run's record is sealed before any other; it alone without a seal has lost it.
        if RUN_RECORD in self.result.unsealed and any("seal" in record for record in self.records.values()):
            self.result.unsealed.remove(RUN_RECORD)
            self.find("edited record", RUN_RECORD, "other records of the run are sealed, and it has lost its seal")
        for stage in STAGES:
            is_marked = f"{stage}/{STAGE_MARK}" in self.records or stage in STAGES_OF_RECORDS
            if not is_marked and any(path.is_file() for path in (self.run / stage).glob("*")):
                self.result.notes.append(f"{stage}: it was not finished, or its {STAGE_MARK} was deleted")
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
                    self.find(
                        "mismatch", name, f"was made from other splats ({splats[:16]}) than {scene} ({found[:16]})"
                    )


def _agree(planned: Any, recorded: Any) -> bool:
    """Whether two configs say the same where both say something: a stage may record less than was planned."""
    if isinstance(planned, dict) and isinstance(recorded, dict):
        return all(_agree(planned[name], value) for name, value in recorded.items() if name in planned)
    return planned == recorded


def describe_records(result: RecordsResult) -> Iterator[str]:
    """The findings by reason, then what was looked at."""
    for name, meaning in REASONS.items():
        found = [finding for finding in result.findings if finding.reason == name]
        if found:
            yield f"{name} ({len(found)}): {meaning}"
        for finding in found[:MAX_LINES]:
            yield f"  {finding.file}: {finding.detail}"
        if len(found) > MAX_LINES:
            yield f"  and {len(found) - MAX_LINES} more; --json lists all"
    scores = f", {result.num_scores} numbers measured again" if result.num_scores else ""
    counts = f"{result.num_records} records and {result.num_files} files that they name{scores}"
    yield f"{len(result.findings) or 'nothing'} found in {counts}"
    if result.unsealed:
        yield f"not sealed: {len(result.unsealed)} records of an earlier version, such as {result.unsealed[0]}"
    if result.left_out:
        yield f"not in the bundle: {len(result.left_out)} files, such as {result.left_out[0]}"
    yield from (f"not checked: {note}" for note in result.notes)


def records_to_plain(run: Path | str, result: RecordsResult) -> dict[str, Any]:
    """All of it as JSON values."""
    return {"run": str(run), **asdict(result)}
