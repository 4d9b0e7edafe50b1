"""What somebody would sensibly do next, from what lies in a folder of runs: commands, each with its reason."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from restage.audit.listing import find_runs
from restage.records import InputError
from restage.run.layout import (
    CLIPS,
    EDIT_CASES,
    EDIT_RECORDS,
    FITS,
    PAGE,
    PROMPTS,
    RUN_RECORD,
    SCORES,
    TRANSFORMS,
    is_stage_done,
)
from restage.run.reading import RunRecord, read_run_record

__all__ = ["OPENERS", "NextStep", "describe_steps", "next_steps", "steps_of_run"]

MAX_STEPS = 3
OPENERS = {"darwin": "open", "win32": "start", "linux": "xdg-open"}
"""What opens a file in the browser, by platform."""


class NextStep(NamedTuple):
    """A command to run, and why."""

    command: str
    reason: str


def next_steps(folder: Path = Path("runs")) -> list[NextStep]:
    """Return at most three steps: those of the newest run in a folder, or how to begin where there is none."""
    runs = sorted(find_runs(folder), key=lambda run: (run / RUN_RECORD).stat().st_mtime) if folder.is_dir() else []
    for run in reversed(runs):
        try:
            return list(steps_of_run(run))[:MAX_STEPS]
        except InputError:
            continue  # a broken record must not hide the other runs
    return [
        NextStep("restage demo", "the whole path on the miniature world, in about ten minutes"),
        NextStep("restage fit PHOTOGRAPHS --out runs/mine", "your own scene: a folder of photographs, or a video"),
        NextStep("restage doctor", "what this machine can do"),
    ]


def steps_of_run(run: Path) -> Iterator[NextStep]:
    """Yield what comes next in a run, the most urgent first."""
    record, name = read_run_record(run), shlex.quote(str(run))
    if record.status in ("stopped", "failed") and record.command:
        yield NextStep(_again(record), f"it was {record.status}; the same command goes on from there")
    has_edits = any(run.glob(EDIT_RECORDS))
    yield from _training_steps(run, name)
    yield from _scene_steps(run, name, has_edits=has_edits)
    if has_edits and any(run.glob(EDIT_CASES)) and not (run / SCORES).is_file() and not any(run.glob(CLIPS)):
        yield NextStep(f"restage compare {name}", "score its edits on held-out views")
    if (run / PAGE).is_file():
        yield NextStep(
            f"{OPENERS.get(sys.platform, 'xdg-open')} {shlex.quote(str(run / PAGE))}", "its page, in a browser"
        )
    elif has_edits:
        yield NextStep(f"restage report {name}", "a page that shows its edits")
    if any(run.glob(FITS)):
        yield NextStep(f"restage view {name}", "look at it in the browser, and edit it there")


def _again(record: RunRecord) -> str:
    """Return the command of a run's last session, as it is typed."""
    last = record.sessions[-1].command if record.sessions else ()
    program, *arguments = last or record.command
    return shlex.join([Path(program).name, *arguments])


def _training_steps(run: Path, name: str) -> Iterator[NextStep]:
    """From prompts to an edit model."""
    if (run / PROMPTS).is_file() and is_stage_done(run, "prompts") and not is_stage_done(run, "pairs"):
        yield NextStep(f"restage pairs {name}", "make an image pair for each of its prompt pairs")
    elif is_stage_done(run, "pairs") and not is_stage_done(run, "train"):
        yield NextStep(f"restage train {name}", "train an edit model on its pairs")


def _scene_steps(run: Path, name: str, *, has_edits: bool) -> Iterator[NextStep]:
    """From captures to edits."""
    if any(run.glob(f"scenes/*/capture/{TRANSFORMS}")) and not any(run.glob(FITS)):
        yield NextStep(f"restage scenes {name}", "fit its captures")
    elif not has_edits and any(run.glob(FITS)):
        if is_stage_done(run, "world"):
            yield NextStep(f"restage edits {name}", "edit its scenes by several methods")
        else:
            yield NextStep(f'restage edit {name} "make it bronze" --editor grade', "its first edit; any model will do")
    elif not has_edits and any(run.glob(CLIPS)):
        yield NextStep(f'restage edit {name} "make it bronze" --editor grade', "its first edit")


def describe_steps(steps: Sequence[NextStep]) -> list[str]:
    """Return a line for each step, its command first."""
    width = max((len(step.command) for step in steps), default=0)
    return [f"  {step.command:<{width}}  # {step.reason}" for step in steps]
