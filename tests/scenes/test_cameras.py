"""Cameras: transforms invert, projection and depth meet, bad values are refused."""

import math

import pytest
import torch

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at, orbit, project_points, unproject_depth


def some_cameras(count: int = 5) -> Cameras:
    return Cameras(orbit(count, 3.0, height=2.0), intrinsics_from_fov(0.9, 64, 48).expand(count, 3, 3), 64, 48)


def test_world_to_camera_inverts_camera_to_world():
    cameras = some_cameras()
    torch.testing.assert_close(cameras.world_to_camera @ cameras.camera_to_world, torch.eye(4).expand(5, 4, 4))


def test_the_target_lands_in_the_middle_at_its_distance_and_up_is_up():
    cameras = some_cameras()[2]
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.3]])
    projected = project_points(points, cameras)
    torch.testing.assert_close(projected.pixels[0], torch.tensor([32.0, 24.0]), atol=1e-4, rtol=0)
    assert float(projected.depths[0]) == pytest.approx(math.hypot(3, 2), rel=1e-5)
    assert float(projected.pixels[1, 1]) < 23


def test_unprojected_depth_projects_back_onto_pixel_centers():
    cameras = some_cameras()[1]
    depth = torch.rand(48, 64, generator=torch.Generator().manual_seed(0)) + 1
    projected = project_points(unproject_depth(depth, cameras).reshape(-1, 3), cameras)
    torch.testing.assert_close(projected.depths.reshape(48, 64), depth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(projected.pixels[0], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(projected.pixels[-1], torch.tensor([63.5, 47.5]), atol=1e-3, rtol=0)


def test_another_size_sees_the_same():
    cameras = some_cameras()
    points = torch.tensor([[0.3, -0.2, 0.4]])
    small = project_points(points, cameras.to_size(32, 12)[0]).pixels
    torch.testing.assert_close(small * torch.tensor([2.0, 4.0]), project_points(points, cameras[0]).pixels)


def test_picking_by_index_slice_and_list_agree():
    cameras = some_cameras()
    assert torch.equal(cameras[3].camera_to_world, cameras[3:4].camera_to_world)
    assert torch.equal(cameras[[4, 0]].camera_to_world[1], cameras[0].camera_to_world[0])
    assert len(cameras[-1]) == 1
    with pytest.raises(IndexError):
        cameras[5]


def test_an_orbit_keeps_its_distance_and_closes():
    poses = orbit(8, 2.0, height=1.0, target=torch.tensor([1.0, 2.0, 0.5]))
    offsets = poses[:, :2, 3] - torch.tensor([1.0, 2.0])
    torch.testing.assert_close(offsets.norm(dim=1), torch.full((8,), 2.0))
    torch.testing.assert_close(offsets[0], -offsets[4], atol=1e-5, rtol=0)


def test_bad_cameras_are_refused_in_one_line():
    cameras = some_cameras(2)
    broken = cameras.camera_to_world.clone()
    broken[0, 0, 3] = math.nan
    with pytest.raises(InputError, match="finite") as error:
        Cameras(broken, cameras.intrinsics, 64, 48)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="image size"):
        Cameras(cameras.camera_to_world, cameras.intrinsics, 0, 48)
    with pytest.raises(InputError, match="focal"):
        Cameras(cameras.camera_to_world, torch.zeros(2, 3, 3), 64, 48)
    with pytest.raises(InputError, match="direction"):
        look_at(torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(InputError, match="field of view"):
        intrinsics_from_fov(4.0, 10, 10)
