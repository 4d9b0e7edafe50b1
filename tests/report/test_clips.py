from __future__ import annotations

from pathlib import Path

import pytest

from restage.clips.config import ClipOptions
from restage.compare.clips import ClipScores, judge_clip
from restage.compare.judges import Judges
from restage.edit.clips.stage import ClipChoice, open_clip_edit
from restage.recipes import take_clip
from restage.records import EditRequest
from restage.report.clips import frame_curve
from restage.report.stage import write_report
from restage.run.folder import open_run
from restage.world.clips import sample_clip, sample_clip_edits, write_clip, write_clip_truth
from restage.world.grammar import sample_description


@pytest.fixture
def clip_run(tmp_path: Path) -> Path:
    """A run with one edit of a clip by two methods, measured."""
    clip = sample_clip(3, motion="still", moves_camera=True, num_frames=3, size=32, scene=sample_description(3))
    write_clip(clip, tmp_path / "tiny")
    (edit,) = sample_clip_edits(clip, ["ground"], 3, edition=1)
    write_clip_truth(clip, edit, tmp_path / "tiny")
    run = tmp_path / "run"
    *_, last = take_clip(tmp_path / "tiny", run, ClipOptions())
    request = EditRequest(instruction=edit.instruction, source_caption="", target_caption="")
    for method in ("nothing", "per_frame"):
        choice = ClipChoice(method=method, editor="exact")
        opened = open_clip_edit(open_run(run), Path(last.note), request=request, choice=choice)
        list(opened.steps)
        judge_clip(run, opened.folder, Judges())
    return run


def test_the_page_shows_clips_as_films_with_what_was_measured(clip_run: Path) -> None:
    page = write_report(clip_run).read_text()
    assets = {path.name for path in (clip_run / "report" / "assets").iterdir()}
    films = [part.partition('"')[0] for part in page.split('<video src="')[1:]]
    assert len(films) == 4 and all(Path(film).name in assets for film in films)  # before, two methods, truth
    for text in ("per_frame, exact", "nothing, none", "truth", "before", ">1.000<", 'class="progress"', "Spread"):
        assert text in page, text
    assert page.count("-spread-") == 2 and "No edit in this run yet" not in page
    assert write_report(clip_run).read_text() == page


def test_a_run_without_clips_has_no_section_of_them(tmp_path: Path) -> None:
    open_run(tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert 'id="clips"' not in page and "No edit in this run yet" in page


def test_curves_leave_out_what_was_not_measured() -> None:
    curve = frame_curve(ClipScores(values={}, progress=(0.0, None, 1.0), spill=(None, None, 0.01)))
    assert curve.count("<polyline") == 1 and "0.0,60.0 220.0,0.0" in curve
    assert frame_curve(ClipScores(values={})) == ""
