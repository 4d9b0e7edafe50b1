from __future__ import annotations

import numpy as np
import pytest
import torch

from restage.scenes.cameras import project_points
from restage.world.capture import (
    MIN_COVERAGE,
    MIN_SHOWN_SHARE,
    PROBE_SIZE,
    change_mask,
    make_capture,
    make_truth,
    ring_cameras,
    sample_camera,
)
from restage.world.grammar import Edit, sample_description, sample_edit
from restage.world.render import GROUND_ID, SKY_ID, count_object_pixels, render_view


def test_no_object_hides_from_a_sampled_camera() -> None:
    for seed in range(60):
        description = sample_description(seed, num_objects=2 + seed % 2)
        probe = sample_camera(description, seed).to_size(PROBE_SIZE, PROBE_SIZE)
        counts = count_object_pixels(description, probe)
        assert (counts[:, 0] >= MIN_SHOWN_SHARE * counts[:, 1]).all(), seed
        assert (counts[:, 0] >= MIN_COVERAGE * PROBE_SIZE**2).all(), seed


def test_size_of_the_picture_does_not_change_the_sampled_camera() -> None:
    description = sample_description(3, num_objects=3)
    small, large = sample_camera(description, 3, size=32), sample_camera(description, 3, size=128)
    assert torch.equal(small.camera_to_world, large.camera_to_world)


def test_ring_cameras_go_around_and_see_every_object() -> None:
    description = sample_description(5, num_objects=3)
    cameras = ring_cameras(description, 8, seed=1)
    angles = torch.atan2(cameras.positions[:, 1], cameras.positions[:, 0])
    steps = (angles.diff() + 2 * torch.pi) % (2 * torch.pi)
    torch.testing.assert_close(steps, torch.full((7,), torch.pi / 4), atol=1e-4, rtol=0)
    for item in description.objects:
        point = torch.tensor([[item.x, item.y, 0.4]])
        for index in range(8):
            projected = project_points(point, cameras[index])
            assert projected.depths[0] > 0 and (projected.pixels > 0).all() and (projected.pixels < 128).all()


def test_a_capture_holds_out_views_and_its_points_lie_on_surfaces_of_their_color() -> None:
    description = sample_description(2)
    capture = make_capture(description, name="two", seed=0, num_views=10, size=48, num_points=800)
    assert capture.held_out_indices == (2, 7) and len(capture.train_indices) == 8
    assert len(set(capture.file_names)) == 10
    assert capture.points.shape == capture.point_colors.shape == (800, 3)
    view = render_view(description, capture.cameras[2])
    projected = project_points(capture.points, capture.cameras[2])
    u, v = projected.pixels.floor().long().clamp(0, 47).T.numpy()
    inside = ((projected.pixels > 0) & (projected.pixels < 48)).all(1).numpy() & (projected.depths.numpy() > 0)
    visible = inside & (np.abs(view.depth[v, u] - projected.depths.numpy()) < 0.05)
    assert visible.sum() > 100
    difference = np.abs(view.image[:, v, u].T - capture.point_colors.numpy()).max(1)[visible]
    assert np.median(difference) < 0.03


def test_a_capture_is_the_same_again_and_another_with_another_seed() -> None:
    description = sample_description(4)
    first, again, other = (
        make_capture(description, name="four", seed=seed, num_views=5, size=24, num_points=100) for seed in (0, 0, 1)
    )
    assert torch.equal(first.images, again.images) and torch.equal(first.points, again.points)
    assert not torch.equal(first.images, other.images)


def test_nothing_changed_is_an_empty_mask_and_the_same_picture() -> None:
    description = sample_description(1)
    cameras = ring_cameras(description, 2, seed=0, size=32)
    edit = Edit(kind="recolour", instruction="leave it", before=description, after=description)
    truth = make_truth(edit, cameras)
    assert not truth.masks.any()
    assert np.array_equal(truth.images[1].numpy(), render_view(description, cameras[1]).image)


def test_the_mask_of_a_recolour_covers_the_object_and_nothing_far_from_it() -> None:
    for seed in range(6):
        description = sample_description(seed, num_objects=2)
        edit = sample_edit(description, seed, kind="recolour")
        index = next(i for i, o in enumerate(edit.after.objects) if o != edit.before.objects[i])
        camera = sample_camera(description, seed, size=64)
        mask = make_truth(edit, camera).masks[0].numpy() > 0
        is_object = render_view(description, camera).object_ids == 2 + index
        v, u = np.nonzero(is_object)
        box = np.zeros_like(mask)
        box[max(v.min() - 2, 0) : v.max() + 3, max(u.min() - 2, 0) : u.max() + 3] = True
        assert not (mask & ~box).any()
        assert (mask & is_object).sum() > 0.15 * is_object.sum()
        near = is_object.copy()
        for axis in (0, 1):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
        assert not (mask & ~near).any()


def test_the_mask_of_a_ground_edit_covers_ground_and_no_sky() -> None:
    description = sample_description(0, num_objects=1)
    edit = sample_edit(description, 0, kind="ground")
    camera = sample_camera(description, 0, size=64)
    mask = make_truth(edit, camera).masks[0].numpy() > 0
    ids = render_view(description, camera).object_ids
    assert mask[ids == GROUND_ID].mean() > 0.6
    assert mask[ids == SKY_ID].mean() < 0.05


def test_the_mask_of_a_removed_object_holds_its_shadow_too() -> None:
    description = sample_description(8, num_objects=2)
    edit = sample_edit(description, 8, kind="remove")
    camera = sample_camera(description, 8, size=64)
    mask = make_truth(edit, camera).masks[0].numpy() > 0
    ids = render_view(description, camera).object_ids
    gone = next(i for i, o in enumerate(description.objects) if o not in edit.after.objects)
    assert mask[ids == 2 + gone].mean() > 0.95
    assert (mask & (ids == GROUND_ID)).sum() > 20


@pytest.mark.parametrize(("amount", "expected"), [(2.5 / 255, 0.0), (4 / 255, 1.0)])
def test_a_change_counts_from_more_than_rounding_on(amount: float, expected: float) -> None:
    before = np.full((3, 2, 2), 0.5, np.float32)
    after = before.copy()
    after[1, 0, 1] += amount
    assert change_mask(before, after).tolist() == [[0.0, expected], [0.0, 0.0]]
