"""Runs one case in a fork of this process, within limits, and says how it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

from restage import cli

__all__ = ["COUNTS", "KEY", "SECRET_TEXT", "Case", "Verdict", "call_cli", "judge", "lay_out"]

COUNTS = ("tracebacks", "hangs", "memory", "accepted_wrongly", "left_behind")
"""Ways to fail. `tracebacks` counts every end that is not an agreed one: a traceback, a signal, an exit code without a
meaning, an error that is not one line, or control characters that reach the terminal."""

WALL_S, CPU_S = 60.0, 25
MEMORY_BYTES = 2_000_000_000
"""More than any case needs on top of what the loaded package takes."""
MAX_FILE_BYTES = 300_000_000
SECRET_TEXT = "what-lies-outside-is-nobodys-business"
KEY = "sk-a-very-secret-key"
TEMPORARY = re.compile(r"\.tmp|(^|/)tmp/|\.lock$|\.part$")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A spoiled input and what reads it."""

    what: str
    """Border and fault, for people."""
    command: Sequence[str] = ()
    """The command line, if there is one."""
    run: Callable[[], int]
    """What reads it, in the case's folder; returns the exit code."""
    must_refuse: bool
    writes: tuple[str, ...] = ("out", "out/*", "out.*")
    """Patterns of what it may write, relative to the case's folder."""
    codes: tuple[int, ...] = (0, 2)
    """Agreed exit codes."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    code: int
    """Exit code; negative for a signal."""
    seconds: float
    output: str
    faults: dict[str, str] = field(default_factory=dict)
    """By the names in `COUNTS`: what happened."""


def call_cli(arguments: Sequence[str]) -> int:
    """What the shell command does, in this process."""
    if arguments[:1] == ["view"]:
        from restage.view import serve

        # It serves until Ctrl-C, which comes as soon as all is up.
        serve.threading = SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None))  # pyright: ignore
    sys.argv = ["restage", *arguments]
    cli.main()
    return 0


def lay_out(place: Path) -> None:
    """Make the empty folder of a case, with something beside the input that is nobody's business."""
    for name in ("given", "tmp", "outside"):
        (place / name).mkdir(parents=True)
    (place / "outside" / "secret").write_text(f'{{"instruction": "{SECRET_TEXT}"}}\n')


def tree(place: Path) -> dict[str, tuple[int, ...]]:
    """Every path below a folder, with what changes when it is written."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            facts = os.lstat(path)
            is_file = name in files
            found[os.path.relpath(path, place)] = (facts.st_mode, *((facts.st_size, facts.st_mtime_ns) * is_file))
    return found


def peak_bytes() -> int:
    """Memory of this process, from where a fork's own begins."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def become(case: Case, place: Path, log: Path) -> int:
    """In the fork: close all doors, and run the case."""
    os.setsid()
    os.chdir(place)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
    sink = os.open(log, os.O_WRONLY | os.O_CREAT)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (sink, 1), (sink, 2)):
        os.dup2(source, target)
    sys.stdin, sys.stdout = open(0), open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    faulthandler.disable()
    try:
        return case.run()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))


@contextlib.contextmanager
def forked(case: Case, place: Path, log: Path) -> Iterator[int]:
    child = os.fork()
    if not child:
        code = 70
        try:
            code = become(case, place, log)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)


def has_processes(group: int) -> bool:
    """Whether a process of the group still runs a moment after its leader has ended."""
    for _ in range(20):
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.02)
    return True


def judge(case: Case, place: Path, *, wall_s: float = WALL_S) -> Verdict:
    """Run a case whose input lies in `place`, and look at the end, the output and what lies there afterwards."""
    log = place.with_name(f"{place.name}.log")
    before, memory, start = tree(place), peak_bytes(), time.monotonic()
    is_late = lingers = False
    with forked(case, place, log) as child:
        while True:
            found, status, usage = os.wait4(child, os.WNOHANG)
            if found:
                lingers = has_processes(child)
                break
            if time.monotonic() - start > wall_s:
                is_late = True
                os.killpg(child, signal.SIGKILL)
                _, status, usage = os.wait4(child, 0)
                break
            time.sleep(0.005)
    code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - start
    output = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    faults = {}
    if is_late or code in (-signal.SIGXCPU, -signal.SIGKILL):
        faults["hangs"] = f"{seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU"
    if usage.ru_maxrss * 1024 - memory > MEMORY_BYTES or re.search(r"MemoryError|can't allocate memory", output):
        faults["memory"] = f"{(usage.ru_maxrss * 1024 - memory) / 1e6:.0f} MB"
    if code == 3:
        faults["memory"] = "filled the disk"
    if not faults and (problem := bad_end(case, code, output)):
        faults["tracebacks"] = problem
    if code == 0 and case.must_refuse:
        faults["accepted_wrongly"] = "accepted"
    if SECRET_TEXT in output or any(map(tells_secret, outputs_of(place))):
        faults["accepted_wrongly"] = "what lies outside was read out"
    if "hangs" not in faults:
        left = left_by(case, code, output, before, tree(place))
        if lingers:
            left.append("a process")
        if left:
            faults["left_behind"] = ", ".join(left[:5])
    return Verdict(code=code, seconds=seconds, output=output, faults=faults)


def bad_end(case: Case, code: int, output: str) -> str:
    """What is wrong with the end of a case; empty if nothing is."""
    if "Traceback (most recent call last)" in output:
        return output.strip().splitlines()[-1][:200]
    if code not in case.codes:
        return f"exit code {code}"
    if control := CONTROL.search(output.replace("\r", "")):
        return f"control character {control.group()!r} in the output"
    lines = output.strip().splitlines()
    errors = [number for number, line in enumerate(lines) if re.match(r"restage[ :]", line)]
    is_usage = any(re.search("╭|^usage:|helptext", line) for line in lines)
    if code == 2 and not is_usage and (len(errors) != 1 or errors[0] != len(lines) - 1):
        return f"{len(errors)} lines of error, and {len(lines)} lines in all"
    return ""


def outputs_of(place: Path) -> list[Path]:
    found = (*place.glob("out/**/*"), *place.glob("out.*"))
    return [path for path in found if path.is_file() and path.stat().st_size < 1_000_000]


def tells_secret(path: Path) -> bool:
    content = path.read_bytes()
    return SECRET_TEXT.encode() in content or KEY.encode() in content


Tree = dict[str, tuple[int, ...]]


def left_by(case: Case, code: int, output: str, before: Tree, after: Tree) -> list[str]:
    """What a case has left, or changed, that it should not have."""
    is_refused = code != 0
    is_named = re.search(r"\bin out/|goes on from", output) is not None
    left = [
        f"{name} is gone" for name in before if name not in after and not any(fnmatch(name, p) for p in case.writes)
    ]
    for name, facts in after.items():
        if before.get(name) == facts:
            continue
        is_allowed = any(fnmatch(name, pattern) for pattern in case.writes)
        # What an error names, or goes on from, is meant to stay.
        is_new_out = is_refused and not is_named and re.match(r"out(\.|$)", name) and name not in before
        if TEMPORARY.search(name) or is_new_out or not is_allowed:
            left.append(name)
    return left
