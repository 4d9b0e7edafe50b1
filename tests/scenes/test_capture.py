"""A capture checks what it is made of; picking views keeps everything together."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from restage.records import InputError
from restage.scenes.cameras import Cameras, orbit, project_points
from restage.scenes.capture import Capture, turn_upright, upright_turn
from tests.scenes.tiny_captures import small_capture


def test_picking_views_picks_images_cameras_names_and_masks():
    masks = torch.rand(9, 16, 20, generator=torch.Generator().manual_seed(0))
    capture = Capture(**{**vars(small_capture()), "masks": masks})
    chosen = capture.select([4, 1])
    assert torch.equal(chosen.images, capture.images[[4, 1]])
    assert chosen.masks is not None
    assert torch.equal(chosen.masks, masks[[4, 1]])
    assert torch.equal(chosen.cameras.camera_to_world, capture.cameras.camera_to_world[[4, 1]])
    assert chosen.file_names == ("view_04.png", "view_01.png")
    assert (chosen.train_indices, chosen.held_out_indices) == ((0, 1), ())
    assert small_capture().select([0]).masks is None


def turned(capture: Capture, rotation: torch.Tensor) -> Capture:
    camera_to_world = capture.cameras.camera_to_world.double().clone()
    camera_to_world[:, :3] = rotation @ camera_to_world[:, :3]
    points = (capture.points.double() @ rotation.T).float()
    return replace(capture, cameras=replace(capture.cameras, camera_to_world=camera_to_world.float()), points=points)


def test_a_world_with_y_down_comes_upright_with_all_its_bits():
    y_down = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    capture = small_capture()
    found = turn_upright(turned(capture, y_down))
    assert torch.equal(found.cameras.camera_to_world, capture.cameras.camera_to_world)
    assert torch.equal(found.points, capture.points)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(vector=st.tuples(*(st.floats(-3, 3) for _ in range(3))))
def test_any_turned_world_comes_upright_and_every_view_stays_the_same(vector):
    rotation = torch.from_numpy(Rotation.from_rotvec(vector).as_matrix())
    capture = turned(small_capture(), rotation)
    found = turn_upright(capture)
    up = -found.cameras.camera_to_world[:, :3, 1].mean(dim=0)
    assert float(up[2] / up.norm()) > math.cos(math.radians(10.1))
    for index in (0, 5):
        before = project_points(capture.points, capture.cameras[index])
        after = project_points(found.points, found.cameras[index])
        torch.testing.assert_close(after.depths, before.depths, atol=1e-4, rtol=1e-4)


def test_half_a_circle_of_cameras_that_look_down_is_upright_already():
    """The mean of the images' own up leans over by 30 degrees here; the rows of the images do not."""
    poses = orbit(18, 2.0, height=2.5)[:6]
    mean_up = -poses[:, :3, 1].mean(dim=0)
    assert float(mean_up[2] / mean_up.norm()) < 0.9
    cameras = Cameras(poses, small_capture().cameras.intrinsics[:6], 20, 16)
    assert torch.equal(upright_turn(cameras), torch.eye(3, dtype=torch.float64))


def test_cameras_that_all_look_the_same_way_go_by_their_own_up():
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3.0)
    cameras = Cameras(poses, small_capture().cameras.intrinsics[:3], 20, 16)
    assert upright_turn(cameras).tolist() == [[1, 0, 0], [0, 0, 1], [0, -1, 0]]


def test_an_upright_capture_is_left_alone():
    capture = small_capture()
    assert turn_upright(capture) is capture


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"images": torch.zeros(9, 3, 20, 16)}, "images of shape"),
        ({"file_names": ("a.png",) * 9}, "different file names"),
        ({"train_indices": (0, 1), "held_out_indices": (1,)}, "disjoint"),
        ({"train_indices": (0, 9)}, "disjoint"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(values, expected):
    with pytest.raises(InputError, match=expected) as error:
        Capture(**{**vars(small_capture()), **values})
    assert "\n" not in str(error.value)
