"""Makes a run again elsewhere, by the commands that made it, so that `diff` can say what comes out otherwise."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from restage.audit.show import RunDifference
from restage.records import InputError
from restage.run.layout import SPLATS
from restage.run.reading import read_results, read_run_record
from restage.scores.definitions import COST_METRICS

__all__ = ["commands_of", "comes_out_alike", "differing_results", "moved", "rerun"]

NAMES_ITS_RUN = ("demo", "fit")
"""Commands that name a folder for the run themselves where `--out` is not given."""
NOT_MADE = ("view", "diagnose", "bundle", "track", "export")
"""Commands whose sessions add nothing that could be made again without somebody at the screen, or nothing at all."""


def commands_of(run: Path) -> list[list[str]]:
    """Return the command lines of all sessions that ended well, in order: what comes after `restage` in each.

    Raises:
        InputError: an earlier version made the run, which kept its first command alone, or a session was no command.
    """
    record = read_run_record(run)
    sessions = [session for session in record.sessions if session.status == "done"]
    lines = [session.command for session in sessions]
    if len(lines) == 1 and not lines[0]:
        lines = [record.command]
    found = []
    for line in lines:
        if not line:
            raise InputError(f"{run} does not say which commands made it: an earlier version kept the first one alone")
        program, *arguments = line
        if not program.startswith("restage") and program not in ("cli.py", "__main__.py"):
            raise InputError(f"{run} was made by {program}, not by commands of restage alone; run that again")
        if arguments and arguments[0] not in NOT_MADE:
            found.append(arguments)
    if not found:
        raise InputError(f"{run} holds no finished session of a command that makes something")
    return found


def moved(arguments: Sequence[str], run: Path, out: Path) -> list[str]:
    """Return a command line with another folder in place of the run's, wherever it or a file in it is named.

    Raises:
        InputError: the command names no folder, and chose one itself.
    """
    own, found, is_named = os.path.abspath(run), [], False
    for argument in arguments:
        name, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        place = os.path.abspath(value)
        if value and (place == own or place.startswith(own + os.sep)):
            is_named, value = True, str(out / os.path.relpath(place, own)) if place != own else str(out)
        found.append(f"{name}{sign}{value}")
    if is_named:
        return found
    if arguments[0] in NAMES_ITS_RUN:
        return [*found, "--out", str(out)]
    raise InputError(f"restage {shlex.join(arguments)} does not name the folder {run}; make it again by hand")


def rerun(run: Path, out: Path) -> Iterator[str]:
    """Make a run again in another folder; yields each command before it runs. What it prints goes to the terminal.

    Paths in the commands mean what they meant where they were given: start it in the same folder.

    Raises:
        InputError: the folder is there already, the commands are not known, or one of them fails.
    """
    if out.exists():
        raise InputError(f"{out} is there already; choose another --out, or remove it")
    lines = [moved(line, run, out) for line in commands_of(run)]
    for number, line in enumerate(lines, start=1):
        yield f"{number} of {len(lines)}: restage {shlex.join(line)}"
        code = subprocess.run([sys.executable, "-m", "restage.cli", *line], check=False).returncode
        if code:
            raise InputError(f"restage {shlex.join(line)} ended with {code}; {out} holds what there is by now")


def comes_out_alike(found: RunDifference, differing: Sequence[str]) -> bool:
    """Whether data, weights, scores and edited splats are the same; seconds and memory never are."""
    scores = [gap for gap in found.scores if gap.metric not in COST_METRICS]
    return not (found.data or found.weights or scores or differing)


def differing_results(first: Path, second: Path) -> list[str]:
    """Return the results of two runs whose edited splats differ, or that one run alone has."""
    hashes = [
        {
            folder.relative_to(run).as_posix(): record.files.get(SPLATS, "")
            for folder, record in read_results(run).items()
        }
        for run in (first, second)
    ]
    return [name for name in dict.fromkeys([*hashes[0], *hashes[1]]) if hashes[0].get(name) != hashes[1].get(name)]
