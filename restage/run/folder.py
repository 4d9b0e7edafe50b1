"""The folder of a run: what it was started with, which stages are done, and the hashes of what they left."""

from __future__ import annotations

import contextlib
import fnmatch
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.records import (
    InputError,
    content_id,
    file_sha256,
    from_plain,
    has_right_seal,
    read_json,
    seal,
    to_plain,
    write_json,
)
from restage.run.environment import git_commit, machine, process_peak_mb, versions
from restage.run.layout import EDIT_RECORD, FIT_RECORD, FIT_STATE, RUN_RECORD, STAGE_MARK, STAGE_MARKS, STUDY_FILES
from restage.run.locks import hold_folder, hold_stages, is_abandoned
from restage.run.progress import is_stop_requested
from restage.run.reading import RunRecord, StageMark, read_run_record

__all__ = ["SEALED_APART", "UNSEALED", "RunFolder", "StepByStep", "open_run", "working"]

UNSEALED = (
    *(STAGE_MARKS, "*/.*", f"scenes/*/{FIT_STATE}"),
    # Pairs have marks of their own, which hold hashes and allow for repairs.
    *("pairs/*.tar", "pairs/*.parquet", "pairs/*.done", "pairs/*.json", "pairs/quarantine/*"),
)
"""Files of stages whose hashes are in no mark of a stage: states that work goes on from, and what is marked apart."""

SEALED_APART = "sealed apart"
"""Stands for the hash of a record that holds a seal, and hashes, of its own."""


@dataclass
class RunFolder:
    """A run is a folder: `run.json` is written first and closed last, each stage marks itself done with a file.

    A stage's mark, `<run>/<stage>/stage.json`, holds the id of its config and is written last. A stage that is asked
    for again with the same id is skipped, with another id refused: a finished stage is never overwritten.
    """

    path: Path
    config: Any
    seed: int
    started_s: float = field(default_factory=time.time)
    made: tuple[Path, ...] | None = None
    """Folders that were made for a new run, from the inside out; None for a run that was there."""
    _began_s: float = field(default_factory=time.monotonic)  # no clock that somebody may set back

    @property
    def id(self) -> str:
        """Content id of config and seed."""
        return content_id("run", {"config": to_plain(self.config), "seed": self.seed})

    @classmethod
    def open(cls, path: Path, config: Any, *, seed: int) -> RunFolder:
        """Start a run in `path`, or continue the one that is there if it has this config; all else is refused."""
        run = cls(path=path, config=config, seed=seed)
        record_path = path / RUN_RECORD
        if record_path.exists():
            found = read_json(record_path, RunRecord)
            if found.id != run.id:
                raise InputError(f"{path} holds run {found.id} with another config; choose another folder with --out")
            return run
        # A start may have been killed while writing `run.json`.
        if path.exists() and not (path.is_dir() and all(file.match(".run.*.tmp.json") for file in path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder; choose another folder with --out")
        run.made = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        try:
            write_json(record_path, seal(run._record("running")))
        except BaseException:
            run.forget()
            raise
        return run

    def forget(self) -> None:
        """Remove a run that was begun here and holds nothing yet but what says what was asked for."""
        files = [path for path in self.path.rglob("*") if not path.is_dir()]
        if self.made is None or any(path.name not in (RUN_RECORD, *STUDY_FILES) for path in files):
            return
        for path in [*files, *sorted(self.path.rglob("*/"), reverse=True), *self.made]:
            with contextlib.suppress(OSError):  # another command may have begun to work there
                path.rmdir() if path.is_dir() else path.unlink()

    def _record(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "config": to_plain(self.config),
            "seed": self.seed,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "git_commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "status": status,
            "started_s": self.started_s,
        }

    def close(self, status: str) -> None:
        """Write the end of this session into `run.json`: `done`, `stopped` (by the user) or `failed`, time, memory."""
        session = {
            "status": status,
            "wall_s": time.monotonic() - self._began_s,
            "peak_memory_mb": process_peak_mb(),
            "git_commit": git_commit(),
        }
        with self._changed_record() as record:
            record.update(status=status, sessions=[*record.get("sessions", []), session])
        if status == "done":
            for leftover in self.path.rglob(".*.tmp*"):
                with contextlib.suppress(FileNotFoundError):
                    if is_abandoned(leftover):
                        leftover.unlink()

    @contextmanager
    def _changed_record(self) -> Iterator[dict[str, Any]]:
        """Give what `run.json` says, to be changed, and write it back before another process reads it."""
        with hold_folder(self.path):
            record = read_json(self.path / RUN_RECORD, dict[str, Any])
            is_untouched = has_right_seal(record, is_required=True)
            yield record
            # What was changed by hand is not sealed anew: `restage verify` is to find it.
            write_json(self.path / RUN_RECORD, seal(record) if is_untouched else record)

    def folder(self, stage: str) -> Path:
        """The stage's folder, made if missing."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str, config: Any) -> bool:
        """Whether the stage was finished with this config; refuses one that was finished with another."""
        mark = self.path / stage / STAGE_MARK
        if not mark.exists():
            if stage in read_run_record(self.path).finished:  # its mark was taken away, to have it made anew
                self._set_finished(stage, False)
            return False
        found = read_json(mark, StageMark)
        if found.id != content_id(stage, config):
            raise InputError(f"{mark.parent} was made with another config ({found.id}); choose another --out")
        return True

    def mark_done(self, stage: str, config: Any, *, also: Sequence[str] = (), **facts: Any) -> None:
        """Mark a stage as finished, with the hashes of its files and facts to show, once everything else is on disk.

        `also` are patterns, relative to the run, of files that it wrote outside of its folder.
        """
        mark = {"id": content_id(stage, config), "config": to_plain(config), "facts": facts}
        write_json(self.path / stage / STAGE_MARK, seal({**mark, "files": self._hashes(stage, also)}))
        self._set_finished(stage, True)

    def _set_finished(self, stage: str, is_finished: bool) -> None:
        """Note in the run's record whether a stage has a mark, so that one that was deleted is missed."""
        with self._changed_record() as record:
            others = set(record.get("finished", [])) - {stage}
            record["finished"] = sorted(others | {stage} if is_finished else others)

    def _hashes(self, stage: str, also: Sequence[str]) -> dict[str, str]:
        """Hashes of a stage's files by their path in the run, except those whose hashes another record holds."""
        found = {path for pattern in (f"{stage}/**/*", *also) for path in self.path.glob(pattern) if path.is_file()}
        # A record with a seal of its own can be written again (an edit that is tried again) and the mark still holds.
        records = {path: read_json(path, dict[str, Any]) for path in found if path.name in (EDIT_RECORD, FIT_RECORD)}
        records = {path: record.get("files") for path, record in records.items() if "seal" in record}
        files = {path: from_plain(names, dict[str, str], where=path) for path, names in records.items()}
        theirs = {path.parent / name for path, names in files.items() for name in names}
        names = {path.relative_to(self.path).as_posix(): path for path in sorted(found - theirs)}
        return {
            name: SEALED_APART if path in records else file_sha256(path)
            for name, path in names.items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in UNSEALED)
        }


@dataclass(frozen=True, kw_only=True)
class StepByStep:
    """The config of a run whose stages are started one by one; each stage records its own."""

    kind: str = "step by step"


def open_run(folder: Path, *, seed: int = 0) -> RunFolder:
    """Open the run in a folder, whatever its config and seed are, or start one there for stages to be added by hand."""
    if not (folder / RUN_RECORD).exists():
        return RunFolder.open(folder, StepByStep(), seed=seed)
    record = read_run_record(folder)
    return RunFolder(path=folder, config=record.config, seed=record.seed)


@contextmanager
def working(run: RunFolder, *stages: str) -> Iterator[RunFolder]:
    """Work on stages of a run that nobody else works on, and record at the end what became of it.

    The session ends as done, stopped or failed. A new run that failed before it left anything is removed.
    """
    try:
        with hold_stages(run.path, *stages):
            before, status = read_run_record(run.path).status, "failed"
            try:
                yield run
                status = "done"
            except (KeyboardInterrupt, GeneratorExit):
                status = "stopped"
                raise
            except InputError:
                # What the user mistyped does not undo what was done before.
                status = "done" if before == "done" else "failed"
                raise
            except Exception:
                status = "stopped" if is_stop_requested() else "failed"
                raise
            finally:
                run.close(status)
    except Exception:
        run.forget()
        raise
