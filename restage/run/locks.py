"""One command at a time in each stage of a run; different stages may be worked on at once, and readers never lock.

The lock of a stage is a hidden file in the run that says who holds it. The system's own lock on that file ends with the
holder's process, however that ends: neither a dead holder nor a process that got its number since is taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from restage.records import InputError, parse_json

__all__ = ["hold_folder", "hold_stages", "is_abandoned"]

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
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not lock folders
            fcntl.flock(number, fcntl.LOCK_EX)
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
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except BlockingIOError:
            is_locked = False
        except OSError:
            is_locked = None  # this file system has no such locks: what the file says has to do
        try:
            holder = parse_json(os.pread(number, 1 << 16, 0), Holder, where=path)
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
        os.pwrite(number, json.dumps(asdict(holder)).encode(), 0)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
