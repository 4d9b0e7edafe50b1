from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at, project_points, unproject_depth
from restage.world.capture import sample_camera
from restage.world.grammar import GROUNDS, KINDS, TIMES, Description, SceneObject, sample_description
from restage.world.render import DOME_RADIUS, GROUND_ID, SKY_ID, count_object_pixels, render_view

BALL = SceneObject(kind="ball", color="red")


def scene_of(*objects: SceneObject, ground: str = "sand", time: str = "noon") -> Description:
    return Description(objects=objects, ground=ground, time=time)


def camera_at(eye: tuple[float, float, float], target: tuple[float, float, float], size: int = 64) -> Cameras:
    intrinsics = intrinsics_from_fov(math.radians(46), size, size)
    return Cameras(look_at(torch.tensor(eye), torch.tensor(target))[None], intrinsics[None], size, size)


def rays_of(camera: Cameras) -> torch.Tensor:
    """Directions "h w 3" through the pixel centres, z = 1 in the camera frame."""
    ones = torch.ones(camera.height, camera.width, dtype=torch.float64)
    points = unproject_depth(ones.float(), camera).double()
    return points - camera.positions[0].double()


def test_same_seed_gives_same_picture_in_another_process() -> None:
    code = (
        "import hashlib\n"
        "from restage.world.capture import sample_camera\n"
        "from restage.world.grammar import sample_description\n"
        "from restage.world.render import render_view\n"
        "for s in range(4):\n"
        "    d = sample_description(s)\n"
        "    view = render_view(d, sample_camera(d, s, size=48))\n"
        "    print(hashlib.sha256(b''.join(part.tobytes() for part in view)).hexdigest())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    expected = []
    for seed in range(4):
        description = sample_description(seed)
        view = render_view(description, sample_camera(description, seed, size=48))
        expected.append(hashlib.sha256(b"".join(part.tobytes() for part in view)).hexdigest())
    assert told.stdout.split() == expected


def test_images_are_in_range_and_every_depth_is_finite() -> None:
    for seed in range(12):
        description = sample_description(seed)
        camera = sample_camera(description, seed, size=32)
        view = render_view(description, camera)
        assert view.image.shape == (3, 32, 32) and view.image.dtype == np.float32
        assert 0 <= view.image.min() and view.image.max() <= 1
        assert np.isfinite(view.depth).all() and view.depth.min() > 0.3
        assert set(np.unique(view.object_ids)) <= {0, 1, *range(2, 2 + len(description.objects))}


def test_depth_of_a_ball_agrees_with_the_closed_form() -> None:
    camera = camera_at((3.0, 0.4, 0.9), (0.0, 0.0, 0.5))
    view = render_view(scene_of(BALL), camera)
    directions, eye = rays_of(camera), camera.positions[0].double() - torch.tensor([0, 0, 0.5], dtype=torch.float64)
    a, b = (directions**2).sum(-1), (directions * eye).sum(-1)
    discriminant = b**2 - a * (eye @ eye - 0.25)
    depth = ((-b - discriminant.clamp(min=0).sqrt()) / a).numpy()
    is_ball = view.object_ids == 2
    clear = (discriminant.abs() > 1e-3).numpy()
    assert ((discriminant > 0).numpy() == is_ball)[clear].all()
    assert is_ball.sum() > 200
    np.testing.assert_allclose(view.depth[is_ball & clear], depth[is_ball & clear], rtol=1e-5)


def test_depth_of_ground_and_sky_agrees_with_plane_and_dome() -> None:
    camera = camera_at((2.5, -1.0, 1.4), (0.0, 0.0, 0.5))
    view = render_view(scene_of(BALL), camera)
    points = unproject_depth(torch.from_numpy(view.depth), camera).numpy()
    is_ground, is_sky = view.object_ids == GROUND_ID, view.object_ids == SKY_ID
    assert is_ground.sum() > 500 and is_sky.sum() > 500
    assert np.abs(points[is_ground][:, 2]).max() < 1e-4
    assert np.linalg.norm(points[is_ground], axis=1).max() < DOME_RADIUS + 1e-3
    np.testing.assert_allclose(np.linalg.norm(points[is_sky], axis=1), DOME_RADIUS, rtol=1e-5)
    assert points[is_sky][:, 2].min() > -1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_on_the_ground_and_keeps_to_its_circle(kind: str) -> None:
    for size in ("small", "", "big"):
        item = SceneObject(kind=kind, color="blue", size=size, yaw_rad=0.7)
        reach = {"house": 0.626, "cube": 0.567}.get(kind, 0.501) * item.scale
        lowest, highest = math.inf, 0.0
        for angle in (0.0, 2.1, 4.2):
            camera = camera_at((4 * math.cos(angle), 4 * math.sin(angle), 0.4), (0.0, 0.0, 0.6))
            view = render_view(scene_of(item), camera)
            points = unproject_depth(torch.from_numpy(view.depth), camera).numpy()[view.object_ids == 2]
            lowest, highest = min(lowest, points[:, 2].min()), max(highest, points[:, 2].max())
            assert np.hypot(points[:, 0], points[:, 1]).max() < reach
        assert -1e-3 <= lowest < 0.08
        assert 0.7 * item.scale < highest < 1.6 * item.scale


def test_ids_follow_the_order_of_the_description() -> None:
    left, right = SceneObject(kind="cube", color="red", y=-0.9), SceneObject(kind="cone", color="blue", y=0.9)
    camera = camera_at((4.0, 0.0, 1.0), (0.0, 0.0, 0.4))
    pixels = project_points(torch.tensor([[0.0, -0.9, 0.4], [0.0, 0.9, 0.4]]), camera).pixels.long()
    for objects in ((left, right), (right, left)):
        ids = render_view(scene_of(*objects), camera).object_ids
        assert [ids[v, u] for u, v in pixels.tolist()] == [2 + objects.index(left), 2 + objects.index(right)]


@pytest.mark.parametrize("kind", KINDS)
def test_turning_scene_and_camera_together_changes_no_depth(kind: str) -> None:
    turn = 1.1
    item = SceneObject(kind=kind, color="blue", yaw_rad=0.3)
    turned = SceneObject(kind=kind, color="blue", yaw_rad=0.3 + turn)
    first = render_view(scene_of(item), camera_at((3.0, 0.0, 1.5), (0.0, 0.0, 0.5)))
    eye = (3.0 * math.cos(turn), 3.0 * math.sin(turn), 1.5)
    second = render_view(scene_of(turned), camera_at(eye, (0.0, 0.0, 0.5)))
    assert (first.object_ids != second.object_ids).mean() < 2e-3
    same = (first.object_ids == 2) & (second.object_ids == 2)
    assert np.quantile(np.abs(first.depth - second.depth)[same], 0.98) < 1e-3


@pytest.mark.parametrize("time", TIMES)
def test_a_point_has_the_same_color_from_two_cameras(time: str) -> None:
    description = scene_of(
        SceneObject(kind="snowman", color="green", x=-0.6, yaw_rad=0.4),
        SceneObject(kind="cube", color="orange", x=0.6, yaw_rad=0.2),
        ground="snow",
        time=time,
    )
    first, second = camera_at((3.2, 0.3, 1.5), (0, 0, 0.5), 128), camera_at((3.0, 0.9, 1.2), (0, 0, 0.5), 128)
    views = render_view(description, first), render_view(description, second)
    points = unproject_depth(torch.from_numpy(views[0].depth), first).reshape(-1, 3)
    projected = project_points(points, second)
    u, v = projected.pixels.floor().long().T.numpy()
    inside = (u >= 0) & (u < 128) & (v >= 0) & (v < 128)
    u, v = u.clip(0, 127), v.clip(0, 127)
    visible = inside & (np.abs(views[1].depth[v, u] - projected.depths.numpy()) < 0.01)
    assert visible.mean() > 0.3
    difference = np.abs(views[0].image.reshape(3, -1) - views[1].image[:, v, u]).max(0)[visible]
    assert np.median(difference) < 0.01
    assert np.quantile(difference, 0.9) < 0.05


def test_an_object_throws_its_shadow_away_from_the_sun() -> None:
    camera = camera_at((0.0, -4.0, 2.5), (0.0, 0.0, 0.2))
    with_ball, without = scene_of(BALL, time="sunset"), scene_of(time="sunset")
    darker = render_view(without, camera).image.sum(0) - render_view(with_ball, camera).image.sum(0)
    toward_sun, away_from_sun = torch.tensor([[0.85, -0.25, 0.0]]), torch.tensor([[-0.85, 0.25, 0.0]])
    (u, v), (s, t) = (project_points(place, camera).pixels[0].long().tolist() for place in (toward_sun, away_from_sun))
    assert darker[t, s] > 0.3
    assert darker[v, u] < 0.1


def test_every_ground_and_every_time_looks_different() -> None:
    camera = camera_at((3.0, 0.0, 1.3), (0.0, 0.0, 0.4), 32)
    views = [render_view(scene_of(BALL, ground=ground), camera).image for ground in GROUNDS]
    views += [render_view(scene_of(BALL, time=time), camera).image for time in TIMES if time != "noon"]
    for index, image in enumerate(views):
        assert all(np.abs(image - other).mean() > 0.03 for other in views[:index])


def test_counted_pixels_tell_how_much_is_hidden() -> None:
    front, back = (
        SceneObject(kind="cube", color="red", x=1.0, size="big"),
        SceneObject(kind="ball", color="blue", x=-0.5),
    )
    camera = camera_at((5.0, 0.0, 0.6), (0.0, 0.0, 0.5))
    description = scene_of(front, back)
    counts = count_object_pixels(description, camera)
    ids = render_view(description, camera).object_ids
    assert counts[:, 0].tolist() == [(ids == 2).sum(), (ids == 3).sum()]
    alone = render_view(scene_of(back), camera).object_ids
    assert counts[1, 1] == (alone == 2).sum()
    assert counts[0, 0] == counts[0, 1] and counts[1, 0] < 0.2 * counts[1, 1]


def test_a_camera_below_the_ground_or_outside_the_dome_or_two_cameras_are_refused() -> None:
    for eye in ((3.0, 0.0, -0.5), (12.0, 0.0, 3.0)):
        with pytest.raises(InputError, match="camera"):
            render_view(scene_of(BALL), camera_at(eye, (0.0, 0.0, 0.5)))
    one = camera_at((3.0, 0.0, 1.0), (0.0, 0.0, 0.5))
    with pytest.raises(InputError, match="one camera"):
        render_view(scene_of(BALL), one[[0, 0]])
