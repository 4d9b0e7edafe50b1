"""CPU seconds of commands that compute nothing, each in a process of its own with all that it starts.

    python -m benchmarks.startup            # one line of JSON, each number the least of three

Help of every sub-command, `ls`, `show`, `doctor`, and what is refused at once; `RUN` may name a run to show.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from restage.cli import SUMMARIES

__all__ = ["measure"]

REPEATS = 3


@dataclass(frozen=True)
class Options:
    """What is measured."""

    run: Path | None = None
    """A run to show; None leaves that out."""


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Return the least CPU time of a command in some tries, its own and that of processes that it starts."""
    found = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "restage.cli", *arguments], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def measure(options: Options) -> dict[str, float | str]:
    """Measure all of them; the slowest of the others is named."""
    runs = str(options.run.parent if options.run else Path())
    others = [[name, "--help"] for name in SUMMARIES] + [["verify", os.devnull], ["report", os.devnull]]
    if options.run is not None:
        others += [["show", str(options.run)], ["show", str(options.run), "--profile"]]
    times = {" ".join(words): cpu_seconds(words) for words in others}
    slowest = max(times, key=lambda name: times[name])
    return {
        "ls_cpu_s": cpu_seconds(["ls", runs]),
        "help_cpu_s": cpu_seconds(["--help"]),
        "doctor_cpu_s": cpu_seconds(["doctor"]),
        "slowest_other": slowest,
        "slowest_other_cpu_s": times[slowest],
    }


if __name__ == "__main__":
    found = measure(tyro.cli(Options))
    print(json.dumps({name: round(x, 3) if isinstance(x, float) else x for name, x in found.items()}))
