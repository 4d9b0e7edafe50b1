"""The folder of a run: what it was started with, which stages are done, and the hashes of what they left.

One command at a time works on a stage; different ones may at once, and readers never lock. The lock is a hidden file
that says who holds it. The system's own lock on that file ends with the holder's process, however that ends: neither a
dead holder nor a process that got its number since is taken for it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from restage.records import (
    InputError,
    content_id,
    file_sha256,
    from_plain,
    has_right_seal,
    parse_json,
    read_json,
    seal,
    to_plain,
    write_json,
)
from restage.run.environment import git_commit, machine, process_peak_mb, user_name, versions
from restage.run.file_locks import lock_file
from restage.run.layout import EDIT_RECORD, FIT_RECORD, FIT_STATE, RUN_RECORD, STAGE_MARK, STAGE_MARKS, STUDY_FILES
from restage.run.profile import StageTime, listening
from restage.run.progress import is_stop_requested
from restage.run.reading import RunRecord, StageMark, read_run_record

__all__ = ["RunFolder", "SEALED_APART", "StepByStep", "UNSEALED", "hold_folder", "hold_stages", "is_abandoned"]
__all__ += ["open_run", "working"]

BEGIN_S, LOOK_S = 2.0, 0.05
"""Seconds that a holder may take to write who it is, and between looks at that."""
SLACK_S = 2.0
"""Seconds by which two clocks may differ in when something began."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who works on a stage, as its lock says."""

    host: str
    pid: int
    began_s: float
    """When the process began, in seconds since 1970: numbers of processes are given again."""
    since_s: float
    command: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"process {self.pid} on {self.host} since {since} ({self.command})"


@contextlib.contextmanager
def hold_stages(run: Path, *stages: str) -> Iterator[None]:
    """Keep other commands away from stages of a run; refuses if another one works on one of them."""
    with contextlib.ExitStack() as held:
        for stage in stages:
            held.enter_context(_held(run / f".{stage}.lock"))
        yield


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Let no other process of this machine be within it for this folder: for the moment that a change takes."""
    # Windows opens no folders.
    place = folder / ".folder.lock" if sys.platform == "win32" else folder
    number = os.open(place, os.O_RDWR | os.O_CREAT if sys.platform == "win32" else os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not lock folders
            lock_file(number, waits=True)
        yield
    finally:
        os.close(number)


def is_abandoned(temporary: Path) -> bool:
    """Whether a temporary file was made by a process of this machine that is gone."""
    maker = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]+\.tmp", temporary.name)
    return maker is not None and not _is_running(int(maker[1]), by_s=temporary.stat().st_mtime)


def _is_running(pid: int, *, by_s: float) -> bool:
    """Whether a process has this number that had begun by then."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= by_s + SLACK_S
    except psutil.Error:
        return False


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    give_up_s = time.monotonic() + BEGIN_S
    while (number := _try_to_hold(path, is_last_try=time.monotonic() > give_up_s)) is None:
        time.sleep(LOOK_S)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_at(number, path):
                path.unlink()  # while it is held: whoever has opened it meanwhile sees that it is not there any more
        os.close(number)


def _try_to_hold(path: Path, *, is_last_try: bool) -> int | None:
    """Take a lock, as an open file; None if somebody has just taken or released it."""
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    is_kept = False
    try:
        try:
            lock_file(number, waits=False)
            is_locked = True
        except BlockingIOError:
            is_locked = False
        except OSError:
            is_locked = None  # this file system has no such locks: what the file says has to do
        try:
            os.lseek(number, 0, os.SEEK_SET)
            holder = parse_json(os.read(number, 1 << 16), Holder, where=path)
        except InputError:
            holder = None  # nobody, or somebody who is about to write who it is
        if holder is None:
            is_free = is_locked is not False
        elif holder.host != socket.gethostname():
            raise InputError(f"{_what(path)} is held by {holder}; if that is no longer at work, remove {path}")
        else:
            is_free = is_locked or (is_locked is None and not _is_running(holder.pid, by_s=holder.began_s))
        if not is_free and (holder is not None or is_last_try):
            raise InputError(f"{_what(path)} is held by {holder or 'another command'}; wait for its end, or stop it")
        if not (is_free and _is_at(number, path)):
            return None
        _write_holder(number, path)
        is_kept = True
        return number
    finally:
        if not is_kept:
            os.close(number)


def _what(path: Path) -> str:
    return f"{path.parent}: the stage {path.stem[1:]}"


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(number: int, path: Path) -> None:
    process = psutil.Process()
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    began_s, host = process.create_time(), socket.gethostname()
    holder = Holder(host=host, pid=process.pid, began_s=began_s, since_s=time.time(), command=command)
    try:
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
        os.write(number, json.dumps(asdict(holder)).encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


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
            "command": _command(),
            "user": user_name(),
            "git_commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "status": status,
            "started_s": self.started_s,
        }

    def close(self, status: str, profile: Mapping[str, StageTime] | None = None) -> None:
        """Write the end of this session into `run.json`: `done`, `stopped` (by the user) or `failed`, time, memory."""
        session = {
            "status": status,
            "command": _command(),
            "user": user_name(),
            "wall_s": time.monotonic() - self._began_s,
            "peak_memory_mb": process_peak_mb(),
            "git_commit": git_commit(),
            "profile": to_plain(profile or {}),
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


def _command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


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
            profile: Mapping[str, StageTime] = {}
            try:
                with listening(stages[0] if stages else "run") as profile:
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
                run.close(status, profile)
    except Exception:
        run.forget()
        raise
