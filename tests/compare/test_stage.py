import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from restage.compare.config import CompareConfig
from restage.compare.metrics import progress
from restage.compare.stage import find_results, run_compare
from restage.edit.editors.grade import grade_views, write_grade_truth
from restage.edit.pictures import quantize, read_image, read_mask, write_image, write_mask
from restage.records import EditCase, EditRequest, InputError, Score, write_json
from restage.report.stage import ReportConfig, run_report
from restage.run.folder import RunFolder
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.io.splat_files import write_splats
from restage.scenes.splats import Splats
from restage.scores.definitions import COST_METRICS, METRICS
from restage.scores.rows import read_scores, read_view_scores, write_scores
from restage.scores.tables import method_table

SIZE = 16


def one_ball() -> Splats:
    return Splats(
        means=torch.zeros(1, 3),
        log_scales=torch.full((1, 3), math.log(0.3)),
        rotations=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        opacity_logits=torch.full((1,), 4.0),
        sh=torch.ones(1, 1, 3),
    )


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with one scene, one edit, and the results of three methods, one of them failed."""
    run = RunFolder.open(tmp_path / "run", CompareConfig(), seed=0)
    intrinsics = intrinsics_from_fov(1.0, SIZE, SIZE).expand(4, 3, 3).contiguous()
    cameras = Cameras(orbit(4, 2.0, height=1.0), intrinsics, SIZE, SIZE)
    images = render_views(one_ball(), cameras).clamp(0, 1)
    names = tuple(f"view_{index}.png" for index in range(4))
    capture = Capture("ball", cameras, images, names, torch.zeros(0, 3), torch.zeros(0, 3), (0, 1), (2, 3))
    scene = run.path / "scenes" / "ball"
    write_capture(capture, scene / "capture")
    write_splats(one_ball(), scene / "splats.ply")
    region = (images.amax(dim=1) > 0.3).float()
    truth = images * (1 - 0.8 * region[:, None])
    for name, image, mask in zip(names, truth, region, strict=True):
        write_image(scene / "truth" / "dark" / "images" / name, image)
        write_mask(scene / "truth" / "dark" / "masks" / name, mask)
    request = EditRequest(instruction="darken", source_caption="a ball", target_caption="a dark ball")
    case = EditCase(scene="ball", kind="recolour", request=request, has_truth=True)
    write_json(scene / "truth" / "dark" / "edit.json", case)
    write_result(run, "nothing", "none", images)
    write_result(run, "restage", "exact", truth)
    write_result(run, "idu", "exact", None)
    return run


def write_result(run: RunFolder, method: str, editor: str, images: torch.Tensor | None, edit: str = "dark") -> None:
    folder = run.path / "edit" / "ball" / edit / f"{method}-{editor}" / "0"
    record = {"scene": "ball", "edit": edit, "kind": "recolour", "method": method, "editor": editor, "seed": 0}
    if images is not None:
        for index in (2, 3):
            write_image(folder / "held_out" / f"view_{index}.png", images[index])
    status = {"status": "done", "reason": ""} if images is not None else {"status": "failed", "reason": "too hot"}
    write_json(folder / "record.json", {**record, **status, "cost": {"seconds": 2.5, "peak_memory_mb": 100.0}})


def scores_of(run: RunFolder, method: str) -> dict[str, Score]:
    list(run_compare(run, CompareConfig(orbit_frames=3)))
    rows = read_scores(run.path / "compare" / "scores.parquet")
    return {row.metric: row for row in rows if row.method == method and row.edit == "dark"}


def test_truth_as_a_result_scores_full_progress_and_no_spill(run):
    scores = scores_of(run, "restage")
    assert scores["progress"].value == pytest.approx(1, abs=1e-3)
    assert scores["spill"].value < 1e-3
    assert (scores["no_op"].value, scores["wrong_way"].value) == (0, 0)


def test_the_anchor_that_does_nothing_scores_zero_and_is_flagged_as_a_no_op(run):
    scores = scores_of(run, "nothing")
    assert scores["progress"].value == pytest.approx(0, abs=1e-3)
    assert scores["spill"].value == 0
    assert (scores["no_op"].value, scores["wrong_way"].value) == (1, 0)


def test_a_failed_result_is_nan_with_its_reason_in_every_metric(run):
    scores = scores_of(run, "idu")
    assert math.isnan(scores["progress"].value)
    measured = [score for score in scores.values() if not score.is_cost]
    assert {score.reason for score in measured} == {"failed: too hot"}
    assert set(scores) == set(METRICS)


def test_a_result_that_was_never_made_is_nan_with_a_reason_and_not_a_missing_row(run):
    write_result(run, "nothing", "none", torch.zeros(4, 3, SIZE, SIZE), edit="light")
    rows = {(row.contender.method, row.edit): row.problem for row in find_results(run.path)}
    assert len(rows) == 6
    assert rows["restage", "light"] == "no result: the edit was not run or not finished"


def test_without_held_out_views_every_metric_is_nan_with_that_reason_and_the_report_says_so(run):
    scene = run.path / "scenes" / "ball"
    capture = read_capture(scene / "capture")
    write_capture(replace(capture, train_indices=(0, 1, 2, 3), held_out_indices=()), scene / "capture")
    scores, reason = scores_of(run, "restage"), "the scene has no held-out views to measure on"
    assert set(scores) == set(METRICS) and scores["seconds"].value == 2.5
    measured = [score for score in scores.values() if not score.is_cost]
    assert all(math.isnan(score.value) for score in measured) and {score.reason for score in measured} == {reason}
    assert read_view_scores(run.path / "compare" / "views.parquet") == []
    list(run_report(run, ReportConfig()))
    assert f"not scored: {reason}" in (run.path / "report" / "index.html").read_text()


def test_an_edit_without_truth_is_judged_by_what_needs_none(run):
    write_result(run, "nothing", "none", torch.zeros(4, 3, SIZE, SIZE), edit="light")
    list(run_compare(run, CompareConfig(orbit_frames=3)))
    rows = read_scores(run.path / "compare" / "scores.parquet")
    scores = {row.metric: row for row in rows if (row.method, row.edit) == ("nothing", "light")}
    assert scores["progress"].reason == scores["spill"].reason == "no truth to measure against"
    assert scores["clip_text"].reason == "the edit has no captions of the scene before and after"
    assert -1 <= scores["clip_image"].value < 1


def test_every_nan_has_a_reason(run):
    list(run_compare(run, CompareConfig(orbit_frames=3)))
    for rows in (
        read_scores(run.path / "compare/scores.parquet"),
        read_view_scores(run.path / "compare/views.parquet"),
    ):
        assert [row for row in rows if math.isnan(row.value) and not row.reason] == []


def test_scores_of_single_views_are_kept_and_average_to_the_score(run):
    scores = scores_of(run, "nothing")
    views = read_view_scores(run.path / "compare" / "views.parquet")
    mine = [row for row in views if (row.method, row.metric) == ("nothing", "psnr_db")]
    assert [row.view for row in mine] == ["view_2.png", "view_3.png"]
    assert sum(row.value for row in mine) / 2 == pytest.approx(scores["psnr_db"].value)


def test_times_and_memory_are_marked_as_costs(run):
    scores = scores_of(run, "restage")
    assert scores["seconds"].value == 2.5
    assert {name for name, score in scores.items() if score.is_cost} == set(COST_METRICS)


def test_every_method_has_a_row_in_the_table(run):
    list(run_compare(run, CompareConfig(orbit_frames=3)))
    rows = method_table(read_scores(run.path / "compare" / "scores.parquet"))
    assert [row.method for row in rows] == ["restage", "nothing", "idu"]


def test_comparing_twice_does_nothing_the_second_time(run):
    list(run_compare(run, CompareConfig(orbit_frames=3)))
    (only,) = run_compare(run, CompareConfig(orbit_frames=3))
    assert only.note == "done before"


def test_a_run_without_edits_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no finished edits"):
        find_results(tmp_path)


def test_scores_survive_a_round_trip(tmp_path):
    rows = [
        Score(scene="a", edit="e", kind="k", method="m", editor="x", seed=3, metric="progress", value=0.25),
        Score(scene="a", edit="e", kind="k", method="m", editor="x", seed=3, metric="s", value=1.0, is_cost=True),
    ]
    write_scores(tmp_path / "scores.parquet", rows)
    assert read_scores(tmp_path / "scores.parquet") == rows


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "scores.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not readable as parquet"):
        read_scores(tmp_path / "scores.parquet")


@pytest.mark.parametrize("instruction", ["make it golden", "make the ball golden"])
def test_graded_photographs_are_measured_from_what_the_scene_shows_however_badly_it_is_fitted(run, instruction):
    """Photographs of a scene that its splats do not look like: a capture that could only be fitted badly."""
    scene = run.path / "scenes" / "ball"
    capture = read_capture(scene / "capture")
    unedited = render_views(one_ball(), capture.cameras)
    noise = torch.rand(capture.images.shape, generator=torch.Generator().manual_seed(0))
    photographs = replace(capture, images=0.6 * unedited.flip(3).clamp(0, 1) + 0.4 * noise)
    write_capture(photographs, scene / "capture")
    request = EditRequest(instruction=instruction, source_caption="", target_caption="")
    regions = None if "ball" not in instruction else (unedited.amax(dim=1) > 0.3).float()
    write_grade_truth(scene / "truth" / "gold", photographs, request, regions)
    graded = grade_views(quantize(unedited), instruction, regions).images
    write_result(run, "nothing", "none", unedited, edit="gold")
    write_result(run, "restage", "grade", graded, edit="gold")
    write_result(run, "replace_once", "grade", (quantize(unedited) + graded) / 2, edit="gold")
    write_result(run, "idu", "grade", 2 * unedited - graded, edit="gold")
    list(run_compare(run, CompareConfig(orbit_frames=0)))
    rows = [row for row in read_scores(run.path / "compare" / "scores.parquet") if row.edit == "gold"]
    values = {(row.method, row.metric): row.value for row in rows}
    assert values["nothing", "progress"] == 0 and values["restage", "progress"] == pytest.approx(1, abs=1e-3)
    assert values["replace_once", "progress"] == pytest.approx(0.5, abs=0.02)
    assert [values[method, "no_op"] for method in ("nothing", "restage", "idu")] == [1, 0, 0]
    assert [values[method, "wrong_way"] for method in ("nothing", "restage", "idu")] == [0, 0, 1]
    names, held_out = [Path(name).name for name in capture.file_names], [2, 3]
    masks = torch.stack([read_mask(scene / "truth" / "gold" / "masks" / names[view]) for view in held_out]) > 0.5
    truth = torch.stack([read_image(scene / "truth" / "gold" / "images" / names[view]) for view in held_out])
    source, render = quantize(photographs.images[held_out]), quantize(unedited[held_out])
    off, change = ((render - source).abs().mean(dim=1), (truth - source).abs().mean(dim=1))
    by_view = [float(off[view][masks[view]].mean() / change[view][masks[view]].mean()) for view in range(2)]
    assert values["nothing", "fit_error"] == pytest.approx(sum(by_view) / 2, abs=1e-4)
    assert values["restage", "fit_error"] == values["nothing", "fit_error"]
    assert sum(by_view) / 2 > 0.5
    assert abs(progress(render, source, truth, masks.float()).mean) > 0.01, "the error of the fit would be in it"


def test_exact_truth_is_measured_between_the_true_views_and_the_error_of_the_fit_is_told(run):
    scores = scores_of(run, "nothing")
    assert scores["fit_error"].value == pytest.approx(0, abs=1e-3)
    scene = run.path / "scenes" / "ball"
    write_splats(replace(one_ball(), sh=0.5 * torch.ones(1, 1, 3)), scene / "splats.ply")
    (run.path / "compare" / "stage.json").unlink()
    scores = scores_of(run, "nothing")
    assert scores["fit_error"].value > 0.1
    assert scores["progress"].value == pytest.approx(0, abs=1e-3), (
        "the result shows the true source, whatever was fitted"
    )
