import math

import pytest
import torch

from restage.compare.metrics import disagreement
from restage.diagnose.cases import camera_shift
from restage.scenes.cameras import Cameras
from restage.world.capture import ring_cameras
from restage.world.grammar import sample_description
from restage.world.render import render_view

NUM_VIEWS = 6


@pytest.fixture(scope="module")
def world():
    description = sample_description(3, num_objects=1)
    cameras = ring_cameras(description, NUM_VIEWS, seed=0, size=48)
    views = [render_view(description, cameras[index]) for index in range(NUM_VIEWS)]
    images = torch.stack([torch.from_numpy(view.image) for view in views])
    return images, torch.stack([torch.from_numpy(view.depth) for view in views]), cameras


def test_true_views_of_a_matte_world_agree(world):
    images, depths, cameras = world
    assert disagreement(images, depths, cameras) < 0.02


def test_views_that_were_recoloured_one_by_one_disagree_by_what_separates_them(world):
    images, depths, cameras = world
    shifted = images * 0.5 + 0.25 * torch.arange(NUM_VIEWS).remainder(2)[:, None, None, None]
    assert disagreement(shifted, depths, cameras) > 5 * disagreement(images, depths, cameras)


def test_pictures_with_shifted_cameras_disagree(world):
    images, depths, cameras = world
    poses = cameras.camera_to_world.clone()
    poses[::2, 2, 3] += 0.15
    moved = Cameras(poses, cameras.intrinsics, cameras.width, cameras.height)
    assert disagreement(images, depths, moved) > 1.5 * disagreement(images, depths, cameras)


def test_only_points_inside_the_regions_count(world):
    images, depths, cameras = world
    regions = torch.zeros(NUM_VIEWS, 48, 48)
    assert math.isnan(disagreement(images, depths, cameras, regions=regions))
    regions[:, 20:30, 20:30] = 1.0
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.where(regions[:, None] > 0, images, noise)
    assert disagreement(noisy, depths, cameras, regions=regions) < disagreement(noisy, depths, cameras)


def test_a_single_view_has_nothing_to_agree_with(world):
    images, depths, cameras = world
    assert math.isnan(disagreement(images[:1], depths[:1], cameras[0]))


def test_camera_shift_is_exact_for_small_angles_and_zero_for_equal_cameras(world):
    poses = world[2].camera_to_world
    angle = math.radians(0.5)
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = poses @ turn
    moved[:, 2, 3] += 0.1
    assert camera_shift(poses, poses) == (0.0, 0.0)
    assert camera_shift(poses, moved) == pytest.approx((0.1, 0.5), abs=1e-4)
    assert camera_shift(poses, poses[:3]) == (0.0, 0.0)
