"""Progress as plain lines: how many, how often, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from restage.records import Progress
from restage.run.progress import PlainLines, duration


def plain_lines(steps: Iterable[Progress]) -> list[str]:
    lines = PlainLines()
    return [line for step in steps if (line := lines.line_for(step))]


def test_plain_progress_is_about_ten_lines_a_stage() -> None:
    steps = [Progress(stage="fit", done=done, total=1000, note="loss") for done in range(1001)]
    lines = plain_lines(steps)
    assert len(lines) == 11
    assert "1000/1000" in lines[-1] and "loss" in lines[-1]


def test_plain_progress_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 50))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    lines = plain_lines(Progress(stage="pairs", done=done, total=1000) for done in range(7))
    assert [line.split()[1] for line in lines] == ["0/1000", "3/1000", "6/1000"]


def test_plain_progress_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    lines = plain_lines(Progress(stage="pairs", done=done, total=1000) for done in (500, 600, 700, 1000))
    assert [", 4 min left" in line for line in lines] == [False, True, False, False]
    assert ", 3 min left" in lines[2] and "left" not in lines[3]
    assert [duration(seconds) for seconds in (3.0, 119.0, 7300.0, 1e6)] == ["3 s", "119 s", "2 h", "12 days"]


def test_time_left_is_never_negative_where_a_stage_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    read = [Progress(stage="train", done=done, total=60) for done in (30, 60)]
    trained = [Progress(stage="train", done=done, total=90) for done in (0, 30, 60)]
    lines = plain_lines([*read, *trained])
    assert ", 2 min left" in lines[3] and ", 60 s left" in lines[4]
    assert [", " in line for line in lines] == [False, False, False, True, True]


def test_plain_progress_counts_a_stages_seconds_through_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 10))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    steps = [Progress(stage=stage, done=1, total=3) for stage in ("pairs", "pairs", "estimate", "pairs")]
    assert [line.split()[2] for line in plain_lines(steps)] == ["0.0", "0.0", "30.0"]
