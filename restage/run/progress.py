"""Shows long work while it goes on: bars on a terminal, about ten plain lines a stage elsewhere.

Called by the sub-commands with the generators of `Progress` that every stage is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from restage.records import Progress
from restage.run.stopping import is_stop_requested
from restage.run.terminal import printable, say

__all__ = ["plain_lines", "show_progress"]

PLAIN_LINES_PER_STAGE = 10
MAX_SILENCE_S = 120.0
"""Seconds after which the next step is shown, whatever its share."""


def show_progress(steps: Iterable[Progress], *, file: TextIO | None = None) -> Progress | None:
    """Work through the steps with bars on a terminal and about ten plain lines a stage elsewhere; returns the last."""
    out = file or sys.stdout
    last = _Last(steps)
    if out.isatty():
        _show_bars(last)
    else:
        for line in plain_lines(last):
            try:
                say(line, file=out)
            except BrokenPipeError:  # nobody reads on: the same as Ctrl-C
                raise KeyboardInterrupt from None
    return last.step


class _Last:
    """Hands steps on and keeps the last one."""

    def __init__(self, steps: Iterable[Progress]) -> None:
        self.steps = steps
        self.step: Progress | None = None

    def __iter__(self) -> Iterator[Progress]:
        for step in self.steps:
            self.step = step
            yield step
            if is_stop_requested():  # the interrupt was swallowed by compiled code
                raise KeyboardInterrupt


def plain_lines(steps: Iterable[Progress]) -> Iterator[str]:
    """A line for the first and last step of a stage, each tenth between, and after a long silence, with its seconds."""
    stage, shown, spoke_s = None, -1, time.monotonic()
    started_s: dict[str, float] = {}
    for step in steps:
        now_s = time.monotonic()
        if step.stage != stage:
            stage, shown = step.stage, -1
            started_s.setdefault(stage, now_s)
        tenth = step.done * PLAIN_LINES_PER_STAGE // max(step.total, 1)
        if tenth != shown or now_s - spoke_s >= MAX_SILENCE_S:
            shown, spoke_s = tenth, now_s
            note = f"  {step.note}" if step.note else ""
            yield f"{step.stage:<8} {step.done:>5}/{step.total:<5} {now_s - started_s[step.stage]:6.1f} s{note}"


def _show_bars(steps: Iterable[Progress]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TextColumn("{task.fields[note]}", markup=False)) as bars:
        tasks: dict[str, Any] = {}
        for step in steps:
            if step.stage not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[step.stage] = bars.add_task(step.stage, total=step.total, note="")
            bars.update(tasks[step.stage], completed=step.done, total=step.total, note=printable(step.note))
