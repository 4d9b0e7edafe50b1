"""Lists runs: who made what, when, from which commit. For `restage ls`; `run_index.py` makes a page of it.

A listing reads `run.json` and names of files alone, so that hundreds of runs are listed at once.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from restage.records import InputError, read_json
from restage.run.layout import EDIT_RECORDS, RUN_RECORD, STAGES, is_stage_done
from restage.run.reading import RunRecord

__all__ = ["UNREADABLE", "ListedRun", "RunFilter", "find_all_runs", "find_runs", "list_runs", "run_line"]

DIRTY = "+changes"
"""Ends the commit of a run whose code was not what was committed."""
UNREADABLE = "unreadable"
"""Status of a run whose record cannot be read."""


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """What a listing says of a run."""

    path: str
    status: str
    """`done`, `stopped`, `failed`, `running`, or `unreadable`."""
    problem: str = ""
    """Why its record cannot be read."""
    id: str = ""
    seed: int = 0
    wall_s: float = 0.0
    started_s: float = 0.0
    """When it was begun, in seconds since 1970."""
    user: str = ""
    """Who began it; empty in versions that did not keep it."""
    command: tuple[str, ...] = ()
    git_commit: str = ""
    stages: tuple[str, ...] = ()
    """Stages that are finished."""
    begun: tuple[str, ...] = ()
    """Stages that hold something and are not marked as finished, such as those of a single fit or edit."""
    contenders: tuple[str, ...] = ()
    """Methods of its results with their editors, such as `restage-edit_model`; empty where they were not looked for."""

    @property
    def is_dirty(self) -> bool:
        """Whether the code held changes that were not committed."""
        return self.git_commit.endswith(DIRTY)

    @property
    def is_clean(self) -> bool:
        """Whether it is known that the code was what was committed."""
        return self.git_commit not in ("", "unknown") and not self.is_dirty

    @property
    def started(self) -> str:
        """When it was begun, in local time; empty if that is not known."""
        try:
            return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started_s)) if self.started_s else ""
        except (OverflowError, ValueError, OSError):  # no moment that there is
            return ""


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs a listing shows; what is left as it is lets all through."""

    name: str = ""
    """Part of the path, or a pattern such as `*bear*`."""
    status: tuple[str, ...] = ()
    """done, stopped, failed, running or unreadable."""
    method: str = ""
    """A method that the run has results of."""
    editor: str = ""
    """An editor that the run has results of."""
    user: str = ""
    """Who began the run."""
    commit: str = ""
    """First letters of the commit that it was made from."""
    dirty: bool = False
    """Only runs of code with changes that were not committed."""
    clean: bool = False
    """Only runs of code as it was committed."""
    since: str = ""
    """First day or moment of the start, such as 2026-11-30 or 2026-11-30T14:00, in local time."""
    until: str = ""
    """Last day or moment of the start."""

    def __post_init__(self) -> None:
        known = ("done", "stopped", "failed", "running", UNREADABLE)
        unknown = [status for status in self.status if status not in known]
        if unknown:
            raise InputError(f"expected a status of {', '.join(known)}; got {unknown[0]!r}")
        if self.dirty and self.clean:
            raise InputError("no run is both --dirty and --clean; give one of them")
        for text in (self.since, self.until):
            _moment_s(text, is_end=False)

    @property
    def asks_results(self) -> bool:
        """Whether results have to be looked for."""
        return bool(self.method or self.editor)

    def lets_through(self, run: ListedRun) -> bool:
        """Whether a run is shown."""
        pattern = self.name if any(letter in self.name for letter in "*?[") else f"*{self.name}*"
        pairs = [contender.partition("-")[::2] for contender in run.contenders]
        since_s, until_s = _moment_s(self.since, is_end=False), _moment_s(self.until, is_end=True)
        return all(
            (
                fnmatch.fnmatch(run.path, pattern),
                not self.status or run.status in self.status,
                not self.user or run.user == self.user,
                run.git_commit.startswith(self.commit),
                not self.dirty or run.is_dirty,
                not self.clean or run.is_clean,
                since_s is None or run.started_s >= since_s,
                until_s is None or 0 < run.started_s <= until_s,
                not self.asks_results
                or any(self.method in ("", method) and self.editor in ("", editor) for method, editor in pairs),
            )
        )


def _moment_s(text: str, *, is_end: bool) -> float | None:
    """Return seconds since 1970 of a day, its beginning or end, or of a moment; None for no text."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"expected a day such as 2026-11-30, or 2026-11-30T14:00, got {text!r}") from None
    if is_end and len(text) == len("2026-11-30"):
        moment = moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return moment.timestamp()


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder` and up to two levels below, by name."""
    candidates = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
    return [path for path in candidates if (path / RUN_RECORD).is_file()]


def find_all_runs(folder: Path) -> list[Path]:
    """Run folders at any depth, by name; what lies within a run, such as the rounds of prompts, is part of it."""

    def below(place: str) -> Iterator[Path]:
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # somebody else's, or gone meanwhile
            return
        if any(entry.name == RUN_RECORD for entry in found):
            yield Path(place)
            return
        for entry in found:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield from below(entry.path)

    return list(below(str(folder)))


def list_runs(
    folder: Path, *, wanted: RunFilter = RunFilter(), is_deep: bool = False, with_results: bool = False
) -> list[ListedRun]:
    """Return what is to be said of the runs in a folder that a filter lets through, by their paths.

    Args:
        folder: Where the runs are.
        wanted: Which of them.
        is_deep: Whether they may lie at any depth, not just two levels below.
        with_results: Whether methods and editors of results are looked for.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; say where runs are, such as: restage ls runs")
    paths = find_all_runs(folder) if is_deep else find_runs(folder)
    looks = with_results or wanted.asks_results
    return [run for path in paths if wanted.lets_through(run := _listed(path, with_results=looks))]


def _listed(path: Path, *, with_results: bool) -> ListedRun:
    there = [stage for stage in STAGES if (path / stage).is_dir()]
    done = tuple(stage for stage in there if is_stage_done(path, stage))
    begun = tuple(stage for stage in there if stage not in done)
    results = {record.parent.parent.name for record in path.glob(EDIT_RECORDS)} if with_results else set[str]()
    facts = {"path": str(path), "stages": done, "begun": begun, "contenders": tuple(sorted(results))}
    try:
        record = read_json(path / RUN_RECORD, RunRecord)
    except InputError as error:  # one broken record must not hide the other runs
        return ListedRun(status=UNREADABLE, problem=str(error), **facts)
    return ListedRun(
        status=record.status,
        id=record.id,
        seed=record.seed,
        wall_s=record.wall_s,
        started_s=record.started_s,
        user=record.user,
        command=record.command,
        git_commit=record.git_commit,
        **facts,
    )


def run_line(run: ListedRun) -> str:
    """Return a line for a terminal: where, status, time, what there is, who, when, from which commit."""
    if run.problem:
        return f"{run.path}  {UNREADABLE}  {run.problem}"
    begun = f"in part {' '.join(run.begun)}" if run.begun else ""
    what = ", ".join(filter(None, (" ".join(run.stages), begun))) or "no stage yet"
    commit = run.git_commit.removesuffix(DIRTY)
    commit = commit if len(commit) < 12 else commit[:8]
    made = "  ".join(filter(None, (run.started, run.user, commit + (DIRTY if run.is_dirty else ""))))
    return f"{run.path}  {run.status}  {run.wall_s:.0f} s  {what}  {made}"
