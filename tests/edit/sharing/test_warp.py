import math

import pytest
import torch

from restage.edit.methods.depth_fusion import DepthFusion, agreement, blend_views, nearest_views
from restage.edit.sharing import DepthMaps, render_depths, warp
from restage.records import InputError
from restage.world.capture import make_capture
from restage.world.grammar import sample_description
from restage.world.render import render_view


@pytest.fixture(scope="module")
def world():
    """A capture with its true depths."""
    description = sample_description(3, num_objects=1)
    capture = make_capture(description, name="world", seed=0, num_views=16, size=48, num_points=0)
    depths = [torch.from_numpy(render_view(description, capture.cameras[index]).depth) for index in range(16)]
    return capture, DepthMaps(capture.cameras, torch.stack(depths))


def test_a_view_carried_by_true_depth_is_the_other_view_where_both_see(world):
    capture, maps = world
    carried = warp(capture.images[1], maps, source=1, target=0)
    seen = carried.visible > 0
    error = (carried.image - capture.images[0]).abs().mean(dim=0)
    plain = (capture.images[1] - capture.images[0]).abs().mean(dim=0)
    assert 0.3 < seen.float().mean() < 1
    assert error[seen].mean() < 0.35 * plain[seen].mean()
    assert error[seen].median() < 0.02


def test_a_view_carried_into_itself_stays_as_it_is(world):
    capture, maps = world
    carried = warp(capture.images[2], maps, source=2, target=2)
    assert torch.allclose(carried.image * carried.visible, capture.images[2] * carried.visible, atol=1e-4)
    assert torch.equal(carried.visible, torch.isfinite(maps.depths[2]).float())


def test_what_the_source_cannot_see_is_not_visible(world):
    capture, maps = world
    opposite = warp(capture.images[8], maps, source=8, target=0)
    assert opposite.visible.mean() < warp(capture.images[1], maps, source=1, target=0).visible.mean()


def test_rendered_depth_is_that_of_the_splats(tiny_scene):
    maps = render_depths(tiny_scene.splats, tiny_scene.capture.cameras)
    center = maps.depths[0, 14:18, 14:18]
    distance = float((tiny_scene.capture.cameras.positions[0] - torch.tensor([0.0, 0.0, 0.4])).norm())
    assert distance - 0.6 < float(center.mean()) < distance
    assert math.isinf(float(maps.depths[0, 0, 0]))


def test_the_view_that_was_edited_otherwise_agrees_least(world):
    capture, maps = world
    images = capture.images.clone()
    images[5] = (images[5] + 0.4).clamp(0, 1)
    errors = agreement(images, maps, nearest_views(capture.cameras, 4), tolerance=0.03)
    assert max(range(16), key=errors.__getitem__) == 5


def test_a_blend_of_disagreeing_views_is_nearer_to_what_they_agree_on(world):
    capture, maps = world
    shifts = torch.linspace(-0.2, 0.2, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    images = capture.images + shifts[:, None, None, None]
    near = nearest_views(capture.cameras, 5)
    blended = torch.stack([blend_views(images, maps, view, near[view], tolerance=0.03) for view in range(16)])
    assert (blended - capture.images).abs().mean() < 0.7 * (images - capture.images).abs().mean()


def test_nearest_views_begin_with_the_view_itself_or_the_nearest_allowed(world):
    cameras = world[0].cameras
    assert nearest_views(cameras, 1) == [[index] for index in range(16)]
    assert nearest_views(cameras, 2, among=[0, 8])[1] == [0, 8]


def test_settings_of_depth_fusion_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="kept_share"):
        DepthFusion(kept_share=0.0)
