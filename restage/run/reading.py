"""Reads the records of a run, each into a typed record: the one way to read what a run left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from restage.records import EditRequest, InputError, check_is_no_pipe, parse_json, read_json, to_plain
from restage.run.layout import EDIT_RECORDS, FITS, RUN_RECORD, STAGE_MARKS, check_is_run
from restage.run.profile import StageTime

__all__ = ["EditRecord", "FitRecord", "RunRecord", "Session", "SplatsFile", "StageMark", "TrainingStep", "flat_items"]
__all__ += ["read_fits", "read_marks", "read_metrics", "read_results", "read_run_record"]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session of work in a run."""

    status: str = ""
    command: tuple[str, ...] = ()
    """Empty in versions that kept the first one of a run alone."""
    user: str = ""
    """Who ran it; empty in versions that did not keep it, and where `RESTAGE_USER` is empty."""
    wall_s: float = 0.0
    peak_memory_mb: float = 0.0
    git_commit: str = ""
    profile: Mapping[str, StageTime] = field(default_factory=dict)
    """Where the time went, by stage; none in versions that did not keep it. Sealed with the record, as all times."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What `run.json` says."""

    id: str
    seed: int
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    user: str = ""
    """Who began it, as in its sessions."""
    git_commit: str = "unknown"
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    started_s: float = 0.0  # seconds since 1970
    sessions: tuple[Session, ...] = ()
    finished: tuple[str, ...] = ()  # stages that have been finished; their marks are looked for

    @property
    def wall_s(self) -> float:
        """Seconds of work in all closed sessions."""
        return sum((session.wall_s for session in self.sessions), 0.0)


@dataclass(frozen=True, kw_only=True)
class StageMark:
    """What a `stage.json` says."""

    id: str
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What `restage show` and the page are to say of the stage."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Hashes of files by their path in the run; none in versions before hashes were kept."""


@dataclass(frozen=True, kw_only=True)
class SplatsFile:
    """A file of splats that were trained elsewhere and taken as a fit."""

    file: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """What a `fit.json` says."""

    num_splats: int
    seconds: float
    id: str = ""
    capture_sha256: str = ""
    """Hash of the views that were fitted; empty in versions that did not keep it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    """Where it was fitted, such as `cuda, NVIDIA H200`, or several in turn; empty for the CPU."""
    own_to_world: tuple[tuple[float, ...], ...] | None = None
    """The transform from the capture's own frame to the run's; None where they are the same."""
    held_out_psnr_db: float | None = None  # None without held-out views
    held_out_ssim: float | None = None
    """None without held-out views, or with views smaller than its window."""
    splats_from: SplatsFile | None = None
    """Where the splats were taken from; None for splats that were fitted here."""
    generated_from: str = ""
    """The caption that the scene was made from; empty for a scene that was captured."""
    sampled_views_psnr_db: float | None = None
    """How well a generated scene shows the views that were sampled for it; None where none were."""
    notes: tuple[str, ...] = ()
    """What there was to say about the capture: pictures that are missing, turned, or of other shapes."""
    files: Mapping[str, str] = field(default_factory=dict)


class Cost(TypedDict, total=False):
    """What a result took."""

    seconds: float
    peak_memory_mb: float
    peak_memory_of: str  # `process` where the mark is not that of the edit alone
    is_capped: float  # 1 if a time cap stopped the method


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """What a `record.json` of the edit stage says."""

    scene: str
    edit: str
    method: str
    editor: str
    seed: int
    status: str
    id: str = ""
    kind: str = ""
    reason: str = ""  # why it failed, or what is to be said about a result beside its scores
    request: EditRequest | None = None  # what was asked for; a result that failed early has none
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=lambda: Cost())
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Content ids and hashes of what it was made from."""
    device: str = ""
    """Where it was made, such as `cuda, NVIDIA H200`; empty for the CPU."""
    files: Mapping[str, str] = field(default_factory=dict)
    drifts: Mapping[str, float] = field(default_factory=dict)
    """How far the editor had moved views before they were put back, as shares of their width, by the views' indices."""
    left_out: Mapping[str, str] = field(default_factory=dict)  # reasons why views were not edited, by their indices

    @property
    def drift_note(self) -> str:
        """What is to be said about `drifts` and `left_out`; empty for editors that keep every pixel in its place."""
        parts = []
        if self.drifts:
            shares = sorted(self.drifts.values())
            middle, largest = shares[len(shares) // 2], shares[-1]
            parts.append(f"the editor moved views by {middle:.1%} of their width (median; at most {largest:.1%})")
        if self.left_out:
            first = next(iter(self.left_out.values()))
            parts.append(f"{len(self.left_out)} views were left out, such as: {first}")
        return "; ".join(parts)

    @property
    def problem(self) -> str:
        """Why there is no result; empty if there is one."""
        return "" if self.status == "done" else f"failed: {self.reason or 'no reason recorded'}"


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One line of a training's `metrics.jsonl`."""

    step: int
    values: Mapping[str, float]


def flat_items(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested JSON as text, by their path in it, such as `train.training.num_steps`; null is left out."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flat_items(item, f"{where}.{name}" if where else str(name))
    elif value is not None:
        yield where, value if isinstance(value, str) else json.dumps(to_plain(value), ensure_ascii=False)


def read_run_record(run: Path) -> RunRecord:
    """Read the record of a run; refuses a folder that holds none."""
    check_is_run(run)
    return read_json(run / RUN_RECORD, RunRecord)


def read_marks(run: Path) -> dict[str, StageMark]:
    """The marks of all finished stages by the name of the stage."""
    return {path.parent.name: read_json(path, StageMark) for path in sorted(run.glob(STAGE_MARKS))}


def read_fits(run: Path) -> dict[str, FitRecord]:
    """The records of all fitted scenes by the name of the scene."""
    return {path.parent.name: read_json(path, FitRecord) for path in sorted(run.glob(FITS))}


def read_results(run: Path) -> dict[Path, EditRecord]:
    """The records of all results that are finished or failed, by their folder."""
    return {path.parent: read_json(path, EditRecord) for path in sorted(run.glob(EDIT_RECORDS))}


def read_metrics(run: Path) -> Sequence[TrainingStep]:
    """The steps of a run's training, none without one; only the last line may be broken."""
    path = run / "train" / "metrics.jsonl"
    check_is_no_pipe(path)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line, dict[str, Any], where=path)
            step, numbers = int(row.pop("step")), {name: v for name, v in row.items() if isinstance(v, int | float)}
            steps.append(TrainingStep(step=step, values={**numbers, "loss": float(numbers["loss"])}))
        except (InputError, KeyError, TypeError, ValueError, OverflowError):
            if number == len(lines):  # a kill cut it short; the next start writes it anew
                break
            raise InputError(f'{path} line {number} is not {{"step": ..., "loss": ...}}; train again') from None
    return steps
