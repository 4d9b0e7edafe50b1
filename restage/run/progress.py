"""Shows long work on a terminal, prints names from outside so that they command nothing there, and hears of stops.

A stop by a signal interrupts at once and is remembered: an interrupt that reaches compiled code comes out of it as
another error (numba's `SystemError`), or is swallowed there. What is remembered tells such an error from a real one,
and stops the work at its next step.
"""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import FrameType
from typing import Any, TextIO, TypeVar

from restage.records import Progress

__all__ = ["PlainLines", "PrintableStream", "duration", "is_stop_requested", "printable", "report", "say"]
__all__ += ["show_progress", "show_result", "stop_on_signals"]

Result = TypeVar("Result")

# Control characters but tab and line feed, halves of surrogate pairs, and what turns the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Spell out what a terminal would obey instead of show: an escape becomes `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, *, end: str = "\n", file: Any = None) -> None:
    """Print text that may hold names from outside, to a text stream (default: stdout as it is now)."""
    print(printable(text), end=end, file=file, flush=True)


class PrintableStream(io.TextIOBase):
    """Writes to another text stream, with what a terminal would obey spelled out, for libraries that print."""

    def __init__(self, stream: TextIO | io.TextIOBase) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        self._stream.write(printable(text))
        return len(text)


_requests: list[int] = []


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM stop this process; a shell starts background jobs with the first one ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        _requests.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def is_stop_requested() -> bool:
    """Whether a signal has asked this process to stop."""
    return bool(_requests)


PLAIN_LINES_PER_STAGE = 10
PACE_KNOWN_S = 5.0
"""Seconds of a stage after which it is said how long the rest will take."""
MAX_SILENCE_S = 120.0
"""Seconds after which the next step is shown, whatever its share."""

Show = Callable[[Progress], object]
_shows: list[Show] = []  # the innermost display comes last


def report(step: Progress) -> None:
    """Show a step from deep within work that yields none itself, where a display is open; otherwise do nothing."""
    if _shows:
        _shows[-1](step)


def show_progress(steps: Iterable[Progress], *, file: TextIO | None = None) -> Progress | None:
    """Work through the steps with bars on a terminal and about ten plain lines a stage elsewhere; returns the last."""
    out, last = file or sys.stdout, None
    with _bars() if out.isatty() else _plain(out) as show:
        _shows.append(show)
        try:
            for last in steps:
                show(last)
                if is_stop_requested():  # the interrupt was swallowed by compiled code
                    raise KeyboardInterrupt
        finally:
            _shows.pop()
    return last


def show_result(steps: Generator[Progress, None, Result]) -> Result:
    """Work through the steps as `show_progress` does, and return what they lead to."""
    found: list[Result] = []

    def kept() -> Iterator[Progress]:
        found.append((yield from steps))

    show_progress(kept())
    return found[0]


class PlainLines:
    """A line for the first and last step of a stage, each tenth between, and after a long silence.

    With the seconds since its first step, and about how many are left.
    """

    def __init__(self) -> None:
        self.stage, self.shown, self.spoke_s = "", -1, time.monotonic()
        self.started_s: dict[str, float] = {}
        self.last_done: dict[str, int] = {}
        self.pace_from: dict[str, tuple[float, int]] = {}  # since when, and from where: what was done before is no pace

    def line_for(self, step: Progress) -> str | None:
        """Return the line to be shown for a step, if any."""
        now_s = time.monotonic()
        if step.stage != self.stage:
            self.stage, self.shown = step.stage, -1
            self.started_s.setdefault(step.stage, now_s)
        # A stage may count twice: what it reads, then its own steps.
        if step.done < self.last_done.get(step.stage, step.done + 1):
            self.pace_from[step.stage] = (now_s, step.done)
        self.last_done[step.stage] = step.done
        tenth = step.done * PLAIN_LINES_PER_STAGE // max(step.total, 1)
        if tenth == self.shown and now_s - self.spoke_s < MAX_SILENCE_S:
            return None
        self.shown, self.spoke_s = tenth, now_s
        note = f"  {step.note}" if step.note else ""
        elapsed_s = now_s - self.started_s[step.stage]
        since_s, first = self.pace_from[step.stage]
        paced_s, done, left = now_s - since_s, step.done - first, ""
        if done and paced_s > PACE_KNOWN_S and step.done < step.total:
            left = f", {duration(paced_s / done * (step.total - step.done))} left"
        return f"{step.stage:<8} {step.done:>5}/{step.total:<5} {elapsed_s:6.1f} s{left}{note}"


def duration(seconds: float) -> str:
    """Say about how long something takes."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


@contextlib.contextmanager
def _plain(out: Any) -> Iterator[Show]:
    lines = PlainLines()

    def show(step: Progress) -> None:
        if line := lines.line_for(step):
            try:
                say(line, file=out)
            except BrokenPipeError:  # nobody reads on: the same as Ctrl-C
                raise KeyboardInterrupt from None

    yield show


@contextlib.contextmanager
def _bars() -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False)) as bars:
        tasks: dict[str, Any] = {}

        def show(step: Progress) -> None:
            if step.stage not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[step.stage] = bars.add_task(step.stage, total=step.total, note="")
            bars.update(tasks[step.stage], completed=step.done, total=step.total, note=printable(step.note))

        yield show
