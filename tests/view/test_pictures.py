import math

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from restage.edit.methods import Idu, Restage
from restage.records import InputError
from restage.scenes.fit import render_views
from restage.scenes.io.images import to_uint8
from restage.scores.overlays import FOUND_RGB
from restage.view.controls import field_hints, parse_numbers
from restage.view.pictures import (
    camera_at,
    letterbox,
    nearest_view,
    path_cameras,
    render_clip,
    render_difference,
    render_mask,
    splat_arrays,
    standing_at,
    vertical_fov_rad,
    view_camera,
    view_picture,
)
from restage.view.scene import load_scene


@pytest.fixture
def scene(run_folder):
    return load_scene("tiny", run_folder / "scenes" / "tiny")


def browser_camera(cameras, index, height=32, turn_rad=0.0):
    """What a browser reports that stands at a view."""
    matrix = cameras.camera_to_world[index].double().numpy()
    rotation = Rotation.from_matrix(matrix[:3, :3]) * Rotation.from_euler("y", turn_rad)
    return camera_at(
        rotation.as_quat(scalar_first=True).tolist(),
        matrix[:3, 3].tolist(),
        fov_rad=vertical_fov_rad(cameras, index),
        aspect=cameras.width / cameras.height,
        height=height,
    )


def test_a_browser_at_a_view_sees_what_the_view_sees(scene):
    camera = browser_camera(scene.capture.cameras, 3)
    seen, expected = render_views(scene.splats, camera), render_views(scene.splats, scene.capture.cameras[3])
    assert float((seen - expected).abs().max()) < 1e-3


def test_covariances_are_the_squared_scales_along_the_turned_axes(scene):
    splats = scene.splats[:5]
    splats.log_scales = torch.log(torch.tensor([[0.1, 0.2, 0.3]])).expand(5, 3).contiguous()
    splats.rotations = torch.tensor([[math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]]).expand(5, 4).contiguous()
    arrays = splat_arrays(splats)  # a quarter turn around z swaps x and y
    assert np.allclose(arrays.covariances, np.diag([0.04, 0.01, 0.09]), atol=1e-6)
    assert arrays.rgbs.min() >= 0 and arrays.opacities.shape == (5, 1)


def test_a_window_of_any_shape_shows_all_of_a_view(scene):
    cameras, own_rad = scene.capture.cameras, vertical_fov_rad(scene.capture.cameras, 0)
    assert view_camera(cameras, 0, aspect=2.0) == pytest.approx(own_rad)
    narrow_rad = view_camera(cameras, 0, aspect=0.5)
    assert math.tan(narrow_rad / 2) * 0.5 == pytest.approx(math.tan(own_rad / 2))


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_letterboxes_keep_the_picture_whole_and_in_the_middle(aspect):
    full = letterbox(np.full((20, 20, 3), 9, np.uint8), aspect)
    assert full.shape[1] / full.shape[0] == pytest.approx(aspect) and int((full > 0).sum()) == 20 * 20 * 3
    assert (full[::-1, ::-1] == full).all()


def test_the_nearest_view_is_where_the_camera_stands(scene):
    cameras = scene.capture.cameras
    for index in range(len(cameras)):
        assert nearest_view(cameras, browser_camera(cameras, index)) == index
        assert standing_at(cameras, browser_camera(cameras, index)) == index
    assert standing_at(cameras, browser_camera(cameras, 2, turn_rad=0.1)) is None


def test_the_difference_is_black_where_nothing_changes_and_bright_where_colours_move(scene, tiny_scene):
    camera = scene.capture.cameras[0]
    assert render_difference(scene.splats, scene.splats, camera).max() <= 4
    changed = render_difference(scene.splats, tiny_scene.recolored, camera)
    mask = tiny_scene.truth_masks[0].numpy() > 0
    assert changed[mask].mean() > 40 and changed[~mask].mean() < 10


def test_at_a_view_the_mask_is_compared_with_the_truth(scene, tiny_scene):
    camera = scene.capture.cameras[0]
    alone = render_mask(scene, tiny_scene.recolored, camera)
    compared = render_mask(scene, tiny_scene.recolored, camera, case="blue")
    nothing_done = render_mask(scene, scene.splats, camera, case="blue")
    assert alone.shape == compared.shape == (32, 32, 3)
    inside = tiny_scene.truth_masks[0].numpy() > 0
    green = np.array(FOUND_RGB) - 60
    assert (compared[inside][:, 1] > green[1]).mean() > 0.8
    assert (nothing_done[inside][:, 2] > nothing_done[inside][:, 1]).mean() > 0.9


def test_pictures_of_views_are_photograph_and_truth(scene, tiny_scene):
    assert (view_picture(scene, 1) == to_uint8(tiny_scene.capture.images[1])).all()
    assert (view_picture(scene, 1, "blue") == to_uint8(tiny_scene.truth_images[1])).all()


def test_the_training_path_goes_from_the_first_to_the_last_training_camera(scene):
    path, train = path_cameras(scene, "training cameras", num_frames=31), scene.capture.train_indices
    ends = scene.capture.cameras[[train[0], train[-1]]].camera_to_world
    assert torch.allclose(path.camera_to_world[[0, -1]], ends, atol=1e-5)
    assert len(path) == 31 and path.width % 2 == 0


def test_splats_without_cameras_have_an_orbit_that_sees_them(run_folder):
    scene = load_scene("splats", run_folder / "scenes" / "tiny" / "splats.ply")
    frames = render_views(scene.splats, path_cameras(scene, "orbit", num_frames=4))
    assert all(float(frame.max()) > 0.2 for frame in frames)
    with pytest.raises(InputError, match="no training views to follow"):
        path_cameras(scene, "training cameras", num_frames=4)


@pytest.mark.parametrize(("num_frames", "kind"), [(1, "orbit"), (1000, "orbit"), (4, "spiral")])
def test_absurd_paths_are_refused(scene, num_frames, kind):
    with pytest.raises(InputError):
        path_cameras(scene, kind, num_frames=num_frames)


def test_a_clip_has_a_frame_for_each_camera(scene, tmp_path):
    path = tmp_path / "clip.mp4"
    cameras = path_cameras(scene, "orbit", num_frames=6)
    steps = list(render_clip(scene.splats, cameras, path))
    assert steps[-1].done == steps[-1].total == 7
    assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == 6


def test_settings_are_explained_by_the_docstrings_of_their_fields():
    hints = field_hints(Restage)
    assert hints["num_key_views"].startswith("Views that are edited")
    assert "lowest_noise" not in field_hints(Idu)
    assert parse_numbers("noise_levels", "1, 0.5,") == (1.0, 0.5)
    with pytest.raises(InputError, match="noise_levels: expected numbers"):
        parse_numbers("noise_levels", "1, high")
