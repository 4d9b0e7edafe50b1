from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import video
from restage.compare.clips import ClipScores
from restage.run.reading import EditRecord


def test_the_benchmark_goes_from_start_to_the_last_line_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = "nothing,frozen,per_frame,dreammotion,dreammotion-no-mask,tune_a_video,carried,exact"
    given = ["--out", str(tmp_path / "run"), "--clips", "1", "--num-frames", "2", "--size", "48", "--tiny"]
    given += ["--long-frames", "12", "--methods", methods]
    first = video.main(given)
    expected = {f"{name.replace('-', '_')}_{what}" for name in methods.split(",") for what in ("progress", "seconds")}
    assert expected | {"rank_frame_consistency_vs_spread", "memory_12_frames_mb", "memory_20_frames_mb"} <= set(first)
    assert first["exact_progress"] == pytest.approx(1, abs=0.02) and first["nothing_progress"] == 0
    capsys.readouterr()
    again = video.main(given)
    assert "per_frame: " not in capsys.readouterr().err
    assert {name: value for name, value in again.items() if "seconds" not in name and "memory" not in name} == {
        name: value for name, value in first.items() if "seconds" not in name and "memory" not in name
    }


def test_every_second_clip_moves() -> None:
    motions = [video.sample(number, 2, 16)[0].motion for number in range(4)]
    assert [motion == "still" for motion in motions] == [True, False, True, False]


def test_rank_agreement_turns_both_so_that_more_is_better() -> None:
    record = EditRecord(scene="a", edit="e", method="m", editor="x", seed=0, status="done")
    rows = {
        ("a", str(place)): (record, ClipScores(values={"frame_consistency": place / 4, "spread": -place / 4}))
        for place in range(4)
    }
    assert video.rank_agreement(rows, "frame_consistency", "spread") == pytest.approx(1)
    assert math.isnan(video.rank_agreement({}, "frame_consistency", "spread"))
