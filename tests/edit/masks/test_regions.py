import math

import pytest
import torch

from restage.edit.editors import EditorSource, ViewBatch, open_editor
from restage.edit.editors.grade import write_grade_truth
from restage.records import EditRequest, InputError
from restage.regions.masks import (
    box_masks,
    grow_region,
    in_box,
    keep_largest,
    lift_boxes,
    measure_region,
    render_masks,
    shrink_region,
)
from restage.scenes.cameras import project_points
from tests.edit.conftest import TinyScene

GREEN = EditRequest(instruction="make the ball green", source_caption="", target_caption="")


def boxes_around(scene: TinyScene, views: list[int]) -> torch.Tensor:
    """Boxes as a user would draw them around the ball, from its centres."""
    drawn = []
    for view in views:
        pixels = project_points(scene.splats.means[scene.is_ball], scene.capture.cameras[view]).pixels
        drawn.append(torch.cat([pixels.amin(dim=0) - 3, pixels.amax(dim=0) + 3]))
    return torch.stack(drawn)


def test_a_drawn_box_holds_the_pixels_whose_centres_it_holds():
    mask = box_masks(torch.tensor([[1.0, 2.0, 3.0, 3.5]]), 5, 4)[0]
    assert mask.nonzero().tolist() == [[2, 1], [2, 2]]
    with pytest.raises(InputError, match="left, top, right, bottom"):
        box_masks(torch.tensor([[3.0, 2.0, 1.0, 3.0]]), 5, 4)


def test_boxes_from_all_sides_hold_the_ball_and_leave_most_of_the_ground_out(tiny_scene):
    views = [0, 1, 3, 4, 5, 7]
    cameras = tiny_scene.capture.cameras[views]
    region = lift_boxes(tiny_scene.splats, cameras, boxes_around(tiny_scene, views))
    assert region[tiny_scene.is_ball].mean() > 0.9
    far = (tiny_scene.splats.means[:, :2].norm(dim=1) > 0.6) & ~tiny_scene.is_ball
    assert region[far].mean() < 0.1
    score = measure_region(tiny_scene.splats, tiny_scene.capture.cameras, region, tiny_scene.truth_masks)
    assert score.precision > 0.9 and score.recall > 0.6  # masks of truth hold the faint rim of splats, too


def test_a_box_in_space_holds_the_centres_inside(tiny_scene):
    region = in_box(tiny_scene.splats, torch.tensor([-0.4, -0.4, 0.02]), torch.tensor([0.4, 0.4, 1.0]))
    assert torch.equal(region.bool(), tiny_scene.is_ball)


def test_growing_and_shrinking_go_by_distance_and_undo_each_other_on_a_ball(tiny_scene):
    ball = tiny_scene.is_ball.float()
    grown = grow_region(tiny_scene.splats, ball, 0.2)
    assert grown.sum() > ball.sum() and bool((grown >= ball).all())
    assert torch.equal(grow_region(tiny_scene.splats, ball, 0.0), ball)
    assert shrink_region(tiny_scene.splats, grown, 0.15).sum() < grown.sum()
    assert shrink_region(tiny_scene.splats, torch.ones(200), 1.0).sum() == 200
    assert grow_region(tiny_scene.splats, torch.zeros(200), 1.0).sum() == 0
    with pytest.raises(InputError, match="distance"):
        grow_region(tiny_scene.splats, ball, -1.0)


def test_of_several_pieces_the_one_with_most_splats_is_kept(tiny_scene):
    splats = tiny_scene.splats.clone()
    splats.means[:10] += torch.tensor([20.0, 0.0, 0.0])
    region = tiny_scene.is_ball.float()
    kept = keep_largest(splats, region)
    assert kept[:10].sum() == 0 and kept[10:80].sum() > 60 and kept[80:].sum() == 0
    assert keep_largest(splats, torch.zeros(200)).sum() == 0


def test_a_region_rendered_back_is_measured_against_masks(tiny_scene):
    splats, cameras = tiny_scene.splats, tiny_scene.capture.cameras
    score = measure_region(splats, cameras, tiny_scene.is_ball.float(), tiny_scene.truth_masks)
    assert score.iou > 0.6 and score.precision > 0.9
    itself = render_masks(splats, cameras, tiny_scene.is_ball.float())
    assert measure_region(splats, cameras, tiny_scene.is_ball.float(), itself).iou == 1
    none = measure_region(splats, cameras, torch.zeros(200), tiny_scene.truth_masks)
    assert none.iou == 0 and none.recall == 0 and math.isnan(none.precision)


def test_graded_photographs_are_the_truth_that_both_editors_hand_out(tiny_scene, tmp_path):
    folder = tmp_path / "scenes" / "tiny" / "truth" / "green"
    case = write_grade_truth(folder, tiny_scene.capture, GREEN, tiny_scene.truth_masks)
    assert (case.scene, case.kind, case.has_truth) == ("tiny", "grade", True)
    source = EditorSource(file_names=tiny_scene.capture.file_names, truth=folder)
    originals = tiny_scene.capture.images[[2, 5]]
    batch = ViewBatch(originals, originals, request=GREEN, view_indices=(2, 5), noise_level=0.5, seed=0)
    exact, grade = (open_editor(name, source).edit(batch) for name in ("exact", "grade"))
    assert (exact.images - grade.images).abs().max() <= 0.5 / 255 + 1e-6
    assert exact.masks[tiny_scene.truth_masks[[2, 5]] == 0].max() == 0
    assert exact.masks.mean() > 0.8 * tiny_scene.truth_masks[[2, 5]].mean()
    with pytest.raises(InputError, match="expected regions of shape"):
        write_grade_truth(folder, tiny_scene.capture, GREEN, tiny_scene.truth_masks[:2])
